"""Pairs of texts: rows of files, encoding, packing and batches."""

import json

import numpy as np
import pytest

from bigjax import tasks
from bigjax.data import text_to_text as T
from bigjax.data.rows import read_parts
from bigjax.data.store import split_of
from bigjax.data.tokenizers.bytes import Bytes
from bigjax.errors import UserError
from tests import helpers
from tests.unit.test_data_examples import write

BYTES = Bytes()
ROWS = [(f"source number {i} " + "é" * (i % 5), f"to {i * i}") for i in range(60)]


def section(**values):
    return helpers.data_section(
        "text_to_text", "seq2seq", **{"tokenizer": {"kind": "bytes"}, **values}
    )


def load(**values):
    lines: list[str] = []
    names = values.pop("names", T.SPLITS)
    data = T.load_pairs(section(**values), tokenizer=BYTES, log=lines.append, names=names)
    return data, lines


def as_file(path, rows, columns=("source", "target")):
    """Writes rows in the format of the file's ending."""
    if path.suffix == ".jsonl":
        return write(path, "".join(json.dumps(dict(zip(columns, r))) + "\n" for r in rows))
    if path.suffix == ".parquet":
        import pyarrow as pa
        from pyarrow import parquet

        parquet.write_table(pa.table(dict(zip(columns, zip(*rows)))), path)
        return str(path)
    separator = "\t" if path.suffix == ".tsv" else ","
    return write(path, "".join(separator.join(r) + "\n" for r in [columns, *rows]))


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return as_file(tmp_path_factory.mktemp("pairs") / "rows.tsv", ROWS)


def texts_of(data, name="train"):
    """(source, target) of each pair of a split, decoded; all end with the end token."""
    p, found = data.examples[name], []
    for i in range(len(p)):
        target = p.target[p.target_offsets[i] : p.target_offsets[i + 1]].tolist()
        source = p.source_of(i)
        assert source[-1] == target[-1] == BYTES.eos_id
        found.append((BYTES.decode(source), BYTES.decode(target)))
    return found


# --- Sources ----------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["tsv", "csv", "jsonl", "parquet"])
def test_files_of_each_format_give_the_same_pairs(tmp_path, suffix, file):
    path = as_file(tmp_path / f"a.{suffix}", ROWS)
    options = dict(valid_fraction=0.2, test_fraction=0.1)
    data, _ = load(train=path, **options)
    for name in T.SPLITS:
        want = [pair for pair in ROWS if split_of(pair[0], 0.2, 0.1) == name]
        assert texts_of(data, name) == want and want
        assert data.inputs(name) == [data.examples[name].source_of(i) for i in range(len(want))]
    assert data.fingerprint == load(train=file, **options)[0].fingerprint


def test_columns_have_any_name_and_prefixes_are_put_before_sources(tmp_path):
    path = as_file(tmp_path / "a.tsv", [("x", "cs: ", "y"), ("u", "", "v")], ("de", "task", "en"))
    columns = dict(source="de", target="en", prefix="task")
    data, _ = load(train=path, valid=path, columns=columns, prefix="translate ")
    assert texts_of(data) == [("translate cs: x", "y"), ("translate u", "v")]
    columns["prefix"] = ""
    assert texts_of(load(train=path, valid=path, columns=columns)[0]) == [("x", "y"), ("u", "v")]
    with pytest.raises(UserError, match="data.columns.target is empty; learn a target from a sou"):
        load(train=path, columns=dict(source="de", target=""))
    with pytest.raises(UserError, match=r"a\.tsv:1: no column"):
        load(train=path)


def test_sets_of_tfds(tmp_path):
    tfds = pytest.importorskip("tensorflow_datasets")
    pytest.importorskip("array_record")

    class Translations(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {name: tfds.features.Text() for name in ("de", "en")}
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(20), "validation": self._generate_examples(3)}

        def _generate_examples(self, n):
            for i in range(n):
                yield i, {"de": f"Satz {i}", "en": f"sentence {i}"}

    builder = Translations(data_dir=tmp_path, file_format="array_record")
    builder.download_and_prepare()
    columns = dict(source="de", target="en")
    spec = f"tfds:{builder.data_path}"
    data, _ = load(train=spec, columns=columns, names=("train", "valid"))
    assert sorted(texts_of(data, "valid")) == [(f"Satz {i}", f"sentence {i}") for i in range(3)]
    assert len(data.rows("train")) >= 19
    with pytest.raises(UserError, match="no feature 'source'; it has "):
        load(train=spec)


@pytest.mark.usefixtures("fewer_docstrings")
def test_docstrings_are_summarised_by_their_first_lines(cache_dir):
    data = section(train="docstrings:summary", cache_dir=cache_dir, valid_fraction=0.1)
    parts = read_parts(data, T.KIND)
    assert len(parts["train"]) > 5 * len(parts["valid"]) > 50
    for row in parts["valid"]:
        assert "\n" not in row["target"] and len(row["target"].split()) > 1
        assert len(row["source"]) >= 40 and row["where"].startswith("docstring of ")
        assert row["source"] == row["source"].strip()


# --- Encoding ---------------------------------------------------------------------------------


def test_longer_texts_are_refused_with_their_place_or_truncated_and_counted(tmp_path):
    path = as_file(tmp_path / "a.tsv", [("abc", "ab"), ("abcdefg", "xyz"), ("abcdefgh", "x")])
    given = dict(train=path, valid=path, names=("train",))
    load(**given, seq_len=9, target_len=4)
    with pytest.raises(UserError, match=r"a\.tsv:4: the source is 9 tokens long and 8 .*data.seq"):
        load(**given, seq_len=8, target_len=4)
    with pytest.raises(UserError, match=r"a\.tsv:3: the target is 4 .*raise data.target_len"):
        load(**given, seq_len=9, target_len=3)
    data, lines = load(**given, seq_len=6, target_len=2, truncate=True)
    assert texts_of(data) == [("abc", "a"), ("abcde", "x"), ("abcde", "x")]
    assert [line for line in lines if "truncated" in line] == [
        "data: train: 2 of 3 sources are truncated to 6 tokens (data.truncate, data.seq_len)",
        "data: train: 2 of 3 targets are truncated to 2 tokens (data.truncate, data.target_len)",
    ]


@pytest.mark.parametrize("row, what", [(("a", ""), "target"), (("", "a"), "source")])
def test_a_text_without_tokens_is_refused(tmp_path, row, what):
    path = as_file(tmp_path / "a.jsonl", [("x", "y"), row])
    with pytest.raises(UserError, match=rf"a\.jsonl:2: .*{what}"):
        load(train=path, valid=path)


def test_the_fingerprint_is_of_the_examples_and_the_settings(tmp_path, file):
    rows = [(a, b) for a, b in ROWS]
    other = as_file(tmp_path / "a.tsv", [*rows[:-1], (rows[-1][0], "other")])
    base = dict(train=file, seq_len=64, target_len=32)
    changes = [
        {},
        dict(train=other),
        dict(prefix="x"),
        dict(seq_len=65),
        dict(target_len=33),
        dict(names=("train",)),
    ]
    found = [load(**{**base, **change})[0].fingerprint for change in changes]
    assert len(set(found)) == len(changes)
    assert load(**base, packing=False, truncate=True)[0].fingerprint == found[0]


def test_the_tokenizer_is_trained_on_all_texts_of_the_training_rows(tmp_path, cache_dir):
    rows = [("alpha beta", "gamma delta")] * 3 + [(f"alpha {i}", "gamma") for i in range(9)]
    path = as_file(tmp_path / "a.tsv", rows)
    tokenizer = dict(kind="wordpiece", vocab_size=50)
    data = section(
        train=path, valid=path, prefix="omega ", tokenizer=tokenizer, cache_dir=cache_dir
    )
    lines: list[str] = []
    loaded = T.load_pairs(data, log=lines.append, names=("valid",))
    assert loaded.tokenizer.vocab_size <= 50 and loaded.examples["valid"].n_unknown == 0
    p = loaded.examples["valid"]
    # Special tokens are not among the tokens of text.
    assert p.n_text == len(p.source) + len(p.target) - 2 * len(p)
    letters = {b for piece in loaded.tokenizer.pieces for b in piece.decode()}
    assert set("omegaalphabetagammadelta") <= letters
    assert any(line.startswith("data: valid        12 pairs; source: mean") for line in lines[-2:])


# --- Batches ----------------------------------------------------------------------------------


def batches(data, name="train", batch_size=4, seed=0, **more):
    return data.split(name, batch_size=batch_size, seed=seed, **more)


@pytest.fixture(scope="module")
def both(file):
    """{packing: data}."""
    given = dict(train=file, valid=file, seq_len=96, target_len=24, names=("train", "valid"))
    return {packing: load(**given, packing=packing)[0] for packing in (True, False)}


def pairs_in(batch):
    """[(source, target)] of a batch, checked: segments, positions, weights, padding."""
    found = []
    sides = (
        ("source", "source_segment_ids", "source_positions"),
        ("targets", "segment_ids", "positions"),
    )
    for row in range(len(batch["source"])):
        texts = []
        for tokens, segments, positions in sides:
            x, s, p = (batch[name][row] for name in (tokens, segments, positions))
            n = int((s > 0).sum())
            assert (x[n:] == BYTES.pad_id).all() and not s[n:].any() and not p[n:].any()
            assert s.max(initial=0) == len(set(s[:n])) and (np.diff(s[:n]) >= 0).all()
            parts = [x[s == i + 1].tolist() for i in range(s.max(initial=0))]
            for i, part in enumerate(parts):
                assert part[-1] == BYTES.eos_id and part.count(BYTES.eos_id) == 1
                np.testing.assert_array_equal(p[s == i + 1], np.arange(len(part)))
            texts.append(parts)
        assert len(texts[0]) == len(texts[1])
        found += [tuple(map(BYTES.decode, pair)) for pair in zip(*texts)]
    np.testing.assert_array_equal(batch["weights"], batch["segment_ids"] > 0)
    return found


@pytest.mark.parametrize("packing", [True, False])
def test_each_pair_is_in_an_epoch_once(both, packing):
    data = both[packing]
    valid = batches(data, "valid", batch_size=7)
    assert valid.n_batches > valid.n_rows // 7  # the last batch has padding rows
    found = [pair for i in range(valid.n_batches) for pair in pairs_in(valid.batch_at(i))]
    assert sorted(found) == sorted(ROWS) and (found == ROWS or packing)
    train = batches(data, batch_size=1)
    orders = []
    for epoch in range(2):
        steps = range(epoch * train.n_rows, (epoch + 1) * train.n_rows)
        named = [name for i in steps for name in train.examples_at(i)]
        found = [pair for i in steps for pair in pairs_in(train.batch_at(i))]
        assert found == [ROWS[int(name.split(":")[1])] for name in named]
        assert sorted(found) == sorted(ROWS)
        orders.append(found)
    assert orders[0] != orders[1]


def test_packing_fills_rows_on_both_sides(both):
    packed, alone = (batches(both[packing]) for packing in (True, False))
    assert alone.n_rows == 60 and packed.n_rows <= 20 and packed.n_examples == 60
    for x in (packed, alone):
        real = sum(len(a.encode()) + len(b.encode()) + 2 for a, b in ROWS)
        assert x.padding == pytest.approx(1 - real / (x.n_rows * (96 + 24)))
        assert x.note == f"{x.padding:.1%} of the tokens are padding"
    # Here short sources with long targets: the targets' length decides.
    rows = [("a", "b" * 11) for _ in range(6)]
    data = T.PairData(
        BYTES, {"train": rows}, {"train": encoded(rows, 96)}, section(seq_len=96, target_len=24)
    )
    assert batches(data, batch_size=1).n_rows == 3


def test_packed_targets_fit_where_lengths_do_not_divide():
    """A target of 3 of 13 tokens takes up 5 of the 20 of a row: four pairs fit, not five."""
    rows, of = [("a", "bb")] * 10, section(seq_len=20, target_len=13)
    data = T.PairData(BYTES, {"train": rows}, {"train": encoded(rows, 20)}, of)
    train = batches(data, batch_size=1)
    counts = [len(pairs_in(train.batch_at(i))) for i in range(train.n_rows)]
    assert max(counts) == 4 and sum(counts) == 10


def encoded(rows, seq_len):
    keys = ("source", "target")
    named = [dict(zip(keys, row), where="x") for row in rows]
    return T.encode(named, section(seq_len=seq_len, target_len=24), BYTES)


@pytest.mark.parametrize("packing", [True, False])
def test_a_batch_is_a_function_of_seed_and_step(both, packing):
    equal = lambda a, b: all(np.array_equal(a[k], b[k]) for k in a)
    x = batches(both[packing])
    assert equal(x.batch_at(5), batches(both[packing]).batch_at(5))
    assert not equal(x.batch_at(5), x.batch_at(6))
    assert not equal(x.batch_at(5), batches(both[packing], seed=1).batch_at(5))
    for rows in (slice(0, 2), slice(2, 3), slice(3, 4)):
        want = {k: v[rows] for k, v in x.batch_at(5).items()}
        assert equal(x.batch_at(5, rows), want)
    valid = batches(both[packing], "valid", batch_size=7)
    last = valid.n_batches - 1
    part = valid.batch_at(last, slice(6, 7))
    assert equal(part, {k: v[6:] for k, v in valid.batch_at(last).items()})


def test_too_few_pairs_for_a_batch_are_refused(both, file):
    with pytest.raises(
        UserError, match=r"rows of 96 and 24 tokens \(packed: 60 pairs\), and a ba.*p"
    ):
        batches(both[True], batch_size=50)
    data, _ = load(train=file, valid_fraction=0.0, test_fraction=0.0)
    with pytest.raises(UserError, match="the valid split is empty: no row fell into it"):
        batches(data, "valid")


def test_shapes_are_those_of_the_task(both, file, cache_dir):
    for packing in (True, False):
        c = helpers.load_config("tests/tiny_seq2seq.py")
        with c.unlocked():
            c.data.train, c.data.cache_dir, c.data.packing = file, cache_dir, packing
        task = tasks.build(c)
        data = task.load_data(lambda text: None)
        batch = batches(data, batch_size=8).batch_at(0)
        shapes = {k: (x.shape, x.dtype) for k, x in task.batch_shapes(8, 0).items()}
        assert shapes == {k: (x.shape, x.dtype) for k, x in batch.items()}
