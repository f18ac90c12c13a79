"""Sampling with any family's Decoder inside a compiled step, such as rollouts during training.

infer.generate decodes for people: in chunks, with a key per row and with sampling settings that are
data. Here all tokens are one scan, and a token takes one uniform number per row: the rollouts of a
small generator would otherwise spend most of their time on random numbers.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bigjax import losses
from bigjax.layers.sampling import categorical
from bigjax.models import Decoder
from bigjax.parallel.sharding import constrain


def gather(variables: Any) -> Any:
    """Variables gathered before a loop over tokens: shards would be gathered for every token."""
    return jax.tree_util.tree_map(lambda x: constrain(x, *[None] * x.ndim), variables)


def scan_tokens(
    decoder: Decoder,
    variables: Any,
    state: Any,
    tokens_B: jax.Array,
    choose: Callable[[jax.Array, jax.Array, Any], jax.Array],
    inputs: Any,
) -> jax.Array:
    """New tokens of each row, int32 [B, n].

    state: the Decoder's, before it reads tokens_B. inputs: a tree of arrays [n, ...], of which
    choose(logits_BV, last_tokens_B, input) -> tokens_B reads one entry per token.
    """
    variables = gather(variables)

    def advance(carry, entry):
        last, state = carry
        logits, state = decoder.step(variables, state, last)
        new = choose(logits, last, entry)
        return (new, state), new

    return jax.lax.scan(advance, (tokens_B, state), inputs)[1].T


def sample_continuation(
    decoder: Decoder,
    variables: Any,
    state: Any,
    tokens_B: jax.Array,
    rng: jax.Array,
    n: int,
    *,
    end_id: int = -1,
    pad_id: int = 0,
    choose: Callable[[jax.Array, jax.Array], jax.Array] = categorical,
) -> jax.Array:
    """n sampled tokens that continue each row, int32 [B, n].

    state: the Decoder's, before it reads tokens_B, the last tokens. end_id: the token that ends a
    row, after which pad_id follows; a pad_id ends it too; -1: no row ends.
    choose(logits_BV, rng) -> tokens_B.
    """

    def choose_or_pad(logits, last, key):
        new = choose(logits, key)
        if end_id < 0:
            return new
        return jnp.where((last == end_id) | (last == pad_id), pad_id, new)

    keys = jax.random.split(rng, n)
    return scan_tokens(decoder, variables, state, tokens_B, choose_or_pad, keys)


class Sampled(NamedTuple):
    """n new tokens of each of R rows.

    tokens: int32 [R, n], with the end token, then padding. mask: float32 [R, n], 1 on the tokens.
    log_probs: float32 [R, n], of the tokens at the temperature, 0 on padding. ended: float32 [R],
    0 for a row without an end token.
    """

    tokens: jax.Array
    mask: jax.Array
    log_probs: jax.Array
    ended: jax.Array


def sample_until(
    decoder: Decoder,
    variables: Any,
    state: Any,
    tokens_R: jax.Array,
    rng: jax.Array,
    n: int,
    *,
    end_ids: tuple[int, ...],
    pad_id: int,
    temperature: float,
) -> Sampled:
    """At most n tokens that continue each row, sampled from softmax(logits / temperature).

    state: the Decoder's, before it reads tokens_R, the last tokens. A row ends with the first of
    end_ids; the loop ends when all rows have ended.
    """
    R, ends = len(tokens_R), jnp.array(end_ids, jnp.int32)
    padded = jnp.full((R, n), pad_id, jnp.int32)
    empty = Sampled(padded, jnp.zeros((R, n)), jnp.zeros((R, n)), jnp.zeros(R))

    def step(carry):
        i, last, running, state, out = carry
        logits, state = decoder.step(variables, state, last)
        logits = logits.astype(jnp.float32)
        new = categorical(logits, jax.random.fold_in(rng, i), temperature)
        log_p = losses.log_probs(logits / temperature, new)
        # A row that has ended is decoded with the others; its tokens are ignored.
        new = jnp.where(running, new, pad_id)
        on = running & (new[:, None] != ends).all(-1)
        out = Sampled(
            out.tokens.at[:, i].set(new),
            out.mask.at[:, i].set(running.astype(jnp.float32)),
            out.log_probs.at[:, i].set(jnp.where(running, log_p, 0.0)),
            1.0 - on,
        )
        return i + 1, new, on, state, out

    more = lambda carry: (carry[0] < n) & carry[2].any()
    first = jnp.int32(0), tokens_R.astype(jnp.int32), jnp.ones(R, bool), state, empty
    return jax.lax.while_loop(more, step, first)[-1]
