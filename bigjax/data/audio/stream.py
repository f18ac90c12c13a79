"""Windows of a recording of any length, of which only the current one is in memory."""

from collections.abc import Iterable

import numpy as np


class Windows:
    """Windows of samples that come in blocks, int16 [n] each; they are read as they are needed."""

    def __init__(self, blocks: Iterable[np.ndarray]) -> None:
        self._blocks = iter(blocks)
        self._first, self._held = 0, np.zeros(0, np.int16)

    def at(self, start: int, n: int) -> np.ndarray:
        """The samples from `start` on, int16 [n], fewer at the end of the recording.

        start: not less than in the call before. Raises what the blocks raise.
        """
        parts, end = [self._held], self._first + len(self._held)
        while end < start + n and (block := next(self._blocks, None)) is not None:
            parts.append(block)
            end += len(block)
        # A copy: a view would keep all parts in memory.
        self._held = np.concatenate(parts)[start - self._first :].copy()
        self._first = start
        return self._held[:n]
