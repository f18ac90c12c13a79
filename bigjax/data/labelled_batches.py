"""Labelled examples as batches of rows, each with several complete examples."""

from typing import Any

import numpy as np

from bigjax.data.batches import ExampleBatches, Rows
from bigjax.data.examples import Examples
from bigjax.data.row_plan import plan_packed, plan_rows, shuffled
from bigjax.errors import UserError

TOKEN_ARRAYS = ("tokens", "types", "segment_ids", "positions")


class LabelledBatches(ExampleBatches):
    """The examples of one split as batches of rows of `seq_len` tokens.

    With packing a row holds up to K complete examples, distinguished by their segment_ids. Which
    examples share a row is planned once, in training on shuffled examples. K follows from their
    lengths (`plan_packed`). Without packing a row holds one.

    Batches, with B rows, T = seq_len and K = max_examples:
    - tokens, types, segment_ids (1, 2, ... along the row, 0 on padding) and positions (from 0 in
      each example), int32 [B, T];
    - first int32 [B, K], the column of each example's [CLS]; example int32 [B, K], its index in
      `examples`, -1 where there is none; weights float32 [B, K], 1 where there is one;
    - the targets of the examples: example_arrays and column_arrays [B, K], the latter as columns
      of the row; token_arrays [B, T], -1 where there is none.

    Attributes: `examples`; `max_examples`, K; `padding`, the fraction of the plan's tokens that is
    padding; and as all ExampleBatches.
    """

    def __init__(
        self,
        examples: Examples,
        pad_id: int,
        seq_len: int,
        batch_size: int,
        seed: int = 0,
        packing: bool = True,
        shuffle: bool = True,
        name: str = "train",
    ) -> None:
        """Raises UserError for an example longer than seq_len and less than a batch of data."""
        n, lengths = len(examples), examples.lengths
        self.examples, self.seq_len, self.packing = examples, int(seq_len), packing
        self._pad_id, self._lengths = pad_id, lengths
        if n and lengths.max() > self.seq_len:
            raise UserError(
                f"the {name} data has an example of {lengths.max()} tokens; "
                f"data.seq_len is {self.seq_len}. Encode it with the same seq_len."
            )
        order = shuffled(n, seed) if shuffle else np.arange(n)
        self.max_examples = 1
        if packing and n:
            self._plan, self._row_offsets, self.max_examples = plan_packed(
                lengths, order, self.seq_len
            )
        else:
            self._plan, self._row_offsets = plan_rows(lengths, order, self.seq_len, 1)
        n_rows = len(self._row_offsets) - 1
        packed = f" (packed: {n:,} examples)" if packing else ""
        super().__init__(
            n_rows,
            batch_size,
            seed,
            shuffle,
            name,
            fill={"tokens": pad_id, "example": -1, **dict.fromkeys(examples.token_arrays, -1)},
            unit=f"rows of {self.seq_len} tokens{packed}",
            remedy="Lower train.batch_size to that, "
            + ("lower data.seq_len or set data.packing=False, " if packing else "")
            + "or give more data.",
        )
        self.n_examples = n
        self.padding = 1.0 - float(lengths.sum()) / (n_rows * self.seq_len)
        self.note = f"{self.padding:.1%} of the tokens are padding"

    def examples_in(self, index: int) -> np.ndarray:
        return self._plan[self._row_offsets[index] : self._row_offsets[index + 1]]

    def assemble(self, rows: Rows) -> dict[str, np.ndarray]:
        n_rows, examples = len(rows.index), self.examples
        begins = self._row_offsets[rows.index]
        counts = self._row_offsets[rows.index + 1] - begins
        row = np.repeat(np.arange(n_rows), counts)  # of each example
        slot = ranges(counts)
        which = self._plan[np.repeat(begins, counts) + slot]
        lengths = self._lengths[which]
        before = np.cumsum(lengths) - lengths
        row_starts = np.cumsum(counts) - counts
        column = before - np.repeat(before[row_starts], counts)
        inside = ranges(lengths)  # of each token, its position in its example
        at = np.repeat(row, lengths), np.repeat(column, lengths) + inside
        source = np.repeat(examples.offsets[which], lengths) + inside
        is_second = inside >= np.repeat(examples.second[which], lengths)
        wide, narrow = (n_rows, self.seq_len), (n_rows, self.max_examples)
        batch = {
            "tokens": scatter(wide, self._pad_id, at, examples.tokens[source]),
            "types": scatter(wide, 0, at, is_second),
            "segment_ids": scatter(wide, 0, at, np.repeat(slot + 1, lengths)),
            "positions": scatter(wide, 0, at, inside),
            "first": scatter(narrow, 0, (row, slot), column),
            "example": scatter(narrow, -1, (row, slot), which),
            "weights": scatter(narrow, 0, (row, slot), 1, np.float32),
        }
        for name, x in examples.example_arrays.items():
            batch[name] = scatter(narrow, 0, (row, slot), x[which], x.dtype)
        for name, x in examples.token_arrays.items():
            batch[name] = scatter(wide, -1, at, x[source], x.dtype)
        for name, x in examples.column_arrays.items():
            batch[name] = scatter(narrow, 0, (row, slot), x[which] + column)
        return batch


def ranges(counts: np.ndarray) -> np.ndarray:
    """[0 .. c - 1] for each c of `counts`, concatenated."""
    return np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)


def scatter(
    shape: tuple[int, int], empty: float, at: tuple, values: Any, dtype: Any = np.int32
) -> np.ndarray:
    array = np.full(shape, empty, dtype)
    array[at] = values
    return array
