"""Batches of next-token examples, and a prefetching iterator over batches of any kind."""

import collections
from collections.abc import Callable, Iterator, Mapping
import concurrent.futures
import itertools
import math
from typing import Any

import numpy as np

from bigjax.data.batches import ExampleBatches, Rows, empty_split
from bigjax.data.packing import make_batch
from bigjax.data.sources import check_weight
from bigjax.data.store import Stream
from bigjax.data.tokenizers.base import Tokenizer
from bigjax.errors import UserError


class TextBatches(ExampleBatches):
    """One split of one or more sources as batches of next-token examples.

    Example i of a source is stream[i * L : i * L + L + 1] of its concatenated documents, so
    every token but the first is a target exactly once per epoch.

    - shuffle=True (training): sources are mixed by `weights`; a stream's last, short example is
      left out.
    - shuffle=False (evaluation): the last, short example of each stream is padded with weight 0.

    Batches: the arrays of `packing.make_batch`.
    """

    def __init__(
        self,
        streams: Mapping[str, Stream],
        tokenizer: Tokenizer,
        seq_len: int,
        batch_size: int,
        seed: int = 0,
        packing: bool = True,
        shuffle: bool = True,
        weights: Mapping[str, float] | None = None,
        name: str = "train",
    ) -> None:
        """`weights` by source name, relative; equal if None. Raises UserError for sizes below 1,
        weights that are not positive, and too little text."""
        self.seq_len, self.packing = int(seq_len), packing
        weights = dict.fromkeys(streams, 1.0) if weights is None else dict(weights)
        for source in streams:
            check_weight(source, weights.get(source))
        if self.seq_len < 1:
            raise UserError(f"data.seq_len is {seq_len}; it has to be at least 1.")
        if sum(stream.n_tokens for stream in streams.values()) < 2:
            raise empty_split(name, "document", f" of {', '.join(streams) or 'no source'}")
        if not shuffle:
            streams = {source: s for source, s in streams.items() if s.n_tokens > 1}
        self._streams = list(streams.values())
        self._token_bytes, self._pad_id = tokenizer.token_bytes, tokenizer.pad_id
        sizes = {source: _n_examples(s, self.seq_len, shuffle) for source, s in streams.items()}
        for source in (source for source, n in sizes.items() if not n):
            raise UserError(
                f"the {name} split of source {source!r} has {streams[source].n_tokens:,} tokens, "
                f"and one example has data.seq_len + 1 = {self.seq_len + 1:,}. Lower data.seq_len, "
                "give the source more text, or remove it from data.sources."
            )
        super().__init__(
            sizes,
            batch_size,
            seed,
            shuffle,
            name,
            weights=weights,
            fill={"inputs": self._pad_id, "targets": self._pad_id},
            unit=f"examples of {self.seq_len} tokens",
            remedy="Lower train.batch_size or data.seq_len, or give more text in data.sources.",
        )

    def assemble(self, rows: Rows) -> dict[str, np.ndarray]:
        """See `packing.make_batch`."""
        tokens, is_first, lengths = self._gather(rows.source, rows.index)
        return make_batch(tokens, is_first, lengths, self._token_bytes, self.packing)

    def _gather(
        self, source: np.ndarray, example: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """tokens and is_first [n, L + 1] and lengths [n] of these examples."""
        n_rows, width = len(source), self.seq_len + 1
        tokens = np.full((n_rows, width), self._pad_id, np.int32)
        is_first = np.zeros((n_rows, width), bool)
        lengths = np.zeros(n_rows, np.int64)
        for i in np.unique(source):
            stream = self._streams[i]
            rows = np.flatnonzero(source == i)
            starts = example[rows] * self.seq_len
            lengths[rows] = np.minimum(width, stream.n_tokens - starts)
            full = lengths[rows] == width
            tokens[rows[full]], is_first[rows[full]] = stream.windows(starts[full], width)
            for row, start in zip(rows[~full], starts[~full]):
                n = int(lengths[row])
                tokens[row, :n], is_first[row, :n] = (
                    part[0] for part in stream.windows(np.array([start]), n)
                )
        return tokens, is_first, lengths


def iterate(
    batch_at: Callable[..., Any],
    start: int = 0,
    stop: int | None = None,
    rows: slice | None = None,
    buffer_size: int = 2,
) -> Iterator[Any]:
    """Yields batch_at(step, rows) for each step; one thread prefetches `buffer_size` batches.

    With `stop` None the iterator is endless. An exception of `batch_at` is raised at its own step.
    Closing or dropping the iterator ends the thread.
    """
    steps = itertools.count(start) if stop is None else iter(range(start, stop))
    pool = concurrent.futures.ThreadPoolExecutor(1, "bigjax-data")

    def submit(n: int) -> list[concurrent.futures.Future]:
        return [pool.submit(batch_at, step, rows) for step in itertools.islice(steps, n)]

    # Started now and not at the first next(): batches are made while the model compiles.
    return _drain(pool, collections.deque(submit(max(1, buffer_size))), submit)


def _drain(
    pool: concurrent.futures.Executor, ahead: collections.deque, submit: Callable[[int], list]
) -> Iterator[Any]:
    with pool:
        try:
            while ahead:
                batch = ahead.popleft().result()
                ahead.extend(submit(1))
                yield batch
        finally:
            for future in ahead:
                future.cancel()


def _n_examples(stream: Stream, seq_len: int, shuffle: bool) -> int:
    n_targets = max(0, stream.n_tokens - 1)
    return n_targets // seq_len if shuffle else math.ceil(n_targets / seq_len)
