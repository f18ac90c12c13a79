"""From logits to a token."""

import jax
import jax.numpy as jnp

from bigjax.layers.sampling import TINY


def sample(
    logits_BV: jax.Array,
    rng: jax.Array,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
) -> jax.Array:
    """One token a row, int32 [B].

    temperature 0: the likeliest. top_k: only the k likeliest (0 = all;
    https://arxiv.org/abs/1805.04833). top_p: only the fewest likeliest that together reach
    probability p (1 = all; https://arxiv.org/abs/1904.09751), of those that top_k leaves. Of equal
    logits those with the lowest ids come first; a NaN is never drawn. All three are Python numbers.
    """
    V = logits_BV.shape[-1]
    logits = logits_BV.astype(jnp.float32)
    logits = jnp.where(jnp.isnan(logits), -jnp.inf, logits)
    if temperature == 0:
        return logits.argmax(-1).astype(jnp.int32)
    largest = logits.max(-1, keepdims=True)  # subtracted, so that no quotient overflows
    logits = logits - jnp.where(jnp.isfinite(largest), largest, 0)
    logits = logits / max(temperature, TINY)
    if (not top_k or top_k >= V) and top_p >= 1:
        return jax.random.categorical(rng, logits).astype(jnp.int32)
    logits, ids = jax.lax.top_k(logits, min(top_k or V, V))
    if top_p < 1:
        reached = jnp.cumsum(jax.nn.softmax(logits, axis=-1), axis=-1)
        before = jnp.pad(reached[:, :-1], ((0, 0), (1, 0)))
        logits = jnp.where((before < top_p) | (ids == ids[:, :1]), logits, -jnp.inf)
    drawn = jax.random.categorical(rng, logits)
    return jnp.take_along_axis(ids, drawn[:, None], axis=-1)[:, 0].astype(jnp.int32)
