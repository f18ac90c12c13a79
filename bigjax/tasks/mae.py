"""Masked autoencoding of images: the pixels of masked patches, from those that are visible
(https://arxiv.org/abs/2111.06377)."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from bigjax import modules
from bigjax.bounds import Range, at_least, check_ranges
from bigjax.data.store import SPLITS
from bigjax.errors import UserError
from bigjax.models import mae, vit
from bigjax.tasks import Task, data_module, init_and_axes
from bigjax.tasks._images import example_of, family_of_images, image_shapes


@dataclasses.dataclass(frozen=True)
class Config:
    mask_ratio: float = 0.75  # the share of patches that are masked
    standardise: bool = True  # pixels of each patch to mean 0 and variance 1 before the loss
    decoder_layers: int = 8
    decoder_width: int = 512
    decoder_heads: int = 16

    MAY_CHANGE = ("mask_ratio",)
    RANGES = {
        "mask_ratio": Range(0, 1, open_low=True, open_high=True),
        **dict.fromkeys(("decoder_layers", "decoder_width", "decoder_heads"), at_least(1)),
    }

    def __post_init__(self):
        check_ranges("task", self)
        if self.decoder_width % 4 or self.decoder_width % self.decoder_heads:
            raise UserError(
                f"task.decoder_width={self.decoder_width} has to be a multiple of 4 and of "
                f"task.decoder_heads={self.decoder_heads}."
            )


class Pictures(NamedTuple):
    """uint8 [B, H, W, channels]; masked patches are grey, or predicted."""

    image: jax.Array
    visible: jax.Array
    reconstruction: jax.Array


def build(config, options: Config) -> Task:
    """Batches: see data.images.batches; labels are not used. A run on labelled images continues
    from the encoder by config.init_from: its parameters have the names of model 'vit'."""
    source = data_module(config, "load_images", "images")
    data = modules.options(config, "data")
    family, c = family_of_images(config)
    if family is not vit:
        raise UserError(
            "config.task.name='mae' needs model.name='vit', which encodes some of the patches; "
            f"model.name is {config.model.name!r}."
        )
    if c.pooling == "map" or c.pre_logits:
        key = "pre_logits=0" if c.pre_logits else "pooling='class', 'class_mean' or 'mean'"
        raise UserError(
            "config.task.name='mae' does not train the layers between the encoder and a head: set "
            f"model.{key}."
        )
    decoder = dataclasses.replace(
        c,
        n_layers=options.decoder_layers,
        d_model=options.decoder_width,
        n_heads=options.decoder_heads,
        d_ff=0,
        registers=0,
        layer_scale=0.0,
        drop_path=0.0,
    )
    n_patches = c.grid**2
    n_visible = n_patches - round(n_patches * options.mask_ratio)
    if not 0 < n_visible < n_patches:
        raise UserError(
            f"task.mask_ratio={options.mask_ratio:g} of {n_patches} patches leaves {n_visible} "
            "visible: at least one has to be visible, and one masked. Set a smaller model.patch or "
            "another task.mask_ratio."
        )
    make = lambda c: mae.Autoencoder(c, dataclasses.replace(decoder, scan=c.scan), n_visible)
    model = make(c)
    init, axes = init_and_axes(make, c, example_of(c), jnp.zeros((1, n_patches)))

    def predict(params, extras, images, rng, train):
        noise = jax.random.uniform(rng, (len(images), n_patches))
        key = jax.random.fold_in(rng, 1) if train else None
        return model.apply({"params": params, **extras}, images, noise, rng=key)

    def loss(params, extras, frozen, batch, rng, train):
        del frozen
        images, weights = batch["image"], batch["weights"]
        pixels, masked = predict(params, extras, images, rng, train)
        wanted = mae.targets(images, c)
        if options.standardise:
            wanted, _, _ = mae.standardised(wanted)
        errors = ((pixels - wanted) ** 2).mean(-1)
        per_image = (errors * masked).sum(-1) / (n_patches - n_visible)
        return ((per_image * weights).sum(), weights.sum()), ({}, extras)

    def features(params, extras, frozen, batch):
        del frozen
        encoder = vit.Model(c, n_labels=0)
        own = {name: x for name, x in params.items() if name != "decoder"}
        return encoder.apply({"params": own, **extras}, batch["image"]).features

    def pictures(params, extras, frozen, batch):
        del frozen
        images = batch["image"]
        pixels, masked = predict(params, extras, images, jax.random.key(0), False)
        wanted, hidden = mae.targets(images, c), masked[..., None]
        if options.standardise:  # with the mean and deviation of the true patch
            _, mean, std = mae.standardised(wanted)
            pixels = pixels * std + mean
        visible, made = jnp.where(hidden, 0.0, wanted), jnp.where(hidden, pixels, wanted)
        return Pictures(images, mae.pictures(visible, c), mae.pictures(made, c))

    def load_data(log=print, tokenizer=None, splits=SPLITS):
        del tokenizer
        return source.load_images(data, labelled=False, log=log, names=splits)

    tokens = n_visible + c.n_extra, n_patches + (c.pooling in vit.WITH_CLASS)
    layers = vit.flops_of_layers(c, tokens[0]) + vit.flops_of_layers(decoder, tokens[1])
    return Task(
        init=init,
        axes=axes,
        model=model,
        model_config=c,
        loss=loss,
        load_data=load_data,
        batch_shapes=lambda batch_size, step: image_shapes(c, batch_size),
        features=features,
        pictures=pictures,
        unit="images",
        attention_lengths=dict(
            zip(("visible tokens per image", "tokens per image of the decoder"), tokens)
        ),
        flops_per_example=layers + vit.flops_of_patches(c),
    )
