"""Reading of text files, local or on gs://, in blocks of bounded size.

The first bytes decide, not the name: gzip, bzip2, xz, Zstandard and LZ4 are decompressed, UTF-16
and UTF-32 with a byte order mark become UTF-8. UTF-16 and UTF-32 without one, archives, Parquet,
images and other binary files are refused. Lines end in LF or CRLF, or in CR if the first ones do.
"""

import bz2
import codecs
from collections.abc import Callable, Iterator
import contextlib
import gzip
import io
import lzma
import os
import re
from typing import Any, BinaryIO

from bigjax.data import utf8
from bigjax.errors import RunError, UserError

COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst", ".zstd", ".lz4")
_BUFFER = 1 << 20
_HEAD = 1 << 16  # bytes in which to look for zeros and line ends

_BOMS = (  # UTF-32's first: the mark of UTF-16 is a prefix of it
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_COMPRESSED = (
    (rb"\x1f\x8b\x08", "gzip"),
    (rb"BZh[1-9](1AY&SY|\x17rE8P\x90)", "bz2"),
    (rb"\xfd7zXZ\0", "xz"),
    (rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18", "zstd"),
    (rb"\x04\x22\x4d\x18", "lz4"),
)
_BINARY = (
    (rb"PK(\x03\x04|\x05\x06)", "a zip archive, as .xlsx, .docx and .npz are"),
    (rb"PAR1[\x15\0]", "a Parquet file"),
    (rb"ARROW1\0", "an Arrow file"),
    (rb"\x93NUMPY", "a NumPy array"),
    (rb"\x80[\x02-\x05]", "a Python pickle"),
    (rb"%PDF-", "a PDF document"),
    (rb"\{\\rtf", "an RTF document"),
    (rb"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Word or Excel document"),
    (rb"\x89PNG|\xff\xd8\xff|GIF8[79]a", "a picture"),
    (rb"\x89HDF\r\n", "an HDF5 file"),
    (rb"SQLite format 3\0", "an SQLite database"),
    (rb"7z\xbc\xaf\x27\x1c|Rar!\x1a\x07", "an archive"),
    (rb"(?s:.{257})ustar[\0 ]", "a tar archive"),
    (rb"\x1f\x9d|\xff\x06\0\0sNaPpY", "compressed in a way that is not read here"),
    (rb"\x7fELF|MZ\x90\0", "a program"),
)


def extension(path: str | os.PathLike) -> str:
    """The lower-case extension of the file's name, without that of a compression: '.tsv' of
    'train.TSV.gz'."""
    name, last = os.path.splitext(os.fspath(path).lower())
    return os.path.splitext(name)[1] if last in COMPRESSIONS else last


@contextlib.contextmanager
def open_bytes(
    path: str | os.PathLike, what: str = "a file", *, at_once: bool = False
) -> Iterator[BinaryIO]:
    """The content of the file, decompressed.

    Args:
      what: the expected content, for messages.
      at_once: whether to read the file in one go, which is faster if all of it is needed.

    Raises UserError, also while it is read, for a file that cannot be read, and for a compressed
    one that is truncated or damaged.
    """
    with contextlib.ExitStack() as stack:
        source = _try(lambda: _path(path), path, what)
        if at_once:
            f: BinaryIO = io.BufferedReader(
                io.BytesIO(_try(source.read_bytes, path, what)), _BUFFER
            )
        else:
            file = _try(lambda: stack.enter_context(source.open("rb")), path, what)
            f = _buffered(lambda n: _try(lambda: file.read(n), path, what))
        kind = _match(_COMPRESSED, f.peek(16))
        if kind:
            content = stack.enter_context(_decompressed(f, kind))
            f = _buffered(lambda n: _undamaged(lambda: content.read(n), path, kind))
            if _match(_COMPRESSED, f.peek(16)):
                raise UserError(f"{path} is compressed twice. Decompress it once.")
        yield f


@contextlib.contextmanager
def open_utf8(
    path: str | os.PathLike, what: str = "a text file", *, at_once: bool = False
) -> Iterator[BinaryIO]:
    """The text of the file as UTF-8, with lines that end in LF or CRLF, to be decoded by the
    caller. A byte order mark of UTF-8 is left at its beginning, so that offsets are the file's.

    Raises UserError as `open_bytes` does, and for a file that is not text.
    """
    with open_bytes(path, what, at_once=at_once) as f:
        head = f.peek(_HEAD)[:_HEAD]
        encoding = next((name for bom, name in _BOMS if head.startswith(bom)), None)
        if encoding:
            text = io.TextIOWrapper(f, encoding, newline="")
            f = _buffered(lambda n: _transcoded(text, max(1, n // 4), path, encoding))
            head = f.peek(_HEAD)[:_HEAD]
        else:
            _refuse_binary(head, path, what)
        if b"\r" in head[:-1] and b"\n" not in head:
            old = f
            f = _buffered(lambda n: _without_cr(old, n))
        yield f


def read_bytes(path: str | os.PathLike, what: str = "a file") -> bytes:
    """The whole content of `open_bytes`."""
    with open_bytes(path, what, at_once=True) as f:
        return f.read()


def read_text(path: str | os.PathLike, what: str = "a text file") -> str:
    """The whole text, line ends as they are, without a byte order mark.

    Raises UserError as `open_utf8` does, and, with file and line, for invalid UTF-8 and NUL.
    """
    with open_utf8(path, what, at_once=True) as f:
        raw = f.read()
    return utf8.decode(raw, path, f"It has to be {what}.").removeprefix("\ufeff")


def read_lines(path: str | os.PathLike, what: str = "a text file") -> list[str]:
    """The lines of `read_text` without their ends; U+2028 or a form feed does not end a line."""
    lines = [line.rstrip("\r") for line in read_text(path, what).split("\n")]
    if not lines[-1]:
        lines.pop()
    return lines


# --- Streams ---------------------------------------------------------------------------------


class _Reads(io.RawIOBase):
    """A stream of the bytes of read(n), which returns about n, b'' at the end."""

    def __init__(self, read: Callable[[int], bytes]) -> None:
        self._read, self._rest = read, b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        block = self._rest or self._read(len(buffer))
        part, self._rest = block[: len(buffer)], block[len(buffer) :]
        buffer[: len(part)] = part
        return len(part)


def _buffered(read: Callable[[int], bytes]) -> io.BufferedReader:
    return io.BufferedReader(_Reads(read), _BUFFER)


def _path(path: str | os.PathLike) -> Any:
    from etils import epath

    return epath.Path(path).expanduser()


def _try(read: Callable[[], Any], path: Any, what: str) -> Any:
    try:
        return read()
    except (RunError, UserError):  # storage does not respond
        raise
    except Exception as e:  # each storage library has its own errors
        reason = getattr(e, "strerror", None) or e
        looked = "" if "://" in str(path) else f" (looked from {os.getcwd()!r})"
        raise UserError(
            f"cannot read {path}: {reason}{looked}. It has to be {what}: check the path and your "
            "permission to read it."
        ) from None


def _decompressed(f: BinaryIO, kind: str) -> Any:
    if kind == "gzip":
        return gzip.GzipFile(fileobj=f)
    if kind == "bz2":
        return bz2.BZ2File(f)
    if kind == "xz":
        return lzma.LZMAFile(f)
    import pyarrow as pa  # slow to import

    return pa.CompressedInputStream(pa.PythonFile(f, mode="r"), kind)


def _undamaged(read: Callable[[], bytes], path: Any, kind: str) -> bytes:
    try:
        return read()
    except (RunError, UserError):
        raise
    except Exception as e:  # each library has its own errors
        if "requires too much memory" in str(e):  # the Zstandard library's
            raise UserError(
                f"{path} was compressed with zstd --long and a window of more than 128 MiB, which "
                "cannot be read here. Compress it again without --long: zstd -dc --long=31 OLD | "
                "zstd -o NEW."
            ) from None
        raise UserError(
            f"{path} is a {kind} file that is cut short or damaged ({e}). Copy it again."
        ) from None


def _transcoded(text: io.TextIOWrapper, n: int, path: Any, encoding: str) -> bytes:
    try:
        return text.read(n).encode()
    except UnicodeError as e:  # a lone surrogate, or half a character at the end
        raise UserError(
            f"{path} begins as {encoding.upper()} and cannot be decoded as such ({e}): it is cut "
            "short or damaged. Write it again, best in UTF-8."
        ) from None


def _without_cr(f: BinaryIO, n: int) -> bytes:
    """About n bytes in which each CR that is not part of CRLF is replaced by LF."""
    block = f.read(n)
    while block.endswith(b"\r") and (more := f.read(1)):
        block += more
    return re.sub(rb"\r(?!\n)", b"\n", block)


def _match(table: tuple, head: bytes) -> str:
    return next((name for pattern, name in table if re.match(pattern, head)), "")


def _refuse_binary(head: bytes, path: Any, what: str) -> None:
    kind = _match(_BINARY, head) or utf8.binary_kind(head)
    if kind:
        raise UserError(
            f"{path} is {kind}, and it has to be {what}. "
            + (
                "Convert it to UTF-8, for example with iconv."
                if "UTF" in kind
                else "Give a file of text in UTF-8."
            )
        )
