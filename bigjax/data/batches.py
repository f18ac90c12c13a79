"""Batches as a function of (seed, step), and the splits that they come from.

`Batches` and `Data` are what the trainer and the evaluators use. `ExampleBatches` and `SplitData`
implement them for a new kind of data.
"""

from collections.abc import Iterable, Mapping
import dataclasses
import math
from typing import Any, Protocol

import numpy as np

from bigjax.data.order import Order, SequentialOrder, batch_indices
from bigjax.data.tokenizers.base import Tokenizer
from bigjax.errors import UserError


class Batches(Protocol):
    """One split as batches that are a function of (seed, step): no iterator, no state to save.

    epoch_steps: batches per epoch, a float where an epoch ends within a batch; 0 if steps use
        different numbers of examples, so that neither epochs nor examples per second are reported.
    note: optional; a fact about them that the first lines of a run report.
    """

    epoch_steps: float

    def batch_at(self, step: int, rows: slice | None = None) -> dict[str, np.ndarray]:
        """The arrays of batch `step` by name, [B, ...] each; or its `rows`, a contiguous slice for
        one host. O(1) in step and in the size of the data."""

    def examples_at(self, step: int) -> list[Any]:
        """Names of the examples in batch `step`, in order, for messages."""


class Data(Protocol):
    """What `Task.load_data` returns.

    tokenizer: None if the data are not text. fingerprint: changes with the content; losses are
    compared, and runs resumed, only where it is equal.
    """

    tokenizer: Tokenizer | None
    fingerprint: str

    def split(
        self, name: str, batch_size: int, seed: int = 0, shuffle: bool | None = None
    ) -> Batches:
        """The batches of 'train' (endless, shuffled), 'valid' or 'test' (each example once)."""


@dataclasses.dataclass(frozen=True)
class Rows:
    """The n rows of a batch that `ExampleBatches.assemble` makes.

    step: of the batch. first: the number of their first row in the global batch.
    source, index: int64 [n], the source of each row and its index there.
    """

    step: int
    first: int
    source: np.ndarray
    index: np.ndarray


class ExampleBatches:
    """Base of batches: the rows of a split, in an order that is a function of (seed, step).

    A subclass calls `super().__init__` and defines `assemble`.

    - shuffle=True (training): endless; each epoch has each row once, in another order.
    - shuffle=False (evaluation): each row once, in order; the last batch is padded with rows of
      `fill`.

    Attributes: name, of the split; batch_size; seed; shuffle; fill; n_rows, per epoch; n_examples,
    as many unless a row holds several; epoch_steps, batches per epoch (a float when training);
    n_batches, the complete batches of an epoch, in evaluation all of them.
    """

    def __init__(
        self,
        sizes: int | Mapping[str, int],
        batch_size: int,
        seed: int = 0,
        shuffle: bool = True,
        name: str = "train",
        *,
        weights: Mapping[str, float] | None = None,
        fill: Mapping[str, float] | None = None,
        unit: str = "examples",
        remedy: str = "Lower train.batch_size to that, or give more data.",
    ) -> None:
        """sizes: the number of rows, or {source: number of rows}. weights: {source: its relative
        share of the rows in training}, equal by default. fill: {array: value of padding rows}, 0
        by default. unit, remedy: for messages: what a row is, and what to do if there are too few.

        Raises UserError for a batch size below 1 and for less than one batch of rows.
        """
        sizes = {name: sizes} if isinstance(sizes, int) else dict(sizes)
        self.name, self.batch_size, self.seed, self.shuffle = name, int(batch_size), seed, shuffle
        self.n_rows = self.n_examples = sum(sizes.values())
        self._sources, self.fill = list(sizes), dict(fill or {})
        if self.batch_size < 1:
            raise UserError(f"the batch size is {self.batch_size}; it has to be at least 1.")
        if not self.n_rows:
            raise UserError(f"the {name} data has no {unit}. Give it at least one.")
        if shuffle and self.n_rows < self.batch_size:
            raise UserError(
                f"too little data for one batch: the {name} data has {self.n_rows:,} {unit}, and "
                f"a batch has {self.batch_size:,}. {remedy}"
            )
        epoch_steps = self.n_rows / self.batch_size
        self.epoch_steps: float = epoch_steps if shuffle else math.ceil(epoch_steps)
        self.n_batches = int(self.epoch_steps)
        shares = [1.0 if weights is None else weights[source] for source in sizes]
        counts = list(sizes.values())
        self._order = Order(counts, shares, seed) if shuffle else SequentialOrder(counts)

    def assemble(self, rows: Rows) -> dict[str, np.ndarray]:
        """The arrays of these rows by name, [n, ...] each; n may be 0. For subclasses.

        A pure function of the seed and `rows` that may be called from several threads.
        """
        raise NotImplementedError

    def examples_in(self, index: int) -> Iterable[int]:
        """The examples in a row, for `examples_at`. For subclasses whose rows hold several."""
        return (index,)

    def batch_at(self, step: int, rows: slice | None = None) -> dict[str, np.ndarray]:
        """The arrays of `assemble` for batch `step`, or for its `rows`: a contiguous slice of the
        global batch for one host. A function of (seed, step), O(1) in step.

        Raises UserError for rows outside of the batch, a negative step, and in evaluation a step
        from n_batches on.
        """
        indices = self._indices(step, rows)
        source, index = self._order(indices)
        arrays = self.assemble(Rows(step, indices.start - step * self.batch_size, source, index))
        return {k: pad_rows(x, len(indices), self.fill.get(k, 0)) for k, x in arrays.items()}

    def examples_at(self, step: int) -> list[str]:
        """Names of the examples in batch `step`, in order, as SOURCE:INDEX (SPLIT:INDEX if there
        is one source)."""
        source, index = self._order(self._indices(step, None))
        return [
            f"{self._sources[s]}:{example}"
            for s, i in zip(source, index)
            for example in self.examples_in(i)
        ]

    def _indices(self, step: int, rows: slice | None) -> range:
        return batch_indices(step, rows, self.batch_size, None if self.shuffle else self.n_batches)


class SplitData:
    """Base of what `Task.load_data` returns: named splits, each as batches.

    A subclass defines `batches`. `tokenizer`, `fingerprint`: as in `Data`. `names`: of the splits
    that were loaded.
    """

    def __init__(
        self, names: Iterable[str], fingerprint: str, tokenizer: Tokenizer | None = None
    ) -> None:
        self.names, self.fingerprint, self.tokenizer = list(names), fingerprint, tokenizer

    def batches(self, name: str, **options: Any) -> Batches:
        """The batches of split `name`. options: batch_size, seed, shuffle, for ExampleBatches."""
        raise NotImplementedError

    def split(self, name: str, batch_size: int, seed: int = 0, shuffle: bool | None = None) -> Any:
        """The batches of a split, `batch_size` rows each.

        `shuffle` defaults to True for 'train', which is then endless, and False for the others,
        which then give each example once. Raises UserError for a split that was not loaded or has
        too little data.
        """
        self.check_split(name)
        shuffle = name == "train" if shuffle is None else shuffle
        return self.batches(name, batch_size=batch_size, seed=seed, shuffle=shuffle)

    def check_split(self, name: str) -> None:
        """Raises UserError for a split that was not loaded."""
        if name not in self.names:
            raise UserError(
                f"the split {name!r} was not loaded; available: {', '.join(self.names)}. Use one "
                "of these, or load it too (`splits` of Task.load_data)."
            )


def empty_split(name: str, unit: str, where: str = "", own: str = "") -> UserError:
    """The error for a split that is a fraction of the data into which nothing fell.

    unit: of the data, such as 'row'. where: follows the name of the split. own: another remedy.
    """
    remedy = (
        "Lower data.valid_fraction and data.test_fraction"
        if name == "train"
        else f"Raise data.{name}_fraction{own}"
    )
    return UserError(
        f"the {name} split{where} is empty: no {unit} fell into it. {remedy}, or give more {unit}s."
    )


def pad_rows(array: np.ndarray, n: int, fill: float = 0) -> np.ndarray:
    """`array` [m, ...] followed by rows of `fill`, n rows in all; its dtype is kept."""
    if len(array) == n:
        return array
    padded = np.full((n, *array.shape[1:]), fill, array.dtype)
    padded[: len(array)] = array
    return padded
