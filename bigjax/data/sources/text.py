"""Plain text: one file, or several that a glob matches.

`path` is a file or a glob (a folder with exactly this name, brackets included, comes first). If it
matches several files, each is a document, in the order of their names. A single file is split at
blank lines: paragraphs are joined until they have at least 2,000 characters (and split at the end
of a line after 100,000). Line ends become LF. Files may be compressed, and of UTF-16 or UTF-32: see
data/text_files.py.
"""

from collections.abc import Iterator
import io
from typing import Any

from bigjax.data.files import fingerprint_files
from bigjax.data.sources import Config, Reading
from bigjax.data.sources.paths import FORMAT, matching_files
from bigjax.data.text_files import open_utf8
from bigjax.data.utf8 import Replacing

DOCUMENT_CHARS = 2000  # paragraphs of one large text file are grouped to at least this
_MAX_CHARS = 100_000  # a text without blank lines is split at the end of a line after this many
_READ_BYTES = 4 << 20


def documents(options: Config, reading: Reading) -> Iterator[str]:
    paths = matching_files(options.path, "text")
    if len(paths) == 1:
        yield from _grouped(_lines(paths[0], reading.utf8))
        return
    for path in paths:
        text = "".join(_lines(path, reading.utf8))
        if text.strip():
            yield text


def fingerprint(options: Config, reading: Reading) -> str:
    del reading
    return f"text-{FORMAT}-{fingerprint_files(matching_files(options.path, 'text'))}"


def _grouped(lines: Iterator[str]) -> Iterator[str]:
    """Joins paragraphs; the blank line between two documents belongs to neither."""
    group: list[str] = []
    n_chars = 0
    for line in lines:
        blank = not line.strip()
        if (blank and n_chars >= DOCUMENT_CHARS) or n_chars >= _MAX_CHARS:
            yield "".join(group).rstrip("\n")
            group, n_chars = ([], 0) if blank else ([line], len(line))
        elif group or not blank:
            group.append(line)
            n_chars += len(line)
    last = "".join(group)
    if last.strip():
        yield last.rstrip("\n")


def _lines(path: Any, utf8: Replacing) -> Iterator[str]:
    """Lines that end in LF, decoded in groups: no byte sequence crosses the end of a line."""
    offset = 0
    with open_utf8(path) as f:
        while block := f.read(_READ_BYTES):
            block += f.readline()
            text = utf8.decode(block, path, offset).replace("\r\n", "\n").replace("\r", "\n")
            # Not splitlines, which also splits at form feeds and other characters.
            yield from io.StringIO(text if offset else text.removeprefix("\ufeff"), "\n")
            offset += len(block)
    utf8.finish(path)
