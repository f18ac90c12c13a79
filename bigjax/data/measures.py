"""Measures of labelled tasks; the numbers are scikit-learn's and SciPy's, and calibration."""

from collections.abc import Sequence
from typing import Any, NamedTuple
import warnings

import numpy as np
from scipy import special


class Measures(NamedTuple):
    """numbers: {metric: value}. report: text for people. by_label: {label: its numbers}."""

    numbers: dict[str, float]
    report: str
    by_label: dict[str, Any]


TRUNCATED = "(truncated)"  # the predicted label of a word that was truncated
_AVERAGED = (
    "f1_macro",
    "f1_micro",
    "f1_weighted",
    "precision_macro",
    "precision_weighted",
    "recall_macro",
    "recall_weighted",
)
CLASSIFICATION = ("accuracy", *_AVERAGED, "matthews")
REGRESSION = ("pearson", "spearman", "mse", "mae")
SEVERAL_LABELS = ("mean_average_precision", *_AVERAGED)
THRESHOLD = 0.5  # of the probability of one of several labels
BINS = 15  # of the confidence, of equal width
_TOP = 5
_FEW = 10  # labels whose probabilities a prediction has if there are many labels


def shown_labels(labels: Sequence[str], predicted: Sequence[str]) -> list[str]:
    """The labels of a report or a confusion matrix."""
    return [*labels, *[TRUNCATED] * (TRUNCATED in predicted and TRUNCATED not in labels)]


def classification(
    true: Sequence[str],
    predicted: Sequence[str],
    labels: Sequence[str],
    averaged: Sequence[str] | None = None,
) -> Measures:
    """The numbers of CLASSIFICATION, averaged over the labels that are true or predicted somewhere:
    of another one nothing is known. averaged: only over these of them."""
    from sklearn import metrics

    present = {*true, *predicted}
    averaged = labels if averaged is None else averaged
    numbers = {"accuracy": metrics.accuracy_score(true, predicted)}
    for name in _AVERAGED:
        score, average = name.split("_")
        numbers[name] = getattr(metrics, f"{score}_score")(
            true,
            predicted,
            labels=[label for label in averaged if label in present] or list(averaged),
            average=average,
            zero_division=0.0,
        )
    numbers["matthews"] = metrics.matthews_corrcoef(true, predicted)
    numbers = {k: float(v) for k, v in numbers.items()}
    shown = [label for label in shown_labels(labels, predicted) if label in present]
    table = dict(labels=shown, digits=4, zero_division=0.0)
    text = metrics.classification_report(true, predicted, **table)
    return Measures(
        numbers,
        f"{text}\nMatthews correlation {numbers['matthews']:.4f}",
        metrics.classification_report(true, predicted, output_dict=True, **table),
    )


def one_label_metrics(labels: Sequence[str]) -> tuple[str, ...]:
    """The names of the numbers of `one_label`."""
    return (*CLASSIFICATION, "ece", *["top5"] * (len(labels) > _TOP))


def one_label_prediction(
    logits: np.ndarray, labels: Sequence[str], most: int | None = None
) -> dict[str, Any]:
    """prediction: the most probable label; probability: its own; probabilities: {label:
    probability}; of more than `most` labels only the ten most probable ones, in their order."""
    p = special.softmax(logits.astype(np.float64))
    shown: Any = range(len(labels))
    if most is not None and len(labels) > most:
        shown = np.argsort(-p, kind="stable")[:_FEW]
    return {
        "prediction": labels[int(p.argmax())],
        "probability": float(p.max()),
        "probabilities": {labels[i]: float(p[i]) for i in shown},
    }


def one_label(rows: Sequence[dict], predictions: Sequence[dict], labels: Sequence[str]) -> Measures:
    """The numbers of `one_label_metrics`; rows have `label`, predictions as one_label_prediction.

    ece: the expected calibration error, see `Calibration`. top5, with more than five labels: the
    share of the rows whose label is among the five most probable ones.
    """
    true, predicted = [r["label"] for r in rows], [p["prediction"] for p in predictions]
    numbers, report, by_label = classification(true, predicted, labels)
    ece = calibration(*confidences(rows, predictions)).error
    numbers, report = numbers | {"ece": ece}, f"{report}\nExpected calibration error {ece:.4f}"
    if "top5" in one_label_metrics(labels):
        hits = [_in_top(p["probabilities"], label) for p, label in zip(predictions, true)]
        numbers["top5"] = float(np.mean(hits))
        report += f"\nTop-5 accuracy {numbers['top5']:.4f}"
    return Measures(numbers, report, by_label)


def _in_top(probabilities: dict[str, float], label: str) -> bool:
    """Of equal probabilities that of the first label is the largest, as for the accuracy."""
    if np.isnan(probabilities.get(label, np.nan)):
        return False
    return label in sorted(probabilities, key=lambda name: -probabilities[name])[:_TOP]


def confidences(rows: Sequence[dict], predictions: Sequence[dict]) -> tuple[np.ndarray, np.ndarray]:
    """(float [n], bool [n]): the probability of each prediction, and whether it is the label."""
    right = [p["prediction"] == row["label"] for row, p in zip(rows, predictions)]
    return np.array([p["probability"] for p in predictions], np.float64), np.array(right, bool)


class Calibration(NamedTuple):
    """Accuracy and confidence of predictions in BINS bins of the confidence, of equal width
    (https://arxiv.org/abs/1706.04599).

    error: the expected calibration error, the mean distance of accuracy and confidence over all
    predictions. counts int [BINS]; confidence, accuracy float [BINS], their means, 0 in empty bins.
    """

    error: float
    counts: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray


def calibration(confidence: np.ndarray, right: np.ndarray) -> Calibration:
    """confidence: float [n], of 0 to 1. right: bool [n], whether each prediction is."""
    edges = np.linspace(0, 1, BINS + 1)[1:-1]
    which = np.digitize(confidence, edges, right=True)  # a bin includes its upper edge
    counts = np.bincount(which, minlength=BINS)
    mean = lambda x: np.bincount(which, x, minlength=BINS) / np.maximum(counts, 1)
    confidence, accuracy = mean(confidence), mean(right.astype(np.float64))
    error = float(np.abs(accuracy - confidence) @ counts / max(counts.sum(), 1))
    return Calibration(error, counts, confidence, accuracy)


def several_labels(true: np.ndarray, p: np.ndarray, labels: Sequence[str]) -> Measures:
    """The numbers of SEVERAL_LABELS. true: bool [n, n_labels]; p: their probabilities, of which
    those of at least THRESHOLD are predicted. The mean of the average precision is over the labels
    that an example has, other averages are over those that are true or predicted somewhere."""
    from sklearn import metrics

    p = np.nan_to_num(p)
    predicted = p >= THRESHOLD
    precisions = {
        label: float(metrics.average_precision_score(true[:, i], p[:, i]))
        for i, label in enumerate(labels)
        if true[:, i].any()
    }
    numbers = {"mean_average_precision": float(np.mean([*precisions.values()] or [0.0]))}
    present = [*np.flatnonzero((true | predicted).any(0))] or [*range(len(labels))]
    for name in _AVERAGED:
        score, average = name.split("_")
        numbers[name] = float(
            getattr(metrics, f"{score}_score")(
                true, predicted, labels=present, average=average, zero_division=0.0
            )
        )
    names = [labels[i] for i in present]
    table = dict(labels=present, target_names=names, digits=4, zero_division=0.0)
    by_label = metrics.classification_report(true, predicted, output_dict=True, **table)
    for label, precision in precisions.items():
        by_label[label]["average_precision"] = precision
    text = metrics.classification_report(true, predicted, **table)
    mean = numbers["mean_average_precision"]
    return Measures(numbers, f"{text}\nMean average precision {mean:.4f}", by_label)


def regression(true: Sequence[float], predicted: Sequence[float]) -> Measures:
    """The numbers of REGRESSION; the correlation with a constant is 0."""
    from scipy import stats
    from sklearn import metrics

    correlations = {"pearson": 0.0, "spearman": 0.0}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about constant predictions
        for name in correlations if len(true) > 1 else ():
            r = float(getattr(stats, f"{name}r")(true, predicted)[0])
            correlations[name] = 0.0 if np.isnan(r) else r
    return listed(
        {
            **correlations,
            "mse": float(metrics.mean_squared_error(true, predicted)),
            "mae": float(metrics.mean_absolute_error(true, predicted)),
        }
    )


def listed(numbers: dict[str, float]) -> Measures:
    """Measures whose report lists the numbers."""
    return Measures(numbers, "\n".join(f"{k:<12} {v:.4f}" for k, v in numbers.items()), {})
