"""Attention kernels. All take q [B, T, H, D], k and v [B, S, K, D] with H a multiple of K, the
slot of the first query among the keys, and segments [B, T], [B, S] or None; all give [B, T, H, D]
and the same numbers. Scores and softmax are in float32. `attend` chooses.
"""

import jax
import jax.numpy as jnp

MASKED = -1e30  # not infinity: a row without keys gives a mean and not NaN


def attention_mask(T: int, S: int, causal: bool, start=0, q_segments_BT=None,
                   k_segments_BS=None) -> jax.Array | None:
    """Which of S keys each of T queries sees, bool [B or 1, T, S], or None for all.

    The one place to change who attends to whom: within a segment, and if causal not to later
    keys. start: the slot of the first query among the keys.
    """
    mask = None
    if causal:
        mask = (jnp.arange(S) <= start + jnp.arange(T)[:, None])[None]
    if q_segments_BT is not None:
        same = q_segments_BT[:, :, None] == k_segments_BS[:, None, :]
        mask = same if mask is None else mask & same
    return mask


def attend(q, k, v, *, causal: bool, start=0, q_segments=None, k_segments=None,
           kernel: str = "auto") -> jax.Array:
    """Softmax attention by the kernel that suits: 'blocked' on a CPU for whole sequences."""
    whole = q.shape[1] == k.shape[1] and isinstance(start, int) and start == 0
    if kernel == "auto":
        kernel = "blocked" if jax.default_backend() == "cpu" and whole and causal else "einsum"
    if kernel == "blocked" and whole and causal:
        return blocked(q, k, v, q_segments)
    return einsum(q, k, v, attention_mask(q.shape[1], k.shape[1], causal, start, q_segments,
                                          k_segments))


def einsum(q_BTHD, k_BSKD, v_BSKD, mask_BTS) -> jax.Array:
    """The plain form."""
    B, T, H, D = q_BTHD.shape
    K = k_BSKD.shape[2]
    q = q_BTHD.reshape(B, T, K, H // K, D) * D ** -0.5
    scores = jnp.einsum("btkgd,bskd->bkgts", q, k_BSKD, preferred_element_type=jnp.float32)
    if mask_BTS is not None:
        scores = jnp.where(mask_BTS[:, None, None], scores, MASKED)
    p = jax.nn.softmax(scores, axis=-1).astype(v_BSKD.dtype)
    return jnp.einsum("bkgts,bskd->btkgd", p, v_BSKD).reshape(B, T, H, D)


def blocked(q_BTHD, k_BSKD, v_BSKD, segments_BT) -> jax.Array:
    """Causal attention in blocks of queries, each with the keys up to its end only.

    Saves nearly half of the work, and its own gradient keeps the exponentials of the scores
    instead of the many arrays that automatic differentiation keeps.
    """
    H, D = q_BTHD.shape[2:]
    heads_first = lambda x: x.swapaxes(1, 2)
    repeat = lambda x: jnp.repeat(x, H // x.shape[2], axis=2)
    o = _blocked(heads_first(q_BTHD * D ** -0.5), heads_first(repeat(k_BSKD)),
                 heads_first(repeat(v_BSKD)), segments_BT)
    return heads_first(o)


def _blocks(T: int) -> list[slice]:
    """Blocks of queries: at least 128 in each, at most 8."""
    n = max(n for n in range(1, 9) if T % n == 0 and (n == 1 or T // n >= 128))
    return [slice(i * (T // n), (i + 1) * (T // n)) for i in range(n)]


def _dot(a, b, a_axis: int, b_axis: int):
    """Batched over the first two axes, accumulated in float32."""
    return jax.lax.dot_general(a, b, (((a_axis,), (b_axis,)), ((0, 1), (0, 1))),
                               preferred_element_type=jnp.float32)


@jax.custom_vjp
def _blocked(q_BHTD, k_BHTD, v_BHTD, segments_BT):
    return _forward(q_BHTD, k_BHTD, v_BHTD, segments_BT)[0]


def _forward(q, k, v, segments):
    out, kept = [], []
    for rows in _blocks(q.shape[2]):
        seen = slice(0, rows.stop)
        segment = lambda part: None if segments is None else segments[:, part]
        mask = attention_mask(rows.stop - rows.start, rows.stop, True, rows.start, segment(rows),
                              segment(seen))
        scores = jnp.where(mask[:, None], _dot(q[:, :, rows], k[:, :, seen], 3, 3), MASKED)
        e = jnp.exp(scores - scores.max(-1, keepdims=True))
        inverse = 1 / e.sum(-1, keepdims=True)
        e = e.astype(v.dtype)
        out.append((_dot(e, v[:, :, seen], 3, 2) * inverse).astype(v.dtype))
        kept.append((e, inverse))
    o = jnp.concatenate(out, axis=2)
    return o, (q, k, v, o, kept)


def _backward(saved, do):
    q, k, v, o, kept = saved
    sums = (do.astype(jnp.float32) * o).sum(-1, keepdims=True)
    dq, dk, dv = [], 0, 0
    for rows, (e, inverse) in zip(_blocks(q.shape[2]), kept):
        seen = slice(0, rows.stop)
        p = e * inverse
        do_rows = do[:, :, rows]
        dp = _dot(do_rows, v[:, :, seen], 3, 3)
        ds = (p * (dp - sums[:, :, rows])).astype(q.dtype)
        dq.append(_dot(ds, k[:, :, seen], 3, 2).astype(q.dtype))
        later = ((0, 0), (0, 0), (0, q.shape[2] - rows.stop), (0, 0))
        dv += jnp.pad(_dot(p.astype(do.dtype), do_rows, 2, 2), later)
        dk += jnp.pad(_dot(ds, q[:, :, rows], 2, 2), later)
    return jnp.concatenate(dq, axis=2), dk.astype(k.dtype), dv.astype(v.dtype), None


_blocked.defvjp(_forward, _backward)
