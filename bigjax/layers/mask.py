"""Which keys a query sees: one mask object, from which every kernel derives what it needs.

A mask depends only on the positions of query and key (`sees`); `dense` also restricts tokens to
their segment. To change the attention of a model, pass its `Attention` another mask; to add a kind
of mask, write a class with `sees`.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Intervals(NamedTuple):
    """Disjoint ranges of keys, begin <= key < end: int [T, n] for T queries; empty if begin >= end.
    They give the sizes of large masks without a table of all pairs."""

    begin: np.ndarray
    end: np.ndarray

    def sizes(self) -> np.ndarray:
        return np.maximum(self.end - self.begin, 0)


@dataclasses.dataclass(frozen=True)
class Mask:
    """Hashable, so that compiled functions may depend on it. `a & b` and `a | b` combine two."""

    def sees(self, q, k) -> Any:
        """Whether the query at position q sees the key at position k: a bool array from int arrays
        that broadcast, of NumPy or jax."""
        raise NotImplementedError

    def intervals(self, q: np.ndarray, S: int) -> "Intervals | None":
        """Of S keys, those that each of the positions q [T] sees, or None to count them with
        `sees`, which for long sequences takes minutes."""
        del q, S
        return None

    def __and__(self, other: "Mask") -> "Mask":
        return Both(self, other)

    def __or__(self, other: "Mask") -> "Mask":
        return Either(self, other)


@dataclasses.dataclass(frozen=True)
class Full(Mask):
    """All keys."""

    def sees(self, q, k):
        return (q == q) & (k == k)

    def intervals(self, q, S):
        return _one_interval(q, 0, S, S)


@dataclasses.dataclass(frozen=True)
class Causal(Mask):
    """No later keys."""

    def sees(self, q, k):
        return k <= q

    def intervals(self, q, S):
        return _one_interval(q, 0, q + 1, S)


@dataclasses.dataclass(frozen=True)
class Window(Mask):
    """Keys at most `before` positions before the query, and `after` positions after it.

    Sliding windows, https://arxiv.org/abs/2004.05150. With Causal(), `after` has no effect.
    """

    before: int
    after: int = 0

    def sees(self, q, k):
        return (q - k <= self.before) & (k - q <= self.after)

    def intervals(self, q, S):
        return _one_interval(q, q - self.before, q + self.after + 1, S)


@dataclasses.dataclass(frozen=True)
class Prefix(Mask):
    """The first `length` keys; `Causal() | Prefix(n)` is the mask of a prefix language model
    (https://arxiv.org/abs/1910.10683, section 3.2.1)."""

    length: int

    def sees(self, q, k):
        return (k < self.length) & (q == q)

    def intervals(self, q, S):
        return _one_interval(q, 0, self.length, S)


@dataclasses.dataclass(frozen=True)
class Blocks(Mask):
    """Block i of `size` queries sees the blocks of `size` keys listed in keys[i]
    (https://arxiv.org/abs/2007.14062)."""

    size: int
    keys: tuple[tuple[int, ...], ...]

    def sees(self, q, k):
        n = 1 + max((max(row, default=0) for row in self.keys), default=0)
        table = np.zeros((len(self.keys), max(n, len(self.keys))), bool)
        for i, row in enumerate(self.keys):
            table[i, list(row)] = True
        xp = np if isinstance(q, np.ndarray) and isinstance(k, np.ndarray) else jnp
        return xp.asarray(table)[q // self.size, k // self.size]

    def intervals(self, q, S):
        rows, row_of_q = np.unique(q // self.size, return_inverse=True)
        keys = [np.unique(np.array(self.keys[i], np.int64)) for i in rows]
        begin = np.full((len(rows), max(map(len, keys), default=0)), S)
        for row, of_row in zip(begin, keys):
            row[: len(of_row)] = of_row * self.size
        return Intervals(begin[row_of_q], np.minimum(begin[row_of_q] + self.size, S))


@dataclasses.dataclass(frozen=True)
class Row(Mask):
    """Keys in the query's row of an image with rows of `width` tokens that starts at position
    `begin`; every query sees the keys before it (https://arxiv.org/abs/1904.10509)."""

    width: int
    begin: int = 0

    def sees(self, q, k):
        row = lambda position: (position - self.begin) // self.width
        return (k < self.begin) | (row(q) == row(k))

    def intervals(self, q, S):
        first = q - (q - self.begin) % self.width
        row = _one_interval(q, first, first + self.width, S)
        return _union(_one_interval(q, 0, self.begin, S), row)


@dataclasses.dataclass(frozen=True)
class Column(Mask):
    """As Row, with columns."""

    width: int
    begin: int = 0

    def sees(self, q, k):
        column = lambda position: (position - self.begin) % self.width
        return (k < self.begin) | (column(q) == column(k)) & (q >= self.begin)


@dataclasses.dataclass(frozen=True)
class Both(Mask):
    """Keys that both masks allow."""

    a: Mask
    b: Mask

    def sees(self, q, k):
        return self.a.sees(q, k) & self.b.sees(q, k)

    def intervals(self, q, S):
        a, b = self.a.intervals(q, S), self.b.intervals(q, S)
        return None if a is None or b is None else _intersection(a, b)


@dataclasses.dataclass(frozen=True)
class Either(Mask):
    """Keys that at least one mask allows."""

    a: Mask
    b: Mask

    def sees(self, q, k):
        return self.a.sees(q, k) | self.b.sees(q, k)

    def intervals(self, q, S):
        a, b = self.a.intervals(q, S), self.b.intervals(q, S)
        return None if a is None or b is None else _union(a, b)


def _one_interval(q: np.ndarray, begin, end, S: int) -> Intervals:
    """The keys begin <= key < end of S, for each of q [T]."""
    return Intervals(*(np.broadcast_to(np.clip(at, 0, S), q.shape)[:, None] for at in (begin, end)))


def _intersection(a: Intervals, b: Intervals) -> Intervals:
    begin = np.maximum(a.begin[:, :, None], b.begin[:, None])
    end = np.minimum(a.end[:, :, None], b.end[:, None])
    return Intervals(begin.reshape(len(begin), -1), end.reshape(len(end), -1))


def _union(a: Intervals, b: Intervals) -> Intervals:
    begin = np.concatenate([a.begin, b.begin], axis=1)
    end = np.concatenate([a.end, b.end], axis=1)
    order = np.argsort(begin, axis=1, kind="stable")
    begin, end = (np.take_along_axis(x, order, axis=1) for x in (begin, end))
    before = np.maximum.accumulate(np.maximum(begin, end), axis=1)[:, :-1]
    begin = np.concatenate([begin[:, :1], np.maximum(begin[:, 1:], before)], axis=1)
    return Intervals(begin, end)


def dense(
    mask: Mask, T: int, S: int, start=0, q_segments_BT=None, k_segments_BS=None, first_key: int = 0
) -> jax.Array | None:
    """Which of S keys each of T queries sees, bool [B or 1, T, S], or None for all.

    start: the position of the first query, an int or int [B]; first_key: of the first key. With
    segments a query only sees keys of its segment.
    """
    seen = None
    if mask != Full():
        positions = jnp.asarray(start)[..., None] + jnp.arange(T)  # [T] or [B, T]
        seen = mask.sees(positions[..., None], first_key + jnp.arange(S))
        seen = seen if seen.ndim == 3 else seen[None]
    if q_segments_BT is not None:
        same = q_segments_BT[:, :, None] == k_segments_BS[:, None, :]
        seen = same if seen is None else seen & same
    return seen


def table(mask: Mask, queries: range, keys: range) -> np.ndarray:
    """`sees` for these positions, bool [queries, keys], as a NumPy array."""
    seen = mask.sees(_array(queries)[:, None], _array(keys)[None])
    return np.broadcast_to(seen, (len(queries), len(keys)))


def _array(positions: range) -> np.ndarray:
    """As np.array(positions), which takes milliseconds where they are many."""
    return np.arange(positions.start, positions.stop, positions.step)


def is_causal(mask: Mask, S: int) -> bool:
    """Whether no query of S positions sees a later key, so that a cache may have unwritten slots
    after it."""
    if isinstance(mask, Both):
        return is_causal(mask.a, S) or is_causal(mask.b, S)
    if isinstance(mask, Either):
        return is_causal(mask.a, S) and is_causal(mask.b, S)
    if isinstance(mask, Window):
        return mask.after <= 0
    return mask == Causal() or _sees_no_later_key(mask, S)


@functools.cache
def _sees_no_later_key(mask: Mask, S: int) -> bool:
    for queries in _chunks(S):
        q = _array(queries)
        seen = mask.intervals(q, S)
        if seen is not None:
            later = (seen.sizes() > 0) & (seen.end > q[:, None] + 1)
        else:  # column j: the key after query j
            keys = range(queries.start + 1, S)
            later = np.triu(table(mask, queries, keys))
        if later.any():
            return False
    return True


def key_range(mask: Mask, queries: range, S: int) -> slice:
    """The range from the first to the last of S keys that any of these queries sees."""
    intervals = mask.intervals(_array(queries), S)
    if intervals is not None:
        some = intervals.sizes() > 0
        if not some.any():
            return slice(0, 1)
        return slice(int(intervals.begin[some].min()), int(intervals.end[some].max()))
    seen = np.flatnonzero(table(mask, queries, range(S)).any(0))
    return slice(int(seen[0]), int(seen[-1]) + 1) if len(seen) else slice(0, 1)


@functools.cache
def mean_keys(mask: Mask, T: int) -> float:
    """The mean number of T keys that a query of the T positions sees: the FLOPs of attention that
    a model needs are proportional to it."""
    if mask == Full():
        return T
    if mask == Causal():
        return (T + 1) / 2
    n = 0
    for queries in _chunks(T):
        seen = mask.intervals(_array(queries), T)
        sizes = table(mask, queries, range(T)) if seen is None else seen.sizes()
        n += int(sizes.sum())
    return n / T


def _chunks(T: int) -> list[range]:
    """The T queries, 128 at a time: a table of T x T may not fit in memory."""
    return [range(i, min(i + 128, T)) for i in range(0, T, 128)]


def pairs(mask: Mask, S: int, queries: range, block: tuple[int, int]) -> int:
    """The number of pairs of one of these queries and one of S keys in the blocks of this size
    (queries, keys) in which any query sees a key."""
    rows, columns = block
    n = 0
    for begin in range(queries.start, queries.stop, rows):
        seen = table(mask, range(begin, begin + rows), range(S)).any(0)
        n += int(seen.reshape(-1, columns).any(1).sum())
    return n * rows * columns
