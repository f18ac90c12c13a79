"""JSON lines: each line is an object with the text under `field`; blank lines are skipped.

`path` is a file or a glob, as of kind text.
"""

from collections.abc import Iterator
import json

from bigjax.data.files import fingerprint_files
from bigjax.data.sources import Config, Reading
from bigjax.data.sources.paths import FORMAT, matching_files
from bigjax.data.text_files import open_utf8
from bigjax.data.utf8 import Replacing
from bigjax.errors import UserError


def documents(options: Config, reading: Reading) -> Iterator[str]:
    utf8 = reading.utf8
    for path in matching_files(options.path, "jsonl"):
        with open_utf8(path, "a file with a JSON object on each line") as f:
            offset = 0
            for number, raw in enumerate(f, 1):
                line = utf8.decode(raw, path, offset).removeprefix("\ufeff")
                offset += len(raw)
                if line.strip():
                    yield _json_text(line, options.field, f"{path}:{number}", utf8)
        utf8.finish(path)


def fingerprint(options: Config, reading: Reading) -> str:
    del reading
    paths = matching_files(options.path, "jsonl")
    return f"jsonl-{options.field}-{FORMAT}-{fingerprint_files(paths)}"


def _json_text(line: str, field: str, where: str, utf8: Replacing) -> str:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as e:
        raise UserError(
            f"{where}: not JSON ({e}); the line begins {line[:60].strip()!r}. Each "
            f'line has to be one object such as {{"{field}": "..."}}.'
        ) from None
    if not isinstance(row, dict):
        raise UserError(
            f"{where}: found a JSON {type(row).__name__}; each line has to be an "
            f'object such as {{"{field}": "..."}}.'
        )
    if field not in row:
        raise UserError(
            f"{where}: no field {field!r}; the line has {', '.join(row) or 'none'}. "
            "Set the source's field to the one that holds the text."
        )
    if not isinstance(row[field], str):
        raise UserError(
            f"{where}: field {field!r} holds {type(row[field]).__name__}, not a "
            "string. Set the source's field to the one that holds the text."
        )
    return utf8.clean(row[field], where)
