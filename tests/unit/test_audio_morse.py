"""Morse code: its timing, its sound, and the phrases of docstrings."""

import dataclasses

import numpy as np
import pytest

from bigjax.data import docstrings
from bigjax.data.audio import morse
from bigjax.data.audio.sources.morse import phrases
from bigjax.errors import UserError
from tests.audio_files import RATE, every, load

PLAIN = morse.Morse(
    wpm=(20.0, 20.0), drift=0.0, jitter=0.0, tone=(600.0, 600.0), fading=0.0, snr=100.0
)
EDGE = 0.005 * RATE  # by which a tone is longer, as half of each edge is outside of it
TEXT = "the quick brown fox 1234567890"


def key(text, options, seed=0):
    return morse.samples(text, options, RATE, np.random.default_rng(seed))


def runs(on):
    """(lengths of tones, lengths of the gaps between them), in samples."""
    edges = np.flatnonzero(np.diff(on.astype(int))) + 1
    lengths = np.diff(edges)
    return lengths[::2], lengths[1::2]


def decoded(on, dot):
    """The text that a listener writes down who knows about how long a dot is."""
    letters = {marks: letter for letter, marks in morse.CODE.items()}
    text, marks = "", ""
    tones, gaps = runs(on)
    for tone, gap in zip((tones - EDGE) / dot, [*((gaps + EDGE) / dot), 7]):
        marks += "." if tone < 1.8 else "-"
        if gap > 1.8:
            text, marks = text + letters[marks] + (" " if gap > 4.5 else ""), ""
    return text.strip()


def test_the_word_paris_is_50_dots_long():
    assert morse.dots("paris").sum() + 7 == 50
    assert morse.dots("a e").tolist() == [1, 1, 3, 7, 1]


def test_the_timing_of_dots_and_dashes():
    x, on = key("et a", PLAIN)
    dot = 1.2 / 20 * RATE
    tones, gaps = runs(on)
    np.testing.assert_allclose(tones, np.array([1, 3, 1, 3]) * dot + EDGE, atol=3)
    np.testing.assert_allclose(gaps, np.array([3, 7, 1]) * dot - EDGE, atol=3)
    start, end = np.flatnonzero(on)[[0, -1]]
    assert x.dtype == np.float32 and x.shape == on.shape
    for pause in (start, len(on) - end):
        assert 0.09 * RATE < pause < 0.31 * RATE


def test_other_speeds_can_be_read():
    options = morse.Morse(wpm=(15.0, 30.0), drift=0.1, jitter=0.1)
    lengths = set()
    for seed in range(20):
        x, on = key(TEXT, options, seed)
        tones, _ = runs(on)
        assert decoded(on, np.median(tones[tones < 2 * tones.min()]) - EDGE) == TEXT
        lengths.add(len(x))
    assert max(lengths) > 1.3 * min(lengths)


def test_the_longest_that_a_text_can_last():
    options = morse.Morse(wpm=(2.0, 2.0), drift=0.3, jitter=0.3)
    seconds = [len(key("t", options, seed)[0]) / RATE for seed in range(300)]
    assert 0.85 * morse.longest("t", options) < max(seconds) <= morse.longest("t", options)


@pytest.mark.parametrize("fading", [0.0, 20.0])
@pytest.mark.parametrize("snr", [-5.0, 10.0])
def test_the_ratio_of_the_tone_to_the_noise(snr, fading):
    options = dataclasses.replace(PLAIN, snr=snr, fading=fading)
    x, on = key(" ".join([TEXT] * 4), options)
    full = np.convolve(on, np.ones(101), "same") > 100.5  # not at the edges
    gap = np.convolve(on, np.ones(101), "same") < 0.5
    noise = np.square(x[gap]).mean()
    tone = np.square(x[full]).mean() - noise
    assert 10 * np.log10(tone / noise) == pytest.approx(snr, abs=0.4)
    assert np.abs(x).max() < 1
    spectrum = np.square(np.abs(np.fft.rfft(x[gap])))
    halves = [half.mean() for half in np.array_split(spectrum, 2)]  # white
    assert halves[0] == pytest.approx(halves[1], rel=0.1)


def test_the_frequency_of_the_tone_and_its_soft_edges():
    found = set()
    for seed in range(8):
        x, _ = key(TEXT, dataclasses.replace(PLAIN, tone=(500.0, 1000.0)), seed)
        power = np.square(np.abs(np.fft.rfft(x * np.hanning(len(x)))))
        hz = np.fft.rfftfreq(len(x), 1 / RATE)
        peak = hz[power.argmax()]
        found.add(peak)
        assert 499 < peak < 1001
        assert power[np.abs(hz - peak) > 800].sum() < 1e-6 * power.sum()  # no clicks
    assert max(found) > 1.3 * min(found)


def test_a_sine_of_short_ranges():
    n = np.arange(50_001)
    got = morse._sine(len(n), 0.731, 0.4)
    np.testing.assert_allclose(got, np.sin(0.4 + 0.731 * n), atol=1e-6)
    assert got.dtype == np.float32 and len(morse._sine(1, 0.1, 0.0)) == 1


def test_fading():
    x, on = key(TEXT, dataclasses.replace(PLAIN, fading=20.0))
    loudest = [np.abs(part).max() for part in np.array_split(x, 40)]
    loudest = [x for x in loudest if x > 0.05]
    ratio = 20 * np.log10(max(loudest) / min(loudest))
    assert 8 < ratio <= 20.1


def test_a_pure_function_of_the_text_and_the_seed():
    options = morse.Morse()
    np.testing.assert_array_equal(key("abc", options)[0], key("abc", options)[0])
    assert len({key("abc", options, seed)[0].tobytes() for seed in range(5)}) == 5


@pytest.fixture
def records(monkeypatch):
    """40 docstrings of 8 words each."""
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcdefgh1"), 3)) for _ in range(320)]
    docs = [f"{' '.join(words[i : i + 8])}.\n\nnever used" for i in range(0, 320, 8)]
    docs[0] = docs[0].replace(" ", " NaN An_extraordinarily_long ", 1)
    all_records = [docstrings.Record("python", str(i), doc) for i, doc in enumerate(docs)]
    monkeypatch.setattr(docstrings, "records", lambda cache_dir: all_records)


def test_phrases(records):
    texts = phrases("", 3)
    assert len({*texts}) == len(texts) and {len(text.split()) for text in texts} == {1, 2, 3}
    words = " ".join(texts).split()
    assert "never" not in words and "nan" not in words and "extraordinarily" not in words
    assert {"an", "long"} <= {*words} and {*"".join(words)} <= {*morse.CODE}
    assert all(len(text.split()) == 1 for text in phrases("", 1))


FIELDS = dict(train="morse:docstrings", max_seconds=12.0, valid_fraction=0.2, test_fraction=0.2)


def test_splits_share_no_text(tmp_path, records):
    data = load(tmp_path, **FIELDS)
    texts = [{row["text"] for row in data.rows(name)} for name in data.names]
    assert all(texts) and len(set.union(*texts)) == sum(map(len, texts)) == len(phrases("", 3))
    # To name it again divides it in the same way.
    again = load(tmp_path, valid="morse:docstrings", **FIELDS)
    assert again.fingerprint == data.fingerprint
    other = load(tmp_path, morse=dict(snr=5.0), **FIELDS)
    assert other.fingerprint != data.fingerprint


def test_training_hears_a_phrase_in_another_way_in_each_epoch(tmp_path, records):
    data = load(tmp_path, **FIELDS)
    n = len(data.rows("valid"))
    batches = data.split("valid", n, seed=1, shuffle=True)
    first, second = (
        {i: x.tobytes() for i, x in zip(batch["example"].tolist(), batch["audio"])}
        for batch in map(batches.batch_at, (0, 1))
    )
    assert first.keys() == second.keys() and all(first[i] != second[i] for i in first)
    np.testing.assert_array_equal(
        data.split("valid", n, seed=1, shuffle=True).batch_at(1, slice(1, 4))["audio"],
        batches.batch_at(1)["audio"][1:4],
    )
    rows = every(data.split("valid", 5))
    np.testing.assert_array_equal(rows["audio"], every(data.split("valid", 7, seed=2))["audio"])
    np.testing.assert_array_equal(data.inputs("valid")[2], rows["audio"][2, : rows["audio_len"][2]])
    # The same text sounds the same in whatever split and place.
    fields = {"valid_fraction": 0.5, "test_fraction": 0.0, "max_seconds": 6.0}
    other = load(tmp_path, ("valid",), **FIELDS | fields)
    assert len(other.examples["valid"].part.source.rows) < len(phrases("", 3))
    texts = [[row["text"] for row in x.rows("valid")] for x in (data, other)]
    common = [text for text in texts[0] if text in texts[1]]
    a, b = (x.inputs("valid")[t.index(common[-1])] for x, t in zip((data, other), texts))
    np.testing.assert_array_equal(a, b)


def test_phrases_that_may_be_too_long_are_left_out(tmp_path, records):
    lines = []
    data = load(tmp_path, lines=lines, **FIELDS | {"max_seconds": 4.0})
    assert any("may last longer than data.max_seconds=4 as Morse code: left" in x for x in lines)
    for name in data.names:
        assert every(data.split(name, 8, shuffle=False))["weights"].any(1).all()
    with pytest.raises(
        UserError, match=r"max_seconds=0.5 is too short .* may last \d\.\d s at 20 wo"
    ):
        load(tmp_path, **FIELDS | {"max_seconds": 0.5})


def test_tones_above_the_band(tmp_path, records):
    with pytest.raises(UserError, match=r"sample_rate=1,600 Hz holds tones of up to 800 Hz"):
        load(tmp_path, sample_rate=1600, **FIELDS)
