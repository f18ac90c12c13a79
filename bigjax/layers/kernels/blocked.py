"""Attention in blocks of queries, for CPUs."""

import functools

import jax
import jax.numpy as jnp

from bigjax.layers.kernels.common import MASKED
from bigjax.layers.mask import Mask, dense, key_range
from bigjax.layers.remat import kept

BIAS = True
PLATFORMS = ()


def attention(
    q_BTHD, k_BSKD, v_BSKD, mask: Mask, q_segments_BT, k_segments_BS, bias, scale: float
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
    )
    return kept(heads_first(o), "context")


def unsupported(q_BTHD, k_BSKD, ways: int) -> str:
    del q_BTHD, k_BSKD, ways
    return ""


@functools.cache
def _blocks(mask: Mask, T: int, S: int) -> list[tuple[slice, slice]]:
    """[(queries, range of keys that they see)]: at least 128 queries per block, at most 8 blocks;
    one block where more would save nothing."""
    n = max(n for n in range(1, 9) if T % n == 0 and (n == 1 or T // n >= 128))
    starts = range(0, T, T // n)
    blocks = [(slice(i, i + T // n), key_range(mask, range(i, i + T // n), S)) for i in starts]
    if all(keys == slice(0, S) for _, keys in blocks):
        return [(slice(0, T), slice(0, S))]
    return blocks


def _dot(a, b, a_axis: int, b_axis: int):
    """Batched over the first two axes, accumulated in float32."""
    return jax.lax.dot_general(
        a, b, (((a_axis,), (b_axis,)), ((0, 1), (0, 1))), preferred_element_type=jnp.float32
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _blocked(q_BHTD, k_BHSD, v_BHSD, bias, segments, mask):
    return _forward(q_BHTD, k_BHSD, v_BHSD, bias, segments, mask)[0]


def _forward(q, k, v, bias, segments, mask):
    out, kept = [], []
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
        scores = _dot(q[:, :, rows], k[:, :, keys], 3, 3)
        if bias is not None:
            scores += bias[:, :, rows, keys]
        if seen is not None:
            scores = jnp.where(seen[:, None], scores, MASKED)
        e = jnp.exp(scores - scores.max(-1, keepdims=True))
        inverse = 1 / e.sum(-1, keepdims=True)
        e = e.astype(v.dtype)
        out.append((_dot(e, v[:, :, keys], 3, 2) * inverse).astype(v.dtype))
        kept.append((e, inverse))
    o = jnp.concatenate(out, axis=2)
    return o, (q, k, v, bias, o, kept)


def _backward(mask, saved, do):
    q, k, v, bias, o, kept = saved
    S = k.shape[2]
    sums = (do.astype(jnp.float32) * o).sum(-1, keepdims=True)
    dq, d_bias, dk, dv = [], [], 0, 0
    for (rows, keys), (e, inverse) in zip(_blocks(mask, q.shape[2], S), kept):
        p = e * inverse
        do_rows = do[:, :, rows]
        dp = _dot(do_rows, v[:, :, keys], 3, 3)
        ds = p * (dp - sums[:, :, rows])
        if bias is not None:
            axes = tuple(i for i in (0, 1) if bias.shape[i] == 1)
            others = [(0, 0)] * 3 + [(keys.start, S - keys.stop)]
            d_bias.append(jnp.pad(ds.sum(axes, keepdims=True), others))
        ds = ds.astype(q.dtype)
        dq.append(_dot(ds, k[:, :, keys], 3, 2).astype(q.dtype))
        others = ((0, 0), (0, 0), (keys.start, S - keys.stop), (0, 0))
        dv += jnp.pad(_dot(p.astype(do.dtype), do_rows, 2, 2), others)
        dk += jnp.pad(_dot(ds, q[:, :, rows], 2, 2), others)
    d_bias = None if bias is None else jnp.concatenate(d_bias, axis=2).astype(bias.dtype)
    dq = jnp.concatenate(dq, axis=2)
    return dq, dk.astype(k.dtype), dv.astype(v.dtype), d_bias, (None, None)


_blocked.defvjp(_forward, _backward)
