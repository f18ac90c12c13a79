"""Drawing a token of many by inverting the cumulative distribution in two levels."""

import math

import jax
import jax.numpy as jnp

TINY = 1.2e-38  # the least temperature: less is 0 in float32, and 0 / 0 is not a number


def categorical(logits_BV: jax.Array, rng: jax.Array, temperature: float = 1.0) -> jax.Array:
    """One token a row from softmax(logits / temperature), int32 [B].

    One uniform number a row picks a block of about sqrt(V) tokens by the blocks' sums, then a
    token within it. jax.random.categorical needs V random numbers and logarithms a row, which is
    most of the time of a small generator over many words.
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
    # Only sums are kept of the exponentials; those of the one block are made again.
    sums = jnp.exp((logits - largest[..., None]) / temperature).sum(-1)
    # Below 1 by so much that u * total stays below the total in float32.
    block, u = _invert(sums, jax.random.uniform(rng, (B,), maxval=1 - 2e-7))
    inside = jnp.take_along_axis(logits, block[:, None, None], axis=1)[:, 0]
    return (block * width + _invert(jnp.exp((inside - largest) / temperature), u)[0]).astype(
        jnp.int32
    )


def _block_width(V: int) -> int:
    """About sqrt(V); a divisor of V if there is one near, since padding copies all logits."""
    root = math.isqrt(V - 1) + 1
    return next((w for w in range(root, 2 * root) if V % w == 0), root)


def _invert(weights_BN: jax.Array, u_B: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The entry where the cumulative weight passes u of the total, and where in it (0 to 1).

    Entries of weight 0 are never picked.
    """
    cumulative = jnp.cumsum(weights_BN, axis=-1)
    want = u_B * cumulative[:, -1]
    entry = (cumulative <= want[:, None]).sum(-1)
    # Rounding may leave `want` at the very end: then the last entry that weighs anything.
    last = (cumulative < cumulative[:, -1:]).sum(-1)
    entry = jnp.minimum(entry, last)
    weight = jnp.take_along_axis(weights_BN, entry[:, None], axis=1)[:, 0]
    before = jnp.take_along_axis(cumulative, entry[:, None], axis=1)[:, 0] - weight
    inside = (want - before) / jnp.maximum(weight, 1e-30)
    return entry, jnp.clip(inside, 0.0, 1 - 2e-7)
