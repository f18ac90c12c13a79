"""From labelled rows to token ids with targets: what the kinds of labelled data share."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
from typing import Any

import numpy as np

from bigjax.errors import UserError
from bigjax.plural import plural


@dataclasses.dataclass
class Examples:
    """n examples of N tokens in all, concatenated.

    The arrays with targets are empty for rows without labels, and by the kind.
    """

    tokens: np.ndarray  # int32 [N]
    offsets: np.ndarray  # int64 [n + 1]: example i is tokens[offsets[i]:offsets[i + 1]]
    second: np.ndarray  # int32 [n]: the first column whose token type is 1
    row: np.ndarray  # int32 [n]: the index of its row
    example_arrays: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)  # [n] each
    token_arrays: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)  # [N], -1: none
    column_arrays: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)  # [n] columns
    truncated: str = ""  # a line for people about truncated rows; '' if there are none
    n_unknown: int = 0  # tokens of text that the tokenizer does not know
    n_text: int = 0  # tokens without special ones

    def __len__(self) -> int:
        return len(self.row)

    @property
    def lengths(self) -> np.ndarray:
        """int64 [n]: tokens of each example, special ones included."""
        return np.diff(self.offsets)

    @property
    def targets(self) -> dict[str, np.ndarray]:
        """All arrays with targets."""
        return self.example_arrays | self.token_arrays | self.column_arrays


def check_lengths(
    lengths: np.ndarray,
    rows: Sequence[Mapping[str, Any]],
    limit: int,
    truncate: bool,
    what: str = "text",
    key: str = "data.seq_len",
    remark: str = "",
) -> str:
    """A line for people about the texts that will be truncated to `limit`; '' if there are none.

    what: the text, in a word. key: the config key of the limit. Raises UserError, with the row's
    file and line, for a longer text, unless truncate.
    """
    over = np.flatnonzero(lengths > limit)
    if not len(over):
        return ""
    some, verb = f"{len(over):,} of {len(rows):,}", "is" if len(over) == 1 else "are"
    if not truncate:
        i = int(over[0])
        raise UserError(
            f"{rows[i].get('where', f'row {i}')}: the {what}{remark} is {lengths[i]:,} tokens long "
            f"and {limit:,} are allowed, special ones included; {some} {verb} too long. Set "
            f"data.truncate=True to truncate them, or raise {key} (the longest has "
            f"{lengths.max():,})."
        )
    return (
        f"{some} {plural(len(rows), what)} {verb} truncated to {limit:,} tokens "
        f"(data.truncate, {key})"
    )


def label_indices(
    names: Sequence[str], labels: Sequence[str], where: Callable[[int], str]
) -> np.ndarray:
    """int32 [n]: the index in `labels` of each name. Raises UserError for another name; where(i)
    is the place of name i, for the message."""
    table = {label: i for i, label in enumerate(labels)}
    indices = np.array([table.get(name, -1) for name in names], np.int32)
    unknown = np.flatnonzero(indices < 0)
    if len(unknown):
        i = int(unknown[0])
        shown = ", ".join(map(repr, labels[:20])) + (", ..." if len(labels) > 20 else "")
        raise UserError(
            f"{where(i)}: the label {names[i]!r} is not one of the {len(labels)} "
            f"known ones: {shown or 'none'}. Correct it, or give the training data an "
            "example of it."
        )
    return indices


def joined(parts: list[np.ndarray]) -> np.ndarray:
    """int32: the parts concatenated."""
    return np.concatenate([np.zeros(0, np.int32), *parts]).astype(np.int32)


def offsets_of(lengths: Sequence[int] | np.ndarray) -> np.ndarray:
    """int64 [n + 1]: where each of n parts of these lengths begins, and the end."""
    return np.cumsum([0, *lengths], dtype=np.int64)
