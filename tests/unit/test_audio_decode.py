"""Recordings of every kind as samples at one rate, and files that are none."""

import errno
import re
import types

import numpy as np
import pytest
import soundfile

from bigjax.data.audio import decode as module
from bigjax.data.audio.decode import BadAudio, check, decode, read_blocks, resample, to_int16
from tests.audio_files import RATE, content, samples, write

LONG = 10 * RATE


def read_all(path, rate):
    """int16 [N] of all blocks."""
    return np.concatenate([*read_blocks(path, rate)])


def sine(hz, rate, seconds=1.0):
    return np.sin(2 * np.pi * hz * np.arange(int(rate * seconds)) / rate)


@pytest.mark.parametrize("kind", ["wav", "flac", "aiff"])
def test_lossless_files_at_the_same_rate_keep_their_samples(tmp_path, kind):
    path = write(tmp_path / f"x.{kind}", samples(0))
    x = decode(path, RATE, LONG)
    assert x.dtype == np.float32
    np.testing.assert_array_equal(to_int16(x), samples(0))
    np.testing.assert_array_equal(read_all(path, RATE), samples(0))


@pytest.mark.parametrize("kind", ["ogg", "mp3"])
def test_lossy_files(tmp_path, kind):
    x = 0.5 * sine(440, 16000)
    got = decode(write(tmp_path / f"x.{kind}", x, 16000), 16000, LONG)
    assert len(got) == len(x)
    np.testing.assert_allclose(got[2000:-2000], x[2000:-2000], atol=0.03)


@pytest.mark.parametrize("rate", [8000, 22050, 44100, 48000, 44099])
def test_a_resampled_sine_is_the_sine_of_the_other_rate(tmp_path, rate):
    path = write(tmp_path / "x.wav", 0.5 * sine(1000, rate), rate, "FLOAT")
    got = decode(path, 16000, 16000)
    assert got.shape == (16000,)
    inner = slice(1000, -1000)
    np.testing.assert_allclose(got[inner], 0.5 * sine(1000, 16000)[inner], atol=2e-6)


def test_tones_above_the_new_band_are_removed(tmp_path):
    path = write(tmp_path / "x.wav", 0.5 * sine(5000, 44100), 44100, "FLOAT")
    assert np.abs(decode(path, RATE, LONG)[500:-500]).max() < 1e-5


def test_channels_are_averaged(tmp_path):
    eight = np.stack([samples(i) for i in range(8)], 1)
    got = decode(write(tmp_path / "x.wav", eight), RATE, LONG)
    np.testing.assert_allclose(got, eight.mean(1) / 32768, atol=1e-6)


def test_channels_in_opposite_phase_are_refused(tmp_path):
    """Their mean is silent but for rounding. Channels that are unrelated, or silent, are none."""
    x = samples(0)
    path = write(tmp_path / "a.wav", np.stack([x, -x], 1))
    for read in (lambda: decode(path, RATE, LONG), lambda: read_all(path, RATE)):
        with pytest.raises(BadAudio, match=r"cancel each other.* -af 'pan=mono\|c0=c0' a.flac"):
            read()
    noise = np.random.default_rng(0).normal(0, 900, (800, 8)).astype(np.int16)
    good = noise, np.stack([x, 0 * x], 1), np.stack([x, -x // 2], 1), 0 * noise
    for i, channels in enumerate(good):
        decode(write(tmp_path / f"{i}.wav", channels), RATE, LONG)


@pytest.mark.parametrize("rate", [RATE, 11025])
def test_a_long_recording_is_read_in_blocks(tmp_path, rate):
    """Of several blocks, equal to one that is resampled as a whole."""
    x = 0.3 * np.random.default_rng(0).standard_normal((200_000, 2))
    path = write(tmp_path / "x.flac", x.clip(-1, 1), rate)
    stored, _ = soundfile.read(path, dtype="float32")
    got = read_all(path, RATE)
    np.testing.assert_array_equal(got, to_int16(resample(stored.mean(1), rate, RATE)))
    assert got.dtype == np.int16 and len(got) == round(200_000 * RATE / rate)


def test_loud_samples_are_clipped_not_wrapped():
    got = to_int16(np.array([1.5, -1.5, 1.0, -1.0, 0.5], np.float32))
    assert got.tolist() == [32767, -32768, 32767, -32768, 16384]


def test_the_longest_recording_and_one_sample_more(tmp_path):
    path = write(tmp_path / "x.wav", samples(0, 4000))
    assert len(decode(path, RATE, 4000)) == 4000
    for act in (decode, check):
        with pytest.raises(BadAudio, match=r"is 0.5 s long \(4,000 samples at 8,000 Hz\); .* 3,99"):
            act(path, RATE, 3999)
    # A length that is no whole number of samples at the other rate is rounded.
    path = write(tmp_path / "y.wav", samples(0, 4001), 11025)
    assert len(decode(path, RATE, 2903)) == 2903


def test_a_long_recording_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    path = write(tmp_path / "x.flac", np.zeros(3 * 3600 * 100, np.int16), 1000)
    monkeypatch.setattr(soundfile.SoundFile, "read", None)
    with pytest.raises(BadAudio, match=r"it is 1,080.0 s long .*data.max_seconds=10 allows 80,000"):
        decode(path, RATE, LONG)


def mp3(n, kbps=1):
    """An MP3 of n silent frames at 44,100 Hz, of a constant bitrate, without a count of them."""
    size, raw = 144_000 * (32, 40, 48)[kbps - 1] / 44100, b""
    for i in range(n):
        padding = int((i + 1) * size) - int(i * size) - int(size)
        head = 0xFFFB00C0 | kbps << 12 | padding << 9
        raw += head.to_bytes(4, "big") + bytes(int(size) + padding - 4)
    return raw


TAG = b"ID3\4\0\0\0\0\1\0" + bytes(128)


@pytest.mark.parametrize("kind", ["MP3", "OGG"])
@pytest.mark.parametrize("rate, channels", [(8000, 1), (16000, 2), (22050, 1), (44100, 2)])
def test_the_lengths_of_lossy_files(tmp_path, kind, rate, channels):
    """Also with tags before and after them."""
    x = np.stack([samples(i, 3 * rate + 77) for i in range(channels)], 1)
    raw = content(x, rate, kind)
    tagged = [TAG + raw, raw + b"TAG" + bytes(125)] if kind == "MP3" else []
    for i, file in enumerate([raw, *tagged]):
        (tmp_path / f"{i}").write_bytes(file)
        assert check(f"{tmp_path}/{i}", rate, 9 * rate) == pytest.approx(3 + 77 / rate)
        assert len(read_all(f"{tmp_path}/{i}", rate)) == 3 * rate + 77


@pytest.mark.parametrize("kind", ["mp3", "ogg", "flac"])
def test_a_recording_in_a_bucket_is_that_of_the_file(tmp_path, monkeypatch, kind):
    raw = content(samples(0, 30 * RATE), kind=kind.upper())
    (tmp_path / "x").write_bytes(raw)
    local = read_all(f"{tmp_path}/x", RATE)
    remote = types.SimpleNamespace(read_bytes=lambda: raw)
    monkeypatch.setattr(module, "epath", types.SimpleNamespace(Path=lambda _: remote))
    np.testing.assert_array_equal(read_all(f"gs://bucket/x.{kind}", RATE), local)


@pytest.mark.parametrize("before, after", [(b"", b""), (TAG, b""), (b"", b"TAG" + bytes(125))])
def test_mp3_of_a_constant_bitrate_without_a_count_of_frames(tmp_path, before, after):
    """libsndfile's estimate of its length is too large."""
    (tmp_path / "x.mp3").write_bytes(before + mp3(400) + after)
    path = str(tmp_path / "x.mp3")
    assert soundfile.info(path).frames > 400 * 1152
    assert check(path, 44100, 99 * 44100) == 400 * 1152 / 44100
    assert len(read_all(path, 44100)) == 400 * 1152


LOSSY = {kind: content(samples(0, 3 * RATE), kind=kind) for kind in ("MP3", "OGG")}


@pytest.mark.parametrize(
    "name, raw, words",
    [
        ("vbr.mp3", mp3(100, 3) + mp3(300), "would be read: its length is not at its beginning"),
        ("two.mp3", LOSSY["MP3"] * 2, "3.0 of .* s would be read"),
        ("tags.mp3", TAG + LOSSY["MP3"] + b"TAG" + bytes(125) + TAG + LOSSY["MP3"], "3.0 of "),
        ("rates.mp3", LOSSY["MP3"] + mp3(100), "3.0 of .* s would be read"),
        ("two.ogg", LOSSY["OGG"] * 2, r"several OGG streams, .* the first \(3.0 s\) would be read"),
    ],
)
def test_files_of_which_only_the_beginning_would_be_read(tmp_path, name, raw, words):
    path = tmp_path / name
    path.write_bytes(raw)
    for act in (lambda: decode(str(path), RATE, 99 * RATE), lambda: check(str(path), RATE, LONG)):
        with pytest.raises(BadAudio, match=f"{words}.*Write it again: ffmpeg -i {name} {name[:3]}"):
            act()


def test_flac_without_a_length(tmp_path):
    """As an encoder writes it to a pipe."""
    raw = bytearray(content(samples(0), kind="FLAC"))
    raw[21] &= 0xF0
    raw[22:26] = bytes(4)
    (tmp_path / "x.flac").write_bytes(raw)
    for act in (check, decode):
        with pytest.raises(BadAudio, match="no length in its header.*-i x.flac x.new.flac"):
            act(str(tmp_path / "x.flac"), RATE, float("inf"))


def test_samples_without_a_header(tmp_path):
    (tmp_path / "x.raw").write_bytes(samples(0).tobytes())
    with pytest.raises(BadAudio, match="without a header.* -f s16le -ar RATE -ac 1 -i x.raw x.fl"):
        decode(str(tmp_path / "x.raw"), RATE, LONG)


def header(at, value):
    """A WAV with other bytes in its header."""
    raw = bytearray(content(samples(0)))
    raw[at : at + len(value)] = value
    return bytes(raw)


half = lambda raw: raw[: len(raw) // 2]
NAN = samples(0) / np.float32(32768)
NAN[5] = np.nan
BAD = {
    "empty.wav": (b"", "the file is empty"),
    "zero.wav": (content(samples(0, 0)), "it has 0 seconds: no samples follow"),
    "cut.wav": (half(content(samples(0))), "is cut off: its header says 1,600 bytes .* 778 follow"),
    "cut.aiff": (half(content(samples(0), kind="AIFF")), "is cut off: its header says 1,608"),
    "cut.flac": (half(content(samples(0, 9000), kind="FLAC")), "cut off or damaged, at 0.0 s or"),
    "cut.ogg": (half(content(samples(0, 9000), kind="OGG")), "cut off: its last page is missing"),
    "cut.mp3": (
        half(content(samples(0, 30000), kind="MP3")),
        r"says 30,000 samples, and \d",
    ),
    "head.wav": (content(samples(0))[:30], "soundfile can read .WAV, FLAC, OGG and MP3., or a dam"),
    "nan.wav": (content(NAN, subtype="FLOAT"), "NaN or infinite: 1 sample from 0.0 s on. Write"),
    "loud.wav": (content(samples(0) * 1.0, subtype="FLOAT"), "a sample is .* numbers from -1 to 1"),
    "rate.wav": (header(24, b"\xff\xff\xff\x7f"), "says 2,147,483,647 samples a second"),
    "codec.wav": (header(20, b"\x61\x01"), "It is WAV of format 0x0161. .* ffmpeg -i codec"),
    "my talk (1).m4a": (
        b"\0\0\0\x20ftypM4A ",
        r"ffmpeg -i 'my talk \(1\).m4a' 'my talk \(1\).flac'$",
    ),
    "m4a.wav": (b"\0\0\0\x20ftypM4A " + bytes(99), "an MP4 file, .*ffmpeg -i m4a.wav m4a.flac$"),
    "aac.flac": (b"\xff\xf1\x50\x80" + bytes(99), "AAC; .*Convert it: ffmpeg .* aac.new.flac"),
    "x.wma": (b"0&\xb2u" + bytes(99), "a Windows Media file"),
    "page.wav": (
        b"<!DOCTYPE html>" + bytes(99),
        "a page of HTML; WAV, FLAC, OGG and MP3 are read.$",
    ),
    "lfs.wav": (b"version https://git-lfs.github.com/spec/v1", "a pointer of Git LFS"),
    "text.wav": (b"hello", "not a recording that soundfile can read"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files(tmp_path, name):
    raw, words = BAD[name]
    path = tmp_path / name
    path.write_bytes(raw)
    for act in (lambda: decode(str(path), RATE, LONG), lambda: read_all(str(path), RATE)):
        with pytest.raises(BadAudio, match=f"{re.escape(str(path))}: .*{words}"):
            act()


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(BadAudio, match="none.wav: No such file or directory"):
        decode(str(tmp_path / "none.wav"), RATE, LONG)


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EMFILE, errno.ETIMEDOUT])
def test_a_failure_of_storage_is_not_one_of_the_file(tmp_path, monkeypatch, number):
    path = write(tmp_path / "x.wav", samples(0))

    def fail(*_):
        raise OSError(number, "failure")

    monkeypatch.setattr(module, "open", fail, raising=False)
    with pytest.raises(OSError, match="failure"):
        check(path, RATE, LONG)
    monkeypatch.undo()
    error = soundfile.LibsndfileError(2)  # "System error", of too many open files
    monkeypatch.setattr(soundfile, "SoundFile", lambda _: (_ for _ in ()).throw(error))
    with pytest.raises(OSError, match="x.wav: .*System error"):
        check(path, RATE, LONG)


@pytest.mark.parametrize("size", [b"\xff\xff\xff\xff", bytes(4)])
def test_a_wav_that_was_written_to_a_pipe(tmp_path, size):
    """Its header does not say how long it is."""
    (tmp_path / "x.wav").write_bytes(header(40, size))
    path = str(tmp_path / "x.wav")
    if size == bytes(4):
        with pytest.raises(BadAudio, match="has 0 seconds.* -ignore_length 1 -i x.wav x"):
            decode(path, RATE, LONG)
        return
    np.testing.assert_array_equal(to_int16(decode(path, RATE, LONG)), samples(0))


def test_the_length_by_the_header(tmp_path):
    assert check(write(tmp_path / "x.wav", samples(0)), RATE, LONG) == 0.1
