"""An output layer that is not multiplied yet: what models return, and losses take in parts."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Linear(NamedTuple):
    """An output layer and its input: x [..., D], kernel [D, V], bias [V] or None.

    Its logits are x @ kernel + bias in float32; a loss may compute them a part at a time.
    """

    x: jax.Array
    kernel: jax.Array
    bias: jax.Array | None = None

    def product(self) -> jax.Array:
        """All logits, float32 [..., V]."""
        logits = jnp.matmul(self.x, self.kernel, preferred_element_type=jnp.float32)
        return logits if self.bias is None else logits + self.bias

    def plus(self, x: jax.Array, kernel: jax.Array) -> "Linear":
        """With x @ kernel added to the logits: x [..., R], kernel [R, V], such as LoRA's factors.

        They are concatenated with this layer's, so that the sum needs no product of its own.
        """
        x = jnp.concatenate([self.x, x.astype(self.x.dtype)], axis=-1)
        kernel = jnp.concatenate([self.kernel, kernel.astype(self.kernel.dtype)])
        return Linear(x, kernel, self.bias)

    def __add__(self, other):  # that of a tuple would extend it, and `*` repeat it
        raise TypeError(
            "A Linear is an output layer that is not multiplied yet, and has no arithmetic: use "
            ".plus(x, kernel) to add a product to its logits, or .product() for the logits."
        )

    def __radd__(self, other):
        return self + other

    def __mul__(self, other):
        return self + other

    def __rmul__(self, other):
        return self + other
