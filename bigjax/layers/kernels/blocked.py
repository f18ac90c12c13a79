"""Attention in blocks of queries, for CPUs."""

import functools

import jax
import jax.numpy as jnp

from bigjax.layers.kernels.common import MASKED, dot, scores
from bigjax.layers.mask import Mask, dense, key_range
from bigjax.layers.remat import kept
from bigjax.linear import cap_slope, capped

BIAS = SOFTCAP = True
PLATFORMS = ()


def attention(
    q_BTHD,
    k_BSKD,
    v_BSKD,
    mask: Mask,
    q_segments_BT,
    k_segments_BS,
    bias,
    scale: float,
    softcap: float = 0.0,
) -> jax.Array:
    """Each block of queries gets the range of keys that it sees, which for a causal mask saves
    nearly half of the work. Its own gradient keeps the exponentials of the scores instead of the
    many arrays that automatic differentiation would keep."""
    H = q_BTHD.shape[2]
    heads_first = lambda x: x.swapaxes(1, 2)
    repeat = lambda x: jnp.repeat(x, H // x.shape[2], axis=2)
    o = _blocked(
        heads_first(q_BTHD * scale),
        heads_first(repeat(k_BSKD)),
        heads_first(repeat(v_BSKD)),
        bias,
        (q_segments_BT, k_segments_BS),
        mask,
        softcap,
    )
    return kept(heads_first(o), "context")


def unsupported(q_BTHD, k_BSKD, ways: int, bias=None) -> str:
    del q_BTHD, k_BSKD, ways, bias
    return ""


@functools.cache
def _blocks(mask: Mask, T: int, S: int) -> list[tuple[slice, slice]]:
    """[(queries, range of keys that they see)]: at least 64 queries per block, at most 8 blocks;
    one block where more would save nothing."""
    n = max(n for n in range(1, 9) if T % n == 0 and (n == 1 or T // n >= 64))
    starts = range(0, T, T // n)
    blocks = [(slice(i, i + T // n), key_range(mask, range(i, i + T // n), S)) for i in starts]
    if all(keys == slice(0, S) for _, keys in blocks):
        return [(slice(0, T), slice(0, S))]
    return blocks


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def _blocked(q_BHTD, k_BHSD, v_BHSD, bias, segments, mask, softcap):
    return _forward(q_BHTD, k_BHSD, v_BHSD, bias, segments, mask, softcap)[0]


def _forward(q, k, v, bias, segments, mask, softcap):
    out, exponentials = [], []
    for rows, keys in _blocks(mask, q.shape[2], k.shape[2]):
        part = lambda x, at: None if x is None else x[:, at]
        seen = dense(
            mask,
            rows.stop - rows.start,
            keys.stop - keys.start,
            rows.start,
            part(segments[0], rows),
            part(segments[1], keys),
            keys.start,
        )
        p, slope = scores(q[:, :, rows], k[:, :, keys]), None
        if softcap:
            p = capped(p, softcap)
            slope = cap_slope(p, softcap).astype(v.dtype)
        if bias is not None:
            p += bias[:, :, rows, keys]
        if seen is not None:
            p = jnp.where(seen[:, None], p, MASKED)
        e = jnp.exp(p - p.max(-1, keepdims=True))
        inverse = 1 / e.sum(-1, keepdims=True)
        e = e.astype(v.dtype)
        out.append((dot(e, v[:, :, keys], 3, 2) * inverse).astype(v.dtype))
        exponentials.append((e, inverse, slope))
    o = jnp.concatenate(out, axis=2)
    return o, (q, k, v, bias, o, exponentials)


def _backward(mask, softcap, saved, do):
    del softcap
    q, k, v, bias, o, exponentials = saved
    S = k.shape[2]
    blocks = _blocks(mask, q.shape[2], S)
    # The exponentials times `inverse` are the weights: the narrower array is multiplied.
    inverse = jnp.concatenate([inverse for _, inverse, _ in exponentials], axis=2)
    do = (do * inverse).astype(do.dtype)
    sums = (do.astype(jnp.float32) * o).sum(-1, keepdims=True)
    dq, dk, dv, d_bias = [], [], [], []
    for (rows, keys), (e, _, slope) in zip(blocks, exponentials):
        do_rows = do[:, :, rows]
        ds = e * (dot(do_rows, v[:, :, keys], 3, 3) - sums[:, :, rows])
        if bias is not None:
            axes = tuple(i for i in (0, 1) if bias.shape[i] == 1)
            others = [(0, 0)] * 3 + [(keys.start, S - keys.stop)]
            d_bias.append(jnp.pad(ds.sum(axes, keepdims=True), others))
        ds = (ds if slope is None else ds * slope).astype(q.dtype)
        dq.append(dot(ds, k[:, :, keys], 3, 2).astype(q.dtype))
        dk.append(dot(ds, q[:, :, rows], 2, 2))
        dv.append(dot(e, do_rows, 2, 2))
    ranges = [keys for _, keys in blocks]
    d_bias = None if bias is None else jnp.concatenate(d_bias, axis=2).astype(bias.dtype)
    dk, dv = (_sum_ranges(d, ranges, S) for d in (dk, dv))
    return (
        jnp.concatenate(dq, axis=2),
        dk.astype(k.dtype),
        dv.astype(v.dtype),
        d_bias,
        (None, None),
    )


def _sum_ranges(parts: list[jax.Array], ranges: list[slice], S: int) -> jax.Array:
    """[B, H, S, D]: the sum of parts [B, H, n, D] of overlapping ranges of keys."""
    edges = sorted({0, S, *(e for r in ranges for e in (r.start, r.stop))})
    (B, H, _, D), dtype = parts[0].shape, parts[0].dtype
    out = []
    for start, stop in zip(edges, edges[1:]):
        seen = [
            part[:, :, start - r.start : stop - r.start]
            for part, r in zip(parts, ranges)
            if r.start <= start and stop <= r.stop
        ]
        out.append(sum(seen) if seen else jnp.zeros((B, H, stop - start, D), dtype))
    return jnp.concatenate(out, axis=2)


_blocked.defvjp(_forward, _backward)
