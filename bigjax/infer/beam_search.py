"""Beam search with any family's Decoder."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bigjax.layers.attention import Cache
from bigjax.models import Decoder, Fixed

NEVER = -1e9  # the score of impossible texts; finite, since 0 * infinity is NaN
CHUNK = 128  # logits of which the largest is found at once


class _Beams(NamedTuple):
    """W beams of each of B rows. t: the number of their tokens.

    Running: texts [B, W, size], total log-probabilities [B, W], the Decoder's state with W rows for
    each row, or beams in a Cache, and coverage [B, W, S], the attention that each source token has
    got (None without a penalty). Ended: texts and scores of the best ones, NEVER where there are
    fewer than W. open [B]: whether a running beam may still become one of the best.
    """

    t: jax.Array
    texts: jax.Array
    totals: jax.Array
    state: Any
    coverage: jax.Array | None
    ended: jax.Array
    scores: jax.Array
    open: jax.Array


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
    length_penalty: float | jax.Array = 1.0,
    coverage_penalty: float = 0.0,
) -> tuple[jax.Array, jax.Array]:
    """Beam search: the `width` most likely texts of each row among those that it explores.

    In each step the 2 * width most likely continuations of a row's beams are found. Those of the
    first `width` that end are kept if they are among the best that have ended; of the others the
    best `width` run on, until none of them can become better than the worst of the best: even if it
    had no further loss up to n tokens. A width of 1 is greedy decoding.

    A text's score is the sum of its tokens' log-probabilities, including the end token, divided by
    length ** length_penalty (a sum alone favours short texts), plus coverage_penalty times the sum
    over the source's tokens of log(min(attention to it, 1)) (https://arxiv.org/abs/1609.08144,
    section 7), for which a decoder needs `attention`. context, first_B: from decoder.context. n:
    the maximum number of tokens, at most `size`; with end_id -1 all texts have n. pad_id: fills a
    row after its end token; before that it is a token like others.

    Returns tokens int32 [B, width, size], best first, and scores float32 [B, width]: NEVER, of only
    pad_id, where there are fewer texts.
    """
    B, W = len(first_B), width
    state = decoder.begin(variables, context, slots)
    if W > 1:
        state = per_beam(repeated(W), state, lambda cache: cache.of_beams(W))
    real, coverage = None, None
    if coverage_penalty:
        real = context["segments"] > 0
        coverage = jnp.zeros((B, W, real.shape[1]))
    penalty = jnp.asarray(length_penalty, jnp.float32)
    by_length = lambda total, length: total / jnp.asarray(length, jnp.float32) ** penalty

    def step(beams: _Beams) -> _Beams:
        t = beams.t
        last = jnp.where(t == 0, first_B[:, None], beams.texts[:, :, t - 1]).ravel()
        covered = beams.coverage
        if covered is not None:
            seen = decoder.attention(variables, beams.state, last)
            covered = covered + seen.reshape(covered.shape)
        logits, state = decoder.step(variables, beams.state, last)
        totals, parent, tokens = _best(logits.reshape(B, W, -1), beams.totals)
        ends = (tokens == end_id) | (t + 1 >= n)
        texts = _select(beams.texts, parent).at[:, :, t].set(tokens)

        # Those that end
        of_first = jnp.arange(tokens.shape[1]) < W
        scores = by_length(totals, t + 1)
        if covered is not None:
            total = jnp.log(jnp.clip(covered, 1e-10, 1.0)) * real[:, None]
            scores = scores + coverage_penalty * _select(total.sum(-1), parent)
        possible = totals > NEVER / 2
        scores = jnp.where(ends & of_first & possible & beams.open[:, None], scores, NEVER)
        scores, best = jax.lax.top_k(jnp.concatenate([beams.scores, scores], 1), W)
        ended = _select(jnp.concatenate([beams.ended, texts], 1), best)

        # Those that run on
        totals, best = jax.lax.top_k(jnp.where(ends, totals + NEVER, totals), W)
        texts, parent = _select(texts, best), _select(parent, best)
        if W > 1:
            rows = (jnp.arange(B)[:, None] * W + parent).ravel()
            state = per_beam(lambda x: x[rows], state, lambda cache: cache.follow(parent))
        covered = None if covered is None else _select(covered, parent)

        longest = jnp.where(penalty > 0, n, t + 1)
        hope = by_length(totals[:, 0], longest) > scores.min(1)
        if W == 1:
            hope = scores[:, 0] <= NEVER / 2
        hope &= totals[:, 0] > NEVER / 2
        return _Beams(t + 1, texts, totals, state, covered, ended, scores, beams.open & hope)

    # All beams of a row are equal at first: only the first one counts.
    empty = jnp.full((B, W, size), pad_id, jnp.int32)
    totals = jnp.where(jnp.arange(W) == 0, 0.0, NEVER) + jnp.zeros((B, 1))
    scores = jnp.full((B, W), NEVER)
    beams = _Beams(jnp.int32(0), empty, totals, state, coverage, empty, scores, jnp.ones(B, bool))
    beams = jax.lax.while_loop(lambda x: (x.t < n) & x.open.any(), step, beams)
    return beams.ended, beams.scores


def _best(logits_BWV, totals_BW) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The 2 W most likely continuations of each row, fewer if there are not as many: total
    log-probabilities, beams and tokens, best first."""
    B, W, V = logits_BWV.shape
    k = min(2 * W, V)
    logits, tokens = _top_k(logits_BWV.reshape(B * W, V), k)
    log_z = jax.nn.logsumexp(logits_BWV, axis=-1)
    totals = totals_BW[..., None] + logits.reshape(B, W, k) - log_z[..., None]
    totals, best = jax.lax.top_k(totals.reshape(B, W * k), min(2 * W, W * k))
    return totals, best // k, jnp.take_along_axis(tokens.reshape(B, W * k), best, axis=1)


def _top_k(x_BV, k: int) -> tuple[jax.Array, jax.Array]:
    """As jax.lax.top_k, faster: only the k chunks with the largest maxima can have the largest."""
    B, V = x_BV.shape
    n = -(-V // CHUNK)
    if n < 4 * k:
        return jax.lax.top_k(x_BV, k)
    chunks = jnp.pad(x_BV, ((0, 0), (0, n * CHUNK - V)), constant_values=-jnp.inf)
    chunks = chunks.reshape(B, n, CHUNK)
    _, best = jax.lax.top_k(chunks.max(-1), k)
    best = jnp.sort(best, axis=-1)  # of equal values the first ones count
    values = jnp.take_along_axis(chunks, best[..., None], axis=1).reshape(B, k * CHUNK)
    ids = (best[..., None] * CHUNK + jnp.arange(CHUNK)).reshape(B, k * CHUNK)
    values, at = jax.lax.top_k(values, k)
    return values, jnp.take_along_axis(ids, at, axis=1)


def _select(x, indices_BN) -> jax.Array:
    """x [B, W, ...] at these indices of each row, [B, N, ...]."""
    return jnp.take_along_axis(x, indices_BN.reshape(*indices_BN.shape, *[1] * (x.ndim - 2)), 1)


def per_beam(change, state, of_cache=None) -> Any:
    """change(array) of all arrays of a Decoder's state that are not Fixed, and of_cache(cache) of
    each Cache, by default `change` of its arrays."""
    kinds = (Fixed, Cache) if of_cache else Fixed

    def changed(x):
        if isinstance(x, Fixed):
            return x
        return of_cache(x) if isinstance(x, Cache) else change(x)

    return jax.tree_util.tree_map(changed, state, is_leaf=lambda x: isinstance(x, kinds))


def repeated(n: int):
    """A function that makes n consecutive rows of each row of an array."""
    return lambda x: jnp.repeat(x, n, axis=0)


# One compiled program for any n up to `size`, end_id, pad_id and length_penalty.
STATIC = ("decoder", "width", "size", "slots", "coverage_penalty")
search = jax.jit(beam_search, static_argnames=STATIC)
