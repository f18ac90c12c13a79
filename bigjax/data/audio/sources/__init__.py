"""Where recordings come from: `data.train`, `data.valid` and `data.test`.

Each module makes a Source of one form of data; `opened` chooses it by the text of the config.
"""

from collections.abc import Callable, Sequence
import os
from typing import Any, NamedTuple, Protocol

import numpy as np

from bigjax.data.audio.morse import Morse
from bigjax.data.audio.sources import folder, morse, pattern, table
from bigjax.errors import UserError

_FORMS = (morse, table, folder)
EXAMPLES = (
    'a table of files with their texts ("train.tsv"), a folder of recordings with a text file '
    'beside each, or "morse:docstrings"'
)


class Source(Protocol):
    """Recordings with random access.

    rows: of each recording, `file` (its name), `text` (its transcript) and `where` (of the text,
    for messages). fingerprint: changes with the content.
    """

    rows: Sequence[dict[str, Any]]
    fingerprint: str

    def read(self, i: int, rng: np.random.Generator | None) -> np.ndarray:
        """Recording i, float32 [N] of -1 to 1. rng: in training, for what is drawn anew in each
        epoch; None in evaluation. May be called from several threads. Raises BadAudio if it cannot
        be read, whenever that is tried."""

    def check(self, i: int) -> None:
        """Raises BadAudio for what can be seen of recording i without decoding it."""

    def seconds(self) -> np.ndarray | None:
        """float64 [n], the lengths; NaN where even that cannot be read; None if they are not
        known."""


class Reading(NamedTuple):
    """part: 'train', 'valid' or 'test'. key: the config key that names the source, for messages.
    max_samples: of a recording, at sample_rate. The others: of the section data."""

    part: str
    key: str
    columns: Any
    sample_rate: int
    max_samples: int
    morse: Morse
    threads: int
    cache_dir: str
    log: Callable[[str], None]


def opened(spec: str, reading: Reading) -> Source:
    """The source that a text of the config names. Raises UserError."""
    module = _form(spec)
    if module is None:
        raise UserError(f"{reading.key}={spec!r}: no such file or folder. Give {EXAMPLES}.")
    source = module.opened(os.path.expanduser(spec), reading)
    if not len(source.rows):
        raise UserError(f"{reading.key}={spec!r} has no recordings. Give {EXAMPLES}.")
    return source


def has(spec: str, part: str) -> bool:
    """Whether it has recordings of its own for a part, beside those to train on."""
    module = _form(spec)
    return hasattr(module, "has") and module.has(os.path.expanduser(spec), part)


def is_divided(spec: str) -> bool:
    """Whether the parts that name it share its recordings by the fractions; of other data, each
    part that names them has all."""
    return hasattr(_form(spec), "DIVIDED")


def _form(spec: str) -> Any:
    """The module that reads a text of the config; None for no such file or folder."""
    return next((module for module in _FORMS if module.matches(spec)), None)


def input_paths(spec: str, key: str, column: str, log: Callable[[str], None]) -> list[str]:
    """The paths of recordings without texts: a file, a folder, a pattern such as 'calls/**/*.wav',
    or a table of files, which its `column` names and which may be missing. key: where `spec` was
    given, for messages. Raises UserError, NoFiles if there is none."""
    spec = os.path.expanduser(spec)
    if table.matches(spec):
        return table.paths(spec, column)
    return pattern.paths(spec, key, log)
