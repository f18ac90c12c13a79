"""Residual networks: ResNet (https://arxiv.org/abs/1512.03385) and BiT, which has pre-activation
units, group normalisation and standardised weights (https://arxiv.org/abs/1912.11370)."""

from collections.abc import Iterator
import dataclasses
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from bigjax.bounds import FINITE, POSITIVE, SHARE, at_least, check_ranges
from bigjax.errors import UserError
from bigjax.interop import resnet as hugging_face
from bigjax.layers.vision import BatchNorm, Conv2D, GroupNorm, max_pool
from bigjax.models import ImageOutput, check_fields
from bigjax.models.images import IMAGENET, PIXELS, check_pixels, head, normalised

HUGGING_FACE = (hugging_face.FAMILY, hugging_face.BIT)
WIDER = 4  # outputs of a bottleneck unit, relative to its inner width


@dataclasses.dataclass(frozen=True)
class Config:
    image_size: int = 224  # height and width; data.size has to be equal
    channels: int = 3
    units: tuple[int, ...] = (3, 4, 6, 3)  # of each stage, which halves the size but the first
    width: int = 64  # of the first stage; each stage doubles it
    bottleneck: bool = True  # units of 1x1, 3x3, 1x1, else of two 3x3
    preactivation: bool = False  # norm and ReLU before each convolution (v2)
    norm: str = "batchnorm"  # batchnorm, groupnorm
    groups: int = 32  # of groupnorm
    momentum: float = 0.9  # of batchnorm's moving statistics
    norm_eps: float = 1e-5
    standardised: bool = False  # filters have mean 0 and variance 1
    stem: str = "large"  # large (7x7 with stride 2, then pooled), small (3x3: images of 8 to 64)
    mean: tuple[float, ...] = IMAGENET.mean  # of values of 0 to 1, for each channel or for all
    std: tuple[float, ...] = IMAGENET.std
    dtype: str = "float32"  # of the computation: float32, bfloat16
    param_dtype: str = "float32"  # of imported, loaded and exported weights; training uses float32
    remat: str = "none"  # none, full: units are recomputed for the backward pass

    MAY_CHANGE = ("remat", "dtype", "param_dtype")
    RANGES = {
        **dict.fromkeys(("image_size", "channels", "units", "width", "groups"), at_least(1)),
        "momentum": SHARE,
        "mean": FINITE,
        **dict.fromkeys(("norm_eps", "std"), POSITIVE),
    }

    def __post_init__(self):
        check_ranges("model", self)
        check_pixels(self)
        check_fields(
            self,
            {
                "norm": ("batchnorm", "groupnorm"),
                "stem": ("large", "small"),
                "remat": ("none", "full"),
            },
        )
        if not self.units:
            raise UserError("model.units is empty: it has the number of units of each stage.")
        if self.norm == "groupnorm" and self.width % self.groups:
            raise UserError(
                f"model.width={self.width} is not a multiple of model.groups={self.groups}."
            )


class _Stage(NamedTuple):
    """inner: width of its units. out: of their results. stride: of the first unit."""

    units: int
    inner: int
    out: int
    stride: int


def stages(c: Config) -> list[_Stage]:
    wider = WIDER if c.bottleneck else 1
    return [
        _Stage(n, c.width << i, (c.width << i) * wider, 1 if i == 0 else 2)
        for i, n in enumerate(c.units)
    ]


def _norm(c: Config, name: str, zero_scale: bool = False) -> nn.Module:
    if c.norm == "groupnorm":
        return GroupNorm(c.groups, c.norm_eps, dtype=c.dtype, name=name)
    return BatchNorm(c.momentum, c.norm_eps, zero_scale, dtype=c.dtype, name=name)


def _conv(c: Config, features: int, size: int, stride: int, name: str) -> nn.Module:
    return Conv2D(features, size, stride, standardised=c.standardised, dtype=c.dtype, name=name)


class Unit(nn.Module):
    """Convolutions and a shortcut, which is a convolution too where the shape changes."""

    config: Config
    stage: _Stage
    stride: int

    @nn.compact
    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        c, (_, inner, out, _) = self.config, self.stage
        convolutions = (
            [(inner, 1), (inner, 3), (out, 1)] if c.bottleneck else [(inner, 3), (out, 3)]
        )
        strided = 1 if c.bottleneck else 0  # the convolution that has the stride: the first 3x3
        last = len(convolutions) - 1
        y, shortcut = x_BHWC, x_BHWC
        if c.preactivation:
            y = nn.relu(_norm(c, "norm_1")(y))
        if self.stride > 1 or x_BHWC.shape[-1] != out:
            source = y if c.preactivation else x_BHWC
            shortcut = _conv(c, out, 1, self.stride, "shortcut")(source)
            if not c.preactivation:
                shortcut = _norm(c, "shortcut_norm")(shortcut)
        for i, (features, size) in enumerate(convolutions):
            if c.preactivation and i:
                y = nn.relu(_norm(c, f"norm_{i + 1}")(y))
            y = _conv(c, features, size, self.stride if i == strided else 1, f"conv_{i + 1}")(y)
            if not c.preactivation:
                y = _norm(c, f"norm_{i + 1}", zero_scale=i == last)(y)
                y = nn.relu(y) if i < last else y
        return y + shortcut if c.preactivation else nn.relu(y + shortcut)


class Model(nn.Module):
    """Images to logits of n_labels classes, or without a head to features (n_labels=0)."""

    config: Config
    n_labels: int = 1000

    @nn.compact
    def __call__(self, images_BHWC: jax.Array, *, rng: jax.Array | None = None) -> ImageOutput:
        """images: uint8, or floats of 0 to 255, [B, image_size, image_size, channels]. rng: not
        used. Raises UserError for another size."""
        del rng
        c = self.config
        x = normalised(images_BHWC, c)
        size, stride = (7, 2) if c.stem == "large" else (3, 1)
        x = _conv(c, c.width, size, stride, "stem")(x)
        if not c.preactivation:
            x = nn.relu(_norm(c, "stem_norm")(x))
        if c.stem == "large":
            x = max_pool(x, 3, 2, 1, 0.0)  # after a ReLU zeros are as good as -inf
        unit = nn.remat(Unit, prevent_cse=True) if c.remat == "full" else Unit
        for i, stage in enumerate(stages(c)):
            for j in range(stage.units):
                strided = stage.stride if j == 0 else 1
                x = unit(c, stage, strided, name=f"stage_{i + 1}_unit_{j + 1}")(x)
        if c.preactivation:
            x = nn.relu(_norm(c, "norm")(x))
        features = x.astype(jnp.float32).mean((1, 2))
        std = 0.0 if c.preactivation else 0.01  # BiT; https://arxiv.org/abs/1706.02677
        return ImageOutput(head(features, self.n_labels, std, c.dtype), features, x)


def _convolutions(c: Config) -> Iterator[tuple[int, int, int, int]]:
    """(size, inputs, outputs, height and width of the result) of each convolution."""
    side = c.image_size
    if c.stem == "large":
        side = -(-side // 2)
        yield 7, c.channels, c.width, side
        side = -(-side // 2)
    else:
        yield 3, c.channels, c.width, side
    inputs = c.width
    for stage in stages(c):
        for j in range(stage.units):
            stride = stage.stride if j == 0 else 1
            after = -(-side // stride)
            if stride > 1 or inputs != stage.out:
                yield 1, inputs, stage.out, after
            if c.bottleneck:
                yield 1, inputs, stage.inner, side
                yield 3, stage.inner, stage.inner, after
                yield 1, stage.inner, stage.out, after
            else:
                yield 3, inputs, stage.inner, after
                yield 3, stage.inner, stage.out, after
            inputs, side = stage.out, after


def flops_per_image(c: Config) -> float:
    """Of the convolutions in training on one image, forward and backward: 6 per weight and place;
    4 for the first convolution, since images have no gradient."""
    costs = [n * n * a * b * side**2 for n, a, b, side in _convolutions(c)]
    return 6.0 * sum(costs) - 2.0 * costs[0]


def _resnet(units, bottleneck):
    return dict(units=units, bottleneck=bottleneck)


def _bit(units, factor):
    return dict(
        units=units,
        width=64 * factor,
        preactivation=True,
        norm="groupnorm",
        standardised=True,
        mean=PIXELS.mean,
        std=PIXELS.std,
    )


_UNITS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
PRESETS = {
    "18": _resnet((2, 2, 2, 2), False),
    "34": _resnet((3, 4, 6, 3), False),
    **{f"{n}": _resnet(units, True) for n, units in _UNITS.items()},
    **{
        f"bit-r{n}x{factor}": _bit(_UNITS[n], factor)
        for n, factor in ((50, 1), (50, 3), (101, 1), (101, 3), (152, 2), (152, 4))
    },
}
