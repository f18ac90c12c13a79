"""From logits to a token."""

import jax
import jax.numpy as jnp

from bigjax.layers.sampling import TINY

FEW = 128  # number of most likely tokens; a larger top_k, and any top_p, sorts all


def sample(logits_BV: jax.Array, keys_B: jax.Array, temperature=1.0, top_k=0, top_p=1.0):
    """One token per row, int32 [B], each sampled with its own key.

    temperature: divides the logits; 0: the most likely token. top_k: only the k most likely tokens
    (0 = all; https://arxiv.org/abs/1805.04833). top_p: of these, only the smallest set of most
    likely tokens with probability p at this temperature (1 = all;
    https://arxiv.org/abs/1904.09751). Of equal logits the lowest ids come first; a NaN is never
    sampled. All three are numbers or arrays [B]; other values need no compilation.
    """
    if isinstance(temperature, (int, float)):
        temperature = positive(temperature)
    temperature, top_p = jnp.asarray(temperature, jnp.float32), jnp.asarray(top_p, jnp.float32)
    return _sample(logits_BV, keys_B, temperature, jnp.asarray(top_k, jnp.int32), top_p)


def positive(temperature: float) -> float:
    """The temperature, raised if it is so small that devices would round it to 0."""
    return float(max(temperature, TINY)) if temperature > 0 else 0.0


@jax.jit
def _sample(logits_BV, keys_B, temperature, top_k, top_p):
    B, V = logits_BV.shape
    temperature, top_k, top_p = (jnp.broadcast_to(x, (B,)) for x in (temperature, top_k, top_p))
    logits = logits_BV.astype(jnp.float32)
    logits = jnp.where(jnp.isnan(logits), -jnp.inf, logits)
    most_likely = logits.argmax(-1).astype(jnp.int32)
    largest = logits.max(-1, keepdims=True)  # subtracted, so that no quotient overflows
    scaled = logits - jnp.where(jnp.isfinite(largest), largest, 0)
    scaled = scaled / jnp.maximum(temperature, TINY)[:, None]
    draw = jax.vmap(jax.random.categorical)

    def sample_first(n: int) -> jax.Array:
        """A token of each row among its n most likely, restricted by top_k and top_p."""
        values, ids = jax.lax.top_k(scaled, n)
        rank = jnp.arange(n)
        k = jnp.where(top_k > 0, top_k, V)[:, None]
        values = jnp.where(rank < k, values, -jnp.inf)
        reached = jnp.cumsum(jax.nn.softmax(values, axis=-1), axis=-1)
        before = jnp.pad(reached[:, :-1], ((0, 0), (1, 0)))
        keep = (before < top_p[:, None]) | (rank == 0) | (top_p[:, None] >= 1)
        drawn = draw(keys_B, jnp.where(keep, values, -jnp.inf))
        return jnp.take_along_axis(ids, drawn[:, None], axis=-1)[:, 0]

    few = ((top_k > 0) & (top_k <= FEW)).all()
    restricted = (top_k > 0) & (top_k < V) | (top_p < 1)
    case = jnp.where(
        (temperature == 0).all(), 0, jnp.where(~restricted.any(), 1, jnp.where(few, 2, 3))
    )
    drawn = jax.lax.switch(
        case,
        [
            lambda: most_likely,
            lambda: draw(keys_B, scaled).astype(jnp.int32),
            lambda: sample_first(min(FEW, V)).astype(jnp.int32),
            lambda: sample_first(V).astype(jnp.int32),
        ],
    )
    return jnp.where(temperature == 0, most_likely, drawn)
