"""Span corruption: lengths, masks, batches and sentinels."""

from types import SimpleNamespace

import numpy as np
import pytest

from bigjax import tasks
from bigjax.data import spans, tokenizers
from bigjax.data.batches import Rows
from bigjax.data.spans import Options, SpanBatches, _Text, counts, hidden, sizes
from bigjax.data.tokenizers.sentencepiece import SentencePiece, train_sentencepiece
from bigjax.errors import UserError
from tests import helpers
from tests.conftest import WORDS

PUBLISHED = Options(0.15, 3.0, "published", True)
UNIFORM = Options(0.15, 3.0, "uniform", True)
BOS, EOS, PAD, FIRST = -1, 1, 0, 10_100  # FIRST: the first sentinel; the others are below
TOKENIZER = SimpleNamespace(name="x", eos_id=EOS, pad_id=PAD, leading_ids=(BOS,))
TOKENIZER.sentinel_ids = range(FIRST, FIRST - 100, -1)


class Stream:
    """Documents of 0 to 12 tokens, together 2, 3, ..., as a split of a store."""

    def __init__(self, n, first=2, leading_ids=(BOS,)):
        sizes = np.arange(n) * 5 % 13
        sizes = sizes[: np.searchsorted(np.cumsum(sizes), n) + 1]
        parts = np.split(np.arange(first, first + n), np.cumsum(sizes)[:-1])
        documents = [[*leading_ids, *part, EOS] for part in parts]
        self.tokens = np.concatenate(documents)
        self._bounds = np.cumsum([0, *map(len, documents)])
        self.n_tokens, self.n_documents = len(self.tokens), len(parts)

    def bounds(self):
        return self._bounds

    def windows(self, starts, length):
        at = np.asarray(starts)[:, None] + np.arange(length)
        return self.tokens[at], np.isin(at, self._bounds[:-1])


def batches(n=700, seq_len=20, batch_size=4, seed=0, shuffle=True, options=PUBLISHED, **more):
    given = dict(streams={"a": Stream(n)}, weights={"a": 1.0}, tokenizer=TOKENIZER) | more
    return SpanBatches(
        seq_len=seq_len,
        batch_size=batch_size,
        seed=seed,
        shuffle=shuffle,
        options=options,
        **given,
    )


def restored(source, target) -> list[int]:
    """The text of a source in which each sentinel is replaced by what follows it in the target."""
    parts, last = {}, None
    for token in target[: target.index(EOS)]:
        if token > 10_000:
            last = token
            assert last not in parts
            parts[last] = []
        else:
            parts[last].append(token)
    text, used = [], []
    for token in source[: source.index(EOS)]:
        used += [token] if token > 10_000 else []
        text += parts[token] if token > 10_000 else [token]
    assert used == [FIRST - i for i in range(len(used))]
    assert [*parts][: len(used)] == used and not any(parts[s] for s in [*parts][len(used) :])
    return text


@pytest.mark.parametrize(
    "seq_len, options, want",
    [
        (512, PUBLISHED, (568, 85, 28, 114)),  # as published
        (512, UNIFORM, (567, 85, 28, 115)),
        (1024, PUBLISHED, (1137, 171, 57, 229)),
        (20, PUBLISHED, (21, 3, 1, 5)),
        (3, PUBLISHED, (2, 1, 1, 3)),
        (8, Options(0.5, 1.0, "published", True), (7, 4, 3, 8)),
    ],
)
def test_lengths(seq_len, options, want):
    assert sizes(seq_len, options) == want
    source_len = lambda w: w - counts(w, options)[0] + counts(w, options)[1] + options.extra + 1
    assert source_len(want[0]) <= seq_len < source_len(want[0] + 1)


@pytest.mark.parametrize("options, least", [(PUBLISHED, 3), (UNIFORM, 4)])
def test_a_row_that_is_too_short_is_refused(options, least):
    assert sizes(least, options).window >= 2
    with pytest.raises(UserError, match=f"data.seq_len={least - 1} .* at least {least}"):
        sizes(least - 1, options)


@pytest.mark.parametrize("window, noise, mean", [(64, 0.15, 3), (40, 0.5, 1), (23, 0.3, 2)])
def test_masks_have_the_noise_and_the_spans(window, noise, mean):
    """Spans never merge, all divisions into lengths appear, and the edges are as named."""
    for edges in spans.EDGES:
        options = Options(noise, mean, edges, True)
        mask = hidden((3, 1), np.arange(4000), window, options)
        n, n_spans = counts(window, options)
        assert (mask.sum(1) == n).all()
        begins = mask & ~np.pad(mask, ((0, 0), (1, 0)))[:, :-1]
        share = mask.mean(0)
        if edges == "published":
            assert not mask[:, 0].any() and mask[:, -1].all()
            assert (begins.sum(1) == n_spans).all()
        else:
            assert set(begins.sum(1)) <= {n_spans, n_spans + 1}
            assert (begins.sum(1) > n_spans).any() == (mean > 1)  # some are cut
            sigma = (n / window * (1 - n / window) / len(mask)) ** 0.5
            assert abs(share - n / window).max() < 4.5 * sigma
        assert share.mean() == pytest.approx(n / window)


def test_all_divisions_are_equally_likely():
    """5 tokens in 3 segments: 6 divisions."""
    u = np.random.default_rng(0).random((30_000, 4))
    starts = spans.segment_starts(u, 5, 3)
    found, times = np.unique(starts, axis=0, return_counts=True)
    assert len(found) == 6 and (found[:, 0] == 0).all() and (np.diff(found, axis=1) > 0).all()
    assert abs(times / 30_000 - 1 / 6).max() < 0.01
    # Kept and hidden segments have random numbers of their own.
    mask = hidden((0,), np.arange(2000), 12, Options(0.5, 3.0, "published", True))
    kept = np.argmax(mask, 1)
    length = np.array([np.argmin(m[k:]) for m, k in zip(mask, kept)])
    assert abs(np.corrcoef(kept, length)[0, 1]) < 0.1 and kept.std() > 1 and length.std() > 1


@pytest.mark.parametrize("options", [PUBLISHED, UNIFORM, Options(0.5, 1.0, "uniform", True)])
def test_source_and_target_restore_the_text(options):
    data = batches(seq_len=30, options=options, n=4000)
    window = data.sizes.window
    lengths = set()
    for step in range(20):
        batch = data.batch_at(step)
        assert {k: (x.shape, str(x.dtype)) for k, x in batch.items()} == {
            "source": ((4, 30), "int32"),
            "source_segment_ids": ((4, 30), "int32"),
            "targets": ((4, data.sizes.target_len), "int32"),
            "segment_ids": ((4, data.sizes.target_len), "int32"),
            "weights": ((4, data.sizes.target_len), "float32"),
        }
        for i, name in enumerate(data.examples_at(step)):
            start = 2 + window * int(name.split(":")[1])
            source, target = batch["source"][i].tolist(), batch["targets"][i].tolist()
            assert restored(source, target) == [*range(start, start + window)]
            for x, segments in ((source, "source_segment_ids"), (target, "segment_ids")):
                n = x.index(EOS) + 1
                assert x[n:] == [PAD] * (len(x) - n)
                assert batch[segments][i].tolist() == [1] * n + [0] * (len(x) - n)
                lengths.add((segments, n))
            assert target[0] == FIRST  # every hidden span follows its sentinel
        np.testing.assert_array_equal(batch["weights"], batch["segment_ids"])
    if options is PUBLISHED:  # rows are full, and targets have one length
        longest = dict(source_segment_ids=30, segment_ids=data.sizes.target_len)
        assert lengths == {*longest.items()}


def test_a_batch_is_a_function_of_seed_and_step():
    equal = lambda a, b: all(np.array_equal(a[k], b[k]) for k in a)
    long = dict(n=2000, seq_len=60)  # several spans
    data = batches(**long)
    assert equal(data.batch_at(3), batches(**long).batch_at(3))
    assert not equal(data.batch_at(3), data.batch_at(4))
    assert not equal(data.batch_at(3), batches(**long, seed=1).batch_at(3))
    whole = data.batch_at(5)
    for rows in (slice(0, 1), slice(1, 4)):
        part = data.batch_at(5, rows)
        assert equal(part, {k: x[rows] for k, x in whole.items()})


def test_masks_are_new_in_each_epoch_only_if_they_are_dynamic():
    for dynamic in (True, False):
        options = Options(0.3, 2.0, "published", dynamic)
        data = batches(n=16 * 21, batch_size=8, seq_len=20, options=options)
        targets: dict[str, set] = {}
        for step in range(3 * int(data.epoch_steps)):
            batch = data.batch_at(step)
            for name, target in zip(data.examples_at(step), batch["targets"]):
                targets.setdefault(name, set()).add(target.tobytes())
        assert len(targets) > 8
        assert (max(map(len, targets.values())) > 1) == dynamic


def test_windows_of_two_sources_have_masks_of_their_own():
    """Also the windows with one index in both."""
    streams = {"a": Stream(100), "b": Stream(100)}
    options = Options(0.3, 2.0, "published", False)
    data = batches(
        streams=streams, weights={"a": 1.0, "b": 1.0}, options=options, shuffle=False, batch_size=2
    )
    masks = [data.batch_at(i)["targets"] for i in range(data.n_batches)]
    rows = np.concatenate(masks)[: data.n_rows]
    half = len(rows) // 2
    assert data.examples_at(0)[0] == "a:0" and len(rows) == 2 * half
    assert not any(np.array_equal(a, b) for a, b in zip(rows[:half], rows[half:]))


def test_masks_of_an_evaluation_do_not_depend_on_its_batches():
    targets = []
    for size in (2, 5):
        data = batches(n=21 * 10, shuffle=False, batch_size=size)
        targets.append(np.concatenate([data.batch_at(i)["targets"] for i in range(10 // size)]))
    np.testing.assert_array_equal(*targets)


def test_evaluation_has_each_window_once():
    """Of the text alone, without what is before and after each document."""
    data = batches(n=21 * 10 + 20, shuffle=False)  # the last 20 tokens are no window
    assert data.n_batches == 3 and data.n_rows == 10
    seen = []
    for step in range(3):
        batch = data.batch_at(step)
        for source, target, weights in zip(batch["source"], batch["targets"], batch["weights"]):
            if weights.any():
                seen += restored(source.tolist(), target.tolist())
            else:
                assert (source == PAD).all() and (target == PAD).all()
    assert seen == [*range(2, 2 + 210)]


@pytest.mark.parametrize(
    "change, words",
    [
        (dict(n=20), "train split is empty: no window of 21 token fell into it"),
        (dict(n=21 * 3), "too little data for one batch: .* 3 windows of 21 tokens"),
        (
            dict(streams={"a": Stream(700), "b": Stream(20)}, weights={"a": 1.0, "b": 1.0}),
            "source 'b' has 20 tokens, and one example has 21 .*data.seq_len=20",
        ),
        (
            dict(seq_len=512, tokenizer=SimpleNamespace(**{**vars(TOKENIZER), "sentinel_ids": ()})),
            r"needs 28 sentinels .*\(x\) has 0. Set data.tokenizer.sentinels=100",
        ),
        (
            dict(
                seq_len=512,
                options=UNIFORM,
                tokenizer=SimpleNamespace(
                    **{**vars(TOKENIZER), "sentinel_ids": range(FIRST, FIRST - 28, -1)}
                ),
            ),
            "needs 29 sentinels",
        ),
    ],
)
def test_too_little_text_and_too_few_sentinels_are_refused(change, words):
    with pytest.raises(UserError, match=words):
        batches(**change)


@pytest.mark.parametrize("leading_ids", [(), (BOS,), (BOS, BOS)])
def test_windows_have_the_tokens_of_text_alone(leading_ids):
    tokenizer = SimpleNamespace(**{**vars(TOKENIZER), "leading_ids": leading_ids})
    text = _Text(Stream(300, leading_ids=leading_ids), len(leading_ids))
    assert text.n_tokens == 300
    starts = np.arange(0, 280)
    np.testing.assert_array_equal(text.windows(starts, 21), starts[:, None] + 2 + np.arange(21))
    streams = {"a": Stream(700, leading_ids=leading_ids)}
    np.testing.assert_equal(
        batches(streams=streams, tokenizer=tokenizer).batch_at(3), batches().batch_at(3)
    )


def test_a_source_without_a_window_is_left_out_of_evaluation():
    data = batches(
        streams={"b": Stream(5), "a": Stream(50)}, weights={"a": 1.0, "b": 1.0}, shuffle=False
    )
    assert data.examples_at(0) == ["a:0", "a:1"]


# --- The tokenizer ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained():
    return train_sentencepiece([" ".join(WORDS[i:] + WORDS[:i]) for i in range(20)], 290)


def test_sentinels_are_the_last_ids_and_the_first_is_last(trained, tmp_path):
    tokenizer = SentencePiece(trained._model, sentinels=5)
    assert [*tokenizer.sentinel_ids] == [294, 293, 292, 291, 290]
    assert tokenizer.vocab_size == 295 and not any(tokenizer.token_bytes[290:])
    assert tokenizer.fingerprint != trained.fingerprint and not trained.sentinel_ids
    text = "the model of a mesh"
    np.testing.assert_array_equal(tokenizer.encode(text), trained.encode(text))
    assert tokenizer.decode([294, *tokenizer.encode(text), 290]) == text
    tokenizer.kind = "sentencepiece"
    tokenizer.save(tmp_path)
    assert [*tokenizers.load(tmp_path).sentinel_ids] == [*tokenizer.sentinel_ids]
    assert tokenizers.load(tmp_path).fingerprint == tokenizer.fingerprint
    spec = dict(kind="sentencepiece", path=str(tmp_path), vocab_size=9, lowercase=True)
    build = lambda n: tokenizers.named(dict(spec, sentinels=n))
    assert len(build(0).sentinel_ids) == 5 and len(build(7).sentinel_ids) == 7
    (tmp_path / "sentinels.json").write_text("five")
    with pytest.raises(UserError, match="sentinels.json is not the number of sentinels"):
        tokenizers.load(tmp_path)


def test_the_text_of_a_run_is_corrupted(corpus_file, cache_dir):
    """From the config to batches: windows run over documents, and the log has their lengths."""
    c = helpers.load_config("tests/tiny_seq2seq.py:spans")
    with c.unlocked():
        c.data.sources.text.path, c.data.cache_dir = corpus_file, cache_dir
    lines: list[str] = []
    data = tasks.build(c).load_data(lines.append)
    want = sizes(c.data.seq_len, PUBLISHED)
    assert f"data: windows of {want.window} tokens, of which {want.noise} are hidden" in lines[-1]
    found = data.split("train", batch_size=8, seed=0)
    assert isinstance(found, SpanBatches) and found.sizes == want
    tokenizer, batch = data.tokenizer, found.batch_at(0)
    assert tokenizer.vocab_size == 296 and batch["targets"][:, 0].tolist() == [295] * 8
    text = tokenizer.decode(batch["source"][0]).split()
    assert len(set(text) & set(WORDS)) > 3
    everything = found.assemble(Rows(0, 0, np.zeros(20, int), np.arange(20)))
    for name in ("source", "targets"):
        assert tokenizer.bos_id not in everything[name]
    assert (everything["targets"] == tokenizer.eos_id).sum() == 20  # the last of each
