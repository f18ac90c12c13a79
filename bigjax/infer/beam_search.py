"""Beam search with any family's Decoder."""

import functools

import jax
import jax.numpy as jnp

from bigjax.models import Decoder

NEVER = -1e9  # the score of impossible tokens; finite, since 0 * infinity is NaN


def beam_search(
    decoder: Decoder,
    variables,
    context,
    first_B: jax.Array,
    *,
    width: int,
    size: int,
    n: int | jax.Array,
    end_id: int | jax.Array,
    pad_id: int | jax.Array,
    slots: int,
    length_penalty: float = 1.0,
) -> tuple[jax.Array, jax.Array]:
    """Beam search: the `width` most likely texts of each row among those that it explores.

    A text's score is the sum of its tokens' log-probabilities, including the end token, divided by
    length ** length_penalty; a sum alone favours short texts (https://arxiv.org/abs/1609.08144,
    section 7). context, first_B: from decoder.context. n: the maximum number of tokens, at most
    `size`; with end_id -1 all texts have n. pad_id: fills a row after its end
    token; before that it is a token like others.

    Returns tokens int32 [B, width, size], best first, and scores float32 [B, width].
    """
    B, W = len(first_B), width
    repeat = functools.partial(jax.tree_util.tree_map, lambda x: jnp.repeat(x, W, axis=0))
    state = repeat(decoder.begin(variables, context, slots))

    def step(t, carry):
        tokens, ended, state, total, length, texts = carry
        logits, state = decoder.step(variables, state, tokens.ravel())
        V = logits.shape[-1]
        log_p = jax.nn.log_softmax(logits).reshape(B, W, V)
        only_padding = jnp.where(jnp.arange(V) == pad_id, 0.0, NEVER)
        log_p = jnp.where(ended[..., None], only_padding, log_p)
        totals, length = total[..., None] + log_p, length + ~ended
        scores = totals / length[..., None].astype(jnp.float32) ** length_penalty
        _, best = jax.lax.top_k(scores.reshape(B, W * V), W)
        parent, tokens = best // V, (best % V).astype(jnp.int32)
        select = lambda x: jnp.take_along_axis(x, parent.reshape(B, W, *[1] * (x.ndim - 2)), axis=1)
        rows = (jnp.arange(B)[:, None] * W + parent).ravel()
        state = jax.tree_util.tree_map(lambda x: x[rows], state)
        total = jnp.take_along_axis(totals.reshape(B, W * V), best, axis=1)
        ended = select(ended) | (tokens == end_id)
        return tokens, ended, state, total, select(length), select(texts).at[:, :, t].set(tokens)

    # All beams of a row are equal at first: only the first one counts.
    total = jnp.where(jnp.arange(W) == 0, 0.0, NEVER) + jnp.zeros((B, 1))
    carry = (
        jnp.broadcast_to(first_B[:, None], (B, W)),
        jnp.zeros((B, W), bool),
        state,
        total,
        jnp.zeros((B, W), jnp.int32),
        jnp.full((B, W, size), pad_id, jnp.int32),
    )
    *_, total, length, texts = jax.lax.fori_loop(0, n, step, carry)
    return texts, total / length.astype(jnp.float32) ** length_penalty


# One compiled program for any n up to `size`, end_id and pad_id.
search = jax.jit(beam_search, static_argnames=("decoder", "width", "size", "slots"))
