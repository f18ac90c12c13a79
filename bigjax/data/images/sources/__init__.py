"""Where images come from: `data.train`, `data.valid` and `data.test`.

Each module makes a Source of one form of data; `opened` chooses it by the text of the config.
"""

from collections.abc import Callable
import os
from typing import Any, NamedTuple, Protocol

import numpy as np

from bigjax.data.images.sources import digits, folder, idx, pattern, records, table, tar, tfds
from bigjax.errors import UserError

_FORMS = (digits, tfds, records, tar, idx, table, folder)
EXAMPLES = (
    'a folder with one folder of images per class, "digits", "tfds:NAME", a table of files '
    '("labels.csv"), "shards/*.tar", "*.array_record", an IDX file or a folder with those of a set'
)


class Source(Protocol):
    """Labelled images with random access.

    classes: the names of the labels. labels: int32 [n], an index into classes for each image, or
    bool [n, n_classes] if an image may have several; None where they are not
    read. fingerprint: changes with the content.
    """

    classes: tuple[str, ...]
    labels: np.ndarray | None
    fingerprint: str

    def __len__(self) -> int: ...

    def read(self, i: int) -> bytes | np.ndarray:
        """Image i: the content of an image file, or uint8 [H, W] or [H, W, channels]. May be called
        from several threads. Raises BadImage if it cannot be read, whenever that is tried."""

    def name(self, i: int) -> str:
        """Image i for messages: its file."""


class Reading(NamedTuple):
    """part: 'train', 'valid' or 'test'. key: the config key that names the source, for messages.
    columns, cache_dir: of the section data. labelled: whether labels are needed, and read; several:
    whether an image may have several."""

    part: str
    key: str
    columns: Any
    labelled: bool
    several: bool
    cache_dir: str
    log: Callable[[str], None]


def opened(spec: str, reading: Reading) -> Source:
    """The source that a text of the config names. Raises UserError."""
    module = _form(spec)
    if module is None:
        raise UserError(f"{reading.key}={spec!r}: no such file or folder. Give {EXAMPLES}.")
    source = module.opened(os.path.expanduser(spec), reading)
    if not len(source):
        raise UserError(f"{reading.key}={spec!r} has no images. Give {EXAMPLES}.")
    return source


def has(spec: str, part: str) -> bool:
    """Whether it has images of its own for a part, beside those to train on."""
    module = _form(spec)
    return hasattr(module, "has") and module.has(os.path.expanduser(spec), part)


def _form(spec: str) -> Any:
    """The module that reads a text of the config; None for no such file or folder."""
    return next((module for module in _FORMS if module.matches(spec)), None)


def opened_input(spec: str, reading: Reading) -> Source:
    """The images to predict for: a file, a folder, a pattern such as 'photos/**/*.jpg', or another
    form of `opened`. Raises UserError."""
    forms = [module for module in _FORMS if module is not folder]
    module = next((module for module in forms if module.matches(spec)), pattern)
    return module.opened(os.path.expanduser(spec), reading)
