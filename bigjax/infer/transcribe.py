"""Recordings of any length in windows (https://arxiv.org/abs/2212.04356, section 4.5): the rules
between windows. What a model writes for a window comes from a WindowDecoder.

Windows of several recordings are decoded together. A recording's text does not depend on which
others those are, but for rounding.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
import dataclasses
import math
from typing import NamedTuple, Protocol
import zlib

import numpy as np

from bigjax.data.audio.stream import Windows
from bigjax.errors import UserError

TASKS = ("transcribe", "translate")


@dataclasses.dataclass(frozen=True)
class Options:
    """Of a transcription; the defaults are those of the authors' program.

    language: '' = the most likely one of the first window with a sound. timestamps: whether the
    model writes times. A window is decoded at the first of `temperatures`, and again at the next
    one while its text is more repetitive than `compression_ratio` or its mean log-probability is
    below `logprob`; one whose probability of no speech is above `no_speech` and whose mean
    log-probability is below `logprob` is silence. beam: of temperature 0; 1 is greedy. best_of:
    samples at others, of which the most likely one counts. The text so far is the prompt of the
    next window, if `condition_on_previous_text`, from the last window on whose temperature was
    above `prompt_reset_temperature`. max_initial_timestamp: seconds.
    """

    language: str = ""
    task: str = "transcribe"
    timestamps: bool = True
    beam: int = 5
    best_of: int = 5
    temperatures: tuple[float, ...] = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    compression_ratio: float = 2.4
    logprob: float = -1.0
    no_speech: float = 0.6
    condition_on_previous_text: bool = True
    prompt_reset_temperature: float = 0.5
    max_initial_timestamp: float = 1.0
    seed: int = 0

    def __post_init__(self):
        rising = sorted({*self.temperatures}) == [*self.temperatures] != []
        finite = all(0 <= t < math.inf for t in self.temperatures)
        for name, ok, allowed in (
            ("task", self.task in TASKS, " or ".join(TASKS)),
            ("beam", self.beam >= 1, "at least 1"),
            ("best_of", self.best_of >= 1, "at least 1"),
            ("temperatures", rising and finite, "numbers from 0 on, each above the one before"),
            ("compression_ratio", self.compression_ratio > 0, "above 0; inf turns it off"),
            ("logprob", self.logprob <= 0, "0 or less; -inf turns it off"),
            ("no_speech", 0 <= self.no_speech <= 1, "from 0 to 1; 1 turns it off"),
            ("prompt_reset_temperature", self.prompt_reset_temperature >= 0, "0 or more"),
            ("max_initial_timestamp", 0 <= self.max_initial_timestamp < math.inf, "0 or more"),
        ):
            if not ok:
                raise UserError(f"--{name} is {getattr(self, name)}; it must be {allowed}.")


class Vocabulary(NamedTuple):
    """What windows need to know of a tokenizer.

    decode: ids of text to text. end_id: ids below it are text. first_time: the id of <|0.00|>, all
    from it on are times; None for texts without times. step: samples from one time to the next.
    """

    decode: Callable[[list[int]], str]
    end_id: int
    first_time: int | None = None
    step: int = 0

    def text(self, ids: Sequence[int]) -> str:
        return self.decode([i for i in ids if i < self.end_id])


class Job(NamedTuple):
    """A window to decode. audio: int16 [n]. prompt: ids of the text before it, [] for none. key:
    what its random numbers depend on, besides the seed."""

    audio: np.ndarray
    prompt: list[int]
    language: str
    key: tuple[str, int]


class Decoded(NamedTuple):
    """The text of a window. avg_logprob: the mean over its tokens, with the end. no_speech: the
    probability that there is no speech, None if the model does not know it."""

    tokens: list[int]
    avg_logprob: float
    no_speech: float | None = None
    temperature: float = 0.0
    compression_ratio: float = 0.0


class WindowDecoder(Protocol):
    """A model. n_samples: of a window. hop: samples from frame to frame; fewer than that are not
    decoded. max_prompt: ids of a prompt, at most; 0 = no prompts."""

    vocabulary: Vocabulary
    sample_rate: int
    n_samples: int
    hop: int
    max_prompt: int
    detects: bool

    def decode(self, jobs: Sequence[Job], temperature: float) -> list[Decoded]: ...

    def detect(self, audio: Sequence[np.ndarray]) -> list[str]:
        """The language of each window; only if `detects`."""


class Segment(NamedTuple):
    """A part of a transcript. start, end: seconds. The others: as of Decoded, of its window."""

    start: float
    end: float
    text: str
    tokens: list[int]
    temperature: float
    avg_logprob: float
    compression_ratio: float
    no_speech_prob: float | None


def compression_ratio(text: str) -> float:
    """Bytes of a text by those of its zlib compression: repetitions compress well."""
    content = text.strip().encode("utf-8", "replace")
    return len(content) / len(zlib.compress(content))


def is_silence(window: Decoded, options: Options) -> bool:
    quiet = window.no_speech is not None and window.no_speech > options.no_speech
    return quiet and window.avg_logprob < options.logprob


def needs_fallback(window: Decoded, options: Options) -> bool:
    """Whether a window is decoded again at the next temperature."""
    bad = window.compression_ratio > options.compression_ratio
    return (bad or window.avg_logprob < options.logprob) and not is_silence(window, options)


def with_fallback(jobs: Sequence[Job], decoder: WindowDecoder, options: Options) -> list[Decoded]:
    """The text of each window, at the first temperature where it needs no fallback, else at the
    last one. Only windows that need it are decoded again."""
    windows: dict[int, Decoded] = {}
    left = [*range(len(jobs))]
    for temperature in options.temperatures:
        for i, window in zip(left, decoder.decode([jobs[i] for i in left], temperature)):
            ratio = compression_ratio(decoder.vocabulary.text(window.tokens))
            windows[i] = window._replace(temperature=temperature, compression_ratio=ratio)
        left = [i for i in left if needs_fallback(windows[i], options)]
        if not left:
            break
    return [windows[i] for i in range(len(jobs))]


def segments_of(
    window: Decoded, decoder: WindowDecoder, start: int, n: int
) -> tuple[list[Segment], int]:
    """(segments with text, samples to the next window), of a window of n samples from `start` on.

    A pair of times ends a segment and begins the next one; without a pair the text is a segment.
    After the last pair is an unfinished segment, which the next window begins with; unless the text
    ends in a single time, after which there is no speech, or has no pair: then the next window
    follows this one.
    """
    tokens, vocabulary = window.tokens, decoder.vocabulary
    first, step = vocabulary.first_time, vocabulary.step
    is_time = [first is not None and i >= first for i in tokens]
    # Samples from the window's start: after the end of a recording, which is padded, is no speech.
    time = lambda i: min((i - (first or 0)) * step, n)
    cuts = [i for i in range(1, len(tokens)) if is_time[i - 1] and is_time[i]]
    advance = n
    if cuts:
        if is_time[-2:] == [False, True]:
            cuts.append(len(tokens))
        else:
            # After the end of a recording are no samples; a pair at 0 would be read for ever.
            advance = min(time(tokens[cuts[-1] - 1]), n) or n
        parts = [tokens[a:b] for a, b in zip([0, *cuts], cuts)]
        spans = [(time(part[0]), time(part[-1]), part) for part in parts]
    else:
        begin = time(tokens[0]) if is_time[:1] == [True] else 0
        end = time(tokens[-1]) if is_time[1:] and is_time[-1] else n
        spans = [(begin, end, tokens) if begin < end else (0, n, tokens)]
    seconds = lambda samples: round((start + samples) / decoder.sample_rate, 3)
    segments = [
        Segment(
            seconds(a),
            seconds(b),
            text,
            part,
            window.temperature,
            window.avg_logprob,
            window.compression_ratio,
            window.no_speech,
        )
        for a, b, part in spans
        if a < b and (text := vocabulary.text(part)).strip()
    ]
    return segments, advance


class Recording:
    """A recording in progress. seek: the first sample of its next window. prompt: ids. segments: so
    far. error: why it cannot be read, '' if it can. silent: no sample so far differs from 0."""

    def __init__(self, file: str, windows: Windows, language: str = "") -> None:
        self.file, self.language = file, language
        self.seek, self.prompt = 0, list[int]()
        self.segments: list[Segment] = []
        self.done, self.silent, self.error = False, True, ""
        self.length = 0  # samples, up to the end of the current window
        self._windows = windows

    def next_window(self, n: int, hop: int) -> np.ndarray | None:
        """The samples of the next window with a sound, at least `hop`; None at the end, and then
        `done`. Raises what reading raises."""
        while len(audio := self._windows.at(self.seek, n)):
            self.length = self.seek + len(audio)
            sound = audio.any()
            self.silent &= not sound
            if sound and len(audio) >= hop:
                return audio
            self.seek += len(audio)
        self.done = True
        return None

    def add(self, window: Decoded, n: int, decoder: WindowDecoder, options: Options) -> list:
        """The new segments, of a window of n samples that was decoded."""
        if is_silence(window, options):
            self.seek += n
            return []
        segments, advance = segments_of(window, decoder, self.seek, n)
        self.seek += advance
        self.segments += segments
        tokens = [i for segment in segments for i in segment.tokens]
        reset = window.temperature > options.prompt_reset_temperature
        keep = 0 if reset or not options.condition_on_previous_text else decoder.max_prompt
        self.prompt = (self.prompt + tokens)[-keep:] if keep else []
        return segments


class Step(NamedTuple):
    """segments: new ones of a recording, which may now be done or have an error."""

    recording: Recording
    segments: list[Segment]


def transcribe(
    files: Iterable[str],
    read: Callable[[str], Iterable[np.ndarray]],
    decoder: WindowDecoder,
    options: Options,
    batch: int,
) -> Iterator[Step]:
    """Transcribes recordings, `batch` of them at a time, each at a position of its own.

    read: the samples of a file in blocks, int16 [n] each. Whatever it raises is the error of this
    recording, and the others are transcribed.
    """
    waiting = iter(files)
    active: list[Recording] = []
    while True:
        ready = []
        for recording in active:
            audio = _read(recording, decoder)
            if audio is None:
                yield Step(recording, [])
            else:
                ready.append((recording, audio))
        while len(ready) < batch and (file := next(waiting, None)) is not None:
            recording = Recording(file, Windows(read(file)), options.language)
            audio = _read(recording, decoder)
            if audio is None:
                yield Step(recording, [])
            else:
                ready.append((recording, audio))
        if not ready:
            return
        active = [recording for recording, _ in ready]
        _detect(ready, decoder)
        jobs = [Job(audio, x.prompt, x.language, (x.file, x.seek)) for x, audio in ready]
        windows = with_fallback(jobs, decoder, options)
        for (recording, audio), window in zip(ready, windows):
            yield Step(recording, recording.add(window, len(audio), decoder, options))


def _detect(ready: list[tuple[Recording, np.ndarray]], decoder: WindowDecoder) -> None:
    unknown = [(x, audio) for x, audio in ready if not x.language] if decoder.detects else []
    if unknown:
        for (recording, _), code in zip(unknown, decoder.detect([audio for _, audio in unknown])):
            recording.language = code


def _read(recording: Recording, decoder: WindowDecoder) -> np.ndarray | None:
    """The next window; None if there is none, or with recording.error if reading fails."""
    try:
        return recording.next_window(decoder.n_samples, decoder.hop)
    except UserError as e:  # names the file
        recording.error = str(e)
    except Exception as e:  # of a library, or storage: one file must not end the others
        reason = (isinstance(e, OSError) and e.strerror) or f"{type(e).__name__}: {e}"
        recording.error = f"{recording.file}: {reason}"
    return None
