"""A folder of recordings, in it or in folders below it, with transcripts in text files.

The text of a/b.wav is a/b.txt, or else a line "b TEXT" of a file a/*.trans.txt, as LibriSpeech has
them. If there is a folder `train` in it, folders `train`, `valid` (or `val`, `validation`, `dev`)
and `test` in it are the splits.
"""

from collections.abc import Mapping
import os
from typing import Any

from etils import epath

from bigjax.data.audio.sources.files import EXTENSIONS, Files
from bigjax.data.file_list import SPLIT_FOLDERS, all_files, in_threads
from bigjax.data.text_files import read_lines, read_text
from bigjax.errors import UserError

_TRANSCRIPTS = ".trans.txt"
_DEV = {"valid": ("dev",)}


def matches(spec: str) -> bool:
    return epath.Path(os.path.expanduser(spec)).is_dir()


def has(spec: str, part: str) -> bool:
    return _split_folder(spec, part) is not None


def _split_folder(path: str, part: str) -> str | None:
    """The folder of a split within a folder; None if it has none, or no folder `train`."""
    root = epath.Path(path)
    names = (*SPLIT_FOLDERS[part], *_DEV.get(part, ())) if (root / "train").is_dir() else ()
    return next((str(root / name) for name in names if (root / name).is_dir()), None)


def opened(spec: str, reading) -> Files:
    folder = _split_folder(spec, reading.part) or spec
    files = dict(all_files(folder))
    paths = [path for path in files if path.lower().endswith(EXTENSIONS)]
    if not paths:
        raise UserError(
            f"{reading.key}: the folder {folder} has no recordings ({', '.join(EXTENSIONS)})."
        )
    lines = _transcripts(files, reading.threads)
    beside = [_stem(path) + ".txt" for path in paths]
    if without := [
        path for path, text in zip(paths, beside) if text not in files and _stem(path) not in lines
    ]:
        name = os.path.basename(_stem(without[0]))
        raise UserError(
            f"{reading.key}: {len(without):,} of the {len(paths):,} recordings in {folder} have no "
            f"text, such as {without[0]}. Write its transcript to {name}.txt beside it, or "
            f"give a table of files and texts."
        )

    def row(i: int) -> dict[str, Any]:
        if beside[i] in files:
            where, text = beside[i], read_text(beside[i], "the text of a recording in UTF-8")
        else:
            where, text = lines[_stem(paths[i])]
        return {"file": paths[i], "text": " ".join(text.split()), "where": where}

    rows = in_threads(row, len(paths), reading.threads)
    if empty := [row for row in rows if not row["text"]]:
        raise UserError(
            f"{empty[0]['where']}: the text is empty; {len(empty):,} of {len(rows):,} are. Write "
            "the transcript of the recording, or take it out of the folder."
        )
    return Files("folder", folder, paths, [files[path] for path in paths], rows, reading)


def _stem(path: str) -> str:
    return os.path.splitext(path)[0]


def _transcripts(files: Mapping[str, int], threads: int) -> dict[str, tuple[str, str]]:
    """{path of a recording without its extension: (file:line, text)} of all *.trans.txt."""
    names = [path for path in files if path.endswith(_TRANSCRIPTS)]
    contents = in_threads(
        lambda i: read_lines(names[i], "transcripts in UTF-8"), len(names), threads
    )
    texts: dict[str, tuple[str, str]] = {}
    for name, content in zip(names, contents):
        for number, line in enumerate(content, 1):
            recording, _, text = line.strip().partition(" ")
            if recording:
                stem = f"{name.rpartition('/')[0]}/{recording}"
                texts[stem] = f"{name}:{number}", text
    return texts
