"""Convolutions over images, and the norms between them."""

import contextlib
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from bigjax.layers.params import param, weight
from bigjax.layers.product import product
from bigjax.parallel.sharding import constrain


class Conv2D(nn.Module):
    """`features` filters of size x size pixels, with zeros around the image.

    kernel: [size, size, C, features]. standardised: each filter has mean 0 and variance 1
    (https://arxiv.org/abs/1903.10520); eps: added to its variance. padding: on every side, by
    default size // 2; XLA's "SAME" pads an even image with stride 2 on one side only.
    """

    features: int
    size: int = 3
    stride: int = 1
    padding: int | None = None
    use_bias: bool = False
    standardised: bool = False
    eps: float = 1e-8
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        shape = self.size, self.size, x_BHWC.shape[-1], self.features
        init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")  # He et al.
        axes = None, None, None, "filters"
        kernel = weight(self, "kernel", init, shape, axes, "float32")
        if self.standardised:
            kernel = standardised(kernel, self.eps)
        x, kernel = x_BHWC.astype(self.dtype), kernel.astype(self.dtype)
        if self.size == 1:  # a product of matrices, which a CPU computes several times as fast
            y = product(x[:, :: self.stride, :: self.stride], kernel[0, 0], 1, self.dtype)
        else:
            around = (self.size // 2 if self.padding is None else self.padding,) * 2
            y = jax.lax.conv_general_dilated(
                x,
                kernel,
                (self.stride,) * 2,
                (around, around),
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
            )
        if self.use_bias:
            bias = param(self, "bias", nn.initializers.zeros, (self.features,), ("norm",))
            y = (y.astype(jnp.float32) + bias).astype(y.dtype)
        return constrain(y, "batch", None, None, None)


def standardised(kernel: jax.Array, eps: float) -> jax.Array:
    """A kernel [..., features] whose filters have mean 0 and variance 1."""
    axes = tuple(range(kernel.ndim - 1))
    mean, variance = kernel.mean(axes, keepdims=True), kernel.var(axes, keepdims=True)
    return (kernel - mean) * jax.lax.rsqrt(variance + eps)


class BatchNorm(nn.Module):
    """Normalised over the batch and the places (https://arxiv.org/abs/1502.03167).

    In training by the statistics of the batch, over all devices, of which the collection
    `batch_stats` keeps a moving average: mean, and the unbiased variance, as PyTorch. Otherwise,
    where that collection is not mutable, by the average, and if `fixed`, see `fixed_statistics`.
    momentum: of the average; PyTorch's 0.1 is 0.9 here.
    """

    momentum: float = 0.9
    eps: float = 1e-5
    zero_scale: bool = False  # the scale begins at 0: a residual branch adds nothing at first
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array, fixed: bool = False) -> jax.Array:
        d = (x.shape[-1],)
        mean = self.variable("batch_stats", "mean", jnp.zeros, d)
        var = self.variable("batch_stats", "var", jnp.ones, d)
        y = x.astype(jnp.float32)
        training = self.is_mutable_collection("batch_stats") and not self.is_initializing()
        if training and not fixed:
            axes, n = tuple(range(x.ndim - 1)), x.size // d[0]
            m, v = y.mean(axes), y.var(axes)
            keep = self.momentum
            mean.value = keep * mean.value + (1 - keep) * jax.lax.stop_gradient(m)
            unbiased = jax.lax.stop_gradient(v) * (n / max(1, n - 1))
            var.value = keep * var.value + (1 - keep) * unbiased
        else:
            m, v = mean.value, var.value
        init = nn.initializers.zeros if self.zero_scale else nn.initializers.ones
        scale = param(self, "scale", init, d, ("norm",))
        bias = param(self, "bias", nn.initializers.zeros, d, ("norm",))
        return ((y - m) * (jax.lax.rsqrt(v + self.eps) * scale) + bias).astype(self.dtype)


def fixed_statistics(trained: Any) -> contextlib.AbstractContextManager:
    """A context in which a BatchNorm without a trained parameter normalises by its moving average,
    and keeps it, in training too.

    Otherwise a frozen layer would still change with the data: in its statistics, and by
    normalising with those of each batch. trained: a tree of bools, or True; a BatchNorm whose path
    it does not have counts as trained.
    """
    if all(jax.tree_util.tree_leaves(trained)):
        return contextlib.nullcontext()

    def intercept(next_call, args, kwargs, context):
        module = context.module
        if not isinstance(module, BatchNorm) or context.method_name != "__call__":
            return next_call(*args, **kwargs)
        its = trained
        for name in module.path:
            its = its.get(name, True) if isinstance(its, dict) else True
        fixed = kwargs.get("fixed", False) or not any(jax.tree_util.tree_leaves(its))
        return next_call(*args, **{**kwargs, "fixed": fixed})

    return nn.intercept_methods(intercept)


class GroupNorm(nn.Module):
    """Normalised over the places and the channels of a group, of each image
    (https://arxiv.org/abs/1803.08494)."""

    groups: int = 32
    eps: float = 1e-5
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        B, H, W, C = x_BHWC.shape
        y = x_BHWC.astype(jnp.float32).reshape(B, H * W, self.groups, C // self.groups)
        mean = y.mean((1, 3), keepdims=True)
        variance = jnp.square(y - mean).mean((1, 3), keepdims=True)
        y = ((y - mean) * jax.lax.rsqrt(variance + self.eps)).reshape(x_BHWC.shape)
        scale = param(self, "scale", nn.initializers.ones, (C,), ("norm",))
        bias = param(self, "bias", nn.initializers.zeros, (C,), ("norm",))
        return (y * scale + bias).astype(self.dtype)


def max_pool(x_BHWC: jax.Array, size: int, stride: int, padding: int, fill: float) -> jax.Array:
    """The largest of each window; fill: of the padding (0 in BiT, -inf in ResNet)."""
    around = ((0, 0), (padding, padding), (padding, padding), (0, 0))
    x = jnp.pad(x_BHWC, around, constant_values=fill) if padding else x_BHWC
    return nn.max_pool(x, (size, size), (stride, stride))
