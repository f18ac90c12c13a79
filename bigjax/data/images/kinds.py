"""What tasks with one label for an image, or with several, predict and measure."""

import abc
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import special

from bigjax.data import measures
from bigjax.data.kinds import Kind
from bigjax.data.measures import Measures
from bigjax.errors import UserError

_MOST_LABELS = 100  # of whose probabilities a prediction has all
_SHOWN = 10  # files that a report names


class ImageKind(Kind):
    """Rows have `file` and `label`; an image that cannot be read is predicted None, with a `note`
    that says why, and is not counted.

    examples: the data.unreadable.Unreadable of the batches. outputs: logits [n_labels].
    """

    def __init__(self, labels: Sequence[str]) -> None:
        self.labels = tuple(labels)

    def predict(self, rows, examples, outputs):
        """Raises UserError if no image can be read."""
        if rows and all(output is None for output in outputs):
            raise UserError(
                f"None of the {len(rows):,} image(s) can be read. The first one: {examples.why(0)}"
            )
        return [
            self._unread(row, examples.why(i)) if output is None else self._predicted(output)
            for i, (row, output) in enumerate(zip(rows, outputs, strict=True))
        ]

    @abc.abstractmethod
    def _predicted(self, logits: np.ndarray) -> dict[str, Any]:
        """The prediction of an image from its logits."""

    def _unread(self, row: dict, why: str) -> dict[str, Any]:
        note = why.removeprefix(f"{row.get('file', '')}: ")
        return {"prediction": None, "probability": None, "note": note}


class OneLabel(ImageKind):
    """One label for an image."""

    name = "image_classify"

    def __init__(self, labels: Sequence[str]) -> None:
        super().__init__(labels)
        self.metrics = measures.one_label_metrics(self.labels)

    def _predicted(self, logits):
        """prediction: a label; probability: its own; probabilities: {label: probability}, of the
        most probable labels if there are many."""
        return measures.one_label_prediction(logits, self.labels, _MOST_LABELS)

    def label_pairs(self, rows, predictions):
        rows, predictions = _counted(rows, predictions)
        return [row["label"] for row in rows], [p["prediction"] for p in predictions]

    def confidences(self, rows, predictions):
        return measures.confidences(*_counted(rows, predictions))

    def measure(self, rows, predictions) -> Measures:
        measured = measures.one_label(*_counted(rows, predictions), self.labels)
        return measured._replace(report=measured.report + _unread_lines(rows, predictions))


class SeveralLabels(ImageKind):
    """Any number of labels for an image, each with a probability of its own."""

    name, metrics = "image_classify_several", measures.SEVERAL_LABELS

    def _predicted(self, logits):
        """prediction: the labels with a probability of at least 0.5; probability: theirs;
        probabilities: {label: probability}."""
        p = special.expit(logits.astype(np.float64))
        chosen = np.flatnonzero(p >= measures.THRESHOLD)
        return {
            "prediction": [self.labels[i] for i in chosen],
            "probability": p[chosen].tolist(),
            "probabilities": dict(zip(self.labels, p.tolist())),
        }

    def measure(self, rows, predictions) -> Measures:
        counted, made = _counted(rows, predictions)
        number = {label: i for i, label in enumerate(self.labels)}
        true = np.zeros((len(counted), len(self.labels)), bool)
        for i, row in enumerate(counted):
            true[i, [number[label] for label in row["label"]]] = True
        p = np.array([[*x["probabilities"].values()] for x in made], np.float64)
        measured = measures.several_labels(true, p, self.labels)
        return measured._replace(report=measured.report + _unread_lines(rows, predictions))


def _counted(rows, predictions) -> tuple[list[dict], list[dict]]:
    """(rows, predictions) of the images that could be read."""
    read = [(r, p) for r, p in zip(rows, predictions, strict=True) if p["prediction"] is not None]
    return [row for row, _ in read], [prediction for _, prediction in read]


def _unread_lines(rows, predictions) -> str:
    unread = [(r, p) for r, p in zip(rows, predictions, strict=True) if p["prediction"] is None]
    if not unread:
        return ""
    lines = [f"  {row['file']}: {p['note']}" for row, p in unread[:_SHOWN]]
    lines += ["  ..."] * (len(unread) > _SHOWN)
    n = f"{len(unread):,} of {len(rows):,}"
    return "\n".join([f"\n{n} images could not be read and are not counted:", *lines])
