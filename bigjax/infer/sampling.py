"""From logits to a token."""

import jax
import jax.numpy as jnp


def sample(
    logits_BV: jax.Array,
    rng: jax.Array,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
) -> jax.Array:
    """One token a row, int32 [B].

    temperature 0: the likeliest. top_k: only the k likeliest (0 = all;
    https://arxiv.org/abs/1805.04833). top_p: only the likeliest that together reach probability
    p (1 = all; https://arxiv.org/abs/1904.09751). All three are Python numbers.
    """
    if temperature == 0:
        return logits_BV.argmax(-1).astype(jnp.int32)
    logits = logits_BV.astype(jnp.float32) / temperature
    if top_k:
        lowest = jax.lax.top_k(logits, min(top_k, logits.shape[-1]))[0][:, -1:]
        logits = jnp.where(logits < lowest, -jnp.inf, logits)
    if top_p < 1.0:
        ordered = jnp.sort(logits, axis=-1, descending=True)
        p = jax.nn.softmax(ordered, axis=-1)
        before = jnp.cumsum(p, axis=-1) - p  # probability of all that are likelier
        lowest = jnp.where(before < top_p, ordered, jnp.inf).min(-1, keepdims=True)
        logits = jnp.where(logits < lowest, -jnp.inf, logits)
    return jax.random.categorical(rng, logits).astype(jnp.int32)
