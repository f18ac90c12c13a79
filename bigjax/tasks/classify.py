"""One label or number for a text or a pair of texts."""

from collections.abc import Sequence
import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np

from bigjax import losses
from bigjax.bounds import FINITE, FRACTION, at_least, check_ranges
from bigjax.data import measures
from bigjax.data.examples import Examples, check_lengths, joined, label_indices, offsets_of
from bigjax.data.kinds import Column, TextKind
from bigjax.data.measures import Measures
from bigjax.data.rows import label_counts
from bigjax.data.tokenizers.base import Tokenizer
from bigjax.errors import UserError
from bigjax.tasks import Task
from bigjax.tasks._encoder import ASSUMED_LABELS, labelled_task

DATA, EVALUATION = "labelled", "metrics"  # in a config that is generated for this task


@dataclasses.dataclass(frozen=True)
class Config:
    kind: str = "classify"  # classify (labels), regress (numbers)
    labels: tuple[str, ...] = ()  # () = those of the training data
    balanced: bool = False  # all examples of a label weigh the same, however many there are
    label_weights: tuple[float, ...] = ()  # in the order of labels; () = 1, or by `balanced`
    label_smoothing: float = 0.0
    # NAME: weight in the training loss of a sum of the model's layers, such as a router's loss
    sum_weights: dict[str, float] = dataclasses.field(default_factory=dict)

    MAY_CHANGE = ("balanced", "label_*", "sum_weights.*")
    RANGES = {"label_weights": at_least(0), "label_smoothing": FRACTION, "sum_weights": FINITE}

    def __post_init__(self):
        check_ranges("task", self)
        if self.kind not in KINDS:
            raise UserError(f"task.kind is {self.kind!r}; allowed: {', '.join(KINDS)}.")


class TextOrPair(TextKind):
    """`[CLS] text [SEP]` or `[CLS] text [SEP] pair [SEP]`, with a label."""

    inputs = {"text": Column("text"), "pair": Column("text", name="", optional=True)}
    targets = {"label": Column("label")}

    def encode(self, rows, data, tokenizer, with_labels) -> Examples:
        """A text that is too long is truncated, if data.truncate, at the end of its longer part."""
        examples = _encode_texts(rows, data, tokenizer)
        if with_labels:
            examples.example_arrays["label"] = self.label_array(rows)
        return examples

    def label_array(self, rows: Sequence[dict[str, Any]]) -> np.ndarray:
        raise NotImplementedError


class Classify(TextOrPair):
    """Texts with one of some labels."""

    name, has_labels = "classify", True
    example_arrays = {"label": np.int32}

    def __init__(self, labels: Sequence[str] = ()) -> None:
        self.labels = tuple(labels)
        self.metrics = measures.one_label_metrics(self.labels)

    def label_array(self, rows):
        names = [row["label"] for row in rows]
        return label_indices(names, self.labels, lambda i: rows[i]["where"])

    def predict(self, rows, examples, outputs):
        """prediction: a label; probability: its own; probabilities: {label: probability}."""
        predictions: list[dict] = [{} for _ in rows]
        for row, output in zip(examples.row, outputs):
            predictions[row] = measures.one_label_prediction(output, self.labels)
        return predictions

    def label_pairs(self, rows, predictions):
        return [r["label"] for r in rows], [p["prediction"] for p in predictions]

    def measure(self, rows, predictions) -> Measures:
        return measures.one_label(rows, predictions, self.labels)

    def confidences(self, rows, predictions):
        return measures.confidences(rows, predictions)

    def summary(self, examples):
        counts = np.bincount(examples.example_arrays["label"], minlength=len(self.labels))
        most = int(counts.argmax())
        return (
            f"; {len(self.labels)} labels, most often {self.labels[most]} "
            f"({counts[most] / len(examples):.1%})"
        )


class Regress(TextOrPair):
    """Texts with a number."""

    name, metrics = "regress", measures.REGRESSION
    example_arrays = {"label": np.float32}

    def label_array(self, rows):
        return _numbers(rows)

    def predict(self, rows, examples, outputs):
        """prediction: a float."""
        predictions: list[dict] = [{} for _ in rows]
        for row, output in zip(examples.row, outputs):
            predictions[row] = {"prediction": float(output[0])}
        return predictions

    def measure(self, rows, predictions) -> Measures:
        true = [float(row["label"]) for row in rows]
        return measures.regression(true, [p["prediction"] for p in predictions])


KIND, KINDS = TextOrPair, {"classify": Classify, "regress": Regress}


def resolve(config, options: Config) -> dict:
    """The labels of the training data, and their weights."""
    weigh = options.balanced and not options.label_weights
    if not KINDS[options.kind].has_labels or options.labels and not weigh:
        return {}  # without reading the training data
    counts = label_counts(config.data, Classify())
    labels, weights = options.labels or tuple(counts), options.label_weights
    if weigh:
        missing = [label for label in labels if not counts.get(label)]
        if missing:
            raise UserError(f"task.balanced: the training data have no example of {missing}.")
        weights = tuple(sum(counts.values()) / (len(labels) * counts[label]) for label in labels)
    return {"labels": labels, "label_weights": weights}


def assume(config, options: Config) -> dict:
    """The labels of a plan, which reads no data."""
    missing = KINDS[options.kind].has_labels and not options.labels
    return {"labels": ASSUMED_LABELS} if missing else {}


def build(config, options: Config) -> Task:
    """Batches: see data.labelled_batches, kinds Classify and Regress."""
    if not KINDS[options.kind].has_labels:
        return _regression_task(config, options)
    n = _check_labels(options)

    def loss(logits, batch, train):
        labels, weights = batch["label"], batch["weights"]
        metrics = {"accuracy": losses.accuracy(logits, labels, weights)}
        if options.label_weights:
            weights = weights * jnp.array(options.label_weights, jnp.float32)[labels]
        smoothing = options.label_smoothing if train else 0.0
        return losses.cross_entropy(logits, labels, weights, label_smoothing=smoothing), metrics

    kind, sum_weights = Classify(options.labels), options.sum_weights
    return labelled_task(config, kind, "classifier", loss, n, sum_weights=sum_weights)


def _regression_task(config, options: Config) -> Task:
    if len(options.labels) > 1 or options.label_weights or options.balanced:
        raise UserError(
            "task.kind='regress' has no labels: leave task.labels, .label_weights "
            "and .balanced alone."
        )

    def loss(logits, batch, train):
        del train
        error = jnp.square(logits[..., 0] - batch["label"]) * batch["weights"]
        return (error.sum(), batch["weights"].sum()), {}

    weights = options.sum_weights
    return labelled_task(config, Regress(), "classifier", loss, 1, sum_weights=weights)


def _check_labels(options: Config) -> int:
    """The number of labels."""
    n = len(options.labels)
    if n < 2:
        raise UserError(
            f"task.labels is {list(options.labels)}: classification needs at least "
            "two. Has the training data only one?"
        )
    if len(set(options.labels)) < n:
        raise UserError(f"task.labels has a label twice: {list(options.labels)}.")
    if options.label_weights and len(options.label_weights) != n:
        raise UserError(
            f"task.label_weights has {len(options.label_weights)} numbers for {n} labels."
        )
    return n


def _encode_texts(rows: Sequence[dict], data: Any, tokenizer: Tokenizer) -> Examples:
    seq_len = data.seq_len
    first = tokenizer.encode_batch([row["text"] for row in rows])
    second: list = [None] * len(rows)
    paired = [i for i, row in enumerate(rows) if "pair" in row]
    for i, ids in zip(paired, tokenizer.encode_batch([rows[i]["pair"] for i in paired])):
        second[i] = ids
    a = np.array([len(ids) for ids in first], np.int64)
    b = np.array([0 if ids is None else len(ids) for ids in second], np.int64)
    room = np.array([seq_len - (2 if ids is None else 3) for ids in second], np.int64)
    truncated = check_lengths(a + b - room + seq_len, rows, seq_len, data.truncate)
    a, b = _truncated_lengths(a, b, room)
    cls, sep = np.array([tokenizer.bos_id]), np.array([tokenizer.eos_id])
    parts = []
    for x, y, n, m in zip(first, second, a.tolist(), b.tolist()):
        parts += (cls, x[:n], sep) if y is None else (cls, x[:n], sep, y[:m], sep)
    return Examples(
        joined(parts),
        offsets_of(a + b + seq_len - room),
        (a + 2).astype(np.int32),
        np.arange(len(rows), dtype=np.int32),
        truncated=truncated,
    )


def _truncated_lengths(
    a: np.ndarray, b: np.ndarray, room: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Lengths that fit, as if tokens were taken off the longer part (b if equal) one by one."""
    fits = a + b <= room
    half_a, half_b = (room + 1) // 2, room // 2
    short_a, short_b = a <= half_b, b <= half_b
    new_a = np.where(short_a, a, np.where(short_b, room - b, half_a))
    new_b = np.where(short_a, room - a, np.where(short_b, b, half_b))
    return np.where(fits, a, new_a), np.where(fits, b, new_b)


def _numbers(rows: Sequence[dict]) -> np.ndarray:
    numbers = np.zeros(len(rows), np.float32)
    for i, row in enumerate(rows):
        try:
            number = float(row["label"])
        except ValueError:
            number = float("nan")
        if not abs(number) < 3e38:  # of float32; false for nan too
            raise UserError(
                f"{row['where']}: the label {row['label']!r} is not a number, and "
                "regress needs one. Correct it, or set task.kind='classify'."
            )
        numbers[i] = number
    return numbers
