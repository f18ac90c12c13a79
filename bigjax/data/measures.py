"""Measures of labelled tasks; the numbers are scikit-learn's and SciPy's."""

from collections.abc import Sequence
from typing import Any, NamedTuple
import warnings

import numpy as np


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


def shown_labels(labels: Sequence[str], predicted: Sequence[str]) -> list[str]:
    """The labels of a report or a confusion matrix."""
    return [*labels, *[TRUNCATED] * (TRUNCATED in predicted and TRUNCATED not in labels)]


def classification(
    true: Sequence[str],
    predicted: Sequence[str],
    labels: Sequence[str],
    averaged: Sequence[str] | None = None,
) -> Measures:
    """The numbers of CLASSIFICATION. averaged: the labels that are averaged over."""
    from sklearn import metrics

    numbers = {"accuracy": metrics.accuracy_score(true, predicted)}
    for name in _AVERAGED:
        score, average = name.split("_")
        numbers[name] = getattr(metrics, f"{score}_score")(
            true,
            predicted,
            labels=list(labels if averaged is None else averaged),
            average=average,
            zero_division=0.0,
        )
    numbers["matthews"] = metrics.matthews_corrcoef(true, predicted)
    numbers = {k: float(v) for k, v in numbers.items()}
    table = dict(labels=shown_labels(labels, predicted), digits=4, zero_division=0.0)
    text = metrics.classification_report(true, predicted, **table)
    return Measures(
        numbers,
        f"{text}\nMatthews correlation {numbers['matthews']:.4f}",
        metrics.classification_report(true, predicted, output_dict=True, **table),
    )


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
