"""Recordings of any length: the rules between windows, with a decoder of scripted tokens."""

import math

import numpy as np
import pytest

from bigjax.data.audio.stream import Windows
from bigjax.errors import UserError
from bigjax.infer import transcribe as lib
from bigjax.infer.transcribe import Decoded, Options, Vocabulary, transcribe

RATE, WINDOW, STEP = 100, 3000, 2  # 30 s at 100 Hz; times are 0.02 s apart
END, FIRST = 50, 60  # ids of text are below 50, times from 60 on
TIMES = Vocabulary(lambda ids: "".join(f" w{i}" for i in ids), END, FIRST, STEP)
PLAIN = TIMES._replace(first_time=None)


def t(seconds: float) -> int:
    """The id of a time."""
    return FIRST + round(seconds / 0.02)


def spans(tokens, n=WINDOW, vocabulary=TIMES, start=0):
    """([(start, end, text)], seconds to the next window)."""
    decoder = Script()
    decoder.vocabulary = vocabulary
    segments, advance = lib.segments_of(Decoded(tokens, -0.5), decoder, start, n)
    return [(s.start, s.end, s.text) for s in segments], advance / RATE


@pytest.mark.parametrize(
    "tokens, segments, advance",
    [
        # Pairs, and an unfinished segment, which is left to the next window
        (
            [t(0), 1, 2, t(4), t(4), 3, t(9.5), t(9.5), 4],
            [(0, 4, " w1 w2"), (4, 9.5, " w3")],
            9.5,
        ),
        # A pair at the end
        ([t(0.5), 1, t(4), t(6), 2, t(8), t(8)], [(0.5, 4, " w1"), (6, 8, " w2")], 8),
        # A single time at the end: there is no speech after it
        ([t(0), 1, t(4), t(4.5), 2, t(7)], [(0, 4, " w1"), (4.5, 7, " w2")], 30),
        # No pair: the text is between the times around it, or the window's
        ([t(0), 1, 2, t(7)], [(0, 7, " w1 w2")], 30),
        ([t(0), 1, 2], [(0, 30, " w1 w2")], 30),
        ([t(1), 1, 2], [(1, 30, " w1 w2")], 30),
        ([1, t(1), 2], [(0, 30, " w1 w2")], 30),
        ([1, 2], [(0, 30, " w1 w2")], 30),
        # Segments without text or length are left out
        ([t(0), t(4), t(4), 1, t(4), t(5), 2, t(6), t(6)], [(5, 6, " w2")], 6),
        ([], [], 30),
        # Times of Whisper's 30 s, in a model with shorter windows, or a shorter recording
        ([t(0), 1, t(29), t(33), 2, t(40), t(40)], [(0, 29, " w1")], 30),
        # A pair at 0 would be read for ever
        ([t(0), t(0), 1], [], 30),
    ],
)
def test_segments_by_times(tokens, segments, advance):
    assert spans(tokens) == (segments, advance)


def test_segments_after_the_first_window_and_without_times():
    tokens = [t(0), 1, t(4), t(4), 2]
    assert spans(tokens, start=1234)[0] == [(12.34, 16.34, " w1")]
    assert spans([t(9), 1, t(9.5)], n=700) == ([(0, 7, " w1")], 7)  # both times are after its end
    assert spans([t(0), 1], n=700, start=1234) == ([(12.34, 19.34, " w1")], 7)
    assert spans([t(0), 1, t(9), t(9)], n=700) == ([(0, 7, " w1")], 7)
    tokens = [t(0), 1, t(5), t(5), 2, t(9), t(12), 3, t(14), t(14)]  # also after its end
    assert spans(tokens, n=700) == ([(0, 5, " w1"), (5, 7, " w2")], 7)
    assert spans([1, 2], 700, PLAIN) == ([(0, 7, " w1 w2")], 7)


class Script:
    """A WindowDecoder that finds the words of a recording by their times, as a model would: word k
    (1 to 40) is where the samples are k. results: what it says instead, by (file, call for it)."""

    vocabulary, sample_rate, n_samples, max_prompt = TIMES, RATE, WINDOW, 6
    hop = 5
    detects = False

    def __init__(self, results=None, language=""):
        self.results, self.language = results or {}, language
        self.calls = []  # (files, temperature)
        self.jobs = []

    def decode(self, jobs, temperature):
        self.calls.append(([job.key[0] for job in jobs], temperature))
        self.jobs += jobs
        return [self._decoded(job) for job in jobs]

    def detect(self, audio):
        return [self.language or f"l{row.max()}" for row in audio]

    def _decoded(self, job):
        number = sum(x.key[0] == job.key[0] for x in self.jobs) - 1
        if (job.key[0], number) in self.results:
            return self.results[job.key[0], number]
        tokens = []
        edges = (np.flatnonzero(np.diff(job.audio)) + 1).tolist()
        for part, start in zip(np.split(job.audio, edges), [0, *edges]):
            end = start + len(part)
            if not part[0] or end == len(job.audio) == WINDOW:
                tokens += [FIRST + start // STEP, int(part[0])] if part[0] else []
                continue
            tokens += [FIRST + start // STEP, int(part[0]), FIRST + end // STEP]
        return Decoded(tokens, -0.1, 0.01)


def words(*pieces):
    """Samples of (word, seconds); 0 is silence."""
    return np.concatenate([np.full(round(s * RATE), w, np.int16) for w, s in pieces])


def run(recordings, decoder, batch=2, **options):
    """({file: [(start, end, text)]}, [files in the order of their ends], {file: error})."""

    def read(file):
        samples = recordings[file]
        if isinstance(samples, Exception):
            raise samples
        yield from np.array_split(samples, max(1, len(samples) // 777))

    found, ended, errors = {}, [], {}
    for recording, segments in transcribe(recordings, read, decoder, Options(**options), batch):
        found.setdefault(recording.file, []).extend((s.start, s.end, s.text) for s in segments)
        assert not (recording.done and recording.error)
        if recording.done:
            ended.append(recording.file)
        if recording.error:
            errors[recording.file] = recording.error
    return found, ended, errors


LONG = [(w, 7.5 if w % 3 else 4) for w in range(1, 40)]


def expected(pieces):
    ends = np.cumsum([s for _, s in pieces])
    return [(e - s, e, f" w{w}") for e, (w, s) in zip(ends.tolist(), pieces) if w]


def test_a_long_recording_is_read_to_its_end():
    """Of 4 minutes: windows begin where the last complete segment ended, so that no word is cut."""
    found, _, _ = run({"a": words(*LONG)}, decoder := Script())
    assert found["a"] == expected(LONG)
    starts = [job.key[1] for job in decoder.jobs]
    assert starts[:2] == [0, 2650] and len(starts) < len(LONG) / 2
    assert all(len(job.audio) == WINDOW for job in decoder.jobs[:-1])


def test_recordings_share_batches_each_at_its_own_position():
    pieces = {"a": LONG, "b": [(5, 3), (0, 40), (6, 2)], "c": [(7, 31), (8, 9)], "d": [(9, 1)]}
    recordings = {file: words(*p) for file, p in pieces.items()}
    found, ended, _ = run(recordings, decoder := Script(), batch=3)
    assert found["a"] == expected(LONG) and found["d"] == [(0, 1, " w9")]
    assert found["b"] == [(0, 3, " w5"), (43, 45, " w6")]
    assert sorted(ended) == [*"abcd"] and ended[-1] == "a"
    files = [call for call, _ in decoder.calls]
    assert files[:3] == [[*"abc"], [*"abc"], [*"ad"]] and files[3:] == [["a"]] * len(files[3:])
    alone = {file: run({file: x}, Script(), batch=1)[0][file] for file, x in recordings.items()}
    assert alone == found


def test_silence_is_not_decoded():
    pieces = [(0, 95), (4, 2), (0, 200), (3, 1), (0, 70)]
    found, ended, _ = run({"a": words(*pieces), "s": words((0, 100))}, decoder := Script())
    assert len(decoder.jobs) == 2
    assert found["a"] == [(95, 97, " w4"), (297, 298, " w3")]
    assert found["s"] == [] and {*ended} == {"a", "s"}


def test_a_rest_of_less_than_a_frame_is_not_decoded():
    """Nor a recording that has no complete one, which is not silent."""
    recordings = {n: np.full(n, 9, np.int16) for n in (4, 5, WINDOW + 4, WINDOW + 5)}
    steps = [*transcribe(recordings, lambda n: [recordings[n]], decoder := Script(), Options(), 2)]
    jobs = sorted((job.key[0], len(job.audio)) for job in decoder.jobs)
    assert jobs == [(5, 5), (WINDOW + 4, WINDOW), (WINDOW + 5, 5), (WINDOW + 5, WINDOW)]
    ended = {step.recording.file: step.recording for step in steps if step.recording.done}
    assert {n: x.length for n, x in ended.items()} == {n: n for n in recordings}
    assert not any(x.silent for x in ended.values())


GOOD, BAD = Decoded([t(0), 1, t(2)], -0.2, 0.1), Decoded([t(0), 2, t(2)], -1.2, 0.1)
REPEATED = Decoded([t(0), *[3] * 60, t(2)], -0.2, 0.1)
QUIET = Decoded([t(0), 4, t(2)], -1.2, 0.7)
QUIET_REPEATED = QUIET._replace(tokens=REPEATED.tokens)


@pytest.mark.parametrize(
    "windows, temperatures, text",
    [
        ([GOOD], [0], " w1"),
        ([BAD, GOOD], [0, 0.2], " w1"),
        ([REPEATED, BAD, REPEATED, GOOD], [0, 0.2, 0.4, 0.6], " w1"),
        ([BAD] * 6, [0, 0.2, 0.4, 0.6, 0.8, 1.0], " w2"),
        ([QUIET], [0], None),
        ([BAD, QUIET], [0, 0.2], None),
        ([QUIET_REPEATED], [0], None),
        # Loud enough to be sure of the words
        ([GOOD._replace(no_speech=0.9)], [0], " w1"),
        ([REPEATED._replace(no_speech=0.9), GOOD], [0, 0.2], " w1"),
        ([GOOD._replace(no_speech=None)], [0], " w1"),
        ([BAD._replace(no_speech=None), GOOD], [0, 0.2], " w1"),
    ],
)
def test_fallback_to_higher_temperatures(windows, temperatures, text):
    decoder = Script({("a", i): window for i, window in enumerate(windows)})
    found, ended, _ = run({"a": words((9, 2))}, decoder)
    assert [call[1] for call in decoder.calls] == temperatures and ended == ["a"]
    assert [x[2] for x in found["a"]] == ([text] if text else [])


def test_only_windows_that_need_it_are_decoded_again():
    script = {("b", 0): BAD, ("b", 1): GOOD}
    found, _, _ = run({x: words((9, 2)) for x in "abc"}, decoder := Script(script), batch=3)
    assert decoder.calls == [([*"abc"], 0.0), (["b"], 0.2)]
    assert found["b"] == [(0, 2, " w1")] and found["c"] == [(0, 2, " w9")]


def test_limits_that_are_turned_off():
    off = dict(logprob=-math.inf, compression_ratio=math.inf)
    for window in (BAD, REPEATED):
        run({"a": words((9, 2))}, decoder := Script({("a", 0): window}), **off)
        assert len(decoder.calls) == 1


def prompts(first, n=3, **options):
    """Of the windows after `first`, which the decoder finds in a recording of n windows."""
    results = {("a", 0): Decoded([t(0), 7, 8, t(20)], -0.2, 0.1)} | {("a", 1): first}
    decoder = Script(results)
    run({"a": words((9, 30 * n))}, decoder, **options)
    return [job.prompt for job in decoder.jobs]


def test_the_text_so_far_is_the_prompt():
    """At most max_prompt of its last ids."""
    text = [t(0), 1, 2, 3, t(20)]
    first, second, third = prompts(Decoded(text, -0.2, 0.1))
    assert (first, second) == ([], [t(0), 7, 8, t(20)]) and third == [t(20), *text]
    assert prompts(Decoded(text, -0.2, 0.1), condition_on_previous_text=False) == [[]] * 3


def test_a_high_temperature_ends_the_prompt():
    decoder = Script({("a", i): BAD for i in range(4)} | {("a", 4): GOOD})  # at 0.8
    run({"a": words((9, 60))}, decoder)
    assert [job.prompt for job in decoder.jobs] == [[]] * 6
    decoder = Script({("a", i): BAD for i in range(2)} | {("a", 2): GOOD})  # at 0.4
    run({"a": words((9, 60))}, decoder)
    assert [job.prompt for job in decoder.jobs] == [[]] * 3 + [GOOD.tokens]
    run({"a": words((9, 60))}, decoder := Script(decoder.results), prompt_reset_temperature=0.3)
    assert [job.prompt for job in decoder.jobs] == [[]] * 4


def test_a_silent_window_leaves_the_prompt():
    _, second, third = prompts(QUIET)
    assert second == third == [t(0), 7, 8, t(20)]


def test_languages_are_detected_once_in_the_first_window_with_a_sound():
    decoder = Script()
    decoder.detects = True
    run({"a": words((0, 60), (3, 40)), "b": words((4, 40))}, decoder)
    assert {(job.key[0], job.language) for job in decoder.jobs} == {("a", "l3"), ("b", "l4")}
    run({"a": words((3, 4))}, decoder := Script(), language="de")
    assert [job.language for job in decoder.jobs] == ["de"]


def test_bad_files_do_not_end_the_others():
    """At their first block, or a later one; of many files."""
    recordings = {f"f{i}": words((1 + i % 40, 1)) for i in range(200)}
    recordings |= {"f70": UserError("f70: it has 0 seconds."), "f71": OSError(5, "Input error")}
    recordings |= {"f72": ValueError("odd"), "f73": MemoryError()}
    found, ended, errors = run(recordings, Script(), batch=7)
    assert len(ended) == 196 and len(errors) == 4
    assert errors["f70"] == "f70: it has 0 seconds." and errors["f71"] == "f71: Input error"
    assert errors["f72"] == "f72: ValueError: odd" and "f73: MemoryError" in errors["f73"]
    assert all(found[file] for file in ended)

    def read(file):
        yield words((2, 40))
        if file == "cut":
            raise UserError("cut: the file is cut off.")

    steps = [*transcribe(["cut", "whole"], read, Script(), Options(), 2)]
    last = {step.recording.file: step.recording for step in steps}
    assert last["cut"].error == "cut: the file is cut off." and not last["cut"].done
    assert last["whole"].done and last["whole"].length == 4000


def test_windows_hold_only_what_is_needed():
    def blocks():
        for i in range(1000):
            yield np.full(500, i, np.int16)

    windows = Windows(blocks())
    for start in range(0, 500_000, 2750):
        audio = windows.at(start, WINDOW)
        assert len(audio) == min(WINDOW, 500_000 - start)
        assert audio[0] == start // 500 and audio[-1] == (start + len(audio) - 1) // 500
        assert len(windows._held) < WINDOW + 500 and windows._held.base is None
    assert len(windows.at(500_000, WINDOW)) == len(windows.at(500_500, WINDOW)) == 0


@pytest.mark.parametrize(
    "option, value",
    [
        ("task", "sing"),
        ("beam", 0),
        ("best_of", 0),
        ("temperatures", ()),
        ("temperatures", (0.2, 0.0)),
        ("temperatures", (0.0, math.nan)),
        ("compression_ratio", math.nan),
        ("logprob", 0.5),
        ("no_speech", 1.5),
        ("max_initial_timestamp", -1.0),
    ],
)
def test_refused_options(option, value):
    with pytest.raises(UserError, match=f"--{option} is .*; it must be "):
        Options(**{option: value})
