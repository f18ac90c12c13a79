"""Kinds of labelled data: what a task with labels needs besides its model and loss.

A kind is one object that a task's module defines and passes to everything that reads, encodes,
predicts and measures; see tasks/tag.py for an example.
"""

import abc
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from bigjax.data import unknown
from bigjax.data.examples import Examples
from bigjax.data.measures import Measures
from bigjax.data.tokenizer import Tokenizer
from bigjax.errors import UserError

_MIN_SEQ_LEN = 8


class Kind(abc.ABC):
    """One kind of labelled data.

    name: for messages and the fingerprint. labels: the names of the classes, () if it has none.
    inputs, targets: {column: the type of its values, see data.values}. The names of the columns
      in a file are data.columns.NAME, by default NAME.
    optional: inputs that a file need not have (data.columns.NAME='').
    has_labels: whether labels are names, which are counted in the training data.
    example_arrays, token_arrays: {name: dtype}, as in Examples.
    metrics: the names of the numbers that `measure` gives.
    """

    name: ClassVar[str]
    inputs: ClassVar[Mapping[str, str]]
    targets: ClassVar[Mapping[str, str]]
    optional: ClassVar[tuple[str, ...]] = ()
    has_labels: ClassVar[bool] = False
    example_arrays: ClassVar[Mapping[str, Any]] = {}
    token_arrays: ClassVar[Mapping[str, Any]] = {}
    metrics: ClassVar[tuple[str, ...]] = ()
    labels: tuple[str, ...] = ()

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

    @abc.abstractmethod
    def encode(
        self, rows: Sequence[dict[str, Any]], data: Any, tokenizer: Tokenizer, with_labels: bool
    ) -> Examples:
        """The examples of rows, as `rows.read_rows` gives them. Raises UserError, with the row's
        file and line, for a row that cannot be encoded.

        data: the config section `data`: seq_len, truncate, ... with_labels: False for rows without
        targets.
        """

    @abc.abstractmethod
    def predict(
        self, rows: Sequence[dict[str, Any]], examples: Examples, outputs: Sequence[np.ndarray]
    ) -> list[dict[str, Any]]:
        """One dict per row, with `prediction` and what else belongs to it.

        outputs: what the model's head gives for each example: [n_outputs], or [tokens, n_outputs]
        for a head with outputs per token.
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

    def summary(self, examples: Examples) -> str:
        """About the labels of a split's examples (at least one), for people; starts with '; '."""
        return ""


def encode_rows(
    rows: Sequence[dict[str, Any]],
    data: Any,
    kind: Kind,
    tokenizer: Tokenizer,
    *,
    with_labels: bool,
) -> Examples:
    """The examples of `rows`, as `rows.read_rows` gives them.

    data: the config section `data`. with_labels: False for rows without targets. Raises UserError
    as Kind.encode, and for a data.seq_len that is too small.
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
    examples: Examples, rows: Sequence[dict[str, Any]], kind: Kind, tokenizer: Tokenizer, what: str
) -> list[str]:
    """A line for people if the tokenizer does not know many of the tokens, else none."""
    texts = (text for row in rows for text in kind.texts(row))
    return unknown.warning(tokenizer, examples.n_unknown, examples.n_text, what, texts)
