"""Rotary positions (https://arxiv.org/abs/2104.09864), and their scaling for long contexts."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class Scaling:
    """How the frequencies of rotary positions change for contexts longer than those of the first
    training. The frequencies are those of `rotary`, from 1 downwards.

    kind: 'linear' (https://arxiv.org/abs/2306.15595): all frequencies are divided by factor.
        'llama3' (https://arxiv.org/abs/2407.21783): those with more than original_len / low_factor
        tokens per turn are; those with fewer than original_len / high_factor stay; between them
        it interpolates.
        'longrope' (https://arxiv.org/abs/2402.13753): frequency i is divided by short[i] for rows
        of at most original_len tokens, and by long[i] for longer ones; sines and cosines are
        multiplied by attention_factor.
    """

    kind: str
    factor: float = 1.0
    low_factor: float = 1.0
    high_factor: float = 4.0
    original_len: int = 0
    short: tuple[float, ...] = ()
    long: tuple[float, ...] = ()
    attention_factor: float = 1.0

    def frequencies(self, plain: np.ndarray, length: int) -> np.ndarray:
        """float32 [D / 2] from the unscaled ones, for rows of `length` tokens."""
        if self.kind == "linear":
            scaled = plain / self.factor
        elif self.kind == "llama3":
            turns = self.original_len * plain / (2 * math.pi)  # in original_len tokens
            kept = (turns - self.low_factor) / (self.high_factor - self.low_factor)
            kept = np.clip(kept, 0, 1)
            scaled = (1 - kept) * plain / self.factor + kept * plain
        else:
            scaled = plain / np.array(self.long if length > self.original_len else self.short)
        return scaled.astype(np.float32)


def rotary(
    x_BTHD: jax.Array,
    positions_BT: jax.Array,
    theta: float,
    dims: int = 0,
    scaling: Scaling | None = None,
    length: int = 0,
) -> jax.Array:
    """Rotary position embedding, halves as in Llama.

    dims: how many dimensions of a head rotate, the first ones; 0 = all. length: of the rows, by
    which scaling may select frequencies: of all tokens that a row can hold, if it has a cache.
    """
    if 0 < dims < x_BTHD.shape[-1]:
        x, rest = x_BTHD[..., :dims], x_BTHD[..., dims:]
        return jnp.concatenate([rotary(x, positions_BT, theta, 0, scaling, length), rest], -1)
    half = x_BTHD.shape[-1] // 2
    if scaling is None:
        frequency = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    else:
        frequency = jnp.asarray(scaling.frequencies(theta ** (-np.arange(half) / half), length))
    angle = positions_BT[..., None, None].astype(jnp.float32) * frequency
    sin, cos = jnp.sin(angle), jnp.cos(angle)
    if scaling is not None and scaling.attention_factor != 1.0:
        sin, cos = sin * scaling.attention_factor, cos * scaling.attention_factor
    # Products at full width: a TPU pads arrays of half a head. The barrier is for the gradient: a
    # TPU would turn a part of it again for each tile of the product that follows.
    x_BTHD = jax.lax.optimization_barrier(x_BTHD)
    a, b = jnp.split(x_BTHD, 2, axis=-1)
    turned = jnp.concatenate([b, a], -1).astype(jnp.float32)
    cos, sin = jnp.concatenate([cos, cos], -1), jnp.concatenate([-sin, sin], -1)
    return (x_BTHD.astype(jnp.float32) * cos + turned * sin).astype(x_BTHD.dtype)
