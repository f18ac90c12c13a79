"""Tokenizers. data.tokenizer.kind names a module of this package, of a project or of your own.

Such a module defines
  Config: a dataclass with the other keys of data.tokenizer. With a key `path` that accepts the
    folder of a saved tokenizer, data.tokenizer.kind='init_from' can use it;
  build(options, training) -> a base.Tokenizer, loaded or trained; training: a base.Training;
  load(folder) -> the tokenizer that base.Tokenizer.save wrote there.

The tokenizers of this package, except WordPiece and those of published files that normalise text,
turn any text into ids and back without loss, and know the number of UTF-8 bytes of each id, so that
bits per byte can be computed exactly.
"""

from collections.abc import Callable, Iterator, Mapping
import dataclasses
import json
import os
from typing import Any

from bigjax import modules, paths
from bigjax.bounds import at_least
from bigjax.data.tokenizers.base import META_FILE, Tokenizer, Training, read_bytes
from bigjax.errors import UserError
from bigjax.json_text import is_id, shown

__all__ = [
    "KEY",
    "KIND",
    "META_FILE",
    "Config",
    "Section",
    "Tokenizer",
    "Training",
    "build",
    "load",
    "named",
    "read_meta",
    "section",
]

KEY = "data.tokenizer"
KIND = f"{KEY}.kind"


def section(config) -> Any:
    """The section `data.tokenizer` of a config; {} for data without a tokenizer."""
    return config.data.get("tokenizer", {})


@dataclasses.dataclass(frozen=True)
class Section:
    """The section `data.tokenizer`. Its other keys belong to the module that `kind` names."""

    # sentencepiece, wordpiece, bpe (GPT-2's byte level), tokenizer_json (of most other open
    # models), whisper (of its folders), bytes, or init_from: the source's
    kind: str = "sentencepiece"

    MODULES = "data.tokenizers"


@dataclasses.dataclass(frozen=True)
class Config:
    """The keys of all tokenizers of this package, so that one kind can replace another."""

    path: str = ""  # its file or folder; '' trains one (sentencepiece, wordpiece)
    vocab_size: int = 4096  # if it is trained, without sentinels
    sentinels: int = 0  # sentencepiece: ids of hidden spans, for span_corruption, such as 100
    lowercase: bool = True  # wordpiece: text is lower-cased, accents are removed

    RANGES = {"vocab_size": at_least(1), "sentinels": at_least(0)}
    MAY_CHANGE = PATHS = ("path",)


def build(
    spec: Mapping[str, Any],
    cache_dir: str,
    texts: Callable[[], Iterator[str]],
    content: str,
    log: Callable[[str], None] = print,
    python_path: str = "",
) -> Tokenizer:
    """The tokenizer of `data.tokenizer`: loaded, or trained once and cached.

    Args:
      spec: the section data.tokenizer.
      cache_dir, texts, content: as in Training.
      python_path: of the config, for a tokenizer of one's own.
    """
    module, options = modules.entry(Section, spec, KEY, python_path)
    tokenizer = module.build(options, Training(texts, content, cache_dir, log))
    tokenizer.kind = spec["kind"]
    return tokenizer


def named(
    spec: Mapping[str, Any], log: Callable[[str], None] = print, python_path: str = ""
) -> Tokenizer:
    """The tokenizer of a section that needs no training. Raises UserError for another one.

    python_path: as of `build`.
    """

    def texts():
        raise UserError(
            "data.tokenizer.path is empty: a tokenizer is trained when a run reads its data, and "
            "saved in the run's folder. To train one before, use a config with data.name='text'; "
            "to use an existing one, set data.tokenizer.path."
        )

    return build(spec, "", texts, "", log, python_path)


def load(folder: str | os.PathLike, python_path: str = "") -> Tokenizer:
    """The tokenizer that `Tokenizer.save` wrote. Raises UserError if the folder has none.

    python_path: as of `build`.
    """
    from etils import epath

    source = epath.Path(folder)
    kind = read_meta(source)["kind"]
    tokenizer = modules.find(Section.MODULES, kind, KIND, python_path).load(source)
    tokenizer.kind = kind
    return tokenizer


def read_meta(folder: Any) -> dict[str, Any]:
    """The metadata of `Tokenizer.save`: kind and ids. Raises UserError for anything else."""
    if not paths.exists(folder / META_FILE):
        raise UserError(
            f"{folder} has no tokenizer: {META_FILE} is missing. If it is of a model that was "
            "imported without a tokenizer, import it again, into a new work folder, with --config."
            f"{KIND}=KIND and --config.{KEY}.path=PATH; else restore the folder from the run."
        )
    content = read_bytes(folder / META_FILE, "a tokenizer saved by bigjax")
    wrong = f"{folder / META_FILE} was not saved by bigjax"
    try:
        meta = json.loads(content)
        kind_and_ids = {key: meta[key] for key in ("kind", "bos_id", "eos_id", "pad_id")}
    except (ValueError, TypeError, KeyError, RecursionError) as e:
        raise UserError(f"{wrong} ({e!r}). Restore it from the run.") from None
    for key, value in kind_and_ids.items():
        if not (isinstance(value, str) if key == "kind" else is_id(value)):
            raise UserError(f"{wrong} ({key} is {shown(value)}). Restore it from the run.")
    return kind_and_ids
