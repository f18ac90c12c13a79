"""bigjax.data.store: splits, shards, resuming, damage."""

import io
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import bigjax
from bigjax.data import store as S
from bigjax.data.loader import TextBatches
from bigjax.data.text import Corpus
from bigjax.data.tokenizers.bytes import Bytes
from bigjax.errors import UserError

ROOT = str(pathlib.Path(bigjax.__file__).parents[1])
TEXTS = [f"document {i} " + "é" * (i % 7) for i in range(500)]


class Wide(Bytes):
    """Bytes with a vocabulary that needs uint32."""

    def __init__(self):
        super().__init__()
        self.pieces = self.pieces + [b""] * 70_000
        self.fingerprint = "wide"


def build(cache, texts=TEXTS, tokenizer=None, valid=0.1, test=0.1, content="content", log=print):
    return S.build_store(
        lambda counts: iter(texts),
        content,
        tokenizer or Bytes(),
        valid,
        test,
        str(cache),
        "mine",
        log,
    )


def documents_of(store, split):
    stream = store.split(split)
    tokens = stream.window(0, stream.n_tokens)
    cuts = np.flatnonzero(tokens == 256)
    documents = []
    for document in np.split(tokens, cuts[1:]):
        assert document[0] == 256 and document[-1] == 257
        documents.append(bytes(document[1:-1].tolist()).decode())
    return documents


class Others(Bytes):
    """The same ids for other pieces."""

    def __init__(self):
        super().__init__()
        self.fingerprint = "others"


class Without(Bytes):
    """Texts without bos, as of Qwen."""

    leading_ids = ()


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(S, "DOCUMENTS_PER_SHARD", 64)


def test_documents_of_a_tokenizer_without_bos(tmp_path):
    tokenizer, texts = Without(), ["ab", "", "c", "ab"]
    store = build(tmp_path, texts, tokenizer, 0, 0)
    stream = store.split("train")
    tokens, is_first = stream.windows(np.array([0]), stream.n_tokens)
    assert tokens[0].tolist() == [97, 98, 257, 257, 99, 257, 97, 98, 257]
    assert np.flatnonzero(is_first).tolist() == [0, 3, 4, 6] and stream.n_tokens == 9
    corpus = Corpus(tokenizer, {"mine": store}, {"mine": 1.0}, 8, TextBatches)
    batch = corpus.batches("train", batch_size=1, shuffle=False).batch_at(0)
    # The first token of another document is no target, and has the position 0.
    assert batch["weights"][0].tolist() == [1, 1, 0, 0, 1, 0, 1, 1]
    assert batch["positions"][0].tolist() == [0, 1, 2, 0, 0, 1, 0, 1] and batch["target_bytes"] == 2


def test_splits_are_disjoint_complete_and_counted(tmp_path):
    store = build(tmp_path)
    by_split = {split: documents_of(store, split) for split in S.SPLITS}
    assert sorted(sum(by_split.values(), [])) == sorted(TEXTS)
    for split, documents in by_split.items():
        stream = store.split(split)
        assert documents == [text for text in TEXTS if S.split_of(text, 0.1, 0.1) == split]
        assert stream.n_documents == len(documents) > 20
        assert stream.n_bytes == sum(len(text.encode()) for text in documents)
        assert stream.n_tokens == stream.n_bytes + 2 * len(documents)
    assert store.stats["documents"] == 500 and store.stats["bad_utf8"] == 0
    with pytest.raises(UserError, match="no split 'dev'; a store has train, valid, test"):
        store.split("dev")


def test_duplicates_share_a_split_and_fractions_hold(tmp_path):
    store = build(tmp_path, TEXTS * 3)
    for split in S.SPLITS:
        documents = documents_of(store, split)
        assert len(documents) == 3 * len(set(documents))
    many = [S.split_of(str(i), 0.01, 0.05) for i in range(20_000)]
    assert abs(many.count("valid") / 20_000 - 0.01) < 0.003
    assert abs(many.count("test") / 20_000 - 0.05) < 0.006


def test_windows_across_shards_and_first_tokens(tmp_path):
    stream = build(tmp_path).split("train")
    assert len(stream._tokens) == 8
    whole = stream.window(0, stream.n_tokens)
    starts = np.random.default_rng(0).integers(0, stream.n_tokens - 3000, 50)
    tokens, is_first = stream.windows(starts, 3000)  # each shard has about 900 tokens
    for row, start in enumerate(starts):
        np.testing.assert_array_equal(tokens[row], whole[start : start + 3000])
    np.testing.assert_array_equal(is_first, tokens == 256)
    assert tokens.dtype == np.int32 and stream.windows(starts, 0)[0].shape == (50, 0)
    for start, length in ((-1, 5), (stream.n_tokens - 4, 5), (stream.n_tokens, 1)):
        with pytest.raises(IndexError, match="leave the stream"):
            stream.window(start, length)


def test_uint16_and_uint32(tmp_path):
    narrow, wide = build(tmp_path), build(tmp_path, tokenizer=Wide())
    assert narrow.folder != wide.folder
    sizes = [(store.folder / "00000-train.tokens").stat().st_size for store in (narrow, wide)]
    assert sizes[1] == 2 * sizes[0]
    for split in S.SPLITS:
        assert documents_of(narrow, split) == documents_of(wide, split)


def test_second_time_reads_nothing(tmp_path):
    first = build(tmp_path)
    again = S.build_store(
        lambda counts: pytest.fail("read the source again"),
        "content",
        Bytes(),
        0.1,
        0.1,
        str(tmp_path),
    )
    assert again.folder == first.folder and again.stats == first.stats


def test_the_fingerprint_is_of_ids_and_not_of_how_they_are_kept(tmp_path, monkeypatch):
    def fingerprint(**change):
        store = build(tmp_path, **change)
        return Corpus(change.get("tokenizer", Bytes()), {"text": store}, {}, 8, None).fingerprint

    first = fingerprint()
    assert fingerprint(content="the same text in another file") == first
    assert fingerprint(content="others", texts=[*TEXTS[:-1], "z"]) != first
    assert fingerprint(content="order", texts=[*TEXTS[1:], TEXTS[0]]) != first
    assert fingerprint(valid=0.2) != first != fingerprint(tokenizer=Wide())
    assert fingerprint(tokenizer=Others()) != first
    # The same ids in two documents in place of one
    one, two = (fingerprint(content=f"{n}", texts=["a", "b"][:n], valid=0, test=0) for n in (1, 2))
    assert one != two
    monkeypatch.setattr(S, "_FORMAT", 99)
    assert fingerprint() == first


@pytest.mark.parametrize("change", [{"valid": 0.2}, {"content": "other"}, {"tokenizer": Wide()}])
def test_what_it_depends_on_is_in_the_key(tmp_path, change):
    assert build(tmp_path).key != build(tmp_path, **change).key


@pytest.mark.parametrize("valid, test", [(-0.1, 0.1), (0.6, 0.5), (float("nan"), 0), (0, 1.5)])
def test_fractions_are_checked(tmp_path, valid, test):
    with pytest.raises(UserError, match="data.valid_fraction=.* at most 1"):
        build(tmp_path, valid=valid, test=test)


def test_damage_names_the_folder_to_delete(tmp_path):
    store = build(tmp_path)
    path = store.folder / "00002-train.tokens"
    content = path.read_bytes()
    path.write_bytes(content[:-2])
    message = f"token store {store.folder} is damaged: 00002-train.tokens has .* Delete that folder"
    with pytest.raises(UserError, match=message):
        build(tmp_path)
    path.unlink()
    with pytest.raises(UserError, match="00002-train.tokens is missing"):
        build(tmp_path)
    path.write_bytes(content)
    build(tmp_path)
    (store.folder / "store.json").write_text("{")
    with pytest.raises(UserError, match="store.json cannot be read"):
        build(tmp_path)


def test_cache_dir_that_cannot_be(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot create the folder .*Set data.cache_dir"):
        build(tmp_path / "file")


BUILDER = """
import json, sys, time
from bigjax.data import store as S
from bigjax.data.loader import TextBatches
from bigjax.data.text import Corpus
from bigjax.data.tokenizers.bytes import Bytes
S.DOCUMENTS_PER_SHARD = 64
texts = json.load(open(sys.argv[2]))
class Slow(Bytes):
    def encode_batch(self, texts):
        print('shard', flush=True)
        time.sleep(float(sys.argv[3]))
        return super().encode_batch(texts)
S.build_store(lambda counts: iter(texts), 'content', Slow(), .1, .1, sys.argv[1])
print('done', flush=True)
"""


def start_builder(tmp_path, seconds):
    (tmp_path / "texts.json").write_text(json.dumps(TEXTS))
    command = [
        sys.executable,
        "-c",
        BUILDER,
        str(tmp_path),
        str(tmp_path / "texts.json"),
        str(seconds),
    ]
    return subprocess.Popen(
        command, env={**os.environ, "PYTHONPATH": ROOT}, text=True, stdout=subprocess.PIPE
    )


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "lock"}


def test_killed_build_goes_on_where_it_was(tmp_path):
    child = start_builder(tmp_path, 0.2)
    for _ in range(4):  # the fourth shard has begun: three are finished
        assert child.stdout.readline() == "shard\n"
    child.send_signal(signal.SIGKILL)
    child.wait()
    (folder,) = (tmp_path / "stores").iterdir()
    assert (folder / "00002.json").exists() and not (folder / "store.json").exists()
    (folder / "00001-train.tokens").write_bytes(b"short")  # one finished shard lost its bytes
    (folder / "x.1-2.tmp").write_text("left over")
    tokenized = []

    class Counting(Bytes):
        def encode_batch(self, texts):
            tokenized.append(texts[0])
            return super().encode_batch(texts)

    store = build(tmp_path, tokenizer=Counting())
    assert store.folder == folder
    assert tokenized == [TEXTS[64], *(TEXTS[i] for i in range(3 * 64, 500, 64))]
    assert contents(folder) == contents(build(tmp_path / "fresh").folder)


def test_two_builds_at_once(tmp_path):
    child = start_builder(tmp_path, 0.05)
    assert child.stdout.readline() == "shard\n"
    lines = []
    start = time.monotonic()
    store = build(tmp_path, log=lines.append)  # waits for the child
    assert time.monotonic() - start > 0.1 and "waiting" in lines[0]
    assert child.communicate()[0].endswith("done\n") and child.returncode == 0
    assert contents(store.folder) == contents(build(tmp_path / "fresh").folder)


def test_two_builds_at_once_without_locks(tmp_path, monkeypatch):
    monkeypatch.setattr(S, "_lock", lambda *args: False)
    child = start_builder(tmp_path, 0.02)
    assert child.stdout.readline() == "shard\n"
    store = build(tmp_path)
    assert child.communicate()[0].endswith("done\n") and child.returncode == 0
    assert contents(store.folder) == contents(build(tmp_path / "fresh").folder)
    assert sorted(sum((documents_of(store, split) for split in S.SPLITS), [])) == sorted(TEXTS)


def test_bad_utf8_count_is_kept(tmp_path):
    def documents(counts):
        yield "x"
        counts["bad_utf8"] = 7

    store = S.build_store(documents, "c", Bytes(), 0.1, 0.1, str(tmp_path))
    assert store.stats["bad_utf8"] == 7 == S.Store(store.folder).stats["bad_utf8"]


def test_progress_prints_few_lines(monkeypatch):
    from bigjax.data import progress

    lines, clock = [], iter([0.0, 10.0, 31.0, 32.0, 70.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with progress.Progress("tokenizing x", lines.append) as bar:
        for _ in range(4):
            bar.add(31_000_000)
    assert lines == [
        "tokenizing x: 62 MB of text, 2.0 MB/s",
        "tokenizing x: 124 MB of text, 1.8 MB/s",
    ]


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_on_a_terminal_is_one_live_line_that_goes(monkeypatch):
    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setenv("TERM", "xterm")
    with S.Progress("tokenizing x", pytest.fail) as bar:
        bar.add(31_000_000)
    assert "tokenizing x" in screen.getvalue() and "31.0 MB" in screen.getvalue()
