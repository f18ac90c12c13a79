"""One label or number for a text or a pair of texts."""

import dataclasses

import jax.numpy as jnp

from bigjax import losses
from bigjax.bounds import FRACTION, at_least, check_ranges
from bigjax.data import labelled
from bigjax.errors import UserError
from bigjax.tasks import Task
from bigjax.tasks._encoder import labelled_task

DATA, EVALUATION = "labelled", "metrics"  # of a config that is made for this task


@dataclasses.dataclass(frozen=True)
class Config:
    kind: str = "classify"  # classify (labels), regress (numbers)
    labels: tuple[str, ...] = ()  # () = those of the training data
    balanced: bool = False  # each label weighs the same in all, whatever its number of examples
    label_weights: tuple[float, ...] = ()  # in the order of labels; () = 1, or by `balanced`
    label_smoothing: float = 0.0

    MAY_CHANGE = ("balanced", "label_*")
    RANGES = {"label_weights": at_least(0), "label_smoothing": FRACTION}

    def __post_init__(self):
        check_ranges("task", self)


def resolve(config, options: Config) -> dict:
    """What the training data decide: labels, and their weights."""
    weigh = options.balanced and not options.label_weights
    if options.kind != "classify" or options.labels and not weigh:
        return {}  # and the training data are not read for it
    counts = labelled.label_counts(config.data, "classify")
    labels, weights = options.labels or tuple(counts), options.label_weights
    if weigh:
        missing = [label for label in labels if not counts.get(label)]
        if missing:
            raise UserError(f"task.balanced: the training data have no example of {missing}.")
        weights = tuple(sum(counts.values()) / (len(labels) * counts[label]) for label in labels)
    return {"labels": labels, "label_weights": weights}


def build(config, options: Config) -> Task:
    """Batches: see data.labelled.LabelledData, kinds 'classify' and 'regress'."""
    if options.kind not in ("classify", "regress"):
        raise UserError(f"task.kind is {options.kind!r}; allowed: classify, regress.")
    n = _check_labels(options)

    def loss(logits, batch, train):
        labels, weights = batch["label"], batch["weights"]
        if options.kind == "regress":
            error = jnp.square(logits[..., 0] - labels) * weights
            return (error.sum(), weights.sum()), {}
        metrics = {"accuracy": losses.accuracy(logits, labels, weights)}
        if options.label_weights:
            weights = weights * jnp.array(options.label_weights, jnp.float32)[labels]
        smoothing = options.label_smoothing if train else 0.0
        return losses.cross_entropy(logits, labels, weights, label_smoothing=smoothing), metrics

    return labelled_task(config, options.kind, "classifier", loss, options.labels, n)


def _check_labels(options: Config) -> int:
    """The number of outputs."""
    n = len(options.labels)
    if options.kind == "regress":
        if n > 1 or options.label_weights or options.balanced:
            raise UserError(
                "task.kind='regress' has no labels: leave task.labels, .label_weights "
                "and .balanced alone."
            )
        return 1
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
