"""Phrases from the docstrings of the installed packages as Morse code: data that every install has.

In training a phrase is keyed in another way in each epoch; in evaluation always in the same.
"""

import hashlib
import itertools
import re

import numpy as np

from bigjax.data import docstrings
from bigjax.data.audio import morse
from bigjax.data.store import place_of
from bigjax.errors import UserError

DIVIDED = True  # data.train and data.valid may both name it, as other data of docstrings
_SPEC = "morse:docstrings"
_MAX_LETTERS = 12  # of a word; longer ones are mostly identifiers
_NOT_WORDS = ("nan", "null")  # of which data are warned, as missing values look like them
_FORMAT = 2  # raise it when the same phrases would give other recordings


def matches(spec: str) -> bool:
    return spec.startswith("morse:")


def opened(spec: str, reading) -> "Phrases":
    if spec != _SPEC:
        raise UserError(f"{reading.key}={spec!r}: there is only {_SPEC!r}.")
    return Phrases(reading)


class Phrases:
    """Each text once, of 1 to data.morse.words consecutive words of the first paragraphs of
    docstrings, in lower case, of a-z and 0-9."""

    def __init__(self, reading) -> None:
        self._options, self._rate = reading.morse, reading.sample_rate
        if 2 * self._options.tone[1] > self._rate:
            raise UserError(
                f"data.morse.tone={self._options.tone}: a recording of data.sample_rate="
                f"{self._rate:,} Hz holds tones of up to {self._rate / 2:g} Hz."
            )
        texts = phrases(reading.cache_dir, self._options.words)
        most = reading.max_samples / self._rate
        short = [text for text in texts if morse.longest(text, self._options) <= most]
        if not short:
            n = min(morse.longest(text, self._options) for text in texts)
            raise UserError(
                f"data.max_seconds={most:g} is too short for Morse code: the shortest text may "
                f"last {n:.1f} s at {self._options.wpm[0]:g} words per minute. Raise it, or "
                "data.morse.wpm."
            )
        if n := len(texts) - len(short):
            reading.log(
                f"data: {n:,} of {len(texts):,} phrases may last longer than data.max_seconds="
                f"{most:g} as Morse code: left out"
            )
        where = {"file": _SPEC, "where": _SPEC}
        self.rows = [{**where, "text": text} for text in short]
        content = hashlib.sha256("\n".join(short).encode())
        content.update(repr((_FORMAT, self._options)).encode())
        self.fingerprint = f"morse-{content.hexdigest()[:16]}"

    def read(self, i: int, rng: np.random.Generator | None) -> np.ndarray:
        text = self.rows[i]["text"]
        if rng is None:
            rng = np.random.default_rng(int(place_of(text.encode()) * 2**53))
        return morse.samples(text, self._options, self._rate, rng)[0]

    def check(self, i: int) -> None:
        """All are good."""

    def seconds(self) -> None:
        """They differ from epoch to epoch."""


def phrases(cache_dir: str, words: int) -> list[str]:
    """Each run of 1 to `words` words of the docstrings' first paragraphs, once."""
    texts: dict[str, None] = {}
    for record in docstrings.records(cache_dir):
        paragraph = record.doc.strip().partition("\n\n")[0].lower()
        kept = [
            word
            for word in re.findall("[a-z0-9]+", paragraph)
            if len(word) <= _MAX_LETTERS and word not in _NOT_WORDS
        ]
        for i, n in itertools.product(range(len(kept)), range(1, words + 1)):
            texts[" ".join(kept[i : i + n])] = None
    return [*texts]
