"""Morse code of a text as audio: recordings by a formula, with which every installation can train.

International Morse code of letters and digits (ITU-R M.1677-1): a dash is three dots long, the gap
within a letter one dot, between letters three, between words seven; a dot at w words per minute
lasts 1.2 / w seconds (the word PARIS is 50 dots long).
"""

import dataclasses
import functools

import numpy as np

from bigjax.bounds import FINITE, FRACTION, POSITIVE, at_least, check_ranges
from bigjax.errors import UserError

CODE = dict(
    zip(
        "abcdefghijklmnopqrstuvwxyz0123456789",
        (
            ".- -... -.-. -.. . ..-. --. .... .. .--- -.- .-.. -- -. --- .--. --.- .-. ... - ..- "
            "...- .-- -..- -.-- --.. ----- .---- ..--- ...-- ....- ..... -.... --... ---.. ----."
        ).split(),
        strict=True,
    )
)
_EDGE = 0.005  # seconds in which the tone rises and falls, as a raised cosine
_PAUSE = 0.1, 0.3  # seconds before and after the code
_KNOTS = 4  # between which the speed drifts
_FADES_PER_SECOND = 2.0
_PEAK = 0.9  # of the tone with four standard deviations of noise


@dataclasses.dataclass(frozen=True)
class Morse:
    """The section data.morse, of data.train="morse:docstrings"."""

    wpm: tuple[float, ...] = (20.0, 40.0)  # words per minute: slowest and fastest
    drift: float = 0.1  # of the speed within a recording, in either direction
    jitter: float = 0.05  # of each element's length, in either direction
    tone: tuple[float, ...] = (400.0, 900.0)  # Hz: lowest and highest
    fading: float = 6.0  # dB by which the tone slowly fades and returns
    snr: float = 10.0  # dB: the tone's mean power over the noise's in the band up to sample_rate/2
    words: int = 3  # of a text, at most

    RANGES = {
        **dict.fromkeys(("wpm", "tone"), POSITIVE),
        **dict.fromkeys(("drift", "jitter"), FRACTION),
        "fading": at_least(0),
        "snr": FINITE,
        "words": at_least(1),
    }

    def __post_init__(self):
        check_ranges("data.morse", self)
        for name in ("wpm", "tone"):
            value = getattr(self, name)
            if len(value) != 2 or value[0] > value[1]:
                raise UserError(
                    f"data.morse.{name} is {value}; it has to be the lowest and the highest."
                )


@functools.cache
def _letter(letter: str) -> tuple[int, ...]:
    """Dots that the tone and the gaps of a letter last, alternately: 2n - 1 for n elements."""
    lengths = [length for mark in CODE[letter] for length in (3 if mark == "-" else 1, 1)]
    return tuple(lengths[:-1])


def dots(text: str) -> np.ndarray:
    """int64 [2n - 1]: the dots that n tones of a text and the gaps between them last.

    text: of a-z and 0-9, with single spaces between words.
    """
    lengths: list[int] = []
    for word in text.split(" "):
        for letter in word:
            lengths += (*_letter(letter), 3)
        lengths[-1] = 7
    return np.array(lengths[:-1])


def longest(text: str, options: Morse) -> float:
    """The most seconds that `samples` of a text can last."""
    slowest = (1 + options.jitter) / (1 - options.drift) * 1.2 / options.wpm[0]
    return _n_dots(text) * slowest + 2 * _PAUSE[1]


def _n_dots(text: str) -> int:
    """The sum of `dots`: 3 more after each letter but the last of a word, 7 after a word."""
    return sum(sum(map(sum, map(_letter, word))) + 3 * len(word) + 4 for word in text.split()) - 7


def samples(
    text: str, options: Morse, sample_rate: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """(float32 [N], bool [N]): the Morse code of a text, and where the tone is on.

    The speed is drawn from options.wpm, and drifts; each length is changed by up to options.jitter
    of it; the frequency is drawn from options.tone. White noise is added whose power, in the whole
    band from 0 to sample_rate / 2, is that of the tone while it is on, fading included, divided by
    10 ** (options.snr / 10). In a narrower band of B Hz the ratio is 10 log10(sample_rate / 2 / B)
    dB higher, by which figures for 2,500 Hz, common in amateur radio, are found.
    """
    lengths = dots(text)
    n = len(lengths)
    speed = rng.uniform(*options.wpm) * (
        1 + options.drift * np.interp(np.arange(n), *_knots(n, _KNOTS, rng))
    )
    seconds = lengths * 1.2 / speed * (1 + options.jitter * rng.uniform(-1, 1, n))
    pauses = rng.uniform(*_PAUSE, 2)
    edges = np.rint((pauses[0] + np.cumsum([0.0, *seconds])) * sample_rate).astype(np.int64)
    N = int(edges[-1] + pauses[1] * sample_rate)
    keyed = _keyed(edges, N, sample_rate)
    level = keyed.copy()
    if options.fading:
        level *= _fading(N, options.fading, sample_rate, rng)
    power = float(np.square(level).sum() / (2 * np.square(keyed).sum()))
    noise = np.float32(np.sqrt(power / 10 ** (options.snr / 10)))
    step, phase = 2 * np.pi * rng.uniform(*options.tone) / sample_rate, rng.uniform(0, 2 * np.pi)
    x = level * _sine(N, step, phase) + noise * rng.standard_normal(N, np.float32)
    return x * np.float32(_PEAK / (1 + 4 * noise)), keyed > 0


def _knots(n: int, count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(places from 0 to n - 1, numbers from -1 to 1) between which np.interp is linear."""
    return np.linspace(0, max(n - 1, 1), count), rng.uniform(-1, 1, count)


def _sine(N: int, step: float, phase: float) -> np.ndarray:
    """float32 [N]: sin(phase + step * n), as sums of products of the sines of two short ranges,
    which is exact and needs 2 sqrt(N) sines."""
    width = 1 + int(N**0.5)
    coarse, fine = phase + step * width * np.arange(N // width + 1), step * np.arange(width)
    product = lambda a, b: np.outer(a.astype(np.float32), b.astype(np.float32))
    sines = product(np.sin(coarse), np.cos(fine)) + product(np.cos(coarse), np.sin(fine))
    return sines.ravel()[:N]


def _keyed(edges: np.ndarray, N: int, sample_rate: int) -> np.ndarray:
    """float32 [N]: 1 where the tone is on, from each even edge to the next, with soft edges."""
    width = max(1, round(_EDGE * sample_rate))
    rise = np.sin(np.pi * (np.arange(width) + 0.5) / width)  # whose sums are a raised cosine
    changes = np.zeros(N + 1)
    sign = np.where(np.arange(len(edges)) % 2, -1.0, 1.0)
    at = edges[:, None] + np.arange(width) - width // 2
    np.add.at(changes, np.clip(at, 0, N), sign[:, None] * (rise / rise.sum()))
    level = np.cumsum(changes)[:-1].round(6)  # rounded: 0 where the tone is off
    return np.clip(level, 0, 1).astype(np.float32)


def _fading(N: int, most: float, sample_rate: int, rng: np.random.Generator) -> np.ndarray:
    """float32 [N]: factors of 0 to -most dB that change slowly."""
    count = 2 + int(N / sample_rate * _FADES_PER_SECOND)
    places, depth = _knots(N, count, rng)
    return np.interp(np.arange(N), places, 10 ** (-most * (depth + 1) / 40)).astype(np.float32)
