"""The batches of adversarial training, one group per round."""

from collections.abc import Callable

import numpy as np


class RoundBatches:
    """Groups of batches of `data`.

    rounds(step) -> (phase, batches in this round, batches before it).
    Attributes: n_examples and n_batches, as of data.
    """

    epoch_steps = 0.0  # rounds use different numbers of batches

    def __init__(self, data, rounds: Callable[[int], tuple[str, int, int]]) -> None:
        self._data, self._rounds = data, rounds
        self.n_examples, self.n_batches = data.n_examples, data.n_batches

    def batch_at(self, step: int, rows: slice | None = None) -> dict:
        """{phase: {name: [B, batches, ...]}} of round `step`; rows come first, so that a device has
        the same rows of all batches. rows: a contiguous part of each batch."""
        phase, n, before = self._rounds(step)
        batches = [self._batch(phase, i, before + i, rows) for i in range(n)]
        return {phase: {k: np.stack([batch[k] for batch in batches], axis=1) for k in batches[0]}}

    def examples_at(self, step: int) -> list[str]:
        """The examples of round `step`."""
        _, n, before = self._rounds(step)
        return [name for i in range(n) for name in self._data.examples_at(before + i)]

    def _batch(self, phase: str, i: int, number: int, rows: slice | None) -> dict:
        """Batch `number` of data, the i-th of its round; subclasses may change it."""
        del phase, i
        return self._data.batch_at(number, rows)
