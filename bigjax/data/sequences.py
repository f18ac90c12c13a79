"""Rows of arrays as batches, and batches in rounds: what adversarial training reads."""

from collections.abc import Callable, Mapping
import math

import numpy as np

from bigjax.data.order import InTurn, Order, places
from bigjax.errors import UserError


class Rows:
    """Batches of the rows of `arrays`.

    seed None: each row once and in its order, the last batch filled with rows of weight 0. Else
    endless, and shuffled anew in each epoch.

    Attributes: n_examples; epoch_steps; n_batches of an epoch.
    """

    def __init__(self, arrays: Mapping[str, np.ndarray], batch_size: int, seed: int | None) -> None:
        """arrays: n rows each, one of them `weights` [n, T]. UserError for less than a batch."""
        self._arrays, self._batch_size, self._endless = dict(arrays), batch_size, seed is not None
        self.n_examples = len(arrays["weights"])
        if self._endless and self.n_examples < batch_size:
            raise UserError(
                f"There are {self.n_examples} examples to train on, less than one "
                f"batch of train.batch_size={batch_size}."
            )
        self.epoch_steps = self.n_examples / batch_size
        self.n_batches = math.ceil(self.epoch_steps)
        self._order = (
            InTurn([self.n_examples]) if seed is None else Order([self.n_examples], [1.0], seed)
        )

    def batch_at(self, step: int, rows: slice | None = None) -> dict[str, np.ndarray]:
        """{name: [B, ...]} of batch `step`, or its `rows`: a contiguous part. O(1) in step."""
        at = places(step, rows, self._batch_size, None if self._endless else self.n_batches)
        found = self._order(at)[1]
        return {k: _filled(x[found], len(at)) for k, x in self._arrays.items()}

    def examples_at(self, step: int) -> list[str]:
        """Which rows batch `step` holds, as train:INDEX."""
        return [f"train:{i}" for i in self._order(places(step, None, self._batch_size, None))[1]]


class InRounds:
    """Batches of `data`, as many at once as a round takes: rounds(step) -> (phase, batches of
    this round, batches before it).

    Attributes: n_examples and n_batches, as data's.
    """

    def __init__(self, data, rounds: Callable[[int], tuple[str, int, int]]) -> None:
        self._data, self._rounds = data, rounds
        self.n_examples, self.n_batches = data.n_examples, data.n_batches

    def batch_at(self, step: int, rows: slice | None = None) -> dict:
        """{phase: {name: [B, batches, ...]}} of round `step`, rows first, so that a device has the
        same rows of all batches. rows: a contiguous part of each batch."""
        phase, n, before = self._rounds(step)
        batches = [self._batch(phase, i, before + i, rows) for i in range(n)]
        return {phase: {k: np.stack([batch[k] for batch in batches], axis=1) for k in batches[0]}}

    def examples_at(self, step: int) -> list[str]:
        """Which examples round `step` holds."""
        _, n, before = self._rounds(step)
        return [found for i in range(n) for found in self._data.examples_at(before + i)]

    def _batch(self, phase: str, i: int, number: int, rows: slice | None) -> dict:
        """Batch `number` of data, the i-th of its round."""
        del phase, i
        return self._data.batch_at(number, rows)


def _filled(x: np.ndarray, n: int) -> np.ndarray:
    return np.concatenate([x, np.zeros((n - len(x), *x.shape[1:]), x.dtype)])
