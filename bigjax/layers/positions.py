"""Positions without a table of parameters: relative ones (https://arxiv.org/abs/1910.10683), and
sinusoids (https://arxiv.org/abs/1706.03762)."""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from bigjax.layers.params import weight


@functools.cache
def sinusoids(n: int, d: int, halves: bool = False, inclusive: bool = False) -> np.ndarray:
    """float32 [n, d]: sines and cosines of n positions with d / 2 wavelengths from 2 pi to 10000 *
    2 pi. They alternate as in the paper, or with `halves` all sines come first. The last wavelength
    is shorter than 10000 * 2 pi as in the paper, or with `inclusive` equal to it, as in Whisper
    (https://arxiv.org/abs/2212.04356) and, for each axis of an image, in MoCo v3."""
    steps = (d // 2 - 1 or 1) if inclusive else d / 2
    frequency = 10000.0 ** (-np.arange(d // 2) / steps)
    angle = np.arange(n)[:, None] * frequency
    pair = np.sin(angle), np.cos(angle)
    table = np.concatenate(pair, 1) if halves else np.stack(pair, 2).reshape(n, d)
    return table.astype(np.float32)


@functools.cache
def buckets(n: int, distance: int, bidirectional: bool) -> np.ndarray:
    """The bucket of each relative position, key minus query, from -distance to distance: int32
    [2 * distance + 1]. Those beyond belong to the same bucket as the last.

    Half of the buckets (of n, or with bidirectional of n / 2 for each sign) hold one distance each,
    the others grow logarithmically up to `distance`. Without bidirectional, all later keys are in
    bucket 0. In float32, as published: some distances would be in another bucket in float64.
    """
    position = np.arange(-distance, distance + 1)
    first = np.zeros_like(position)
    if bidirectional:
        n //= 2
        first = (position > 0) * n
        apart = np.abs(position)
    else:
        apart = np.maximum(-position, 0)
    exact = n // 2
    with np.errstate(divide="ignore"):
        far = np.log(apart.astype(np.float32) / np.float32(exact))
    far = far / np.float32(math.log(distance / exact)) * np.float32(n - exact)
    far = np.minimum(exact + np.maximum(far, 0).astype(np.int32), n - 1)
    return (first + np.where(apart < exact, apart, far)).astype(np.int32)


class RelativeBias(nn.Module):
    """A number for each head and bucket of the distance between query and key."""

    n_heads: int
    n_buckets: int = 32
    distance: int = 128
    bidirectional: bool = True
    init_std: float = 0.02

    @nn.compact
    def __call__(self, queries: jax.Array, S: int) -> jax.Array:
        """float32 [1 or B, H, T, S]: for queries at positions [T] or [B, T], and S keys from 0."""
        init, shape = nn.initializers.normal(self.init_std), (self.n_buckets, self.n_heads)
        table = weight(self, "embedding", init, shape, (None, "heads"), "float32")
        apart = jnp.arange(S) - queries[..., None]
        apart = jnp.clip(apart, -self.distance, self.distance) + self.distance
        bucket = jnp.asarray(buckets(self.n_buckets, self.distance, self.bidirectional))[apart]
        # A product with one-hot rows: its gradient is a product too, not a sum by index.
        one_hot = jax.nn.one_hot(bucket, self.n_buckets)
        bias = jnp.einsum("...tsn,nh->...hts", one_hot, table, precision="highest")
        return bias if bias.ndim == 4 else bias[None]
