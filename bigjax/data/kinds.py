"""Kinds of labelled data: what a task with labels needs besides its model and loss.

A kind is one object that a task's module defines and passes to everything that predicts and
measures, and for texts to everything that reads and encodes; see tasks/tag.py for an example.
"""

import abc
from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import functools
from typing import Any, ClassVar, NamedTuple

import numpy as np

from bigjax.data import unknown
from bigjax.data.examples import Examples
from bigjax.data.measures import Measures
from bigjax.data.tokenizers.base import Tokenizer
from bigjax.errors import UserError

_MIN_SEQ_LEN = 8


class Column(NamedTuple):
    """A column of the files of a kind.

    type: of its values, see data.values. name: in a file, the default of data.columns.KEY; None is
      the key itself. optional: data.columns.KEY='' means that the file does not have it.
    warn_missing: whether values such as 'NaN' are reported, which mostly mean "missing".
    """

    type: str
    name: str | None = None
    optional: bool = False
    warn_missing: bool = True


class Input(NamedTuple):
    """What `bigjax predict` reads. rows: what is written beside their predictions, see
    infer.predict.write. batches: of these rows, not shuffled, with `examples` as in Kind."""

    rows: Sequence[dict[str, Any]]
    batches: Any


class Kind(abc.ABC):
    """What a labelled task predicts and measures: of texts see TextKind, of images
    data.images.kinds.

    Rows are dicts; a row becomes one or several examples of the batches, whose attribute `examples`
    has what a kind needs of them.

    name: for messages and the fingerprint. labels: the names of the classes, () if it has none.
    metrics: the names of the numbers that `measure` gives.
    collected: the arrays of a batch that `collect` reads.
    """

    name: ClassVar[str]
    metrics: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    collected: ClassVar[tuple[str, ...]] = ("example", "weights")

    def collect(
        self, output: np.ndarray, batch: Mapping[str, np.ndarray], examples: Any
    ) -> Iterator[tuple[int, np.ndarray]]:
        """(index, its outputs) of each example in a batch that has a weight.

        output: [B, ...], what Task.outputs gives for the batch. batch: its arrays `collected`.
        """
        del examples
        for b in np.flatnonzero(batch["weights"] > 0):
            yield int(batch["example"][b]), output[b]

    @abc.abstractmethod
    def predict(
        self, rows: Sequence[dict[str, Any]], examples: Any, outputs: Sequence[np.ndarray | None]
    ) -> list[dict[str, Any]]:
        """One dict per row, with `prediction` and what else belongs to it.

        outputs: of each example, as `collect` gives them, and None if it did not.
        """

    @abc.abstractmethod
    def measure(
        self, rows: Sequence[dict[str, Any]], predictions: Sequence[dict[str, Any]]
    ) -> Measures:
        """Compares the targets in rows with the predictions of `predict`."""

    def label_pairs(
        self, rows: Sequence[dict[str, Any]], predictions: Sequence[dict[str, Any]]
    ) -> tuple[list[str], list[str]] | None:
        """(true, predicted) labels for a confusion matrix; None if the kind has none."""
        return None

    def confidences(
        self, rows: Sequence[dict[str, Any]], predictions: Sequence[dict[str, Any]]
    ) -> tuple[np.ndarray, np.ndarray] | None:
        """(float [n], bool [n]), the probability of each prediction and whether it is right, for a
        picture of calibration; None if the kind has none."""
        return None


class RowKind:
    """What rows of texts have, see data.rows.

    name: for messages, such as 'classify'. inputs, targets: {key: Column}. Rows have these keys;
      data.columns has them too, for the names of the columns in files.
    has_labels: whether labels are names, which are counted in the training data.
    """

    name: ClassVar[str]
    inputs: ClassVar[Mapping[str, Column]]
    targets: ClassVar[Mapping[str, Column]]
    has_labels: ClassVar[bool] = False

    def check_row(self, row: dict[str, Any]) -> None:
        """Raises UserError, with row["where"], for a row whose columns do not fit together."""
        del row

    def labels_in(self, row: dict[str, Any]) -> Sequence[str]:
        """The labels of a row, if has_labels."""
        return [row["label"]]

    def texts(self, row: dict[str, Any]) -> list[str]:
        """The texts of a row: a tokenizer is trained on them."""
        return [row[name] for name in self.inputs if name in row]

    def split_text(self, row: dict[str, Any]) -> str:
        """The text by whose hash a row is put into a split: rows with equal ones stay together."""
        return self.texts(row)[0]


class TextKind(RowKind, Kind):
    """A kind of labelled texts: rows of files become tokens. The module of a task names its kind as
    KIND.

    outputs_per_token: whether the model's head has outputs for each token, not each example.
    example_arrays, token_arrays: {name: dtype}, as in Examples.
    """

    outputs_per_token: ClassVar[bool] = False
    example_arrays: ClassVar[Mapping[str, Any]] = {}
    token_arrays: ClassVar[Mapping[str, Any]] = {}
    collected = ("example", "first")

    @abc.abstractmethod
    def encode(
        self, rows: Sequence[dict[str, Any]], data: Any, tokenizer: Tokenizer, with_labels: bool
    ) -> Examples:
        """The examples of rows, as `rows.read_rows` gives them. Raises UserError, with the row's
        file and line, for a row that cannot be encoded.

        data: the config section `data`: seq_len, truncate, ... with_labels: False for rows without
        targets.
        """

    def collect(self, output, batch, examples):
        """(index, its outputs) of each example in a batch of LabelledBatches.

        output: what the model's head gives for the batch: [B, K, n_outputs], or [B, T, n_outputs]
        if outputs_per_token; an example's are [n_outputs], or [tokens, n_outputs].
        """
        lengths = examples.lengths
        for b, k in np.argwhere(batch["example"] >= 0):
            example, first = int(batch["example"][b, k]), batch["first"][b, k]
            columns = slice(first, first + int(lengths[example]))
            yield example, output[b, columns] if self.outputs_per_token else output[b, k]

    def summary(self, examples: Examples) -> str:
        """About the labels of a split's examples (at least one), for people; starts with '; '."""
        return ""


@functools.cache
def columns_of(kind: type[RowKind]) -> type:
    """A dataclass with the keys of data.columns for this kind, and their defaults."""
    columns = {**kind.inputs, **kind.targets}
    fields = [
        (key, str, dataclasses.field(default=key if column.name is None else column.name))
        for key, column in columns.items()
    ]
    return dataclasses.make_dataclass("Columns", fields, frozen=True)


def encode_rows(
    rows: Sequence[dict[str, Any]],
    data: Any,
    kind: TextKind,
    tokenizer: Tokenizer,
    *,
    with_labels: bool,
) -> Examples:
    """The examples of `rows`, as `rows.read_rows` gives them.

    data: the config section `data`. with_labels: False for rows without targets. Raises UserError
    as TextKind.encode, and for a data.seq_len that is too small.
    """
    if data.seq_len < _MIN_SEQ_LEN:
        raise UserError(
            f"data.seq_len is {data.seq_len}; labelled examples need at least "
            f"{_MIN_SEQ_LEN} tokens."
        )
    examples = kind.encode(rows, data, tokenizer, with_labels)
    examples.n_unknown, examples.n_text = unknown.count(tokenizer, examples.tokens)
    return examples


def unknown_warning(
    examples: Examples,
    rows: Sequence[dict[str, Any]],
    kind: TextKind,
    tokenizer: Tokenizer,
    what: str,
) -> list[str]:
    """A line for people if the tokenizer does not know many of the tokens, else none."""
    texts = (text for row in rows for text in kind.texts(row))
    return unknown.warning(tokenizer, examples.n_unknown, examples.n_text, what, texts)
