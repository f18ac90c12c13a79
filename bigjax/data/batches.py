"""What the trainer and the evaluators ask of data, whatever it is."""

from typing import Any, Protocol

import numpy as np

from bigjax.data.tokenizer_base import Tokenizer


class Batches(Protocol):
    """One split as batches that are a function of (seed, step): no iterator, no state to save.

    epoch_steps: batches in an epoch, a float where its end falls into a batch.
    """

    epoch_steps: float

    def batch_at(self, step: int, rows: slice | None = None) -> dict[str, np.ndarray]:
        """Batch `step` as arrays by name, [B, ...] each; or its `rows`, a contiguous slice of it
        for one host. O(1) in step and in the size of the data."""

    def examples_at(self, step: int) -> list[Any]:
        """Names of the examples in batch `step`, in order, for messages."""


class Data(Protocol):
    """What `Task.load_data` returns.

    tokenizer: None of data that is no text. fingerprint: changes with the content, so that losses
    are compared, and runs resumed, only where it is equal.
    """

    tokenizer: Tokenizer | None
    fingerprint: str

    def split(
        self, name: str, batch_size: int, seed: int = 0, shuffle: bool | None = None
    ) -> Batches:
        """The batches of 'train' (endless, shuffled), 'valid' or 'test' (each example once)."""
