"""Batches as a pure function of (seed, step), and a prefetching iterator over them."""

import collections
from collections.abc import Callable, Iterator, Mapping
import concurrent.futures
import itertools
import math
from typing import Any

import numpy as np

from bigjax.data.order import Order, SequentialOrder, batch_indices
from bigjax.data.packing import make_batch
from bigjax.data.sources import check_weight
from bigjax.data.store import Stream
from bigjax.data.tokenizer import Tokenizer
from bigjax.errors import UserError

_CONFIG_OF = {"valid": "data.valid_fraction", "test": "data.test_fraction"}


class TextData:
    """One split of one or more sources as batches of next-token examples.

    Example i of a source is stream[i * L : i * L + L + 1] of its concatenated documents, so
    every token but the first is a target exactly once an epoch.

    - shuffle=True (training): endless, shuffled anew each epoch, sources mixed by `weights`; a
      stream's last, short example is left out.
    - shuffle=False (evaluation): the examples of the sources in order, each once; the last,
      short example of each and the last, short batch are padded with weight 0.

    Attributes: `n_examples`; `epoch_steps`, batches in an epoch of all sources (a float when
    training); `n_batches`, the whole batches of an epoch, in evaluation all of them.
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
    ) -> None:
        """`weights` by source name, relative; equal if None. UserError: see `_check`."""
        self.seq_len, self.batch_size = int(seq_len), int(batch_size)
        self.packing, self.shuffle = packing, shuffle
        weights = dict.fromkeys(streams, 1.0) if weights is None else dict(weights)
        _check(streams, self.seq_len, self.batch_size, weights)
        if not shuffle:
            streams = {name: stream for name, stream in streams.items() if stream.n_tokens > 1}
        self._streams, self._names = list(streams.values()), list(streams)
        sizes = [_n_examples(stream, self.seq_len, shuffle) for stream in self._streams]
        self.n_examples = sum(sizes)
        self._token_bytes, self._pad_id = tokenizer.token_bytes, tokenizer.pad_id
        if shuffle:
            _check_enough(streams, sizes, self.seq_len, self.batch_size)
            self.epoch_steps: float = self.n_examples / self.batch_size
            self.n_batches = self.n_examples // self.batch_size
            self._order: Order | SequentialOrder = Order(
                sizes, [weights[name] for name in streams], seed
            )
        else:
            self.epoch_steps = self.n_batches = math.ceil(self.n_examples / self.batch_size)
            self._order = SequentialOrder(sizes)

    def batch_at(self, step: int, rows: slice | None = None) -> dict[str, np.ndarray]:
        """Batch `step`, or its `rows`: a contiguous slice of the global batch for one host.

        The keys and shapes are those of `packing.make_batch`. O(1) in step and in the size of
        the data, and safe to call from several threads. Raises UserError for rows outside the
        batch, a negative step, or in evaluation a step from `n_batches` on.
        """
        at = batch_indices(step, rows, self.batch_size, None if self.shuffle else self.n_batches)
        source, example = self._order(at)
        tokens, is_first, lengths = self._gather(source, example, len(at))
        return make_batch(tokens, is_first, lengths, self._token_bytes, self.packing)

    def examples_at(self, step: int) -> list[str]:
        """Which examples batch `step` holds, as SOURCE:INDEX, in order."""
        source, example = self._order(range(step * self.batch_size, (step + 1) * self.batch_size))
        return [f"{self._names[s]}:{e}" for s, e in zip(source, example)]

    def _gather(
        self, source: np.ndarray, example: np.ndarray, n_rows: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """tokens and is_first [n_rows, L + 1] and lengths [n_rows]; rows past the end are empty."""
        width = self.seq_len + 1
        tokens = np.full((n_rows, width), self._pad_id, np.int32)
        is_first = np.zeros((n_rows, width), bool)
        lengths = np.zeros(n_rows, np.int64)
        for i in np.unique(source):
            stream = self._streams[i]
            mine = np.flatnonzero(source == i)
            starts = example[mine] * self.seq_len
            lengths[mine] = np.minimum(width, stream.n_tokens - starts)
            whole = lengths[mine] == width
            tokens[mine[whole]], is_first[mine[whole]] = stream.windows(starts[whole], width)
            for row, start in zip(mine[~whole], starts[~whole]):
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
    """batch_at(step, rows) for each step, made ahead by one thread, `buffer_size` batches deep.

    `stop` None goes on for ever. An exception of `batch_at` comes out at its own step. Closing
    the iterator, or dropping it, ends the thread.
    """
    steps = itertools.count(start) if stop is None else iter(range(start, stop))
    pool = concurrent.futures.ThreadPoolExecutor(1, "bigjax-data")

    def submit(n: int) -> list[concurrent.futures.Future]:
        return [pool.submit(batch_at, step, rows) for step in itertools.islice(steps, n)]

    # Begun here and not at the first next(), so that it goes on while the model compiles.
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


def _check(
    streams: Mapping[str, Stream], seq_len: int, batch_size: int, weights: Mapping[str, float]
) -> None:
    """Raises UserError for sizes below 1, weights that are not positive, and empty splits."""
    if seq_len < 1:
        raise UserError(f"data.seq_len is {seq_len}; it has to be at least 1.")
    if batch_size < 1:
        raise UserError(f"the batch size is {batch_size}; it has to be at least 1.")
    for name in streams:
        check_weight(name, weights.get(name))
    if sum(stream.n_tokens for stream in streams.values()) < 2:
        split = next((stream.split for stream in streams.values()), "train")
        remedy = (
            f"Raise {_CONFIG_OF[split]}"
            if split in _CONFIG_OF
            else "Lower data.valid_fraction and data.test_fraction"
        )
        raise UserError(
            f"the {split} split of {', '.join(streams) or 'no source'} is empty: no "
            f"document fell into it. {remedy}, or give more documents."
        )


def _check_enough(
    streams: Mapping[str, Stream], sizes: list[int], seq_len: int, batch_size: int
) -> None:
    found = ", ".join(f"{name} has {stream.n_tokens:,}" for name, stream in streams.items())
    for (name, stream), size in zip(streams.items(), sizes):
        if not size:
            raise UserError(
                f"the {stream.split} split of source {name!r} has {stream.n_tokens:,} tokens, and "
                f"one example takes data.seq_len + 1 = {seq_len + 1:,}. Lower data.seq_len, give "
                "the source more text, or take it out of data.sources."
            )
    if sum(sizes) < batch_size:
        raise UserError(
            f"too little text for one batch: {batch_size} examples of {seq_len} tokens take "
            f"{batch_size * seq_len + 1:,} tokens; found: {found}. Lower train.batch_size or "
            "data.seq_len, or give more text in data.sources."
        )
