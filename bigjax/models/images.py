"""What the models of images share: pixels as their inputs."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bigjax.errors import UserError
from bigjax.layers.basic import Dense


class Pixels(NamedTuple):
    """mean and standard deviation of values of 0 to 1, one for all channels or one for each."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


PIXELS = Pixels((0.5,), (0.5,))  # values of -1 to 1, as ViT, BiT, SigLIP
IMAGENET = Pixels((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # of its training images


def check_pixels(c: Any) -> None:
    """Raises UserError unless c.mean and c.std have a number for each channel, or one for all."""
    for field in ("mean", "std"):
        n = len(getattr(c, field))
        if n not in (1, c.channels):
            raise UserError(
                f"model.{field} has {n} numbers, but model.channels is {c.channels}: give one for "
                f"each channel, or one for all, such as model.{field}=(0.5,)."
            )


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


def head(features: jax.Array, n_labels: int, init_std: float, dtype: str) -> jax.Array | None:
    """float32 logits [B, n_labels] by the layer `head` of the module that calls it, None without
    labels. features: [B, D]."""
    if not n_labels:
        return None
    options = dict(init_std=init_std, dtype=dtype, out_dtype="float32", name="head")
    return Dense((n_labels,), ("embed",), (None,), **options)(features)


def resized_grid(values: np.ndarray, before: int, after: int) -> np.ndarray:
    """Values [before * before, D] of a square grid, row by row, for a grid [after * after, D].

    Bicubic, as torch's interpolate(mode="bicubic", align_corners=False), by which transformers
    resizes the positions of a ViT and a DINOv2; without antialiasing.
    """
    rows = _bicubic(before, after)
    grid = np.asarray(values, np.float64).reshape(before, before, -1)
    out = np.einsum("ab,cd,bdD->acD", rows, rows, grid, optimize=True)
    return out.reshape(after * after, -1).astype(np.float32)


def _bicubic(before: int, after: int) -> np.ndarray:
    """float64 [after, before]: the weights of the numbers of a line in the resized one.

    Cubic convolution with a = -0.75 (Keys, 1981); beyond its ends a line keeps its last number.
    """
    place = (np.arange(after) + 0.5) * before / after - 0.5
    first = np.floor(place).astype(int) - 1
    weights = np.zeros((after, before))
    for k in range(4):
        i = first + k
        d = np.abs(place - i)
        near = 1.25 * d**3 - 2.25 * d**2 + 1
        far = -0.75 * (d**3 - 5 * d**2 + 8 * d - 4)
        np.add.at(weights, (np.arange(after), i.clip(0, before - 1)), np.where(d <= 1, near, far))
    return weights
