"""Images as a model receives them in training, with their labels, for people."""

from collections.abc import Callable
import itertools
from typing import Any

import jax
import numpy as np

from bigjax import tasks
from bigjax.errors import UserError
from bigjax.report.sheet import Sheet
from bigjax.train import stages
from bigjax.train.step import micro_batches, step_key

_LEAST = 0.005  # a smaller share of a label is not shown


def sheets(config, split: str, n: int, log: Callable[[str], None] = print) -> list[Sheet]:
    """The first n images of a split, or all if it has fewer, and of the training split also after
    Task.augment, if the task mixes images.

    config: with its fields filled in. Batches, and the random numbers of the augmentation, are
    those of a run with this config from its first step on. Raises UserError for data that are not
    images.
    """
    config, _ = stages.resolve(config)
    task = tasks.build(config)
    size = config.train.batch_size
    _check_images(config, task, size)
    corpus = stages.load_data(task, log, None, [split])
    has = getattr(corpus.split(split, batch_size=1), "n_rows", size)
    if split == "train" and has < size:  # training needs a batch, looking does not
        log(f"look: {has:,} training images, fewer than train.batch_size={size:,}")
        n, size = min(n, has), has
        with config.unlocked():
            config.train.batch_size, config.train.accumulate = size, 1
    batches = corpus.split(split, batch_size=size, seed=config.seed)
    training = split == "train"
    mixes = training and task.augment is not None
    steps = range(-(-n // size) if training else min(-(-n // size), batches.n_batches))
    rows = lambda step: None if mixes else slice(0, min(size, n - step * size))
    given = [batches.batch_at(step, rows(step)) for step in steps]
    classes = getattr(corpus, "labels", ())
    how = "as training augments them" if training else "as evaluation shows them"
    shown = [_sheet(f"{split} images, {how}, seed {config.seed}", given, classes, n)]
    if mixes:
        mixed = [_augmented(config, task, batch, step) for step, batch in zip(steps, given)]
        shown.append(_sheet("the same, as the task mixes them in its loss", mixed, classes, n))
    return shown


def _check_images(config, task, batch_size: int) -> None:
    image = task.batch_shapes(batch_size, 0).get("image")
    if image is None or image.dtype != np.uint8 or len(image.shape) != 4:
        raise UserError(
            f"look shows images, but task.name={config.task.name!r} with data.name="
            f"{config.data.name!r} has none. Give a config of images, such as "
            "configs/vit/digits.py."
        )


def _augmented(config, task, batch: dict, step: int) -> dict[str, np.ndarray]:
    """The batch as the loss of a training step changes it, in the order of the batch."""
    key, accumulate = step_key(config.seed, step), config.train.accumulate
    augment = jax.jit(task.augment)
    if accumulate == 1:
        return jax.device_get(augment(batch, key))
    micro = micro_batches(batch, accumulate)
    parts = [
        augment(jax.tree_util.tree_map(lambda x, i=i: x[i], micro), jax.random.fold_in(key, i))
        for i in range(accumulate)
    ]
    return {
        name: np.stack([jax.device_get(part[name]) for part in parts], 1).reshape(
            -1, *parts[0][name].shape[1:]
        )
        for name in ("image", "target", "example", "weights")
    }


def _sheet(title: str, batches: list[dict], classes, n: int) -> Sheet:
    real = [np.flatnonzero(batch["example"] >= 0) for batch in batches]
    images = np.concatenate([batch["image"][i] for batch, i in zip(batches, real)])[:n]
    labels = [_label(batch, i, classes) for batch, own in zip(batches, real) for i in own]
    return Sheet(title, images, list(itertools.islice(labels, n)))


def _label(batch: dict, i: int, classes: Any) -> str:
    """Of image i of a batch: its name, several names, or the shares of names."""
    if not batch["weights"][i]:
        return "cannot be read"
    if "target" in batch:
        shares = batch["target"][i]
        order = [j for j in np.argsort(-shares, kind="stable") if shares[j] >= _LEAST]
        return " + ".join(
            classes[j] if shares[j] > 1 - _LEAST else f"{shares[j]:.2f} {classes[j]}" for j in order
        )
    if "label" not in batch:
        return f"image {batch['example'][i]}"
    label = batch["label"][i]
    names = np.flatnonzero(label) if np.ndim(label) else [label]
    return ", ".join(classes[j] for j in names)
