"""Transcripts as text, subtitles and JSON, and a folder of them."""

from collections.abc import Callable, Sequence
import json
import os
from typing import NamedTuple

from etils import epath

from bigjax import json_text, paths
from bigjax.errors import UserError, cannot_write
from bigjax.infer.transcribe import Segment

INDEX, FAILURES = "recordings.jsonl", "failures.tsv"
_LONGEST_STEM = 180  # characters of a file name, before a number and the ending
_REMEDY = "Use another --output"


class Transcript(NamedTuple):
    """duration: seconds. separator: between the texts of segments; '' if they bring their spaces.
    language: '' if it is not known."""

    file: str
    language: str
    duration: float
    segments: Sequence[Segment]
    separator: str = ""

    @property
    def text(self) -> str:
        parts = [s.text.strip() if self.separator else s.text for s in self.segments]
        return self.separator.join(parts).strip()


def stamp(seconds: float, point: str = ".", hours: bool = False) -> str:
    """'01:02:03.004', without the hours if there are none, unless they are wanted."""
    ms = round(seconds * 1000)
    h, m, s = ms // 3_600_000, ms // 60_000 % 60, ms // 1000 % 60
    return (f"{h:02d}:" if h or hours else "") + f"{m:02d}:{s:02d}{point}{ms % 1000:03d}"


def line(segment: Segment) -> str:
    """'[00:00.000 --> 00:04.000] text'."""
    return f"[{stamp(segment.start)} --> {stamp(segment.end)}] {_one_line(segment.text)}"


def _one_line(text: str) -> str:
    # In subtitles an empty line would end the text.
    return " ".join(text.split())


def txt(transcript: Transcript) -> str:
    """A line for each segment; one line of texts without times."""
    if transcript.separator:
        return _one_line(transcript.text) + "\n" * bool(transcript.segments)
    return "".join(f"{_one_line(s.text)}\n" for s in transcript.segments)


def _cues(transcript: Transcript) -> list[Segment]:
    """The segments that last at least a millisecond as they are written: players refuse others."""
    return [s for s in transcript.segments if round(s.start * 1000) < round(s.end * 1000)]


def srt(transcript: Transcript) -> str:
    parts = []
    for i, s in enumerate(_cues(transcript), 1):
        start, end = (stamp(x, ",", hours=True) for x in (s.start, s.end))
        parts.append(f"{i}\n{start} --> {end}\n{_one_line(s.text).replace('-->', '->')}\n")
    return "\n".join(parts)


def vtt(transcript: Transcript) -> str:
    """https://www.w3.org/TR/webvtt1/"""
    parts = ["WEBVTT\n"]
    for s in _cues(transcript):
        text = _one_line(s.text)
        for sign, escaped in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;")):
            text = text.replace(sign, escaped)
        parts.append(f"{stamp(s.start)} --> {stamp(s.end)}\n{text}\n")
    return "\n".join(parts)


def as_json(transcript: Transcript) -> str:
    content = {
        "file": transcript.file,
        "language": transcript.language or None,
        "duration": round(transcript.duration, 3),
        "text": transcript.text,
        "segments": [{"id": i, **s._asdict()} for i, s in enumerate(transcript.segments)],
    }
    return json_text.dumps(content, ensure_ascii=False, indent=1) + "\n"


FORMATS: dict[str, Callable[[Transcript], str]] = {
    "txt": txt,
    "srt": srt,
    "vtt": vtt,
    "json": as_json,
}


class Folder:
    """The folder of --output: a file per recording and format, with names that do not collide.

    Its index has the name of each recording, also of earlier commands: which files are of which
    recording does not depend on the others that a command names. n_written: recordings whose files
    it has written.
    """

    def __init__(self, path: str, formats: Sequence[str], files: Sequence[str]) -> None:
        """Names the files, and writes the index. Raises UserError if that cannot be done."""
        self.path, self._formats, self.n_written = epath.Path(path), [*formats], 0
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._present = {p.name for p in self.path.iterdir()}
        except OSError as e:
            raise cannot_write(f"The folder {path!r} of --output", e, _REMEDY) from None
        self._names = self._read_index()
        self._files = {_key(file) for file in files}
        before = len(self._names)
        used = {name.lower() for name in self._names.values()}
        used |= {name.rpartition(".")[0].lower() for name in self._present}  # also of others
        numbers: dict[str, int] = {}
        for file in files:
            if _key(file) not in self._names:
                self._names[_key(file)] = name = _free_name(file, used, numbers)
                used.add(name.lower())
        if len(self._names) > before:
            rows = [{"name": name, "recording": file} for file, name in self._names.items()]
            text = "".join(json.dumps(row) + "\n" for row in rows)
            self._write(INDEX, text)

    def has(self, file: str) -> bool:
        """Whether all files of a recording are there."""
        name = self._names.get(_key(file))
        return name is not None and all(f"{name}.{form}" in self._present for form in self._formats)

    def write(self, transcript: Transcript) -> None:
        """Writes the files of a recording, each atomically. Raises UserError."""
        name = self._names[_key(transcript.file)]
        for form in self._formats:
            self._write(f"{name}.{form}", FORMATS[form](transcript))
        self.n_written += 1

    def write_failures(self, errors: dict[str, str]) -> str:
        """The path of the list of recordings that could not be transcribed, '' without any. Those
        of earlier commands stay in it, until a command transcribes them."""
        rows = self._earlier_failures()
        rows += [f"{_key(file)}\t{' '.join(error.split())}" for file, error in errors.items()]
        if rows:
            self._write(FAILURES, "".join(f"{row}\n" for row in rows))
            return str(self.path / FAILURES)
        if FAILURES in self._present:
            (self.path / FAILURES).unlink(missing_ok=True)
        return ""

    def _earlier_failures(self) -> list[str]:
        """The rows of recordings that this command does not name and that have no files."""
        if FAILURES not in self._present:
            return []
        try:
            rows = (self.path / FAILURES).read_text().split("\n")
        except (OSError, ValueError):  # it is for people: no reason to end a command
            return []
        files = [row.partition("\t")[0] for row in rows]
        return [
            row
            for row, file in zip(rows, files)
            if row and file not in self._files and not self.has(file)
        ]

    def _write(self, name: str, text: str) -> None:
        try:
            paths.write_atomically(self.path / name, text.encode("utf-8", "backslashreplace"))
        except OSError as e:
            raise cannot_write(str(self.path / name), e, _REMEDY) from None

    def _read_index(self) -> dict[str, str]:
        """{recording: name}."""
        if INDEX not in self._present:
            return {}
        file = self.path / INDEX
        try:
            rows = [json.loads(row) for row in file.read_text().split("\n") if row]
            return {row["recording"]: paths.check_file_name(row["name"], str(file)) for row in rows}
        except (OSError, ValueError, KeyError, TypeError) as e:
            raise UserError(
                f"{file} has the names of recordings in this folder, and cannot be read "
                f"({type(e).__name__}: {e}). Restore it, or use another --output."
            ) from None


def _key(file: str) -> str:
    return file if "://" in file else os.path.abspath(file)


def _free_name(file: str, used: set[str], numbers: dict[str, int]) -> str:
    """The recording's name without its extension, with a number if it is used. numbers: the last
    one of each name."""
    stem = os.path.splitext(os.path.basename(file))[0]
    stem = "".join(c if c.isprintable() and c not in "/\\" else "_" for c in stem)
    while len(stem.encode()) > _LONGEST_STEM:
        stem = stem[:-1]
    name = stem
    while name.lower() in used:
        numbers[stem] = numbers.get(stem, 1) + 1
        name = f"{stem}-{numbers[stem]}"
    return name
