"""The order of examples: a function of (seed, index), with Grain's random-access datasets."""

from collections.abc import Iterable

import numpy as np

from bigjax.errors import UserError


class Order:
    """An endless, shuffled, weighted order over the examples of one or more sources.

    Each source is shuffled again in each of its epochs, by an index permutation in O(1) memory.
    Several sources are mixed in proportion to `weights`, and each has epochs of its own.
    """

    def __init__(self, sizes: list[int], weights: list[float], seed: int) -> None:
        import grain

        self._offsets = np.cumsum([0, *sizes])
        shuffled = []
        for i, size in enumerate(sizes):
            # Sources get unrelated seeds: the same one would shuffle equal sizes equally.
            mixed = np.random.SeedSequence([seed % 2**64, i]).generate_state(1)[0]
            records = grain.MapDataset.range(int(self._offsets[i]), int(self._offsets[i]) + size)
            shuffled.append(records.shuffle(seed=int(mixed)).repeat())
        total = sum(weights)
        self._order = (
            shuffled[0]
            if len(shuffled) == 1
            else grain.MapDataset.mix(shuffled, weights=[weight / total for weight in weights])
        )

    def __call__(self, indices: Iterable[int]) -> tuple[np.ndarray, np.ndarray]:
        """int64 [n] source and int64 [n] example in it, for each of `indices`; O(1) each."""
        return split_index(np.array([self._order[i] for i in indices], np.int64), self._offsets)


class SequentialOrder:
    """The examples of one or more sources in sequence, each once."""

    def __init__(self, sizes: Iterable[int]) -> None:
        self._offsets = np.cumsum([0, *sizes])

    def __call__(self, indices: range) -> tuple[np.ndarray, np.ndarray]:
        """As Order's; indices past the end are left out."""
        present = np.arange(indices.start, min(indices.stop, int(self._offsets[-1])))
        return split_index(present, self._offsets)


def split_index(index: np.ndarray, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(source, example in it) of an index over all sources; offsets [n_sources + 1]."""
    source = np.searchsorted(offsets, index, "right") - 1
    return source, index - offsets[source]


def batch_indices(step: int, rows: slice | None, batch_size: int, n_batches: int | None) -> range:
    """The indices in the order of batch `step`, or of its `rows`, the part of one host.

    n_batches: None if batches are endless. Raises UserError for a step that is negative or at
    least n_batches, and for rows that are not a contiguous part of the batch.
    """
    if step < 0 or (n_batches is not None and step >= n_batches):
        limit = "any from 0 on" if n_batches is None else f"0 to {n_batches - 1}"
        raise UserError(f"batch_at: there is no batch {step}; allowed: {limit}.")
    first, last = 0, batch_size
    if rows is not None:
        first, last = rows.start or 0, batch_size if rows.stop is None else rows.stop
        if rows.step not in (None, 1) or not 0 <= first < last <= batch_size:
            raise UserError(
                f"batch_at: rows {first}:{last} (step {rows.step}) are not a contiguous part of a "
                f"global batch of {batch_size}; allowed: 0 <= start < stop <= {batch_size}. Does "
                "the number of hosts divide train.batch_size?"
            )
    return range(step * batch_size + first, step * batch_size + last)
