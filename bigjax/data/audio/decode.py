"""Recordings as samples at one rate, with soundfile; and audio of int16 from samples of float32."""

from collections.abc import Iterator
import contextlib
import io
import itertools
import os
import re
import shlex
from typing import Any

from etils import epath
import numpy as np

from bigjax.data.audio.lengths import is_chained, mp3_samples
from bigjax.errors import UserError
from bigjax.plural import plural

FORMATS = "WAV, FLAC, OGG and MP3"
FULL_SCALE = 32768  # int16 of the sample 1.0
_RATES = 1000, 384_000  # Hz: others are damaged headers
_LOUDEST = 64.0  # of floats, which are of -1 to 1: above it they are something else
_CANCELLED = 0.02  # power of the mean, of that of the channels: 1 / channels if they are unrelated
_BLOCK = 1 << 16  # frames
_UNKNOWN_SIZE = 0x7FFFFFFF  # from which on the size of a WAV means that it went into a pipe
_IGNORE = "-ignore_length 1 "  # of ffmpeg, for a WAV
_UNKNOWN_FRAMES = 1 << 62
_SYSTEM_ERROR = 2  # of libsndfile
_MP3_FRAME = 1152  # samples, at most
_OGG_PAGE, _OGG_LAST = 65_307, 4  # the longest page in bytes; the flag of a stream's last page
_CODECS = (  # that soundfile does not read: (offset, regular expression, name)
    (4, rb"ftyp", "an MP4 file, as .m4a with AAC or ALAC is"),
    (0, rb"\xff[\xf0\xf1\xf8\xf9]", "AAC"),
    (0, rb"#!AMR", "AMR"),
    (0, rb"0&\xb2u", "a Windows Media file, as .wma is"),
    (0, rb"\x1aE\xdf\xa3", "a Matroska or WebM file"),
    (0, rb"wvpk", "WavPack"),
    (0, rb"MAC ", "Monkey's Audio"),
    (0, rb"RIFF....AVI ", "a video (AVI)"),
)
_OTHERS = (
    (0, rb"MThd", "MIDI, which is notes"),
    (0, rb"PK\x03\x04|\x1f\x8b", "an archive, or compressed"),
    (0, rb"\x89PNG|\xff\xd8\xff|GIF8", "a picture"),
    (0, rb"version https://git-lfs", "a pointer of Git LFS, whose file was not fetched"),
    (0, rb"\s*<(?:!doctype|html)", "a page of HTML"),
)


class BadAudio(UserError):
    """A file that is no recording, or one that is damaged, empty or too long."""


def check(path: str, sample_rate: int, max_samples: float) -> float:
    """The seconds of a recording by its header, without decoding it. Raises BadAudio as `decode`
    where the header shows it."""
    with _opened(path) as (f, n):
        _check_length(path, n, f.samplerate, sample_rate, max_samples)
        return n / f.samplerate


def decode(path: str, sample_rate: int, max_samples: int) -> np.ndarray:
    """A recording as float32 [N], mono (the mean of its channels), at `sample_rate` Hz.

    path: a file, local or on gs:// or s3://. max_samples: at that rate; a longer one is refused
    before it is decoded. Raises BadAudio.
    """
    with _opened(path) as (f, n):
        rate = f.samplerate
        _check_length(path, n, rate, sample_rate, max_samples)
        blocks = [*_blocks(path, f, n)]
    samples = resample(np.concatenate(blocks), rate, sample_rate)
    if not len(samples):
        raise _no_samples(path)
    return samples[:max_samples]  # one more may be due to rounding


def read_blocks(path: str, sample_rate: int) -> Iterator[np.ndarray]:
    """A recording of any length in blocks, int16 [n] each, mono, at `sample_rate` Hz; the file is
    open until the last one. Raises BadAudio, for a file that is cut off or damaged after the blocks
    before that."""
    import soxr

    with _opened(path) as (f, length):
        stream = soxr.ResampleStream(f.samplerate, sample_rate, 1, dtype="float32")
        same, n = f.samplerate == sample_rate, 0
        for block in itertools.chain(_blocks(path, f, length), [None]):
            last = block is None
            x = np.zeros(0, np.float32) if last else block
            part = to_int16(x if same else stream.resample_chunk(x, last=last))
            n += len(part)
            yield part
    if not n:
        raise _no_samples(path)


def to_int16(samples: np.ndarray) -> np.ndarray:
    """int16 of samples of -1 to 1; louder ones are clipped."""
    scaled = np.rint(samples * np.float32(FULL_SCALE))
    return np.clip(scaled, -FULL_SCALE, FULL_SCALE - 1).astype(np.int16)


def resample(x: np.ndarray, rate: float, sample_rate: float) -> np.ndarray:
    """float32 [about N * sample_rate / rate] of float32 [N], band-limited (soxr's "HQ": aliases and
    ripple are below -100 dB in most of the band)."""
    import soxr

    return x if rate == sample_rate else soxr.resample(x, rate, sample_rate)


@contextlib.contextmanager
def _opened(path: str) -> Iterator[tuple[Any, int]]:
    """(a soundfile.SoundFile, its length in samples). Raises BadAudio."""
    import soundfile  # it loads a library, which is needed for files only

    if path.lower().endswith(".raw"):
        raise BadAudio(
            f"{path}: samples without a header, by its name; their rate and type are not known. "
            f"Convert them: {_conversion(path, '-f s16le -ar RATE -ac 1 ')}"
        )
    with contextlib.ExitStack() as stack:
        if "://" in path:
            file: Any = io.BytesIO(epath.Path(path).read_bytes())
        else:
            try:
                file = stack.enter_context(open(path, "rb"))
            except (FileNotFoundError, PermissionError, IsADirectoryError) as e:  # not of storage
                raise BadAudio(f"{path}: {e.strerror}.") from None
        _check_end(path, file)
        try:
            f = stack.enter_context(soundfile.SoundFile(file if "://" in path else path))
        except soundfile.LibsndfileError as e:
            if e.code == _SYSTEM_ERROR:  # such as too many open files
                raise OSError(f"{path}: {e}") from e
            file.seek(0)
            raise _bad(path, file.read(64), e) from None
        low, high = _RATES
        if not low <= f.samplerate <= high:
            raise BadAudio(
                f"{path}: its header says {f.samplerate:,} samples a second; {low:,} to {high:,} "
                "are read. Write the file again."
            )
        _check_whole(path, f)
        if not f.frames:
            raise _no_samples(path)
        at = file.tell()
        length = _length(path, f, file)
        file.seek(at)  # soundfile reads on in one that is remote
        yield f, length


def _bad(path: str, head: bytes, e: Exception) -> BadAudio:
    what = lambda table: next(
        (name for at, pattern, name in table if re.match(pattern, head[at:], re.S | re.I)), ""
    )
    remedy = _conversion(path)
    if name := what(_CODECS):
        return BadAudio(f"{path}: {name}; {FORMATS} are read. Convert it: {remedy}")
    if name := what(_OTHERS):
        return BadAudio(f"{path}: {name}; {FORMATS} are read.")
    codec = ""
    if re.match(b"RIFF....WAVEfmt ", head, re.S):
        codec = f" It is WAV of format {int.from_bytes(head[20:22], 'little'):#06x}."
    return BadAudio(
        f"{path}: not a recording that soundfile can read ({FORMATS}), or a damaged one: "
        f"{_reason(e)}.{codec} If it plays elsewhere, convert it: {remedy}"
    )


def _conversion(path: str, of_input: str = "", of_output: str = "") -> str:
    """The command that writes a recording again, with options each followed by a space."""
    own = os.path.basename(path)
    name, extension = os.path.splitext(own)
    new = f"{name}{'.new' * (extension.lower() == '.flac')}.flac"
    return f"ffmpeg {of_input}-i {shlex.quote(own)} {of_output}{shlex.quote(new)}"


def _check_end(path: str, file: Any) -> None:
    """Raises BadAudio for an empty file, and for an OGG file without its last page. Rewinds it."""
    size = file.seek(0, os.SEEK_END)
    if not size:
        raise BadAudio(f"{path}: the file is empty.")
    file.seek(0)
    if file.read(4) == b"OggS":
        file.seek(max(0, size - _OGG_PAGE))
        end = file.read()
        page = end[max(0, end.rfind(b"OggS")) :]
        n = 27 + page[26] + sum(page[27 : 27 + page[26]]) if len(page) > 26 else 27  # its length
        if len(page) < n or not page[5] & _OGG_LAST:
            raise BadAudio(f"{path}: the file is cut off: its last page is missing. Copy it again.")
    file.seek(0)


def _check_whole(path: str, f: Any) -> None:
    """Raises BadAudio for a WAV, AIFF or AU file that ends before it should: libsndfile takes what
    there is."""
    cut = re.search(r"^ *(?:data|SSND|Data Size) *: (\d+) \(should be (\d+)\)", f.extra_info, re.M)
    stated, present = (int(cut[1]), int(cut[2])) if cut else (0, 0)
    if present < stated < _UNKNOWN_SIZE:
        pipe = f", or if it went into a pipe, write it again: {_conversion(path, _IGNORE)}"
        raise BadAudio(
            f"{path}: the file is cut off: its header says {stated:,} bytes of samples, and "
            f"{present:,} follow. Copy it again{pipe if f.format.startswith('WAV') else '.'}"
        )


def _length(path: str, f: Any, file: Any) -> int:
    """The samples that can be read, which are all in the file. Raises BadAudio if they are not, or
    if their number is not known. file: the open file."""
    what = ""
    if f.frames >= _UNKNOWN_FRAMES:
        what = "no length in its header, as of FLAC that was written to a pipe"
    elif f.format == "OGG" and is_chained(file):
        what = (
            "several OGG streams, one after another, of which only the first "
            f"({f.frames / f.samplerate:,.1f} s) would be read"
        )
    elif f.subtype == "MPEG_LAYER_III" and f.format == "MP3":
        samples = mp3_samples(file, f.frames)
        if samples <= f.frames + _MP3_FRAME:
            return min(samples, f.frames)
        what = (
            f"{f.frames / f.samplerate:,.1f} of {samples / f.samplerate:,.1f} s would be read: its "
            "length is not at its beginning, or it is several MP3 files in one"
        )
    if what:
        raise BadAudio(f"{path}: {what}. Write it again: {_conversion(path)}")
    return f.frames


def _no_samples(path: str) -> BadAudio:
    again = _conversion(path, _IGNORE * path.lower().endswith(".wav"))
    return BadAudio(
        f"{path}: it has 0 seconds: no samples follow its header, or it does not say that they do. "
        f"If it plays elsewhere, write it again: {again}"
    )


def _check_length(path: str, n: int, rate: int, sample_rate: int, max_samples: float) -> None:
    if (n := round(n * sample_rate / rate)) > max_samples:
        raise BadAudio(
            f"{path}: it is {n / sample_rate:,.1f} s long ({n:,} samples at {sample_rate:,} Hz); "
            f"data.max_seconds={max_samples / sample_rate:g} allows {max_samples:,}. Cut it and "
            "its text into parts, or raise data.max_seconds."
        )


def _blocks(path: str, f: Any, length: int) -> Iterator[np.ndarray]:
    """float32 [n] blocks of an open file of `length` samples, mono. Raises BadAudio."""
    import soundfile

    done, power = 0, np.zeros(2)  # of the channels, of their mean
    while True:
        second = done / f.samplerate
        try:
            block = f.read(_BLOCK, dtype="float32", always_2d=True)
        except soundfile.LibsndfileError as e:
            raise BadAudio(
                f"{path}: the file is cut off or damaged, at {second:,.1f} s or later: "
                f"{_reason(e)}. Copy it again."
            ) from None
        if not len(block):
            break
        _check_values(path, block, second)
        done += len(block)
        mean = block[:, 0] if block.shape[1] == 1 else block.mean(1)
        power += np.square(block).mean(1).sum(), np.square(mean).sum()
        yield mean
    if power[1] * f.channels < _CANCELLED * power[0]:
        raise BadAudio(
            f"{path}: its channels cancel each other, as those in opposite phase: their mean is "
            "silent. Use one of them: " + _conversion(path, of_output="-af 'pan=mono|c0=c0' ")
        )
    if done < length:
        raise BadAudio(
            f"{path}: the file is cut off or damaged: its header says {length:,} samples, and "
            f"{done:,} can be decoded. Copy it again."
        )


def _reason(e: Exception) -> str:
    """An error of libsndfile without the name of the file."""
    reason = str(e).rpartition(": ")[2].strip().rstrip(".")
    # What libsndfile says of an MP3 without a complete frame.
    return "no audio in it" if reason.startswith("File does not exist") else reason


def _check_values(path: str, block: np.ndarray, second: float) -> None:
    loudest = np.abs(block).max()
    if not np.isfinite(loudest):
        n = int((~np.isfinite(block)).sum())
        raise BadAudio(
            f"{path}: NaN or infinite: {n:,} {plural(n, 'sample')} from {second:,.1f} s on. Write "
            "the file again, with numbers from -1 to 1."
        )
    if loudest > _LOUDEST:
        raise BadAudio(
            f"{path}: a sample is {loudest:,.6g}, and samples are numbers from -1 to 1. Divide "
            "them by the largest one, or write integers."
        )
