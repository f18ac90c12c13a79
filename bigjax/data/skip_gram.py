"""Pairs of nearby words for skip-gram with negative sampling (https://arxiv.org/abs/1310.4546)."""

import collections
from collections.abc import Iterable, Sequence

import numpy as np

from bigjax.errors import UserError

_POWER = 0.75  # exponent of a word's count in its probability as a negative
_TABLE_SIZE = 1 << 20  # as word2vec's, smaller: a draw is one look-up
_PASS, _BATCH = 0, 1  # what random numbers are for


class SkipGramData:
    """The pairs of lists of words, as endless batches.

    A pass over the text drops frequent words: a word of frequency f is kept with probability
    sqrt(t / f). Then a centre is a random position, and its context is at most `window` positions
    away in the remaining text. A distance r has probability proportional to window + 1 - r, as if
    a window were drawn for each centre, as in word2vec.

    Attributes: `words`, the vocabulary, most frequent first; `counts` int64 [V]; `pass_steps`,
    the batches per pass: about as many pairs as in a pass of word2vec.
    """

    def __init__(
        self,
        texts: Iterable[Sequence[str]],
        batch_size: int = 1024,
        seed: int = 0,
        min_count: int = 5,
        window: int = 5,
        negatives: int = 5,
        subsample: float = 1e-3,
    ) -> None:
        """min_count: rarer words are left out; subsample: t. Raises UserError for numbers out of
        range and for texts without a pair."""
        _check(batch_size=batch_size, min_count=min_count, window=window, negatives=negatives)
        if not 0 < subsample <= 1:
            raise UserError(
                f"skip-gram's subsample is {subsample}; it has to be above 0 and at "
                "most 1, which keeps all words. Usual are 1e-3 to 1e-5."
            )
        self.batch_size, self.seed = batch_size, seed
        self.window, self.negatives = window, negatives
        texts = [list(text) for text in texts]
        self.words, self.counts = vocabulary(texts, min_count)
        ids = {word: i for i, word in enumerate(self.words)}
        known = [[ids[word] for word in text if word in ids] for text in texts]
        self._text = np.repeat(np.arange(len(known)), [len(text) for text in known])
        self._ids = np.array([i for text in known for i in text], np.int32)
        if not _has_pair(self._text):
            raise UserError(
                f"skip-gram found no pair of words: of {len(texts):,} texts none has two words "
                f"that come {min_count} times in all. Give more text, or lower min_count."
            )
        self._keep = np.minimum(1, np.sqrt(subsample * len(self._ids) / self.counts))
        share = np.cumsum(self.counts**_POWER)
        self._negative = np.searchsorted(
            share / share[-1], (np.arange(_TABLE_SIZE) + 0.5) / _TABLE_SIZE
        ).astype(np.int32)
        n_pairs = (window + 1) * float((self.counts * self._keep).sum())
        self.pass_steps = max(1, round(n_pairs / batch_size))
        self._kept: tuple[int, tuple[np.ndarray, np.ndarray]] = -1, (self._ids, self._text)

    def batch_at(self, step: int) -> dict[str, np.ndarray]:
        """Batch `step`: centre int32 [B], context int32 [B], negatives int32 [B, K], ids of words.

        A function of (seed, step). Raises UserError for a negative step, and where a pass leaves
        no pair.
        """
        if step < 0:
            raise UserError(f"batch_at: there is no batch {step}; allowed: any from 0 on.")
        ids, text = self._pass(step // self.pass_steps)
        rng = np.random.default_rng([self.seed % 2**64, _BATCH, step])
        pairs = np.empty((2, 0), np.int32)
        while pairs.shape[1] < self.batch_size:  # some positions have no context
            at = rng.integers(len(ids), size=self.batch_size)
            far = self._distances(rng)
            context_at = at + np.where(rng.random(self.batch_size) < 0.5, far, -far)
            ok = (context_at >= 0) & (context_at < len(ids))
            ok &= text[at] == text[np.where(ok, context_at, 0)]
            pairs = np.concatenate([pairs, [ids[at[ok]], ids[context_at[ok]]]], axis=1)
        centre, context = pairs[:, : self.batch_size]
        drawn = rng.integers(_TABLE_SIZE, size=(self.batch_size, self.negatives))
        return {"centre": centre, "context": context, "negatives": self._negative[drawn]}

    def _distances(self, rng: np.random.Generator) -> np.ndarray:
        """int [B] from 1 to window."""
        r = np.arange(1, self.window + 1)
        share = np.cumsum(self.window + 1 - r)
        return 1 + np.searchsorted(share, rng.integers(share[-1], size=self.batch_size), "right")

    def _pass(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """The ids that pass `number` keeps, and the text of each; the last one is remembered."""
        last, kept = self._kept
        if last != number:
            rng = np.random.default_rng([self.seed % 2**64, _PASS, number])
            keep = rng.random(len(self._ids)) < self._keep[self._ids]
            kept = self._ids[keep], self._text[keep]
            if not _has_pair(kept[1]):
                raise UserError(
                    "skip-gram's subsample drops so many words that no pair is left. "
                    "Raise it (1 keeps all words), or give more text."
                )
            self._kept = number, kept
        return kept


def vocabulary(texts: Iterable[Iterable[str]], min_count: int) -> tuple[list[str], np.ndarray]:
    """The words that come at least min_count times, most frequent first, and counts int64 [V]."""
    counts = collections.Counter(word for text in texts for word in text)
    ranked = sorted((-n, word) for word, n in counts.items() if n >= min_count)
    return [word for _, word in ranked], np.array([-n for n, _ in ranked], np.int64)


def _has_pair(text: np.ndarray) -> bool:
    return bool((text[1:] == text[:-1]).any())


def _check(**numbers: int) -> None:
    for name, number in numbers.items():
        if number < 1:
            raise UserError(f"skip-gram's {name} is {number}; it has to be at least 1.")
