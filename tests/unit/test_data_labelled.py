"""bigjax.data.labelled: the packing plan, and batches as a function of (seed, step)."""

import json
import time

import numpy as np
import pytest

from bigjax.data import examples as E
from bigjax.data import row_plan
from bigjax.data.labelled import load_labelled
from bigjax.data.labelled_batches import LabelledBatches
from bigjax.data.row_plan import plan_rows
from bigjax.data.rows import label_counts
from bigjax.data.tokenizer import Bytes
from bigjax.errors import UserError
from tests.helpers import kind
from tests.unit.test_data_examples import (
    CLS,
    ID,
    LETTERS,
    PAD,
    SEP,
    TOKENIZER,
    answer_text,
    encode,
    question,
    section,
    table,
    write,
)


def of_lengths(lengths, labels=True):
    """Examples whose tokens are all different, so that each can be told from the others."""
    lengths = np.asarray(lengths)
    offsets = np.cumsum([0, *lengths])
    n = len(lengths)
    return E.Examples(
        np.arange(1, offsets[-1] + 1, dtype=np.int32),
        offsets,
        (lengths // 2).astype(np.int32),
        np.arange(n, dtype=np.int32),
        example_arrays={"label": np.arange(n, dtype=np.int32) % 7} if labels else {},
    )


def data_of(lengths, **kwargs):
    return LabelledBatches(
        of_lengths(lengths), **{"pad_id": 0, "seq_len": 64, "batch_size": 8, "seed": 3, **kwargs}
    )


LENGTHS = np.clip(np.random.RandomState(0).lognormal(2.5, 0.7, 500).astype(int), 3, 64)


def equal(a, b):
    assert a.keys() == b.keys()
    for key in a:
        np.testing.assert_array_equal(a[key], b[key], err_msg=key)


@pytest.mark.parametrize(
    "draw",
    [
        lambda rng, n: rng.lognormal(3.3, 0.6, n),
        lambda rng, n: rng.integers(5, 129, n),
        lambda rng, n: rng.normal(60, 20, n),
        lambda rng, n: rng.lognormal(3.7, 0.8, n),
    ],
)
def test_packing_leaves_little_padding(draw):
    lengths = np.clip(draw(np.random.default_rng(0), 20_000).astype(int), 5, 128)
    for shuffle in (True, False):
        assert data_of(lengths, seq_len=128, shuffle=shuffle).padding < 0.1
    loose = data_of(lengths, seq_len=128, packing=False)
    assert loose.padding == pytest.approx(1 - lengths.mean() / 128) and loose.padding > 0.2


@pytest.mark.parametrize("seq_len", [32, 96, 128])
@pytest.mark.parametrize("least, most", [(5, 9), (6, 8), (3, 40), (11, 11), (3, 3), (2, 6)])
def test_packing_of_short_texts(seq_len, least, most):
    rng = np.random.RandomState(0)
    lengths = rng.randint(least, min(most, seq_len) + 1, 4000)
    if (seq_len, least) == (32, 11):  # two fill 22 of 32, whatever the plan is
        assert data_of(lengths, seq_len=32).padding == pytest.approx(1 - 22 / 32)
        return
    for shuffle in (True, False):
        data = data_of(lengths, seq_len=seq_len, shuffle=shuffle)
        assert data.padding < 0.1 and data.max_examples <= seq_len // 3
        assert data.batch_at(0)["first"].shape == (8, data.max_examples)


@pytest.mark.parametrize("short, share, long", [(3, 0.5, 128), (4, 0.9, 120), (4, 0.97, 60)])
def test_packing_of_short_texts_among_long_ones(short, share, long):
    rng = np.random.RandomState(0)
    assert data_of(np.where(rng.rand(5000) < share, short, long), seq_len=128).padding < 0.05


def test_a_row_has_no_more_places_than_its_lengths_need():
    assert data_of([100] * 40, seq_len=128).max_examples == 1
    assert data_of([60, 61] * 40, seq_len=128).max_examples == 2
    assert data_of([2] * 200, seq_len=8).max_examples == 2
    assert data_of([30] * 400, packing=False).max_examples == 1


def test_planning_is_fast():
    lengths = np.random.default_rng(0).integers(5, 129, 400_000)
    begun = time.perf_counter()
    plan_rows(lengths, np.arange(len(lengths)), 128, 16)
    assert time.perf_counter() - begun < 10  # 0.6 s on an idle core


def test_plan_by_hand():
    def plan(lengths, most):
        order, offsets = plan_rows(np.array(lengths), np.arange(len(lengths)), 10, most)
        return [order[a:b].tolist() for a, b in zip(offsets, offsets[1:])]

    assert plan([6, 7, 3, 4, 10, 2], 3) == [[0, 3], [1, 2], [4], [5]]  # the fullest that has room
    assert plan([1] * 7, 3) == [[0, 1, 2], [3, 4, 5], [6]]
    assert plan([5, 5], 1) == [[0], [1]] and plan([], 3) == []


def test_plan_with_few_open_rows(monkeypatch):
    monkeypatch.setattr(row_plan, "_OPEN_ROWS", 2)
    order, offsets = plan_rows(np.array([6, 7, 8, 2, 3, 4]), np.arange(6), 10, 4)
    assert sorted(order.tolist()) == list(range(6))
    rows = [order[a:b].tolist() for a, b in zip(offsets, offsets[1:])]
    assert rows == [[0, 4], [1, 3], [2], [5]]  # the row of 8 was closed before the 2 came


def test_batch_by_hand():
    examples = encode(
        [
            {"text": "a b", "pair": "c", "label": "1"},
            {"text": "d", "label": "0"},
            {"text": "e f g h i j k l", "label": "1"},
        ],
        seq_len=16,
    )
    data = LabelledBatches(examples, PAD, 16, 2, shuffle=False)
    batch = data.batch_at(0)
    assert data.n_batches == 1 and data.max_examples == 4 and data.n_rows == 2
    a, b, c, d = (ID[x] for x in "abcd")
    assert batch["tokens"][0].tolist() == [CLS, a, b, SEP, c, SEP, CLS, d, SEP] + [PAD] * 7
    assert batch["types"][0].tolist() == [0, 0, 0, 0, 1, 1] + [0] * 10
    assert batch["segment_ids"][0].tolist() == [1] * 6 + [2] * 3 + [0] * 7
    assert batch["positions"][0].tolist() == [0, 1, 2, 3, 4, 5, 0, 1, 2] + [0] * 7
    assert batch["first"].tolist() == [[0, 6, 0, 0], [0, 0, 0, 0]]
    assert batch["example"].tolist() == [[0, 1, -1, -1], [2, -1, -1, -1]]
    assert batch["weights"].tolist() == [[1, 1, 0, 0], [1, 0, 0, 0]]
    assert batch["label"].tolist() == [[1, 0, 0, 0], [1, 0, 0, 0]]
    dtypes = {key: value.dtype for key, value in batch.items()}
    assert dtypes.pop("weights") == np.float32 and set(dtypes.values()) == {np.dtype(np.int32)}
    assert data.padding == pytest.approx(1 - 19 / 32)
    loose = LabelledBatches(examples, PAD, 16, 2, packing=False, shuffle=False)
    assert loose.n_batches == 2 and loose.max_examples == 1
    assert loose.batch_at(1)["example"].tolist() == [[2], [-1]]
    assert not loose.batch_at(1)["segment_ids"][1].any()


def test_labels_of_each_kind_move_with_their_example():
    tags = encode([{"tokens": ["ab", "c"], "tags": ["O", "X"]}] * 3, "tag", ("O", "X"))
    batch = LabelledBatches(tags, PAD, 16, 1, shuffle=False).batch_at(0)
    assert batch["token_labels"][0].tolist() == [-1, 0, -1, 1, -1] * 3 + [-1]
    numbers = encode([{"text": "a", "label": "2.5"}], "regress", ())
    batch = LabelledBatches(numbers, PAD, 16, 1, shuffle=False).batch_at(0)
    assert batch["label"].dtype == np.float32 and batch["label"].tolist() == [[2.5, 0, 0, 0, 0]]
    answers = encode([question("a b", [("b", 2)]), question("a b c", [("b c", 2)])], "answer", ())
    batch = LabelledBatches(answers, PAD, 16, 1, shuffle=False).batch_at(0)
    assert batch["first"].tolist() == [[0, 7]]
    assert (batch["start"].tolist(), batch["end"].tolist()) == ([[5, 12]], [[5, 13]])
    assert "label" not in batch and "token_labels" not in batch
    bare = encode([{"text": "a"}], with_labels=False)
    assert "label" not in LabelledBatches(bare, PAD, 16, 1, shuffle=False).batch_at(0)


def examples_in(batch):
    """(index, its tokens, types, positions, label) of each example, checked against the rest."""
    found = []
    for row in range(len(batch["tokens"])):
        for slot in np.flatnonzero(batch["weights"][row]):
            mine = batch["segment_ids"][row] == slot + 1
            columns = np.flatnonzero(mine)
            assert columns[0] == batch["first"][row, slot]
            assert (batch["positions"][row, mine] == np.arange(mine.sum())).all()
            found.append(
                (
                    batch["example"][row, slot],
                    batch["tokens"][row, mine].tolist(),
                    batch["types"][row, mine].tolist(),
                    batch["label"][row, slot],
                )
            )
        assert batch["segment_ids"][row].max() == batch["weights"][row].sum()
    return found


def check_all_once(data, found):
    examples = data.examples
    assert sorted(i for i, *_ in found) == list(range(len(examples)))
    for i, tokens, types, label in found:
        first, last = examples.offsets[i : i + 2]
        assert tokens == examples.tokens[first:last].tolist() and label == i % 7
        assert types == [int(j >= examples.second[i]) for j in range(last - first)]


@pytest.mark.parametrize("packing", [True, False])
def test_evaluation_has_each_example_once(packing):
    data = data_of(LENGTHS, shuffle=False, packing=packing, batch_size=7)
    batches = [data.batch_at(step) for step in range(data.n_batches)]
    check_all_once(data, [one for batch in batches for one in examples_in(batch)])
    assert all(batch["tokens"].shape == (7, 64) for batch in batches)
    n_empty = data.n_batches * 7 - data.n_rows
    assert 0 <= n_empty < 7 and data.epoch_steps == data.n_batches and data.n_examples == 500
    if n_empty:
        assert not batches[-1]["segment_ids"][-n_empty:].any()
        assert (batches[-1]["example"][-n_empty:] == -1).all()
    real = sum((batch["segment_ids"] > 0).sum() for batch in batches)
    assert data.padding == pytest.approx(1 - real / (data.n_rows * 64))
    names = [name for step in range(data.n_batches) for name in data.examples_at(step)]
    assert sorted(names) == sorted(f"train:{i}" for i in range(500))
    if not packing:
        assert names == [f"train:{i}" for i in range(500)]


@pytest.mark.parametrize("packing", [True, False])
def test_training_has_each_example_once_an_epoch(packing):
    data = data_of(LENGTHS, batch_size=1, packing=packing)
    assert data.epoch_steps == data.n_batches == data.n_rows
    epochs = []
    for epoch in range(2):
        steps = range(epoch * data.n_rows, (epoch + 1) * data.n_rows)
        found = [one for step in steps for one in examples_in(data.batch_at(step))]
        check_all_once(data, found)
        epochs.append([i for i, *_ in found])
    assert epochs[0] != epochs[1]
    assert data_of(LENGTHS, packing=packing).epoch_steps == data.n_rows / 8


def test_batch_is_a_pure_function_of_seed_and_step():
    one, two = data_of(LENGTHS), data_of(LENGTHS)
    late = one.batch_at(10**9)
    for step in (5, 0, 3):
        equal(one.batch_at(step), two.batch_at(step))
    equal(late, two.batch_at(10**9))
    assert one.examples_at(5) == two.examples_at(5)
    assert (data_of(LENGTHS, seed=4).batch_at(3)["tokens"] != two.batch_at(3)["tokens"]).any()
    equal(data_of(LENGTHS, seed=-1).batch_at(0), data_of(LENGTHS, seed=-1).batch_at(0))


def test_examples_at_names_what_the_batch_holds():
    for data in (data_of(LENGTHS, name="mine"), data_of(LENGTHS, name="mine", shuffle=False)):
        held = data.batch_at(1)["example"]
        assert data.examples_at(1) == [f"mine:{i}" for i in held[held >= 0]]


def test_rows_are_slices_of_the_global_batch():
    for data in (data_of(LENGTHS), data_of(LENGTHS[:40], shuffle=False, batch_size=30)):
        whole = data.batch_at(0)
        b = data.batch_size
        for rows in (
            slice(0, 4),
            slice(4, 8),
            slice(7, 8),
            slice(None, 3),
            slice(5, None),
            slice(b - 1, b),
            slice(None),
        ):
            equal(data.batch_at(0, rows), {key: value[rows] for key, value in whole.items()})


def test_rows_and_steps_out_of_range():
    data = data_of(LENGTHS)
    for rows in (slice(0, 9), slice(4, 4), slice(-1, 8), slice(0, 8, 2)):
        with pytest.raises(UserError, match=r"batch_at: rows .* global batch of 8; allowed"):
            data.batch_at(0, rows)
    with pytest.raises(UserError, match="no batch -1; allowed: any from 0 on"):
        data.batch_at(-1)
    data = data_of(LENGTHS, shuffle=False)
    with pytest.raises(UserError, match=f"no batch {data.n_batches}; allowed: 0 to"):
        data.batch_at(data.n_batches)


def test_too_little_data():
    with pytest.raises(
        UserError,
        match=r"the train data has 2 rows of 64 tokens \(packed: 5 "
        r"examples\), and a batch has 8. Lower train.batch_size",
    ):
        data_of([20] * 5)
    with pytest.raises(UserError, match="has 5 rows of 64 tokens, and a batch has 8"):
        data_of([20] * 5, packing=False)
    assert data_of([20] * 5, shuffle=False).n_batches == 1
    with pytest.raises(UserError, match="the train data has no rows of 64 tokens"):
        data_of([], shuffle=False)
    with pytest.raises(UserError, match="batch size is 0"):
        data_of([20], batch_size=0)
    with pytest.raises(UserError, match="an example of 65 tokens; data.seq_len is 64"):
        data_of([65])


SENTIMENT = kind("classify", ["bad", "good"])


def sentiment(tmp_path, **changes):
    lines = [f"{word} film number {i}\t{word}" for i in range(60) for word in ("good", "bad")]
    return section(
        train=table(tmp_path / "train.tsv", lines),
        cache_dir=str(tmp_path / "cache"),
        valid_fraction=0.1,
        test_fraction=0.1,
        **changes,
    )


def test_load_labelled(tmp_path):
    data, lines = sentiment(tmp_path), []
    labels = list(label_counts(data, kind("classify")))
    found = load_labelled(data, kind("classify", labels), log=lines.append)
    assert labels == list(found.kind.labels) == ["bad", "good"]
    assert found.tokenizer.kind == "wordpiece" and found.tokenizer.vocab_size == 60
    train, valid = found.split("train", 4, seed=1), found.split("valid", 4)
    assert train.shuffle and not valid.shuffle
    assert not found.split("train", 4, shuffle=False).shuffle
    held = [
        i
        for step in range(valid.n_batches)
        for i in valid.batch_at(step)["example"].ravel()
        if i >= 0
    ]
    assert sorted(held) == list(range(len(found.rows("valid"))))
    batch = valid.batch_at(0)
    row = found.rows("valid")[valid.examples.row[batch["example"][0, 0]]]
    assert labels[batch["label"][0, 0]] == row["label"] and "film" in row["text"]
    assert found.summary() in lines and "train" in found.summary() and "bad" in found.summary()
    assert sum("training a WordPiece vocabulary" in line for line in lines) == 1
    again = load_labelled(data, kind("classify", labels), log=lines.append)
    assert again.fingerprint == found.fingerprint
    assert sum("training a WordPiece vocabulary" in line for line in lines) == 1
    with pytest.raises(UserError, match="'dev' was not loaded; available: train, valid, test"):
        found.split("dev", 4)


def test_fingerprint_sees_content_tokenizer_labels_and_settings(tmp_path):
    def fingerprint(labels=("bad", "good"), tokenizer=TOKENIZER, **changes):
        data = sentiment(tmp_path, **changes)
        return load_labelled(
            data, kind("classify", labels), tokenizer=tokenizer, log=str
        ).fingerprint

    first = fingerprint()
    assert fingerprint() == first == fingerprint(packing=False)
    others = {
        fingerprint(("good", "bad")),
        fingerprint(tokenizer=Bytes()),
        fingerprint(seq_len=40),
        fingerprint(test=table(tmp_path / "x.tsv", ["a\tbad"])),
    }
    assert len(others) == 4 and first not in others


def test_only_the_splits_that_are_named(tmp_path):
    mine = table(tmp_path / "x.tsv", ["a\tbad", "b\tgood"])

    def load(tokenizer=TOKENIZER, names=("test",), **changes):
        return load_labelled(
            sentiment(tmp_path, **changes),
            SENTIMENT,
            tokenizer=tokenizer,
            log=str,
            names=names,
        )

    every, alone = load(names=("train", "valid", "test"), test=mine), load(test=mine)
    assert alone.rows("test") == every.rows("test") and len(alone.rows("test")) == 2
    assert load(names=("valid", "train")).rows("valid") == load(names=["valid"]).rows("valid")
    with pytest.raises(UserError, match="'train' was not loaded; available: test"):
        alone.split("train", 4)
    with pytest.raises(UserError, match="no split 'dev'.*train, valid, test"):
        load(names=("dev",))
    trained = load(tokenizer=None, test=mine)  # on the training rows, which it does not keep
    assert trained.tokenizer.vocab_size == 60 and "train" not in trained.summary()
    fingerprint = alone.fingerprint
    assert load(names=("test", "test"), test=mine).fingerprint == fingerprint
    assert fingerprint != every.fingerprint
    assert fingerprint != load(names=("test", "valid"), test=mine).fingerprint
    write(tmp_path / "train.tsv", "")
    data = section(train=str(tmp_path / "train.tsv"), test=mine)
    again = load_labelled(data, SENTIMENT, tokenizer=TOKENIZER, log=str, names=("test",))
    assert again.fingerprint == fingerprint


def test_load_labelled_errors(tmp_path):
    data = sentiment(tmp_path, valid=table(tmp_path / "v.tsv", ["fine\tgood", "so so\tmiddling"]))
    with pytest.raises(UserError, match=r"v\.tsv:3: the label 'middling' .*'bad', 'good'"):
        load_labelled(data, SENTIMENT, tokenizer=TOKENIZER, log=str)
    with pytest.raises(UserError, match=r"train\.tsv:\d+: the label 'good' is not a number"):
        load_labelled(data, kind("regress", []), tokenizer=TOKENIZER, log=str)
    data = sentiment(tmp_path, seq_len=8)
    with pytest.raises(UserError, match=r"train\.tsv:\d+: the text is .*data.truncate=True"):
        load_labelled(data, SENTIMENT, tokenizer=TOKENIZER, log=str)
    data.truncate, lines = True, []
    cut = load_labelled(data, SENTIMENT, tokenizer=TOKENIZER, log=lines.append)
    assert cut.split("train", 4).examples.lengths.max() == 8
    n = len(cut.rows("train"))
    assert (
        f"data: train: {n} of {n} texts are truncated to 8 tokens (data.truncate, data.seq_len)"
        in lines
    )
    assert sum("are truncated to" in line for line in lines) == 3
    data.seq_len = 32
    load_labelled(data, SENTIMENT, tokenizer=TOKENIZER, log=lines.append)
    assert sum("are truncated to" in line for line in lines) == 3
    data = section(train=table(tmp_path / "few.tsv", ["a\t0", "b\t1"]))
    few = load_labelled(data, kind("classify", ["0", "1"]), tokenizer=TOKENIZER, log=str)
    with pytest.raises(UserError, match="the valid split is empty.*Raise data.valid_fraction"):
        few.split("valid", 1)
    data.test_fraction = 1.0
    none = load_labelled(data, kind("classify", ["0", "1"]), tokenizer=TOKENIZER, log=str)
    with pytest.raises(UserError, match="the train split is empty.*Lower data.valid_fraction"):
        none.split("train", 1)


def test_squad_and_conll_files_end_to_end(tmp_path):
    qas = [
        {"id": str(i), "question": f"{x}?", "answers": [{"text": x, "answer_start": 2 * i}]}
        for i, x in enumerate(LETTERS)
    ]
    content = {"data": [{"paragraphs": [{"context": " ".join(LETTERS), "qas": qas}]}]}
    data = section(train=write(tmp_path / "a.json", json.dumps(content)), seq_len=16, doc_stride=4)
    found = load_labelled(data, kind("answer", []), tokenizer=TOKENIZER, log=str)
    examples = found.split("train", 4).examples
    answered = {
        found.rows("train")[examples.row[i]]["question"][0]: answer_text(
            examples, found.rows("train"), i
        )
        for i in range(len(examples))
        if examples.column_arrays["start"][i]
    }
    assert answered == {x: x for x in LETTERS}
    data = section(train=write(tmp_path / "a.conll", "a O\nb X\n\nc O\n"))
    tags = load_labelled(
        data, kind("tag", list(label_counts(data, kind("tag")))), tokenizer=TOKENIZER, log=str
    )
    assert tags.split("train", 1).batch_at(0)["token_labels"].max() == 1
