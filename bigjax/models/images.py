"""What the models of images share: pixels as their inputs."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bigjax.errors import UserError


class Pixels(NamedTuple):
    """mean and standard deviation of values of 0 to 1, one for all channels or one for each."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


PIXELS = Pixels((0.5,), (0.5,))  # values of -1 to 1, as ViT, BiT, SigLIP
IMAGENET = Pixels((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # of its training images


def normalised(images_BHWC: jax.Array, c: Any) -> jax.Array:
    """Images of 0 to 255 as a model reads them: minus c.mean, over c.std, in c.dtype.

    c: a model's Config. Raises UserError unless images are [B, image_size, image_size, channels].
    """
    want = c.image_size, c.image_size, c.channels
    if images_BHWC.shape[1:] != want:
        raise UserError(
            f"The images are {list(images_BHWC.shape[1:])} [height, width, channels], but the "
            f"model is for {list(want)}: set data.size and data.channels to model.image_size and "
            "model.channels."
        )
    mean, std = (jnp.asarray(x, jnp.float32) for x in (c.mean, c.std))
    return ((images_BHWC.astype(jnp.float32) / 255 - mean) / std).astype(c.dtype)
