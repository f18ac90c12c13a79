"""Which tokens masked language modelling hides, and what it puts there (BERT, SpanBERT).

Everything here is NumPy on whole batches, and random numbers are a function of their place, so a
batch depends on nothing that came before it.
"""

from typing import NamedTuple

import numpy as np

UNITS = ("token", "word", "span")
_SPAN_P, _SPAN_MAX = 0.2, 10  # words in a span: geometric, as in SpanBERT


class Masked(NamedTuple):
    """tokens int32 [b, T] with masks in; picked int32 [b, M]: the columns to predict, 0 where there
    are fewer; targets int32 [b, M]: what stood there; weights float32 [b, M]: 1 where real."""

    tokens: np.ndarray
    picked: np.ndarray
    targets: np.ndarray
    weights: np.ndarray


def uniform(key: tuple[int, ...], rows: np.ndarray, n: int) -> np.ndarray:
    """float64 [len(rows), n] in [0, 1): a pure function of key, row and column (SplitMix64)."""
    state = np.zeros(1, np.uint64)
    for part in key:
        state = _mix(state ^ np.uint64(part % 2**64))
    state = _mix(state ^ rows.astype(np.uint64))[:, None]
    columns = np.arange(1, n + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    return (_mix(state + columns) >> np.uint64(11)) * 2.0**-53


def _mix(x: np.ndarray) -> np.ndarray:
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def mask(
    tokens: np.ndarray,
    allowed: np.ndarray,
    starts_word: np.ndarray,
    lengths: np.ndarray,
    key: tuple[int, ...],
    rows: np.ndarray,
    *,
    rate: float,
    max_predictions: int,
    unit: str,
    mask_id: int,
    vocab_size: int,
) -> Masked:
    """Hides `rate` of a row's tokens, at least one, at most max_predictions.

    tokens int32 [b, T]; allowed bool [b, T]: may be hidden (no special token, no padding);
    starts_word bool [b, T]; lengths int [b]: tokens with the special ones, which `rate` counts
    (as BERT does); key, rows: the place that random numbers belong to.

    Of the hidden tokens 80% become mask_id, 10% a random id, 10% stay. unit 'token'
    (https://arxiv.org/abs/1810.04805) hides tokens, 'word' all tokens of a word, 'span' runs of
    words of geometric length, all in the same of the three ways (https://arxiv.org/abs/1907.10529).
    """
    b, T = tokens.shape
    draw = lambda i: uniform((*key, i), rows, T)
    starts = {"token": allowed, "word": allowed & starts_word}.get(unit)
    if starts is None:
        starts = _span_starts(allowed & starts_word, draw(0))
    budget = np.clip(np.rint(rate * lengths).astype(int), 1, max_predictions)
    budget = np.where(allowed.any(1), budget, 0)
    unit_of = np.cumsum(starts, axis=1)  # 0: before the first unit
    chosen = _choose(unit_of, allowed & (unit_of > 0), draw(1), budget)

    how = draw(2)
    if unit == "span":
        first = np.maximum.accumulate(np.where(starts, np.arange(T), 0), axis=1)
        how = np.take_along_axis(how, first, axis=1)
    random_ids = (draw(3) * vocab_size).astype(np.int32)
    new = np.where(how < 0.8, np.int32(mask_id), np.where(how < 0.9, random_ids, tokens))
    picked = np.argsort(~chosen, axis=1, kind="stable")[:, :max_predictions]
    weights = np.take_along_axis(chosen, picked, axis=1)
    picked = np.where(weights, picked, 0)
    return Masked(
        np.where(chosen, new, tokens).astype(np.int32),
        picked.astype(np.int32),
        np.where(weights, np.take_along_axis(tokens, picked, axis=1), 0).astype(np.int32),
        weights.astype(np.float32),
    )


def _choose(unit_of, member, order, budget) -> np.ndarray:
    """bool [b, T]: the tokens of units taken in random order, passing over those that are larger
    than what is left of the budget."""
    b, T = unit_of.shape
    row = np.arange(b)
    sizes = np.zeros((b, T + 1), int)
    np.add.at(sizes, (row[:, None], unit_of), member)
    rank = np.argsort(np.where(sizes[:, 1:] > 0, order, 2.0), axis=1) + 1
    taken = np.zeros((b, T + 1), bool)
    left = budget.copy()
    for i in range(T):
        unit = rank[:, i]
        size = sizes[row, unit]
        fits = (size > 0) & (size <= left)
        taken[row, unit] = fits
        left = left - size * fits
        if not ((left > 0) & (size > 0)).any():
            break
    return np.take_along_axis(taken, unit_of, axis=1) & member


def _span_starts(starts_word: np.ndarray, u: np.ndarray) -> np.ndarray:
    """Which words begin a new span."""
    out = np.zeros_like(starts_word)
    words = np.full(len(starts_word), _SPAN_MAX)  # of the span so far: full, so the first begins
    for t in range(starts_word.shape[1]):
        word = starts_word[:, t]
        new = word & ((words >= _SPAN_MAX) | (u[:, t] < _SPAN_P))
        out[:, t] = new
        words = np.where(new, 1, words + word)
    return out
