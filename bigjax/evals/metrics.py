"""Metrics of labelled tasks, with a report, predictions and a confusion matrix in files.

The numbers are scikit-learn's and SciPy's; only SQuAD's two for answers are in neither.
"""

import collections
import dataclasses
import re
import string
import warnings

import jax
import numpy as np

from bigjax import json_text
from bigjax.errors import UserError
from bigjax.evals import Context
from bigjax.infer import predict
from bigjax.report import pyplot

_AVERAGED = (
    "f1_macro",
    "f1_micro",
    "f1_weighted",
    "precision_macro",
    "precision_weighted",
    "recall_macro",
    "recall_weighted",
)
_CUT = "(cut)"  # what is said of a word that was cut off


@dataclasses.dataclass(frozen=True)
class Config:
    split: str = "valid"


def build(name: str, options: Config, context: Context):
    """Of all of the split.

    Writes to WORKDIR/evals/NAME: predictions.jsonl, report.txt, report.json and for labels
    confusion.png, of the last time it ran. Its attribute `metrics` has the names of what it
    returns.
    """
    config, task = context.config, context.task
    if task.outputs is None:
        raise UserError(
            f"evals.{name}.kind='metrics' is for labelled tasks (classify, tag, "
            f"answer); task.name is {config.task.name!r}, which has kind 'loss'."
        )
    data = context.corpus.split(options.split, batch_size=config.train.batch_size, shuffle=False)
    rows = context.corpus.rows(options.split)
    context.log(
        f"{name}: {data.n_examples:,} examples in {data.n_batches} batches, "
        f"{data.padding:.1%} of the tokens are padding"
    )

    def evaluate(params, extras, step: int) -> dict[str, float]:
        outputs, sums = predict.outputs_of(
            task, context.mesh, params, extras, context.frozen, data, True
        )
        found = predict.predictions(config, rows, data.examples, outputs)
        numbers, report, by_label = measure(config.task, rows, found)
        numbers = {**{k: s / max(w, 1e-9) for k, (s, w) in sums.items()}, **numbers}
        where = ""

        def write(folder):
            predict.write(folder / "predictions.jsonl", rows, found)
            (folder / "report.txt").write_bytes(f"step {step}\n{report}\n".encode())
            (folder / "report.json").write_text(
                json_text.dumps({"step": step, **numbers, "by_label": by_label}, indent=1) + "\n"
            )
            if config.task.name != "answer" and config.task.get("kind", "") != "regress":
                _draw(
                    folder / "confusion.png",
                    *_label_pairs(config.task, rows, found),
                    list(config.task.labels),
                )

        if jax.process_index() == 0:
            where = context.write(name, write)
        context.report(f"{name}, step {step}:\n{report}{where}")
        return numbers

    evaluate.metrics = ("loss", *metric_names(config.task))
    return evaluate


def metric_names(task) -> tuple[str, ...]:
    """The names of the metrics that `measure` gives. task: config.task."""
    if task.name == "answer":
        return "exact_match", "f1"
    if task.get("kind", "") == "regress":
        return "pearson", "spearman", "mse", "mae"
    return "accuracy", *_AVERAGED, "matthews"


def measure(task, rows: list[dict], found: list[dict]) -> tuple[dict[str, float], str, dict]:
    """Metrics by name, a report for people, and what it says of each label.

    task: config.task. rows: with the true label, tags or answers; found: as predict.predictions.
    """
    if task.name == "answer":
        numbers = answer_scores([r["answers"] for r in rows], [f["prediction"] for f in found])
    elif task.get("kind", "") == "regress":
        numbers = _regression([float(r["label"]) for r in rows], [f["prediction"] for f in found])
    else:
        return _classification(*_label_pairs(task, rows, found), list(task.labels), task.name)
    return numbers, "\n".join(f"{k:<12} {v:.4f}" for k, v in numbers.items()), {}


def _label_pairs(task, rows, found) -> tuple[list[str], list[str]]:
    """(true, predicted) labels, of rows or of words; of a word that was cut off _CUT, so that it
    counts as missed, and not as another label that was found."""
    if task.name != "tag":
        return [r["label"] for r in rows], [f["prediction"] for f in found]
    true = [tag for r in rows for tag in r["tags"]]
    said = [tag for f in found for tag in f["prediction"]]
    return true, [_CUT if s is None else s for s in said]


def _shown(labels, said) -> list[str]:
    """The labels of report and matrix."""
    return [*labels, *[_CUT] * (_CUT in said and _CUT not in labels)]


def _classification(true, said, labels, task_name) -> tuple[dict[str, float], str, dict]:
    from sklearn import metrics

    counted = labels
    if task_name == "tag" and "O" in labels:  # what is no entity would hide the rest
        counted = [label for label in labels if label != "O"]
    numbers = {"accuracy": metrics.accuracy_score(true, said)}
    for name in _AVERAGED:
        score, average = name.split("_")
        numbers[name] = getattr(metrics, f"{score}_score")(
            true, said, labels=counted, average=average, zero_division=0.0
        )
    numbers["matthews"] = metrics.matthews_corrcoef(true, said)
    numbers = {k: float(v) for k, v in numbers.items()}
    table = dict(labels=_shown(labels, said), digits=4, zero_division=0.0)
    text = metrics.classification_report(true, said, **table)
    return (
        numbers,
        f"{text}\nMatthews correlation {numbers['matthews']:.4f}",
        metrics.classification_report(true, said, output_dict=True, **table),
    )


def _regression(true: list[float], said: list[float]) -> dict[str, float]:
    from scipy import stats
    from sklearn import metrics

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a constant prediction: then the correlation is 0
        found = {
            "pearson": stats.pearsonr(true, said)[0] if len(true) > 1 else 0.0,
            "spearman": stats.spearmanr(true, said)[0] if len(true) > 1 else 0.0,
        }
    found = {k: 0.0 if np.isnan(v) else float(v) for k, v in found.items()}
    return {
        **found,
        "mse": float(metrics.mean_squared_error(true, said)),
        "mae": float(metrics.mean_absolute_error(true, said)),
    }


def answer_scores(answers: list[list[tuple[str, int]]], said: list[str]) -> dict[str, float]:
    """Exact match and token F1, each the best over a question's answers, as SQuAD defines them
    (https://arxiv.org/abs/1606.05250, section 6.1): without case, punctuation and articles."""
    exact, f1 = [], []
    for golds, text in zip(answers, said, strict=True):
        golds = [gold for gold, _ in golds] or [""]
        exact.append(max(_normal(gold) == _normal(text) for gold in golds))
        f1.append(max(_f1(_normal(gold).split(), _normal(text).split()) for gold in golds))
    return {"exact_match": float(np.mean(exact)), "f1": float(np.mean(f1))}


def _normal(text: str) -> str:
    text = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def _f1(gold: list[str], said: list[str]) -> float:
    if not gold or not said:
        return float(gold == said)
    common = sum((collections.Counter(gold) & collections.Counter(said)).values())
    return 2 * common / (len(gold) + len(said))


def _draw(path, true, said, labels) -> None:
    """The confusion matrix, counts by true (row) and predicted label."""
    plt = pyplot()
    from sklearn import metrics

    size = min(20.0, 3 + 0.5 * len(labels))
    figure, axis = plt.subplots(figsize=(size + 1, size), layout="constrained")
    metrics.ConfusionMatrixDisplay.from_predictions(
        true,
        said,
        labels=_shown(labels, said),
        ax=axis,
        xticks_rotation="vertical",
        colorbar=False,
        include_values=len(labels) <= 20,
    )
    with path.open("wb") as f:
        figure.savefig(f, dpi=110)
    plt.close(figure)
