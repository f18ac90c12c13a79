"""Sampling from many tokens by inverting the cumulative distribution in two levels."""

import math

import jax
import jax.numpy as jnp

TINY = 1.2e-38  # the smallest temperature: less is 0 in float32, and 0 / 0 is NaN


def categorical(logits_BV: jax.Array, rng: jax.Array, temperature: float = 1.0) -> jax.Array:
    """One token per row from softmax(logits / temperature), int32 [B].

    One uniform number per row selects a block of about sqrt(V) tokens by the blocks' sums, then a
    token in it. jax.random.categorical needs V random numbers and logarithms per row, which takes
    most of the time of a small generator with a large vocabulary.
    """
    B, V = logits_BV.shape
    temperature = max(temperature, TINY)
    width = _block_width(V)
    logits = jnp.pad(
        logits_BV.astype(jnp.float32),
        ((0, 0), (0, -V % width)),
        constant_values=-jnp.inf,
    ).reshape(B, -1, width)
    largest = logits.max((1, 2))[:, None]
    # Only the sums of the exponentials are kept; those of the selected block are recomputed.
    sums = jnp.exp((logits - largest[..., None]) / temperature).sum(-1)
    # Small enough below 1 that u * total stays below the total in float32.
    block, u = _invert(sums, jax.random.uniform(rng, (B,), maxval=1 - 2e-7))
    inside = jnp.take_along_axis(logits, block[:, None, None], axis=1)[:, 0]
    return (block * width + _invert(jnp.exp((inside - largest) / temperature), u)[0]).astype(
        jnp.int32
    )


def _block_width(V: int) -> int:
    """About sqrt(V); if possible a divisor of V, since padding copies all logits."""
    root = math.isqrt(V - 1) + 1
    return next((w for w in range(root, 2 * root) if V % w == 0), root)


def _invert(weights_BN: jax.Array, u_B: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The entry where the cumulative weight exceeds u * total, and the position in it (0 to 1).

    Entries with weight 0 are never selected.
    """
    cumulative = jnp.cumsum(weights_BN, axis=-1)
    target = u_B * cumulative[:, -1]
    entry = (cumulative <= target[:, None]).sum(-1)
    # Rounding may put `target` at the very end: then the last entry with a weight above 0.
    last = (cumulative < cumulative[:, -1:]).sum(-1)
    entry = jnp.minimum(entry, last)
    weight = jnp.take_along_axis(weights_BN, entry[:, None], axis=1)[:, 0]
    before = jnp.take_along_axis(cumulative, entry[:, None], axis=1)[:, 0] - weight
    inside = (target - before) / jnp.maximum(weight, 1e-30)
    return entry, jnp.clip(inside, 0.0, 1 - 2e-7)
