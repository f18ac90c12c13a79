"""Arrays in memory as batches."""

from collections.abc import Mapping
import math

import numpy as np

from bigjax.data.order import Order, SequentialOrder, batch_indices
from bigjax.errors import UserError


class ArrayData:
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
            SequentialOrder([self.n_examples])
            if seed is None
            else Order([self.n_examples], [1.0], seed)
        )

    def batch_at(self, step: int, rows: slice | None = None) -> dict[str, np.ndarray]:
        """{name: [B, ...]} of batch `step`, or its `rows`: a contiguous part. O(1) in step."""
        at = batch_indices(step, rows, self._batch_size, None if self._endless else self.n_batches)
        found = self._order(at)[1]
        return {k: _filled(x[found], len(at)) for k, x in self._arrays.items()}

    def examples_at(self, step: int) -> list[str]:
        """Which rows batch `step` holds, as train:INDEX."""
        return [
            f"train:{i}" for i in self._order(batch_indices(step, None, self._batch_size, None))[1]
        ]


def _filled(x: np.ndarray, n: int) -> np.ndarray:
    return np.concatenate([x, np.zeros((n - len(x), *x.shape[1:]), x.dtype)])
