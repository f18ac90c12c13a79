"""Few-shot accuracy: a linear probe of the model's features, from a few images of each class.

As big_vision's fewshot_lsr: ridge regression of the classes on the features, solved in closed form.
"""

from collections.abc import Callable, Sequence
import dataclasses
from typing import Any, NamedTuple

import jax
import numpy as np

from bigjax import modules
from bigjax.bounds import at_least
from bigjax.data.images.splits import by_label
from bigjax.errors import UserError
from bigjax.evals import Context
from bigjax.parallel import sharding
from bigjax.tasks import data_module

L2 = tuple(2.0**i for i in range(-10, 21, 2))  # strengths of regularisation to choose from
_BIAS = 100.0  # a feature of all images, large so that it is hardly regularised
_NO_VARIANCE = 1e-5  # added to the standard deviation of a feature


@dataclasses.dataclass(frozen=True)
class Config:
    shots: tuple[int, ...] = (1, 5, 10, 25)  # images of each class to learn from
    seeds: int = 3  # draws of these images, over which accuracies are averaged
    train: str = ""  # images of its own, in the forms of data.train; '' = the run's
    test: str = ""  # '' = those of the run, or of `train`: its own or a fraction of it
    split: str = "test"  # what is classified
    train_split: str = "train"  # what is learned from
    tune_split: str = "valid"  # what the strength of regularisation is chosen on
    l2: float = 0.0  # that strength; 0 = chosen for each number of shots

    RANGES = {"shots": at_least(1), "seeds": at_least(1), "l2": at_least(0)}
    DATA_PATHS = ("train", "test")


class Probe(NamedTuple):
    """A ridge regression for any strength: W = left (eigenvalues + l2)^-1 right, of standardised
    features and a bias."""

    mean: np.ndarray  # [D]
    scale: np.ndarray  # [D]
    eigenvalues: np.ndarray  # [K]
    left: np.ndarray  # [D + 1, K]
    right: np.ndarray  # [K, C]


def fit(x: np.ndarray, y: np.ndarray, n_classes: int) -> Probe:
    """The regression of classes, 1 for the right one and -1 for the others, on features.

    x: [N, D]. y: int [N]. In float64, with the eigenvectors of the smaller of X^T X and X X^T.
    """
    x = x.astype(np.float64)
    mean, scale = x.mean(0), x.std(0) + _NO_VARIANCE
    x = _standardised(x, mean, scale)
    targets = np.where(y[:, None] == np.arange(n_classes), 1.0, -1.0)
    if len(x) >= x.shape[1]:
        eigenvalues, q = np.linalg.eigh(x.T @ x)
        return Probe(mean, scale, eigenvalues, q, q.T @ (x.T @ targets))
    eigenvalues, q = np.linalg.eigh(x @ x.T)
    return Probe(mean, scale, eigenvalues, x.T @ q, q.T @ targets)


def scores(probe: Probe, x: np.ndarray, l2: float) -> np.ndarray:
    """[N, n_classes] of features [N, D]; l2: above 0, the strength of regularisation."""
    weights = (probe.left / (probe.eigenvalues + l2)) @ probe.right
    return _standardised(x.astype(np.float64), probe.mean, probe.scale) @ weights


def _standardised(x, mean, scale) -> np.ndarray:
    return np.pad((x - mean) / scale, ((0, 0), (0, 1)), constant_values=_BIAS)


def draw(labels: np.ndarray, n_classes: int, most: int, rng: np.random.Generator) -> np.ndarray:
    """int [n, most]: the indices of as many images of each of the n classes that have images, in
    random order."""
    return np.stack(
        [rng.permutation(its)[:most] for its in by_label(labels, n_classes) if len(its)]
    )


def build(name: str, options: Config, context: Context):
    """Metrics: shot_N, the accuracy with N images of each class, and with several seeds shot_N_std,
    its sample standard deviation over the draws.

    A draw of more images includes those of fewer. The strength of regularisation is the one of L2
    with the best mean accuracy over the draws on the images of tune_split; of equal ones the
    largest.
    """
    config, task = context.config, context.task
    if task.features is None:
        raise UserError(
            f"evals.{name}.kind='fewshot' needs a task with features of images, such as "
            f"task.name='image_classify'; task.name is {config.task.name!r}."
        )
    corpus = _labelled_images(name, options, context)
    if not options.shots:
        raise UserError(f"evals.{name}.shots is empty. Give numbers of images, such as (1, 5).")
    shots, n_classes = sorted(set(options.shots)), len(corpus.labels)
    labels = corpus.labels_of(options.train_split)
    _check_shots(name, options, corpus, shots[-1])
    seeds = [np.random.default_rng([config.seed, s]) for s in range(options.seeds)]
    drawn = [draw(labels, n_classes, shots[-1], rng) for rng in seeds]
    used = np.unique(drawn)  # only of these the features are computed
    batch_size = config.train.batch_size
    train = corpus.batches_of(options.train_split, used, batch_size)
    test = corpus.split(options.split, batch_size=batch_size, shuffle=False)
    tune = None
    if not options.l2:
        tune = corpus.split(options.tune_split, batch_size=batch_size, shuffle=False)
    features_of = _features(task, context)

    def evaluate(params, extras, step: int) -> dict[str, float]:
        known = features_of(params, extras, train, used)
        held_out = features_of(params, extras, test)
        tuning = None if tune is None else features_of(params, extras, tune)
        if not all(np.isfinite(part.x).all() for part in (known, held_out, tuning) if part):
            context.log(f"{name}, step {step}: the features are not finite")
            return dict.fromkeys(evaluate.metrics, float("nan"))
        metrics, lines = {}, [f"{'shots':>5} {'accuracy':>9} {'std':>7} {'l2':>9}"]
        for n in shots:
            probes = [fit(*known.chosen(index[:, :n].ravel()), n_classes) for index in drawn]
            l2 = options.l2 if tuning is None else _best(probes, tuning)
            accuracies = [held_out.accuracy(probe, l2) for probe in probes]
            metrics[f"shot_{n}"], std = float(np.mean(accuracies)), ""
            if options.seeds > 1:
                metrics[f"shot_{n}_std"] = float(np.std(accuracies, ddof=1))
                std = f"{metrics[f'shot_{n}_std']:.4f}"
            lines.append(f"{n:>5} {metrics[f'shot_{n}']:>9.4f} {std:>7} {l2:>9.4g}")
        context.report("\n".join([f"{name}, step {step}:", *lines]))
        return metrics

    own = [f"shot_{n}" for n in shots]
    evaluate.metrics = tuple(m for x in own for m in (x, *[f"{x}_std"] * (options.seeds > 1)))
    return evaluate


class _Features(NamedTuple):
    """x: [N, D], y: int [N], index: int [N] of the images in their split, ascending."""

    x: np.ndarray
    y: np.ndarray
    index: np.ndarray

    def chosen(self, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(x, y) of these images, without those that could not be read."""
        at = np.flatnonzero(np.isin(self.index, index))
        return self.x[at], self.y[at]

    def accuracy(self, probe: Probe, l2: float) -> float:
        return float((scores(probe, self.x, l2).argmax(-1) == self.y).mean())


def _best(probes: Sequence[Probe], tuning: _Features) -> float:
    means = [np.mean([tuning.accuracy(probe, l2) for probe in probes]) for l2 in L2]
    return max(zip(means, L2))[1]


def _features(task, context: Context) -> Callable[..., _Features]:
    """features(params, extras, batches, index) of all images that can be read. index: of the
    batches' images in their split, if they are a part of it."""

    def features_and_labels(params, extras, frozen, batch):
        own = {name: batch[name] for name in ("example", "label", "weights")}
        return task.features(params, extras, frozen, batch), own

    run = jax.jit(features_and_labels, out_shardings=sharding.replicated(context.mesh))

    def features(params, extras, batches, index: Any = None) -> _Features:
        parts, sizes = [], (batches.batch_size, batches.n_batches)
        for batch in sharding.device_batches(context.mesh, batches, *sizes):
            x, own = jax.device_get(run(params, extras, context.frozen, batch))
            real = own["weights"] > 0
            parts.append((x[real], own["label"][real], own["example"][real]))
        x, y, example = (np.concatenate(arrays) for arrays in zip(*parts))
        return _Features(x, y, example if index is None else index[example])

    return features


def _labelled_images(name: str, options: Config, context: Context) -> Any:
    """The data of the context, or those of evals.NAME.train and .test. Raises UserError."""
    config, corpus = context.config, context.corpus
    if options.train or options.test or not corpus.labels:
        source = data_module(config, "load_images", "images")
        data = modules.options(config, "data")
        test = options.test or ("" if options.train else data.test)
        valid = "" if options.train else data.valid
        data = dataclasses.replace(data, train=options.train or data.train, valid=valid, test=test)
        names = {options.train_split, options.split, *([] if options.l2 else [options.tune_split])}
        log = lambda text: context.log("\n".join(f"{name}: {x}" for x in text.splitlines()))
        corpus = source.load_images(data, log=log, names=names)
    if any(part.labels.ndim == 2 for part in corpus.parts.values()):
        raise UserError(
            f"evals.{name}.kind='fewshot' needs images with one label each, but task.several is "
            f"set. Set evals.{name}.train to such images, or remove the evaluation."
        )
    return corpus


def _check_shots(name, options: Config, corpus: Any, most: int) -> None:
    """Raises UserError for a class that has images, but fewer than that to learn from. Labels that
    are numbers from 1 on, or have gaps, have classes without any."""
    classes, used = corpus.labels, [options.train_split, options.split]
    used += [] if options.l2 else [options.tune_split]
    count = lambda split: np.bincount(corpus.labels_of(split), minlength=len(classes))
    counts, total = count(options.train_split), sum(map(count, used))
    fewest = min(np.flatnonzero(total).tolist(), key=counts.__getitem__, default=0)
    if counts[fewest] < most:
        raise UserError(
            f"evals.{name}.shots has {most}, but the class {classes[fewest]!r} has only "
            f"{counts[fewest]:,} images in the split {options.train_split!r}. Set "
            f"evals.{name}.shots to at most that, or give more images."
        )
