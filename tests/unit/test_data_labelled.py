"""bigjax.data.labelled_batches: batches as a function of (seed, step)."""

import numpy as np
import pytest

from bigjax.data import examples as E
from bigjax.data.labelled_batches import LabelledBatches
from bigjax.errors import UserError
from tests.unit.test_data_examples import (
    CLS,
    ID,
    PAD,
    SEP,
    encode,
    question,
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
    examples = []
    for row in range(len(batch["tokens"])):
        for slot in np.flatnonzero(batch["weights"][row]):
            mine = batch["segment_ids"][row] == slot + 1
            columns = np.flatnonzero(mine)
            assert columns[0] == batch["first"][row, slot]
            assert (batch["positions"][row, mine] == np.arange(mine.sum())).all()
            examples.append(
                (
                    batch["example"][row, slot],
                    batch["tokens"][row, mine].tolist(),
                    batch["types"][row, mine].tolist(),
                    batch["label"][row, slot],
                )
            )
        assert batch["segment_ids"][row].max() == batch["weights"][row].sum()
    return examples


def check_all_once(data, batched):
    examples = data.examples
    assert sorted(i for i, *_ in batched) == list(range(len(examples)))
    for i, tokens, types, label in batched:
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
        examples = [one for step in steps for one in examples_in(data.batch_at(step))]
        check_all_once(data, examples)
        epochs.append([i for i, *_ in examples])
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
        batch = data.batch_at(0)
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
            equal(data.batch_at(0, rows), {key: value[rows] for key, value in batch.items()})


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
