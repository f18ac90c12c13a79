"""Which keys a query sees: one mask object, from which every kernel derives what it needs.

A mask depends only on the positions of query and key (`sees`); `dense` also restricts tokens to
their segment. To change the attention of a model, pass its `Attention` another mask; to add a kind
of mask, write a class with `sees`.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class Mask:
    """Hashable, so that compiled functions may depend on it. `a & b` and `a | b` combine two."""

    def sees(self, q, k) -> Any:
        """Whether the query at position q sees the key at position k: a bool array from int arrays
        that broadcast, of NumPy or jax."""
        raise NotImplementedError

    def __and__(self, other: "Mask") -> "Mask":
        return Both(self, other)

    def __or__(self, other: "Mask") -> "Mask":
        return Either(self, other)


@dataclasses.dataclass(frozen=True)
class Full(Mask):
    """All keys."""

    def sees(self, q, k):
        return (q == q) & (k == k)


@dataclasses.dataclass(frozen=True)
class Causal(Mask):
    """No later keys."""

    def sees(self, q, k):
        return k <= q


@dataclasses.dataclass(frozen=True)
class Window(Mask):
    """Keys at most `before` positions before the query, and `after` positions after it.

    Sliding windows, https://arxiv.org/abs/2004.05150. With Causal(), `after` has no effect.
    """

    before: int
    after: int = 0

    def sees(self, q, k):
        return (q - k <= self.before) & (k - q <= self.after)


@dataclasses.dataclass(frozen=True)
class Prefix(Mask):
    """The first `length` keys; `Causal() | Prefix(n)` is the mask of a prefix language model
    (https://arxiv.org/abs/1910.10683, section 3.2.1)."""

    length: int

    def sees(self, q, k):
        return (k < self.length) & (q == q)


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


@dataclasses.dataclass(frozen=True)
class Row(Mask):
    """Keys in the query's row of an image with rows of `width` tokens that starts at position
    `begin`; every query sees the keys before it (https://arxiv.org/abs/1904.10509)."""

    width: int
    begin: int = 0

    def sees(self, q, k):
        row = lambda position: (position - self.begin) // self.width
        return (k < self.begin) | (row(q) == row(k))


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


@dataclasses.dataclass(frozen=True)
class Either(Mask):
    """Keys that at least one mask allows."""

    a: Mask
    b: Mask

    def sees(self, q, k):
        return self.a.sees(q, k) | self.b.sees(q, k)


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
    seen = mask.sees(np.array(queries)[:, None], np.array(keys)[None])
    return np.broadcast_to(seen, (len(queries), len(keys)))


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
    return not any(table(mask, range(q, q + 1), range(q + 1, S)).any() for q in range(S - 1))


def key_range(mask: Mask, queries: range, S: int) -> slice:
    """The range from the first to the last of S keys that any of these queries sees."""
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
    rows = 128  # a table of T x T may not fit in memory
    parts = (range(i, min(i + rows, T)) for i in range(0, T, rows))
    return sum(int(table(mask, queries, range(T)).sum()) for queries in parts) / T


def pairs(mask: Mask, S: int, queries: range, block: tuple[int, int]) -> int:
    """The number of pairs of one of these queries and one of S keys in the blocks of this size
    (queries, keys) in which any query sees a key."""
    rows, columns = block
    n = 0
    for begin in range(queries.start, queries.stop, rows):
        seen = table(mask, range(begin, begin + rows), range(S)).any(0)
        n += int(seen.reshape(-1, columns).any(1).sum())
    return n * rows * columns
