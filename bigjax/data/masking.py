"""Masks of masked language modelling (BERT, SpanBERT).

Everything is NumPy on complete batches, and random numbers are a function of a key and a row, so a
batch does not depend on earlier ones.
"""

from typing import NamedTuple

import numpy as np

UNITS = ("token", "word", "span")
_SPAN_P, _SPAN_MAX = 0.2, 10  # words in a span: geometric, as in SpanBERT


class Masked(NamedTuple):
    """tokens int32 [b, T] with masks in; masked_positions int32 [b, M]: the columns to predict, 0
    where there are fewer than M; targets int32 [b, M]: the original tokens; weights float32 [b, M]:
    1 where real."""

    tokens: np.ndarray
    masked_positions: np.ndarray
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
    """Hides `rate` of a row's tokens, at least one where any is allowed, at most max_predictions.

    tokens int32 [b, T]; allowed bool [b, T]: may be hidden (no special token, no padding);
    starts_word bool [b, T]; lengths int [b]: tokens with the special ones, which `rate` counts
    (as BERT does); key, rows: what random numbers are a function of.

    Of the hidden tokens 80% become mask_id, 10% a random id, 10% stay. Units, in random order until
    there are enough tokens; no unit extends beyond a token that is not allowed, such as [SEP]:

    - 'token' (https://arxiv.org/abs/1810.04805).
    - 'word': all tokens of a word. One that exceeds the remaining budget is skipped. If all
      do, one is used with the probability that makes the share right, and always if it is the
      first.
    - 'span' (https://arxiv.org/abs/1907.10529): runs of words, replaced in the
      same way. Lengths are geometric with p = 0.2, redrawn if above 10, as published: 3.8 words on
      average. As in the code of the paper, the last run is truncated to the remaining budget, also
      within a word. Unlike there, runs do not overlap: the words are divided into runs first, by a
      stationary process, so that the first words of a row are as likely as others.
    """
    b, T = tokens.shape
    draw = lambda i: uniform((*key, i), rows, T)
    begins = allowed & ~np.pad(allowed, ((0, 0), (1, 0)))[:, :-1]  # of each text
    words = begins | (allowed & starts_word)
    starts = {"token": allowed, "word": words}.get(unit)
    if starts is None:
        starts = begins | _span_starts(words, draw(0))
    budget = np.clip(np.rint(rate * lengths).astype(int), 1, max_predictions)
    budget = np.minimum(budget, allowed.sum(1))
    unit_of = np.cumsum(starts, axis=1)  # from 1 on
    choose = _choose_runs if unit == "span" else _choose_complete
    chosen = choose(unit_of, allowed, draw(1), budget, max_predictions, draw(4)[:, 0])

    how = draw(2)
    if unit == "span":
        how = np.take_along_axis(how, _first_columns(starts), axis=1)
    random_ids = (draw(3) * vocab_size).astype(np.int32)
    new = np.where(how < 0.8, np.int32(mask_id), np.where(how < 0.9, random_ids, tokens))
    positions = np.argsort(~chosen, axis=1, kind="stable")[:, :max_predictions]
    weights = np.take_along_axis(chosen, positions, axis=1)
    positions = np.where(weights, positions, 0)
    return Masked(
        np.where(chosen, new, tokens).astype(np.int32),
        positions.astype(np.int32),
        np.where(weights, np.take_along_axis(tokens, positions, axis=1), 0).astype(np.int32),
        weights.astype(np.float32),
    )


def _choose_complete(unit_of, allowed, order, budget, most, u) -> np.ndarray:
    """bool [b, T]: the tokens of complete units in random order, see `mask`.

    unit_of int [b, T], from 1 on; order [b, T] and u [b]: random numbers; budget int [b], at most
    `most`.
    """
    b, T = unit_of.shape
    row = np.arange(b)
    sizes = _sizes(unit_of, allowed)
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
    if left.any():  # the remaining units exceed the budget
        free = np.take_along_axis((sizes > 0) & ~taken, rank, axis=1)
        unit = rank[row, free.argmax(1)]
        size, n = sizes[row, unit], budget - left
        more = (left > 0) & free.any(1) & ((n == 0) | (u * size < left) & (n + size <= most))
        taken[row, unit] |= more
    chosen = np.take_along_axis(taken, unit_of, axis=1) & allowed
    return chosen & (np.cumsum(chosen, axis=1) <= most)  # a single unit may be larger


def _choose_runs(unit_of, allowed, order, budget, most, u) -> np.ndarray:
    """As `_choose_complete`; of the last unit as many tokens as the budget allows, at random."""
    del most
    sizes = _sizes(unit_of, allowed)[:, 1:]
    rank = np.argsort(np.where(sizes > 0, order, 2.0), axis=1)
    ranked = np.take_along_axis(sizes, rank, axis=1)
    before = np.cumsum(ranked, axis=1) - ranked
    kept = np.zeros_like(sizes)
    np.put_along_axis(kept, rank, np.clip(budget[:, None] - before, 0, ranked), axis=1)
    first = ((sizes - kept + 1) * u[:, None]).astype(int)
    unit = np.maximum(unit_of - 1, 0)
    inside = np.arange(unit_of.shape[1]) - _first_columns(np.diff(unit_of, prepend=0) > 0)
    inside = inside - np.take_along_axis(first, unit, axis=1)
    return allowed & (inside >= 0) & (inside < np.take_along_axis(kept, unit, axis=1))


def _sizes(unit_of, allowed) -> np.ndarray:
    """int [b, T + 1]: the number of tokens of each unit."""
    b, width = unit_of.shape[0], unit_of.shape[1] + 1
    cells = unit_of + np.arange(b)[:, None] * width
    return np.bincount(cells[allowed], minlength=b * width).reshape(b, width)


def _first_columns(starts: np.ndarray) -> np.ndarray:
    """int [b, T]: for each column the last one, up to it, that starts a unit."""
    return np.maximum.accumulate(np.where(starts, np.arange(starts.shape[1]), 0), axis=1)


def _span_starts(words: np.ndarray, u: np.ndarray) -> np.ndarray:
    """bool [b, T]: which words begin a new run. words bool [b, T]: where one begins; u [b, T]:
    random numbers."""
    b, T = words.shape
    cdf, first_cdf = _span_lengths()
    lengths = 1 + np.searchsorted(cdf, u, "right")
    # The rest of a run that begins before the row, so that every word is as likely to begin one.
    lengths[:, 0] = 1 + np.searchsorted(first_cdf, u[:, 0], "right")
    begins = np.zeros((b, T + 1), bool)
    begins[:, 0] = True
    np.put_along_axis(begins, np.minimum(np.cumsum(lengths, axis=1), T), True, axis=1)
    word = np.maximum(np.cumsum(words, axis=1) - 1, 0)
    return words & np.take_along_axis(begins, word, axis=1)


def _span_lengths() -> tuple[np.ndarray, np.ndarray]:
    """Cumulative probabilities, without the last, of 1, 2, ... words in a run, and in the rest of
    one from a random word of it on."""
    p = _SPAN_P * (1 - _SPAN_P) ** np.arange(_SPAN_MAX)
    p /= p.sum()
    at_least = np.cumsum(p[::-1])[::-1]
    return np.cumsum(p)[:-1], np.cumsum(at_least / at_least.sum())[:-1]
