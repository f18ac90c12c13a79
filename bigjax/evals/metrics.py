"""Metrics of labelled tasks, with a report, predictions and pictures in files."""

import dataclasses

import jax
import numpy as np

from bigjax import json_text
from bigjax.data import measures
from bigjax.errors import UserError
from bigjax.evals import Context
from bigjax.infer import predict
from bigjax.plural import plural
from bigjax.report import pyplot, write_figure

_NAMED = 100  # labels whose names a picture has
_DRAWN = 2000  # labels that a confusion matrix may have; it needs memory for their square


@dataclasses.dataclass(frozen=True)
class Config:
    split: str = "valid"


def build(name: str, options: Config, context: Context):
    """Measures the complete split by the task's kind.

    Writes the latest predictions.jsonl, report.txt, report.json and for labels confusion.png and
    reliability.png to WORKDIR/evals/NAME. Its attribute `metrics` has the names of its metrics.
    """
    config, task, kind = context.config, context.task, context.task.kind
    if kind is None:
        raise UserError(
            f"evals.{name}.kind='metrics' is for tasks on labelled data, such as "
            f"task.name='classify'; task.name is {config.task.name!r}: use kind 'loss'."
        )
    data = context.corpus.split(options.split, batch_size=config.train.batch_size, shuffle=False)
    rows = context.corpus.rows(options.split)
    note = f", {data.note}" if getattr(data, "note", "") else ""
    n, batches = data.n_examples, data.n_batches
    size = f"{n:,} {plural(n, 'example')} in {batches} {plural(batches, 'batch')}"
    context.log(f"{name}: {size}{note}")
    outputs_of = predict.make_outputs(task, context.mesh, labelled=True)

    def evaluate(params, extras, step: int) -> dict[str, float]:
        outputs, sums = outputs_of(params, extras, context.frozen, data)
        predictions = kind.predict(rows, data.examples, outputs)
        numbers, report, by_label = kind.measure(rows, predictions)
        numbers = {**{k: s / max(w, 1e-9) for k, (s, w) in sums.items()}, **numbers}
        where = ""

        def write(folder):
            predict.write(folder / "predictions.jsonl", rows, predictions)
            (folder / "report.txt").write_bytes(f"step {step}\n{report}\n".encode())
            (folder / "report.json").write_text(
                json_text.dumps({"step": step, **numbers, "by_label": by_label}, indent=1) + "\n"
            )
            if (pairs := kind.label_pairs(rows, predictions)) is not None:
                _draw_confusion(folder / "confusion.png", *pairs, list(kind.labels))
            if (confidences := kind.confidences(rows, predictions)) is not None:
                _draw_reliability(folder / "reliability.png", *confidences)

        if jax.process_index() == 0:
            where = context.write(name, write)
        context.report(f"{name}, step {step}:\n{report}{where}")
        return numbers

    evaluate.metrics = ("loss", *kind.metrics)
    return evaluate


def _draw_confusion(path, true, predicted, labels) -> None:
    """The confusion matrix, counts by true (row) and predicted label; none of very many labels."""
    if len(labels) > _DRAWN:
        return
    plt = pyplot()
    from sklearn import metrics

    size = min(20.0, 3 + 0.5 * len(labels))
    figure, axis = plt.subplots(figsize=(size + 1, size), layout="constrained")
    metrics.ConfusionMatrixDisplay.from_predictions(
        true,
        predicted,
        labels=measures.shown_labels(labels, predicted),
        ax=axis,
        xticks_rotation="vertical",
        colorbar=False,
        include_values=len(labels) <= 20,
    )
    if len(labels) > _NAMED:
        axis.set(xticks=[], yticks=[])
    write_figure(figure, path, dpi=110)


def _draw_reliability(path, confidence, right) -> None:
    """How often predictions are right, by their probability; the diagonal is perfect calibration.
    The bars below are how many predictions each bin has."""
    plt = pyplot()
    error, counts, _, accuracy = measures.calibration(confidence, right)
    figure, (axis, below) = plt.subplots(
        2, 1, figsize=(5, 6), height_ratios=(3, 1), sharex=True, layout="constrained"
    )
    width = 1 / measures.BINS
    middles = width * (np.arange(measures.BINS) + 0.5)
    axis.bar(middles, accuracy, width, edgecolor="white")
    axis.plot([0, 1], [0, 1], "k--", linewidth=1)
    axis.set(ylabel="accuracy", ylim=(0, 1), title=f"expected calibration error {error:.4f}")
    below.bar(middles, counts, width, edgecolor="white", color="grey")
    below.set(xlabel="probability of the prediction", ylabel="examples", xlim=(0, 1))
    write_figure(figure, path, dpi=110)
