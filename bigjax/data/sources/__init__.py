"""Where text comes from: every source is a stream of documents in a fixed order.

The key `kind` of an entry of data.sources names a module of this package, of a project or of your
own. Such a module defines
  Config: a dataclass with the other keys of the entry, except `weight`;
  documents(options, reading) -> the documents, str; a function of the content alone;
  fingerprint(options, reading) -> text that changes when the documents would.
Both raise UserError for a source that is missing or unreadable; reading: a Reading.
"""

from collections.abc import Callable, Iterator, Mapping
import dataclasses
import math
from types import ModuleType
from typing import Any, NamedTuple

from bigjax import modules
from bigjax.bounds import POSITIVE
from bigjax.data.files import LOCAL_CACHE
from bigjax.data.utf8 import Replacing
from bigjax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Section:
    """An entry of `data.sources`. Its other keys belong to the module that `kind` names."""

    kind: str  # docstrings (part of every installation), text, jsonl, tfds
    weight: float = 1.0  # its share of the examples

    RANGES = {"weight": POSITIVE}
    MODULES = "data.sources"


@dataclasses.dataclass(frozen=True)
class Config:
    """The keys of all sources of this package, so that one kind can replace another."""

    path: str = ""  # text, jsonl: a file or glob; tfds: its data folder
    name: str = ""  # tfds: of the set
    field: str = "text"  # jsonl, tfds: the field with the text
    split: str = "train"  # tfds

    # The text has a fingerprint, so its place may change.
    MAY_CHANGE = DATA_PATHS = ("path",)


class Reading(NamedTuple):
    """where: the source, for messages. cache_dir: data.cache_dir. utf8: decodes bytes as
    data.on_bad_utf8 says: utf8.decode(bytes, file, offset), and utf8.finish(file) at its end."""

    where: str
    cache_dir: str
    utf8: Replacing


class Source(NamedTuple):
    """An entry of data.sources: the module of its kind, and that module's Config."""

    kind: str
    module: ModuleType
    options: Any
    weight: float


def from_config(name: str, entry: Mapping[str, Any], python_path: str = "") -> Source:
    """The source `data.sources[name]`; UserError for unknown keys, a bad kind or weight.

    python_path: of the config, for a source of one's own.
    """
    where = f"data.sources.{name}"
    module, options = modules.entry(Section, entry, where, python_path)
    weight = entry.get("weight", Section.weight)
    check_weight(name, weight)
    return Source(entry["kind"], module, options, weight)


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
    cache_dir: str = LOCAL_CACHE,
    counts: dict[str, int] | None = None,
    log: Callable[[str], None] = lambda line: None,
) -> Iterator[str]:
    """The documents of `source`, none of them empty; a function of the content.

    Bytes that are not UTF-8 become U+FFFD and are added to counts['bad_utf8']; `log` gets the first
    of them and the names of their files. With on_bad_utf8='refuse' they raise UserError with file
    and byte offset. Raises UserError also if more than 1% of a file or of the source are such
    bytes, and for a source that is missing, unreadable, damaged, not text or without text.
    """
    if on_bad_utf8 not in ("replace", "refuse"):
        raise UserError(f'data.on_bad_utf8 is {on_bad_utf8!r}; it has to be "replace" or "refuse".')
    counts = counts if counts is not None else {}
    reading = _reading(source, cache_dir, on_bad_utf8 == "refuse", counts, log)
    return _checked(source.module.documents(source.options, reading), reading)


def fingerprint(source: Source, cache_dir: str = LOCAL_CACHE) -> str:
    """Text that changes when the documents would; reads at most 256 MiB of files.

    See `files.fingerprint_files` about larger sources. Raises UserError for a
    source that is missing or unreadable.
    """
    reading = _reading(source, cache_dir, False, {}, lambda line: None)
    try:
        return source.module.fingerprint(source.options, reading)
    except OSError as e:
        raise UserError(
            f"cannot read {e.filename or reading.where}: {e.strerror or e}. Check the path and "
            "your permission to read it."
        ) from None


def _reading(
    source: Source,
    cache_dir: str,
    refuse: bool,
    counts: dict[str, int],
    log: Callable[[str], None],
) -> Reading:
    name, path = (getattr(source.options, key, "") for key in ("name", "path"))
    where = f"the {source.kind} source"
    where += f" {name!r}" * bool(name) + f" at {path!r}" * bool(path)
    return Reading(where, cache_dir, Replacing(refuse, counts, log, where))


def _checked(stream: Iterator[str], reading: Reading) -> Iterator[str]:
    has_text = False
    for document in stream:
        if document:
            has_text = True
            yield document
    reading.utf8.close()
    if not has_text:
        raise UserError(
            f"{reading.where} holds no text: every document of it is empty. Point "
            "path (and field or split) to text, or remove the source."
        )
