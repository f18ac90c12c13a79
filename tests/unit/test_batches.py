"""bigjax.data.batches and arrays: what every kind of batches inherits."""

import numpy as np
import pytest

from bigjax.data.arrays import ArrayBatches, ArrayData
from bigjax.data.batches import ExampleBatches
from bigjax.errors import UserError


class Squares(ExampleBatches):
    """A user's subclass: the squares of row numbers, with two examples per row."""

    def assemble(self, rows):
        return {"square": rows.index**2, "row": rows.first + np.arange(len(rows.index))}

    def examples_in(self, index):
        return (2 * index, 2 * index + 1)


def test_a_subclass_only_assembles_rows():
    data = Squares(10, 4, shuffle=False, name="valid", fill={"square": -1})
    assert (data.n_rows, data.n_batches, data.epoch_steps) == (10, 3, 3)
    assert data.batch_at(2)["square"].tolist() == [64, 81, -1, -1]
    assert data.batch_at(2, slice(1, 4))["square"].tolist() == [81, -1, -1]
    assert data.batch_at(2, slice(2, 4))["square"].tolist() == [-1, -1]  # no row to assemble
    assert data.batch_at(1, slice(2, 4))["row"].tolist() == [2, 3]
    assert data.examples_at(2) == ["valid:16", "valid:17", "valid:18", "valid:19"]
    with pytest.raises(UserError, match="there is no batch 3; allowed: 0 to 2"):
        data.batch_at(3)


def test_training_is_endless_and_shuffled():
    data = Squares(10, 4, seed=3)
    assert data.epoch_steps == 2.5 and data.n_batches == 2
    rows = np.sqrt(np.concatenate([data.batch_at(i)["square"] for i in range(5)])).astype(int)
    assert np.bincount(rows).tolist() == [2] * 10 and rows[:10].tolist() != rows[10:].tolist()
    np.testing.assert_array_equal(
        data.batch_at(9)["square"], Squares(10, 4, seed=3).batch_at(9)["square"]
    )


def test_sources_are_mixed_by_weight():
    data = Squares({"a": 100, "b": 100}, 40, weights={"a": 3, "b": 1})
    names = data.examples_at(0)
    assert sum(name.startswith("a:") for name in names) == 60 and len(names) == 80


@pytest.mark.parametrize(
    "n, batch_size, message",
    [
        (10, 0, "the batch size is 0; it has to be at least 1"),
        (0, 4, "the train data has no pictures"),
        (3, 4, "the train data has 3 pictures, and a batch has 4. Take more."),
    ],
)
def test_sizes_that_are_refused(n, batch_size, message):
    with pytest.raises(UserError, match=message):
        Squares(n, batch_size, unit="pictures", remedy="Take more.")


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.float16, np.int64, bool])
@pytest.mark.parametrize("shuffle", [True, False])
def test_arrays_keep_their_dtype_and_values(dtype, shuffle):
    x = np.random.default_rng(0).integers(0, 256, (6, 2, 3)).astype(dtype)
    data = ArrayBatches({"x": x, "weights": np.ones(6, np.float32)}, 4, shuffle=shuffle)
    for step in range(2):
        batch = data.batch_at(step)
        assert batch["x"].dtype == dtype and batch["x"].shape == (4, 2, 3)
        rows = [int(name.split(":")[1]) for name in data.examples_at(step)]
        np.testing.assert_array_equal(batch["x"][: len(rows)], x[rows])
        assert not batch["x"][len(rows) :].any() and batch["weights"].sum() == len(rows)


def test_arrays_of_unequal_lengths_are_refused():
    with pytest.raises(UserError, match="'x': 3, 'weights': 2"):
        ArrayBatches({"x": np.zeros(3), "weights": np.ones(2)}, 1)


def test_data_in_memory():
    x = np.arange(8, dtype=np.uint8)
    splits = {name: {"x": x, "weights": np.ones(8)} for name in ("train", "valid")}
    data = ArrayData(splits)
    assert data.split("train", 4).shuffle and not data.split("valid", 4).shuffle
    assert not data.split("train", 4, shuffle=False).shuffle and data.tokenizer is None
    assert data.split("valid", 4).examples_at(0)[0] == "valid:0"
    assert data.fingerprint == ArrayData(splits).fingerprint
    changed = {**splits, "valid": {"x": x + 1, "weights": np.ones(8)}}
    assert ArrayData(changed).fingerprint != data.fingerprint
    with pytest.raises(UserError, match="'test' was not loaded; available: train, valid"):
        data.split("test", 4)
