"""One class for an image, or several."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from scipy import special

from bigjax import losses, modules
from bigjax.bounds import FINITE, FRACTION, at_least, check_ranges
from bigjax.data.images.kinds import OneLabel, SeveralLabels
from bigjax.data.store import SPLITS
from bigjax.errors import UserError
from bigjax.tasks import Task, add_sums, apply, data_module, init_and_axes
from bigjax.tasks._images import example_of, family_of_images, image_shapes, in_images

DATA = "images"  # of an imported model
_QUANTILES = 4097  # of a Beta distribution
ASSUMED = 1000  # classes in a plan, which does not read the data


@dataclasses.dataclass(frozen=True)
class Config:
    labels: tuple[str, ...] = ()  # () = those of the training data
    several: bool = False  # whether an image may have several, each with its own probability
    sigmoid: bool = False  # a probability for each label by itself, though an image has one
    head_bias: float = 0.0  # of the head's initial bias; with sigmoid and many labels such as -10
    label_smoothing: float = 0.0
    mixup: float = 0.0  # alpha of the Beta distribution of shares; 0 = off
    cutmix: float = 0.0  # the same; with both, each batch has one of them
    # NAME: weight in the training loss of a sum of the model's layers, such as a router's loss
    sum_weights: dict[str, float] = dataclasses.field(default_factory=dict)

    MAY_CHANGE = ("label_smoothing", "mixup", "cutmix", "sum_weights.*")
    RANGES = {
        "label_smoothing": FRACTION,
        "head_bias": FINITE,
        **dict.fromkeys(("mixup", "cutmix"), at_least(0)),
        "sum_weights": FINITE,
    }

    def __post_init__(self):
        check_ranges("task", self)
        if (self.several or self.sigmoid) and self.label_smoothing:
            raise UserError(
                "task.label_smoothing is for probabilities that sum to 1; task.several or "
                "task.sigmoid is set."
            )


def resolve(config, options: Config) -> dict:
    """The classes of the training data."""
    if options.labels:
        return {}
    module = data_module(config, "load_images", "images")
    return {"labels": module.classes(modules.options(config, "data"), options.several)}


def assume(config, options: Config) -> dict:
    """The classes of a plan, which reads no data."""
    del config
    return {} if options.labels else {"labels": tuple(f"LABEL_{i}" for i in range(ASSUMED))}


def build(config, options: Config) -> Task:
    """Batches: see data.images.batches."""
    source = data_module(config, "load_images", "images")
    data = modules.options(config, "data")
    family, c = family_of_images(config)
    n = len(options.labels)
    if n < 2:
        raise UserError(
            f"task.labels is {list(options.labels)}: classification needs at least two classes. Do "
            "the training data have only one?"
        )
    if len(set(options.labels)) < n:
        raise UserError("task.labels has a class twice.")
    model = family.Model(c, n_labels=n)
    drawn, axes = init_and_axes(lambda c: family.Model(c, n_labels=n), c, example_of(c))

    def init(rng):
        variables = drawn(rng)
        if options.head_bias:
            head = variables["params"]["head"]
            head["bias"] = jnp.full_like(head["bias"], options.head_bias)
        return variables

    def forward(params, extras, images, rng, train):
        return apply(model, params, extras, train, images, rng=rng if train else None)

    def outputs(params, extras, frozen, batch):
        del frozen
        return forward(params, extras, batch["image"], None, False)[0].logits

    def features(params, extras, frozen, batch):
        del frozen
        return forward(params, extras, batch["image"], None, False)[0].features

    def with_target(batch):
        label = batch["label"]
        return {**batch, "target": label if options.several else jax.nn.one_hot(label, n)}

    def augment(batch, rng):
        images, targets, weights = (with_target(batch)[k] for k in ("image", "target", "weights"))
        _, key = jax.random.split(rng)  # the other one is the model's
        images, targets = mix(images, targets, weights, key, options.mixup, options.cutmix)
        return {**batch, "image": images, "target": targets}

    mixes = bool(options.mixup or options.cutmix)

    def loss(params, extras, frozen, batch, rng, train):
        del frozen
        if train and mixes:
            batch, (rng, _) = augment(batch, rng), jax.random.split(rng)
        else:
            batch = with_target(batch)
        targets, weights = batch["target"], batch["weights"]
        out, extras = forward(params, extras, batch["image"], rng, train)
        smoothing = options.label_smoothing if train else 0.0
        if options.several or options.sigmoid:
            total = losses.sigmoid_cross_entropy(out.logits, targets, weights)
        else:
            targets = targets * (1 - smoothing) + smoothing / n
            total = losses.soft_cross_entropy(out.logits, targets, weights)
        metrics = {}
        if not options.several:
            metrics = {"accuracy": losses.accuracy(out.logits, batch["label"], weights)}
            if n > 5:
                metrics["top5"] = losses.top_k(out.logits, batch["label"], weights, 5)
        total, layer_metrics = add_sums(total, options.sum_weights, out.sums, train)
        return total, ({**layer_metrics, **metrics}, extras)

    def load_data(log=print, tokenizer=None, splits=SPLITS):
        del tokenizer
        loaded = source.load_images(
            data, options.labels, several=options.several, log=log, names=splits
        )
        if options.several and any(part.labels.ndim == 1 for part in loaded.parts.values()):
            raise UserError(
                f"task.several is set, but the images of data.train={data.train!r} have one label "
                "each. Give a table with several, such as `cat|dog`, or set task.sigmoid instead."
            )
        return loaded

    def load_input(spec, log, tokenizer):
        del tokenizer
        return source.load_input(spec, data, options.labels, config.train.batch_size, log)

    def batch_shapes(batch_size, step):
        del step
        label = ((batch_size, n), np.float32) if options.several else ((batch_size,), np.int32)
        return {**image_shapes(c, batch_size), "label": jax.ShapeDtypeStruct(*label)}

    return Task(
        init=init,
        axes=axes,
        model=model,
        model_config=c,
        loss=loss,
        load_data=load_data,
        load_input=load_input,
        batch_shapes=batch_shapes,
        kind=(SeveralLabels if options.several else OneLabel)(options.labels),
        outputs=outputs,
        features=features,
        augment=augment if mixes else None,
        **in_images(c),
        flops_per_example=family.flops_per_image(c) if hasattr(family, "flops_per_image") else 0.0,
        label_head="head",
    )


def mix(
    images: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
    key: jax.Array,
    mixup: float,
    cutmix: float,
) -> tuple[jax.Array, jax.Array]:
    """(images, targets) in which each image is mixed with the one before it in the batch.

    images [B, H, W, C]; targets float32 [B, n]. mixup (https://arxiv.org/abs/1710.09412): a share
    of the other one's values; cutmix (https://arxiv.org/abs/1905.04899): a rectangle of it. An
    image of weight 0 is not mixed into another.
    """
    kind, share, place = jax.random.split(key, 3)
    B, H, W = images.shape[:3]
    other, its_targets = jnp.roll(images, 1, 0), jnp.roll(targets, 1, 0)
    real = (jnp.roll(weights, 1) > 0).astype(jnp.float32)
    use_cut = jax.random.bernoulli(kind) if mixup and cutmix else bool(cutmix)
    cut = mixed = jnp.zeros(B)
    inside = jnp.zeros((B, H, W))
    if mixup:
        mixed = symmetric_beta(share, mixup, B)
        mixed = jnp.minimum(mixed, 1 - mixed) * real
    if cutmix:
        inside = rectangles(symmetric_beta(share, cutmix, B), place, H, W)
        inside = inside * real[:, None, None]
        cut = inside.mean((1, 2))
    part = jnp.where(use_cut, cut, mixed)
    by_pixel = jnp.where(use_cut, inside, mixed[:, None, None])[..., None]
    images = images.astype(jnp.float32) * (1 - by_pixel) + other.astype(jnp.float32) * by_pixel
    return images, targets * (1 - part[:, None]) + its_targets * part[:, None]


def symmetric_beta(key: jax.Array, alpha: float, n: int) -> jax.Array:
    """float32 [n] from Beta(alpha, alpha), by linear interpolation of its quantiles.

    jax.random.beta rejects samples in a loop, whose length a plan cannot know.
    """
    at = np.linspace(0, 1, _QUANTILES)
    quantiles = special.betaincinv(alpha, alpha, at).astype(np.float32)
    return jnp.interp(jax.random.uniform(key, (n,)), at.astype(np.float32), quantiles)


def rectangles(kept: jax.Array, key: jax.Array, H: int, W: int) -> jax.Array:
    """float32 [B, H, W], 1 in a rectangle of each image that leaves about `kept` [B] of its area,
    with the shape of the image and a random middle; a part beyond the border is cut off."""
    side = jnp.sqrt(1 - kept)
    middle = jax.random.uniform(key, (2, len(kept)))

    def within(n, middle):
        low = jnp.round(n * (middle - side / 2))
        high = jnp.round(n * (middle + side / 2))
        i = jnp.arange(n)
        return ((i >= low[:, None]) & (i < high[:, None])).astype(jnp.float32)

    return within(H, middle[0])[:, :, None] * within(W, middle[1])[:, None, :]
