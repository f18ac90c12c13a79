"""Convolutions over the tokens of a text, or the frames of audio."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from bigjax.errors import UserError
from bigjax.layers.basic import Dense


class Conv(nn.Module):
    """`features` filters over windows of `width` tokens, every `stride` tokens.

    padding: zeros before the first and after the last token, by default none. The parameters are
    those of a Dense over windows as of `windows`: kernel [width * D, features], bias [features].
    This is up to twice as fast as a convolution on a CPU, and an interceptor of Dense sees it.
    axis: of the kernel's rows; 'filters' where they may not divide over the devices.
    """

    features: int
    width: int
    use_bias: bool = True
    init_std: float = 0.02
    dtype: str = "float32"
    stride: int = 1
    padding: int = 0
    axis: str = "embed"

    @nn.compact
    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        """[B, (T + 2 * padding - width) // stride + 1, features]."""
        options = dict(use_bias=self.use_bias, init_std=self.init_std, dtype=self.dtype)
        filters = Dense((self.features,), (self.axis,), (None,), **options, name="filters")
        nn.share_scope(self, filters)
        x = windows(x_BTD, self.width, self.stride, self.padding)
        # As one matrix: with two dimensions of rows a CPU transposes the gradient of the kernel.
        y = filters(x.reshape(-1, x.shape[-1]))
        return y.reshape(*x.shape[:-1], self.features)


def windows(x_BTD: jax.Array, width: int, stride: int = 1, padding: int = 0) -> jax.Array:
    """[B, (T + 2 * padding - width) // stride + 1, width * D]: `width` consecutive tokens as one
    vector, every `stride` tokens of x with `padding` zeros on both sides.
    Raises UserError for fewer tokens than width."""
    T = x_BTD.shape[1]
    if T + 2 * padding < width:
        raise UserError(
            f"A convolution over {width} tokens at a time got a text of only {T}: pad it to at "
            f"least {width - 2 * padding}, or use a smaller width."
        )
    x_BTD = jnp.pad(x_BTD, ((0, 0), (padding, padding), (0, 0)))
    last = T + 2 * padding - width + 1
    # Slices: the gradient of a gather would be a scatter, which is slow on a TPU.
    return jnp.concatenate([x_BTD[:, i : i + last : stride] for i in range(width)], axis=-1)
