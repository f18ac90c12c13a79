"""Plain convolutional networks: AlexNet in its form for one device
(https://arxiv.org/abs/1404.5997) and VGG (https://arxiv.org/abs/1409.1556)."""

from collections.abc import Iterator
import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from bigjax.bounds import FINITE, FRACTION, POSITIVE, SHARE, at_least, check_ranges
from bigjax.errors import UserError
from bigjax.layers.basic import Dense, dropout
from bigjax.layers.vision import BatchNorm, Conv2D, max_pool
from bigjax.models import ImageOutput, check_fields
from bigjax.models.images import IMAGENET, check_pixels, head, normalised

POOL = 0  # in Config.filters: the largest of each window


@dataclasses.dataclass(frozen=True)
class Config:
    image_size: int = 224  # height and width; data.size has to be equal
    channels: int = 3
    filters: tuple[int, ...] = (64, 0, 128, 0, 256, 256, 0, 512, 512, 0, 512, 512, 0)  # of each
    # convolution, in order; 0 = pooling
    sizes: tuple[int, ...] = ()  # of the filters of each convolution; () = 3
    stride: int = 1  # of the first convolution; the others have 1
    padding: int = 1  # of the first convolution; the others keep height and width
    pool: int = 2  # window of the pooling, whose stride is 2
    hidden: tuple[int, ...] = (4096, 4096)  # widths of the dense layers before the head
    norm: str = "none"  # none, batchnorm
    momentum: float = 0.9  # of batchnorm's moving statistics
    norm_eps: float = 1e-5
    dropout: float = 0.5  # of the inputs of the dense layers
    mean: tuple[float, ...] = IMAGENET.mean  # of values of 0 to 1, for each channel or for all
    std: tuple[float, ...] = IMAGENET.std
    dtype: str = "float32"  # of the computation: float32, bfloat16
    param_dtype: str = "float32"  # of imported, loaded and exported weights; training uses float32
    remat: str = "none"  # none, full: convolutions are recomputed for the backward pass

    MAY_CHANGE = ("dropout", "dtype", "param_dtype", "remat")
    RANGES = {
        **dict.fromkeys(
            ("image_size", "channels", "stride", "hidden", "pool", "sizes"), at_least(1)
        ),
        **dict.fromkeys(("filters", "padding"), at_least(0)),
        "momentum": SHARE,
        "mean": FINITE,
        **dict.fromkeys(("norm_eps", "std"), POSITIVE),
        "dropout": FRACTION,
    }

    def __post_init__(self):
        check_ranges("model", self)
        check_pixels(self)
        check_fields(self, {"norm": ("none", "batchnorm"), "remat": ("none", "full")})
        n = sum(f != POOL for f in self.filters)
        if not n or self.filters[0] == POOL:
            raise UserError(
                f"model.filters={self.filters} has to begin with a convolution's number of filters."
            )
        if self.sizes and len(self.sizes) != n:
            raise UserError(
                f"model.sizes has {len(self.sizes)} entries, but model.filters {n} convolutions: "
                "give a size for each, or () for 3."
            )
        if min(side for *_, side in layers(self)) < 1:
            raise UserError(
                f"model.image_size={self.image_size} is too small for the {len(self.filters)} "
                "layers of model.filters, which leave nothing of it: remove poolings (0), or use "
                "larger images."
            )


def layers(c: Config) -> Iterator[tuple[int, int, int, int, int]]:
    """(filters or POOL, size, stride, padding, height and width of the result) of each layer."""
    sizes, side, first = iter(c.sizes), c.image_size, True
    for features in c.filters:
        if features == POOL:
            layer = POOL, c.pool, 2, 0
        else:
            size = next(sizes, 3)
            layer = features, size, *((c.stride, c.padding) if first else (1, size // 2))
            first = False
        _, size, stride, padding = layer
        side = (side + 2 * padding - size) // stride + 1
        yield *layer, side


class Model(nn.Module):
    """Images to logits of n_labels classes, or without a head to features (n_labels=0)."""

    config: Config
    n_labels: int = 1000

    @nn.compact
    def __call__(self, images_BHWC: jax.Array, *, rng: jax.Array | None = None) -> ImageOutput:
        """images: uint8, or floats of 0 to 255, [B, image_size, image_size, channels]. rng: for
        dropout; None turns it off. Raises UserError for another size."""
        c = self.config
        x, i = normalised(images_BHWC, c), 0
        conv = nn.remat(Conv2D, prevent_cse=True) if c.remat == "full" else Conv2D
        for features, size, stride, padding, _ in layers(c):
            if features == POOL:
                x = max_pool(x, size, stride, 0, 0.0)
                continue
            i += 1
            options = dict(padding=padding, use_bias=True, dtype=c.dtype)
            x = conv(features, size, stride, **options, name=f"conv_{i}")(x)
            if c.norm == "batchnorm":
                x = BatchNorm(c.momentum, c.norm_eps, dtype=c.dtype, name=f"norm_{i}")(x)
            x = nn.relu(x)
        grid, y = x, x.reshape(len(x), -1)
        for j, width in enumerate(c.hidden):
            key = None if rng is None else jax.random.fold_in(rng, j)
            std = (2 / y.shape[-1]) ** 0.5
            options = dict(init_std=std, dtype=c.dtype, name=f"hidden_{j + 1}")
            dense = Dense((width,), ("embed",), ("mlp",), **options)
            y = nn.relu(dense(dropout(y, c.dropout, key)))
        features = y.astype(jnp.float32)
        return ImageOutput(head(features, self.n_labels, 0.01, c.dtype), features, grid)


def flops_per_image(c: Config) -> float:
    """Of the convolutions and hidden layers in training on one image, forward and backward: 6 per
    weight and place; 4 for the first convolution, since images have no gradient."""
    costs, inputs, side = [], c.channels, c.image_size
    for features, size, *_, side in layers(c):
        if features != POOL:
            costs.append(size**2 * inputs * features * side**2)
            inputs = features
    widths = side**2 * inputs, *c.hidden
    dense = sum(a * b for a, b in zip(widths, c.hidden))
    return 6.0 * (sum(costs) + dense) - 2.0 * costs[0]


def _vgg(*stages: int) -> tuple[int, ...]:
    """filters of stages of this many convolutions."""
    out: list[int] = []
    for n, width in zip(stages, (64, 128, 256, 512, 512)):
        out += [width] * n + [POOL]
    return tuple(out)


_VGG = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
PRESETS = {
    "alexnet": dict(
        filters=(64, 0, 192, 0, 384, 256, 256, 0),
        sizes=(11, 5, 3, 3, 3),
        stride=4,
        padding=2,
        pool=3,
    ),
    **{f"vgg{n}": dict(filters=_vgg(*stages)) for n, stages in _VGG.items()},
    **{f"vgg{n}-bn": dict(filters=_vgg(*stages), norm="batchnorm") for n, stages in _VGG.items()},
}
