"""An output layer that is not multiplied yet: what models return, and losses take in parts."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Linear(NamedTuple):
    """An output layer and its input: x [..., D], kernel [D, V], bias [V] or None.

    Its logits are x @ kernel + bias in float32; a loss may compute them a part at a time. softcap:
    a positive number that soft-caps them, see `capped`, or None.
    """

    x: jax.Array
    kernel: jax.Array
    bias: jax.Array | None = None
    softcap: jax.Array | None = None

    def product(self) -> jax.Array:
        """All logits, float32 [..., V]."""
        return capped(self.uncapped(), self.softcap)

    def uncapped(self) -> jax.Array:
        """`product` without the soft cap."""
        logits = jnp.matmul(self.x, self.kernel, preferred_element_type=jnp.float32)
        return logits if self.bias is None else logits + self.bias

    def plus(self, x: jax.Array, kernel: jax.Array) -> "Linear":
        """With x @ kernel added to the logits: x [..., R], kernel [R, V], such as LoRA's factors.

        They are concatenated with this layer's, so that the sum needs no product of its own.
        """
        x = jnp.concatenate([self.x, x.astype(self.x.dtype)], axis=-1)
        kernel = jnp.concatenate([self.kernel, kernel.astype(self.kernel.dtype)])
        return self._replace(x=x, kernel=kernel)

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


def capped(logits: jax.Array, softcap: jax.Array | float | None) -> jax.Array:
    """softcap * tanh(logits / softcap), so that none is larger than softcap
    (https://arxiv.org/abs/2408.00118); unchanged if softcap is None."""
    return logits if softcap is None else softcap * jnp.tanh(logits / softcap)


def cap_slope(capped_logits: jax.Array, softcap: jax.Array | float) -> jax.Array:
    """The derivative of `capped`, from its result."""
    return 1 - jnp.square(capped_logits / softcap)
