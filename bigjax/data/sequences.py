"""Rows of arrays, dealt out in rounds of several batches: what adversarial training reads."""

import math
from collections.abc import Callable, Mapping

import numpy as np

from bigjax.data.order import InTurn, Order, places
from bigjax.errors import UserError


class RoundData:
    """Batches of the rows of `arrays`, as many at once as a round takes.

    seed None: each row once and in its order, one batch a step, the last one filled with rows of
    weight 0. Else endless: shuffled anew in each epoch, and step s gives the batches that
    rounds(s) -> (phase, batches, batches before it) says, as {phase: arrays}.

    Attributes: n_examples; n_batches of an epoch.
    """

    def __init__(self, arrays: Mapping[str, np.ndarray], batch_size: int, seed: int | None,
                 rounds: Callable[[int], tuple[str, int, int]]) -> None:
        """arrays: n rows each, one of them `weights` [n, T]. UserError for less than a batch."""
        self._arrays, self._rounds = dict(arrays), rounds
        self.n_examples, self.batch_size, self._seed = len(arrays["weights"]), batch_size, seed
        if seed is not None and self.n_examples < batch_size:
            raise UserError(f"There are {self.n_examples} examples to train on, less than one "
                            f"batch of train.batch_size={batch_size}.")
        self.n_batches = math.ceil(self.n_examples / batch_size)
        self._order = (InTurn([self.n_examples]) if seed is None
                       else Order([self.n_examples], [1.0], seed))

    def batch_at(self, step: int, rows: slice | None = None) -> dict:
        """Training: {phase: {name: [B, batches, ...]}} of round `step`, rows first, so that a
        device has the same rows of all batches. Evaluation: {name: [B, ...]}.

        rows: a contiguous part of the global batch. O(1) in step.
        """
        if self._seed is None:
            at = places(step, rows, self.batch_size, self.n_batches)
            found = self._order(at)[1]
            return {k: _filled(x[found], len(at)) for k, x in self._arrays.items()}
        phase, index = self._round(step, rows)
        return {phase: {k: x[index].swapaxes(0, 1) for k, x in self._arrays.items()}}

    def examples_at(self, step: int) -> list[str]:
        """Which rows round `step` holds, as train:INDEX."""
        return [f"train:{i}" for i in self._round(step, None)[1].ravel()]

    def _round(self, step: int, rows) -> tuple[str, np.ndarray]:
        phase, batches, before = self._rounds(step)
        return phase, np.stack([self._order(places(before + i, rows, self.batch_size, None))[1]
                                for i in range(batches)])


def _filled(x: np.ndarray, n: int) -> np.ndarray:
    return np.concatenate([x, np.zeros((n - len(x), *x.shape[1:]), x.dtype)])
