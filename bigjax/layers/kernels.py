"""Attention kernels. All take q [B, T, H, D], k and v [B, S, K, D] with H a multiple of K, the
slot of the first query among the keys, and segments [B, T], [B, S] or None; all give [B, T, H, D]
and the same numbers. Scores and softmax are in float32. `attend` chooses.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from bigjax.parallel import sharding
from bigjax.parallel.mesh import platform

KERNELS = ("einsum", "blocked", "splash", "cudnn")
BY_PLATFORM = {"cpu": "blocked", "tpu": "splash", "gpu": "cudnn", "cuda": "cudnn"}
KERNEL_RESIDUALS = "attention_residuals"  # the name of what a kernel's backward pass needs
MASKED = -1e30  # not infinity: a row without keys gives a mean and not NaN


def attention_mask(
    T: int, S: int, causal: bool, start=0, q_segments_BT=None, k_segments_BS=None
) -> jax.Array | None:
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


def attend(
    q,
    k,
    v,
    *,
    causal: bool,
    start=0,
    q_segments=None,
    k_segments=None,
    kernel: str = "auto",
    dropout: float = 0.0,
    rng=None,
) -> jax.Array:
    """Softmax attention by the kernel that suits the backend, where that can: whole sequences
    without dropout; else by the plain form.

    dropout: of the attention's weights; off without an rng. kernel: 'auto', or a name of KERNELS.
    """
    T = q.shape[1]
    whole = T == k.shape[1] and isinstance(start, int) and start == 0
    dropping = rng is not None and dropout > 0
    if kernel == "auto":
        kernel = BY_PLATFORM.get(platform(), "einsum")
    if whole and not dropping:
        if kernel == "blocked":
            return blocked(q, k, v, q_segments, causal)
        if kernel == "splash":
            from bigjax.layers import splash  # slow to import

            if splash.suits(T):
                return splash.splash(q, k, v, q_segments, causal, platform() != "tpu")
        if kernel == "cudnn" and _suits_cudnn(q):
            return cudnn(q, k, v, q_segments, causal)
    mask = attention_mask(q.shape[1], k.shape[1], causal, start, q_segments, k_segments)
    return einsum(q, k, v, mask, dropout if dropping else 0.0, rng)


def cudnn(q_BTHD, k_BSKD, v_BSKD, segments_BT, causal: bool) -> jax.Array:
    """cuDNN's fused attention, for 16-bit numbers on NVIDIA's GPUs.

    Each device has its rows and heads. Causality costs nothing; what else is masked is an array
    [B, T, S] that the kernel reads, and to which it writes a gradient: segments are, and causality
    where the sequence is cut, since cuDNN knows of no first query but the first. Each device then
    has its queries and gathers the keys of all.
    """
    T = q_BTHD.shape[1]
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        mask = attention_mask(T, T, False, 0, segments_BT, segments_BT)
        return _cudnn(q_BTHD, k_BSKD, v_BSKD, mask, causal)
    (batch, length, heads), ways, k, v = over_devices(q_BTHD, k_BSKD, v_BSKD)
    queries = T // ways[1]

    def on_device(q, k, v, *segments):
        cut = queries < T
        start = jax.lax.axis_index(length) * queries if cut else 0
        mask = attention_mask(queries, T, causal and cut, start, *(segments or (None, None)))
        return _cudnn(q, k, v, mask, causal and not cut)

    P = PartitionSpec
    queries_at, keys_at = P(batch, length, heads), P(batch, None, heads)
    segments = () if segments_BT is None else (segments_BT, segments_BT)
    return jax.shard_map(
        on_device,
        out_specs=queries_at,
        check_vma=False,
        in_specs=(queries_at, keys_at, keys_at, *(P(batch, length), P(batch))[: len(segments)]),
    )(q_BTHD, k, v, *segments)


def over_devices(q_BTHD, k_BSKD, v_BSKD):
    """How a kernel that runs on each device by itself finds its part: the mesh axes that cut rows,
    queries and heads, into how many parts each, and keys and values whose heads are repeated until
    they divide as the queries' do."""
    mesh = jax.sharding.get_abstract_mesh()
    part = (
        PartitionSpec()
        if mesh.empty
        else sharding.spec(
            mesh, q_BTHD.shape, ("batch", "length", "act_heads", None), "the queries"
        )
    )
    axes = (*part, None, None, None)[:3]
    ways = [sharding.size_of(mesh, sharding.mesh_axes(axis)) for axis in axes]
    K = math.lcm(k_BSKD.shape[2], ways[2])
    k, v = (jnp.repeat(x, K // x.shape[2], axis=2) for x in (k_BSKD, v_BSKD))
    return axes, ways, k, v


def _cudnn(q, k, v, mask_BTS, causal: bool) -> jax.Array:
    return jax.nn.dot_product_attention(
        q,
        k,
        v,
        mask=None if mask_BTS is None else mask_BTS[:, None],
        is_causal=causal,
        implementation="cudnn",
    )


def _suits_cudnn(q_BTHD) -> bool:
    """Heads of at most 128, which all GPUs with cuDNN's attention can do, and, which it demands of
    a mask that it is given, an even number of queries on each device."""
    T, D = q_BTHD.shape[1], q_BTHD.shape[3]
    ways = jax.sharding.get_abstract_mesh().shape.get("sequence", 1)
    return q_BTHD.dtype != jnp.float32 and D % 8 == 0 and D <= 128 and T % (2 * ways) == 0


def einsum(q_BTHD, k_BSKD, v_BSKD, mask_BTS, dropout: float = 0.0, rng=None) -> jax.Array:
    """The plain form."""
    B, T, H, D = q_BTHD.shape
    K = k_BSKD.shape[2]
    q = q_BTHD.reshape(B, T, K, H // K, D) * D**-0.5
    scores = jnp.einsum("btkgd,bskd->bkgts", q, k_BSKD, preferred_element_type=jnp.float32)
    if mask_BTS is not None:
        scores = jnp.where(mask_BTS[:, None, None], scores, MASKED)
    p = jax.nn.softmax(scores, axis=-1).astype(v_BSKD.dtype)
    if dropout:
        p = jnp.where(jax.random.bernoulli(rng, 1 - dropout, p.shape), p / (1 - dropout), 0)
    return jnp.einsum("bkgts,bskd->btkgd", p, v_BSKD).reshape(B, T, H, D)


def blocked(q_BTHD, k_BSKD, v_BSKD, segments_BT, causal: bool = True) -> jax.Array:
    """Attention in blocks of queries; causal ones only see the keys up to their end.

    That saves nearly half of the work, and its own gradient keeps the exponentials of the scores
    instead of the many arrays that automatic differentiation keeps.
    """
    H, D = q_BTHD.shape[2:]
    heads_first = lambda x: x.swapaxes(1, 2)
    repeat = lambda x: jnp.repeat(x, H // x.shape[2], axis=2)
    o = _blocked(
        heads_first(q_BTHD * D**-0.5),
        heads_first(repeat(k_BSKD)),
        heads_first(repeat(v_BSKD)),
        segments_BT,
        causal,
    )
    return heads_first(o)


def _blocks(T: int, causal: bool) -> list[tuple[slice, slice]]:
    """(queries, the keys they may see); causal: at least 128 queries in each, at most 8 blocks."""
    n = 1
    if causal:
        n = max(n for n in range(1, 9) if T % n == 0 and (n == 1 or T // n >= 128))
    ends = [(i + 1) * (T // n) for i in range(n)]
    return [(slice(end - T // n, end), slice(0, end)) for end in ends]


def _dot(a, b, a_axis: int, b_axis: int):
    """Batched over the first two axes, accumulated in float32."""
    return jax.lax.dot_general(
        a, b, (((a_axis,), (b_axis,)), ((0, 1), (0, 1))), preferred_element_type=jnp.float32
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _blocked(q_BHTD, k_BHTD, v_BHTD, segments_BT, causal):
    return _forward(q_BHTD, k_BHTD, v_BHTD, segments_BT, causal)[0]


def _forward(q, k, v, segments, causal):
    out, kept = [], []
    for rows, seen in _blocks(q.shape[2], causal):
        segment = lambda part: None if segments is None else segments[:, part]
        mask = attention_mask(
            rows.stop - rows.start, seen.stop, causal, rows.start, segment(rows), segment(seen)
        )
        scores = _dot(q[:, :, rows], k[:, :, seen], 3, 3)
        if mask is not None:
            scores = jnp.where(mask[:, None], scores, MASKED)
        e = jnp.exp(scores - scores.max(-1, keepdims=True))
        inverse = 1 / e.sum(-1, keepdims=True)
        e = e.astype(v.dtype)
        out.append((_dot(e, v[:, :, seen], 3, 2) * inverse).astype(v.dtype))
        kept.append((e, inverse))
    o = jnp.concatenate(out, axis=2)
    return o, (q, k, v, o, kept)


def _backward(causal, saved, do):
    q, k, v, o, kept = saved
    sums = (do.astype(jnp.float32) * o).sum(-1, keepdims=True)
    dq, dk, dv = [], 0, 0
    for (rows, seen), (e, inverse) in zip(_blocks(q.shape[2], causal), kept):
        p = e * inverse
        do_rows = do[:, :, rows]
        dp = _dot(do_rows, v[:, :, seen], 3, 3)
        ds = (p * (dp - sums[:, :, rows])).astype(q.dtype)
        dq.append(_dot(ds, k[:, :, seen], 3, 2).astype(q.dtype))
        later = ((0, 0), (0, 0), (0, q.shape[2] - seen.stop), (0, 0))
        dv += jnp.pad(_dot(p.astype(do.dtype), do_rows, 2, 2), later)
        dk += jnp.pad(_dot(ds, q[:, :, rows], 2, 2), later)
    return jnp.concatenate(dq, axis=2), dk.astype(k.dtype), dv.astype(v.dtype), None


_blocked.defvjp(_forward, _backward)
