"""Bytes to text: invalid UTF-8 is refused, or replaced and counted; its encoding is guessed."""

from collections.abc import Callable
import functools
import re
from typing import Any

from bigjax.errors import UserError

MAX_REPLACED = 0.01  # of the bytes of a file or source: more means another encoding, or not text
_FEW = 10  # allowed in any case, for short files
_NAMED = 3  # files of a source that a message names
_EARLY = 16 << 20  # bytes after which a file is refused before its end
_SAMPLE = 1 << 16  # bytes from which an encoding is guessed
_AROUND = 20  # bytes shown on each side
_SINGLE_BYTE = "a single-byte encoding such as Windows-1251 (Cyrillic)"


def decode(raw: bytes, path: Any, remedy: str, line: int = 1) -> str:
    """The text of a file, or of its lines from `line` on. UserError, with the line and the place in
    `raw`, for the first byte that is not UTF-8, for ISO-2022 and for a NUL character."""
    _refuse_iso_2022(raw, path, line)
    try:
        text = raw.decode()
    except UnicodeDecodeError as e:
        where = f"{path}:{line + raw.count(10, 0, e.start)}"
        raise _refusal(raw, e.start, where, e.start, remedy) from None
    if "\0" in text:
        at = raw.index(0)
        raise UserError(
            f"{path}:{line + raw.count(10, 0, at)}: byte {at} is NUL (0x00), which no text has. "
            f"Was the file cut short by a crash? {remedy}"
        )
    return text


class Replacing:
    """Decodes parts of files in sequence; bytes that are not UTF-8 become U+FFFD.

    `refuse` raises UserError for the first such byte instead. Else they are added to
    counts['bad_utf8']; `log` gets the first of them, and from `close` the names of other files
    with such bytes. UserError is raised for more than MAX_REPLACED of them in a file (by `finish`),
    or in all files of the source (by `close`), earlier if it is long. ISO-2022 is always refused.
    """

    def __init__(
        self,
        refuse: bool,
        counts: dict[str, int],
        log: Callable[[str], None] = lambda line: None,
        source: str = "the source",
    ) -> None:
        """source: the name of all files together in messages."""
        self.refuse, self.counts, self._log, self._source = refuse, counts, log, source
        self._all_bytes, self._all_bad, self._n_files, self._n_bad_files = 0, 0, 0, 0
        self._named: list[str] = []  # the first files with such bytes
        self._first = self._guess = ""  # of all files
        self._begin()

    def _begin(self) -> None:
        self._n_bytes, self._n_bad, self._n_lines = 0, 0, 0
        self._file_first = self._file_guess = ""

    def decode(self, raw: bytes, where: Any, offset: int | None = None) -> str:
        """The text of `raw`, which begins at byte `offset` of the file `where`; of no file if
        None."""
        _refuse_iso_2022(raw, where, None if offset is None else self._n_lines + 1)
        try:
            text = raw.decode()
        except UnicodeDecodeError as e:
            text = self._replaced(raw, e.start, where, offset)
        self._n_bytes += len(raw)
        self._n_lines += raw.count(b"\n")
        return text

    def clean(self, text: str, where: Any) -> str:
        """Refuses or replaces a lone surrogate from a JSON escape, which has no UTF-8 form."""
        try:
            text.encode()
            return text
        except UnicodeEncodeError as e:
            if self.refuse:
                raise UserError(
                    f"{where}: character {e.start} of the text is a lone surrogate, which has no "
                    'UTF-8 form. Correct it, or set data.on_bad_utf8="replace".'
                ) from None
        self._count(sum("\ud800" <= char <= "\udfff" for char in text))
        return "".join("\ufffd" if "\ud800" <= char <= "\udfff" else char for char in text)

    def finish(self, where: Any) -> None:
        """Call after the last part of a file: raises UserError if too much of it was replaced."""
        self._check(where)
        self._n_files += 1
        self._all_bytes += self._n_bytes
        self._all_bad += self._n_bad
        if self._n_bad:
            self._n_bad_files += 1
            self._named += [str(where)] if len(self._named) < _NAMED else []
        if self._all_bytes > _EARLY:
            self._check_source()
        self._begin()

    def close(self) -> None:
        """Call after the last file: raises UserError if too much of all files was replaced."""
        self._check_source()
        if self._n_bad_files > 1:
            self._log(
                f"data: warning: {self._n_bad_files:,} of the {self._n_files:,} files of "
                f"{self._source} have bytes that are not UTF-8: {self._names()}"
            )

    def _replaced(self, raw: bytes, start: int, where: Any, offset: int | None) -> str:
        place, at = str(where), start
        if offset is not None:
            at = offset + start
        if self.refuse:
            remedy = 'Convert the file to UTF-8, or set data.on_bad_utf8="replace".'
            raise _refusal(raw, start, place, at, remedy)
        if not self._file_first:
            if offset is not None:
                place += f":{self._n_lines + raw.count(10, 0, start) + 1}"
            self._file_first = f"the first is byte {at} (0x{raw[start]:02X}), at "
            self._file_first += _shown(raw, start)
            self._file_guess = guess_encoding(raw)
        if not self._first:
            self._first, self._guess = self._file_first, self._file_guess
            self._log(
                f"data: warning: {place} has bytes that are not UTF-8, which become U+FFFD; "
                f"{self._first}{self._guess and f'. It looks like {self._guess}'}"
            )
        text = raw.decode(errors="replace")
        self._n_bytes += len(raw)
        self._count(text.count("\ufffd") - raw.count("\ufffd".encode()))
        if self._n_bytes > _EARLY:
            self._check(where)
        self._n_bytes -= len(raw)
        return text

    def _count(self, n: int) -> None:
        self._n_bad += n
        self.counts["bad_utf8"] = self.counts.get("bad_utf8", 0) + n

    def _check(self, where: Any) -> None:
        if _too_many(self._n_bad, self._n_bytes):
            raise UserError(
                f"{where}: {_share(self._n_bad, self._n_bytes)} are not UTF-8; {self._file_first}. "
                f"{self._file_guess and f'It looks like {self._file_guess}. '}At most "
                f"{MAX_REPLACED:.0%} are replaced. Convert it to UTF-8, for example with iconv."
            )

    def _check_source(self) -> None:
        if _too_many(self._all_bad, self._all_bytes):
            raise UserError(
                f"{self._source}: {_share(self._all_bad, self._all_bytes)} of its "
                f"{self._n_files:,} files are not UTF-8, in {self._n_bad_files:,} of them: "
                f"{self._names()}. "
                f"{self._guess and f'The first looks like {self._guess}. '}At most "
                f"{MAX_REPLACED:.0%} are replaced. Convert the files to UTF-8, for example with "
                "iconv, or remove them."
            )

    def _names(self) -> str:
        more = self._n_bad_files - len(self._named)
        return ", ".join(self._named) + (f" and {more:,} more" if more > 0 else "")


def _too_many(n_bad: int, n_bytes: int) -> bool:
    return n_bad > max(_FEW, MAX_REPLACED * n_bytes)


def _share(n_bad: int, n_bytes: int) -> str:
    return f"{n_bad:,} byte sequences in {n_bytes:,} bytes ({n_bad / max(n_bytes, 1):.1%})"


def _refuse_iso_2022(raw: bytes, path: Any, line: int | None) -> None:
    """line: the number of the first line of `raw`; None where it is of no file."""
    escape = _iso_2022(raw) if b"\x1b" in raw else None
    if escape:
        start, name = escape
        where = str(path) if line is None else f"{path}:{line + raw.count(10, 0, start)}"
        raise UserError(
            f"{where}: found an escape sequence of {name}, at {_shown(raw, start)}. Text has to be "
            f"UTF-8: convert it, for example with iconv -f {name.split()[0]} -t UTF-8."
        )


def _refusal(raw: bytes, start: int, place: str, at: int, remedy: str) -> UserError:
    guess = guess_encoding(raw)
    return UserError(
        f"{place}: byte {at} (0x{raw[start]:02X}) is not UTF-8, at {_shown(raw, start)}. "
        f"{guess and f'It looks like {guess}. '}{remedy}"
        + ("" if "onvert" in remedy else " Convert it to UTF-8, for example with iconv.")
    )


def _shown(raw: bytes, at: int) -> str:
    """The line around a byte, in quotes."""
    begin = max(raw.rfind(b"\n", 0, at) + 1, at - _AROUND)
    end = raw.find(b"\n", at)
    return repr(
        raw[begin : min(len(raw) if end < 0 else end, at + _AROUND)].decode(errors="replace")
    )


# --- Guesses ---------------------------------------------------------------------------------


def binary_kind(head: bytes) -> str:
    """The encoding that the zero bytes at the beginning of a file show: '' for text."""
    n_zeros = head.count(0)
    if not n_zeros:
        return ""
    of_two = [head[i::2].count(0) / max(1, len(head) // 2) for i in (0, 1)]
    for odd, name in ((1, "UTF-16LE"), (0, "UTF-16BE")):
        if of_two[odd] > 0.3 and of_two[1 - odd] < 0.05:
            return f"{name} without a byte order mark"
    if n_zeros >= 0.6 * len(head) and all(
        head[i::4].count(0) < 0.05 * len(head) for i in ((0,) if head[0] else (3,))
    ):
        return f"UTF-32{'LE' if head[0] else 'BE'} without a byte order mark"
    return "a binary file" if n_zeros > max(3, 0.01 * len(head)) else ""


_ISO_2022 = (  # two bytes a character from there on; terminals' own sequences are others
    (rb"\x1b\$\)C", "ISO-2022-KR (Korean)"),
    (rb"\x1b\$(\)[AEG]|\*H|\+[I-M])", "ISO-2022-CN (Chinese)"),
    (rb"\x1b\$\(?[@A-DO-Q]([!-~]{2})+([\x1b\r\n]|\Z)", "ISO-2022-JP (Japanese)"),
    (rb"\x1b\([IJ]", "ISO-2022-JP (Japanese)"),
)


def _iso_2022(raw: bytes) -> tuple[int, str] | None:
    """(place of its first escape sequence, its name) of text in ISO-2022, all of whose bytes are
    ASCII; None of other text."""
    if not raw.isascii():
        return None
    matches = ((re.search(pattern, raw), name) for pattern, name in _ISO_2022)
    return min(((match.start(), name) for match, name in matches if match), default=None)


def guess_encoding(raw: bytes) -> str:
    """The encoding that bytes which are not UTF-8 look like, with its name for iconv; '' if it is
    not clear, as in UTF-8 with a few damaged places."""
    raw = raw[:_SAMPLE]
    as_utf8 = raw.decode(errors="replace")
    n_bad = as_utf8.count("\ufffd")
    if sum(char > "\x7f" for char in as_utf8) > 2 * n_bad:
        return ""
    if b"\0" in raw:
        return "UTF-16 without a byte order mark"
    high = [byte > 127 for byte in raw]
    n_high = sum(high)
    if not n_high:
        return ""
    for encoding, name, common, at_least in _asian():
        text = _decoded(raw, encoding)
        others = [char for char in text if char > "\x7f"]
        if others and sum(char in common for char in others) >= at_least * len(others):
            return name
    n_letters = sum(byte > 127 or chr(byte).isalpha() for byte in raw)
    if n_high < 0.4 * n_letters:
        return "Windows-1252 or Latin-1 (Western European)"
    return _SINGLE_BYTE if n_high > 0.7 * n_letters else ""


def _decoded(raw: bytes, encoding: str) -> str:
    """'' if it is not of this encoding; the sample may end within a character."""
    for end in (len(raw), len(raw) - 1):
        try:
            return raw[:end].decode(encoding)
        except UnicodeDecodeError:
            continue
    return ""


@functools.cache
def _asian() -> list[tuple[str, str, frozenset[str], float]]:
    """(encoding, name, its common characters, their share in texts of it)."""

    def rows(encoding: str, *ranges: tuple[int, int]) -> frozenset[str]:
        characters = (
            bytes([a, b]).decode(encoding, "ignore")
            for low, high in ranges
            for a in range(low, high + 1)
            for b in range(0x40, 0xFF)
        )
        return frozenset(char for char in characters if len(char) == 1)

    kana = frozenset(map(chr, range(0x3040, 0x3100)))
    hangul = frozenset(map(chr, range(0xAC00, 0xD7A4)))
    return [
        ("euc_jp", "EUC-JP (Japanese)", kana, 0.25),
        ("shift_jis", "SHIFT_JIS (Japanese)", kana, 0.25),
        ("euc_kr", "EUC-KR (Korean)", hangul, 0.9),
        (
            "gb18030",
            "GB18030 (Chinese)",
            rows("gb2312", (0xA1, 0xA3), (0xB0, 0xD7)),
            0.85,
        ),
        ("big5", "BIG5 (Chinese)", rows("big5", (0xA1, 0xA3), (0xA4, 0xC6)), 0.85),
    ]
