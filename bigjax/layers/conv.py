"""Convolutions over the tokens of a text."""

import flax.linen as nn
import jax
import numpy as np

from bigjax.errors import UserError
from bigjax.layers.basic import Dense


class Conv(nn.Module):
    """`features` filters over windows of `width` tokens, without padding.

    Its parameters are those of a Dense over windows as of `windows`: kernel [width * D, features],
    bias [features]. This is twice as fast as a convolution on a CPU, and an interceptor of Dense
    sees it.
    """

    features: int
    width: int
    use_bias: bool = True
    init_std: float = 0.02
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        """[B, T - width + 1, features]."""
        options = dict(use_bias=self.use_bias, init_std=self.init_std, dtype=self.dtype)
        filters = Dense((self.features,), ("embed",), (None,), **options, name="filters")
        nn.share_scope(self, filters)
        x = windows(x_BTD, self.width)
        # As one matrix: with two dimensions of rows a CPU transposes the gradient of the kernel.
        y = filters(x.reshape(-1, x.shape[-1]))
        return y.reshape(*x.shape[:-1], self.features)


def windows(x_BTD: jax.Array, width: int) -> jax.Array:
    """[B, T - width + 1, width * D]: each `width` consecutive tokens, as one vector.
    Raises UserError for fewer tokens than width."""
    B, T, D = x_BTD.shape
    if T < width:
        raise UserError(
            f"A convolution over {width} tokens at a time got a text of only {T}: pad it to at "
            f"least {width}, or use a smaller width."
        )
    columns = np.arange(T - width + 1)[:, None] + np.arange(width)
    return x_BTD[:, columns].reshape(B, T - width + 1, width * D)
