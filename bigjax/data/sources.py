"""Where text comes from: every source is a stream of documents in a fixed order."""

from collections.abc import Callable, Iterator, Mapping
import dataclasses
import difflib
import glob
import io
import json
import math
import os
from typing import Any

from bigjax import paths as paths_lib
from bigjax.bounds import POSITIVE
from bigjax.data import docstrings
from bigjax.data.files import fingerprint_files
from bigjax.data.text_files import open_utf8
from bigjax.data.utf8 import Replacing
from bigjax.errors import RunError, UserError

KINDS = ("docstrings", "text", "jsonl", "tfds")
DOCUMENT_CHARS = 2000  # paragraphs of one large text file are grouped to at least this
_MAX_CHARS = 100_000  # a text without blank lines is split at the end of a line after this many
_FORMAT = 2  # raise it when the same files would give other documents
_READ_BYTES = 4 << 20
_TFDS_BATCH = 256


@dataclasses.dataclass(frozen=True)
class Source:
    """One entry of `data.sources`; see `documents` for what the fields mean for each kind."""

    kind: str  # docstrings (part of every installation), text, jsonl, tfds
    path: str = ""  # text, jsonl: a file or glob; tfds: its data folder
    name: str = ""  # tfds: of the set
    field: str = "text"  # jsonl, tfds: the field with the text
    split: str = "train"  # tfds
    weight: float = 1.0  # its share of the examples

    RANGES = {"weight": POSITIVE}


def from_config(name: str, entry: Mapping[str, Any]) -> Source:
    """The source `data.sources[name]`; UserError for unknown keys, a bad kind or weight."""
    known = [field.name for field in dataclasses.fields(Source)]
    for key in entry:
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise UserError(
                f"data.sources.{name} has an unknown key {key!r}.{hint} Allowed: "
                f"{', '.join(known)}."
            )
    source = Source(**{"kind": "", **entry})
    _kind(source)
    check_weight(name, source.weight)
    return source


def check_weight(name: str, weight: Any) -> None:
    """Raises UserError unless the weight of source `name` is a positive number."""
    if not isinstance(weight, (int, float)) or not 0 < weight < math.inf:
        raise UserError(
            f"data.sources.{name}.weight is {weight!r}; it has to be a positive "
            "number. To leave out a source, remove it from data.sources."
        )


def documents(
    source: Source,
    on_bad_utf8: str = "replace",
    cache_dir: str = "~/.cache/bigjax",
    counts: dict[str, int] | None = None,
    log: Callable[[str], None] = lambda line: None,
) -> Iterator[str]:
    """The documents of `source`, none of them empty; a function of the content.

    Files may be compressed, and of UTF-16 or UTF-32: see `text_files.py`.

    - text: `path` is a file or a glob (a folder with exactly this name, brackets included, comes
      first). If it matches several files, each is a document, in the order of their names. A
      single file is split at blank lines: paragraphs are joined until they have at least 2,000
      characters (and split at the end of a line after 100,000). Line ends become LF.
    - jsonl: each line is an object with the text under `field`; blank lines are skipped.
    - tfds: the `field` of each example of `split` (slices such as 'train[:10%]' too) of the set
      `name`, prepared as array_record under `path`; or `path` is the set's own folder.
    - docstrings: see `docstrings.py`; it has no options.

    Bytes that are not UTF-8 become U+FFFD and are added to counts['bad_utf8']; `log` gets the first
    of them and the names of their files. With on_bad_utf8='refuse' they raise UserError with file
    and byte offset. Raises UserError also if more than 1% of a file or of the source are such
    bytes, and for a source that is missing, unreadable, damaged, not text or without text.
    """
    if on_bad_utf8 not in ("replace", "refuse"):
        raise UserError(f'data.on_bad_utf8 is {on_bad_utf8!r}; it has to be "replace" or "refuse".')
    counts = counts if counts is not None else {}
    bad = Replacing(on_bad_utf8 == "refuse", counts, log, _describe(source))
    streams = {
        "docstrings": lambda: (r.text for r in docstrings.records(cache_dir)),
        "text": lambda: _text(source, bad),
        "jsonl": lambda: _jsonl(source, bad),
        "tfds": lambda: _tfds(source, bad),
    }
    stream = streams[_kind(source)]()
    return _checked(stream, source, bad)


def fingerprint(source: Source, cache_dir: str = "~/.cache/bigjax") -> str:
    """16 hex digits that change when the documents would; reads at most 256 MiB.

    See `files.fingerprint_files` about larger sources. Raises UserError for a
    source that is missing or unreadable.
    """
    kind = _kind(source)
    if kind == "docstrings":
        return f"docstrings-{docstrings.fingerprint(cache_dir)}"
    if kind == "tfds":
        builder = _tfds_builder(source)
        paths = [
            path
            for split in _tfds_split_names(builder, source)
            for path in builder.info.splits[split].filepaths
        ]
        return _try_read(
            source,
            lambda: (
                f"tfds-{builder.info.full_name}-{source.split}-"
                f"{source.field}-{fingerprint_files(paths)}"
            ),
        )
    paths = _files(source)
    field = f"-{source.field}" if kind == "jsonl" else ""
    return _try_read(source, lambda: f"{kind}{field}-{_FORMAT}-{fingerprint_files(paths)}")


def _kind(source: Source) -> str:
    if source.kind not in KINDS:
        raise UserError(
            f"the kind of a source in data.sources is {source.kind!r}; it has to be "
            f"one of {', '.join(KINDS)}."
        )
    return source.kind


def _checked(stream: Iterator[str], source: Source, bad: Replacing) -> Iterator[str]:
    has_text = False
    for document in stream:
        if document:
            has_text = True
            yield document
    bad.close()
    if not has_text:
        raise UserError(
            f"{_describe(source)} holds no text: every document of it is empty. Point "
            "path (and field or split) to text, or remove the source."
        )


def _text(source: Source, bad: Replacing) -> Iterator[str]:
    paths = _files(source)
    if len(paths) == 1:
        yield from _grouped(_lines(paths[0], bad))
        return
    for path in paths:
        text = "".join(_lines(path, bad))
        if text.strip():
            yield text


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


def _lines(path: Any, bad: Replacing) -> Iterator[str]:
    """Lines that end in LF, decoded in groups: no byte sequence crosses the end of a line."""
    offset = 0
    with open_utf8(path) as f:
        while block := f.read(_READ_BYTES):
            block += f.readline()
            text = bad.decode(block, path, offset).replace("\r\n", "\n").replace("\r", "\n")
            # Not splitlines, which also splits at form feeds and other characters.
            yield from io.StringIO(text if offset else text.removeprefix("\ufeff"), "\n")
            offset += len(block)
    bad.finish(path)


def _jsonl(source: Source, bad: Replacing) -> Iterator[str]:
    for path in _files(source):
        with open_utf8(path, "a file with a JSON object on each line") as f:
            offset = 0
            for number, raw in enumerate(f, 1):
                line = bad.decode(raw, path, offset).removeprefix("\ufeff")
                offset += len(raw)
                if line.strip():
                    yield _json_text(line, source.field, f"{path}:{number}", bad)
        bad.finish(path)


def _json_text(line: str, field: str, where: str, bad: Replacing) -> str:
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
    return bad.clean(row[field], where)


def _files(source: Source) -> list[Any]:
    """The files `path` matches, sorted by name; not empty."""
    from etils import epath

    pattern = os.path.expanduser(source.path)
    if not pattern:
        raise UserError(
            f"a source of kind {source.kind!r} in data.sources has an empty path. Set "
            'it to a file or a glob such as "books/*.txt".'
        )
    if "://" in pattern:
        paths = _remote_files(pattern)
    elif os.path.exists(pattern):  # a name may have brackets
        paths = [epath.Path(pattern)]
    else:
        parts = pattern.split("/")
        plain = _plain_parts(parts, os.path.isdir)
        parts[:plain] = map(glob.escape, parts[:plain])
        paths = map(epath.Path, glob.glob("/".join(parts), recursive=True))
    paths = sorted((path for path in paths if not path.is_dir()), key=str)
    if not paths:
        what = "a folder" if os.path.isdir(pattern) else "no file"
        raise UserError(
            f"data.sources: path {pattern!r} of kind {source.kind!r} is {what} (looked "
            f"from {os.getcwd()!r}). Set it to a file, or to a glob such as "
            '"folder/*.txt".'
        )
    return paths


def _plain_parts(parts: list[str], is_dir: Callable[[str], bool]) -> int:
    """How many leading parts of a glob are names of existing folders, which may have brackets in
    their names. The last part does not count."""
    for n, part in enumerate(parts[:-1]):
        if glob.has_magic(part) and not is_dir("/".join(parts[: n + 1])):
            return n
    return len(parts) - 1


def _remote_files(pattern: str) -> list[Any]:
    from etils import epath

    paths_lib.read_any_folder()
    parts = pattern.split("/")
    try:
        plain = _plain_parts(parts, lambda folder: epath.Path(folder).is_dir())
        return list(epath.Path("/".join(parts[:plain])).glob("/".join(parts[plain:])))
    except RunError:  # storage does not respond
        raise
    except Exception as e:  # each storage library has its own errors
        reason = "unknown kind of address" if isinstance(e, KeyError) else e
        raise UserError(
            f"data.sources: cannot look up {pattern!r}: {reason}. Addresses begin with gs:// or "
            "s3://; check the bucket and your permission to read it, and that the package for "
            "this storage is installed (gcsfs, s3fs)."
        ) from None


def _tfds(source: Source, bad: Replacing) -> Iterator[str]:
    builder = _tfds_builder(source)
    _tfds_split_names(builder, source)
    try:
        rows = builder.as_data_source(split=source.split)
    except Exception as e:  # a wrong file format, a wrong split, missing shards
        raise UserError(
            f"{_describe(source)}: cannot read split {source.split!r}: {e}. The set has to be "
            'prepared with file_format="array_record".'
        ) from None
    for start in range(0, len(rows), _TFDS_BATCH):
        indices = range(start, min(start + _TFDS_BATCH, len(rows)))
        for i, row in zip(indices, rows.__getitems__(list(indices))):
            yield _tfds_text(row, source, f"{_describe(source)} example {i}", bad)
    bad.finish(_describe(source))


def _tfds_text(row: Any, source: Source, where: str, bad: Replacing) -> str:
    for part in source.field.split("/"):  # 'dialogue/answer': a feature inside a feature
        if not isinstance(row, dict) or part not in row:
            available = ", ".join(row) if isinstance(row, dict) else type(row).__name__
            raise UserError(
                f"{where}: no field {source.field!r}; found {available}. Set the "
                "source's field to the one that holds the text."
            )
        row = row[part]
    if isinstance(row, bytes):
        return bad.decode(row, where)
    if isinstance(row, str):
        return bad.clean(row, where)
    raise UserError(
        f"{where}: field {source.field!r} holds {type(row).__name__}, not text. Set "
        "the source's field to a Text feature."
    )


def _tfds_builder(source: Source) -> Any:
    try:
        import tensorflow_datasets as tfds
    except ImportError:
        raise UserError(
            'a source of kind "tfds" needs the package tensorflow-datasets '
            "(TensorFlow itself is not needed): pip install tensorflow-datasets "
            "array_record"
        ) from None
    path = os.path.expanduser(source.path)
    try:
        if source.name:
            return tfds.builder(source.name, data_dir=path or None)
        return tfds.builder_from_directory(path)
    except Exception as e:  # of many types; the first line has the reason, the rest lists all sets
        reason = (str(e).strip().splitlines() or [type(e).__name__])[0]
        raise UserError(
            f"{_describe(source)}: {reason} Set name to NAME:VERSION and path to the data_dir it "
            "was prepared in, or leave name empty and set path to the set's own folder (the one "
            "with dataset_info.json)."
        ) from None


def _tfds_split_names(builder: Any, source: Source) -> list[str]:
    splits = builder.info.splits
    names = [name for name in splits if name in source.split]
    try:
        splits[source.split]
    except Exception as e:
        raise UserError(
            f"{_describe(source)}: cannot read split {source.split!r}: {e} The set has "
            f'{", ".join(splits) or "no prepared split"}; slices such as "train[:10%]" work too.'
        ) from None
    return names


def _describe(source: Source) -> str:
    name = f" {source.name!r}" if source.kind == "tfds" and source.name else ""
    at = f" at {source.path!r}" if source.kind != "docstrings" else ""
    return f"the {source.kind} source{name}{at}"


def _try_read(where: Any, read: Callable[[], Any]) -> Any:
    try:
        return read()
    except OSError as e:
        name = e.filename or (_describe(where) if hasattr(where, "kind") else where)
        raise UserError(
            f"cannot read {name}: {e.strerror or e}. Check the path and your permission to read it."
        ) from None
