"""Data in memory: arrays as splits and batches."""

from collections.abc import Mapping
import hashlib
from typing import Any

import numpy as np

from bigjax.data.batches import ExampleBatches, Rows, SplitData
from bigjax.data.tokenizers.base import Tokenizer
from bigjax.errors import UserError


class ArrayBatches(ExampleBatches):
    """Batches of the rows of `arrays`, of any dtype; padding rows are 0."""

    def __init__(self, arrays: Mapping[str, np.ndarray], batch_size: int, **options: Any) -> None:
        """arrays: {name: [n, ...]}, one of them `weights`, which tells padding rows (0) from
        others. options: as of ExampleBatches. Raises UserError as it does, and for arrays of
        different lengths."""
        lengths = {name: len(x) for name, x in arrays.items()}
        if "weights" not in arrays or len(set(lengths.values())) > 1:
            raise UserError(
                f"the arrays of a split have {lengths} rows; they need equal numbers, and one of "
                "them has to be `weights`, 1 for each row that counts."
            )
        super().__init__(lengths["weights"], batch_size, **options)
        self._arrays = dict(arrays)

    def assemble(self, rows: Rows) -> dict[str, np.ndarray]:
        return {name: x[rows.index] for name, x in self._arrays.items()}


class ArrayData(SplitData):
    """{split: {array: [n, ...]}} in memory; see ArrayBatches."""

    def __init__(
        self, arrays: Mapping[str, Mapping[str, np.ndarray]], tokenizer: Tokenizer | None = None
    ) -> None:
        digest = hashlib.sha256()
        for split, parts in arrays.items():
            for name, x in parts.items():
                digest.update(f"{split} {name} {x.dtype} {x.shape}".encode())
                digest.update(np.ascontiguousarray(x).tobytes())
        super().__init__(arrays, digest.hexdigest()[:16], tokenizer)
        self._arrays = arrays

    def batches(self, name: str, **options: Any) -> ArrayBatches:
        return ArrayBatches(self._arrays[name], name=name, **options)
