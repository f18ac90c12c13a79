"""From logits to a token."""

import jax
import jax.numpy as jnp

from bigjax.layers.sampling import TINY

FEW = 128  # of the likeliest tokens: a larger top_k, and every top_p, sorts all


def sample(logits_BV: jax.Array, keys_B: jax.Array, temperature=1.0, top_k=0, top_p=1.0):
    """One token a row, int32 [B], each drawn with a key of its own.

    temperature 0: the likeliest. top_k: only the k likeliest (0 = all;
    https://arxiv.org/abs/1805.04833). top_p: only the fewest likeliest that together reach
    probability p (1 = all; https://arxiv.org/abs/1904.09751), of those that top_k leaves. Of equal
    logits those with the lowest ids come first; a NaN is never drawn. All three are numbers or
    arrays [B]: no other values need another compilation.
    """
    if isinstance(temperature, (int, float)):
        temperature = positive(temperature)
    return _sample(logits_BV, keys_B, temperature, top_k, top_p)


def positive(temperature: float) -> float:
    """A temperature that is above 0 as devices see it, too, which take the least floats for 0."""
    return max(temperature, TINY) if temperature > 0 else 0.0


@jax.jit
def _sample(logits_BV, keys_B, temperature, top_k, top_p):
    B, V = logits_BV.shape
    number = lambda x, dtype: jnp.broadcast_to(jnp.asarray(x, dtype), (B,))
    temperature, top_p = number(temperature, jnp.float32), number(top_p, jnp.float32)
    top_k = number(top_k, jnp.int32)
    logits = logits_BV.astype(jnp.float32)
    logits = jnp.where(jnp.isnan(logits), -jnp.inf, logits)
    likeliest = logits.argmax(-1).astype(jnp.int32)
    largest = logits.max(-1, keepdims=True)  # subtracted, so that no quotient overflows
    scaled = logits - jnp.where(jnp.isfinite(largest), largest, 0)
    scaled = scaled / jnp.maximum(temperature, TINY)[:, None]
    draw = jax.vmap(jax.random.categorical)

    def of_the_first(n: int) -> jax.Array:
        """Of the n likeliest; each row of those of them that top_k and top_p leave."""
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
    some = (top_k > 0) & (top_k < V) | (top_p < 1)
    case = jnp.where((temperature == 0).all(), 0, jnp.where(~some.any(), 1, jnp.where(few, 2, 3)))
    drawn = jax.lax.switch(
        case,
        [
            lambda: likeliest,
            lambda: draw(keys_B, scaled).astype(jnp.int32),
            lambda: of_the_first(min(FEW, V)).astype(jnp.int32),
            lambda: of_the_first(V).astype(jnp.int32),
        ],
    )
    return jnp.where(temperature == 0, likeliest, drawn)
