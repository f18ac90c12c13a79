"""Attention over short rows, such as the patches of an image, for TPUs: a Pallas kernel with all
scores of a row on the chip, of any length and any width of heads."""

import functools

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from bigjax.layers.kernels.common import MASKED, SCOPE, SCORES, over_devices
from bigjax.layers.mask import Full, Mask, dense
from bigjax.layers.remat import kept
from bigjax.parallel.mesh import device_kind, platform

BIAS = False
PLATFORMS = ()
# As of splash.py: products of queries x keys by the kernel's name. The backward pass computes the
# scores again.
PRODUCTS = {"whole_forward": 2, "whole_backward": 5}
# Bytes on the chip that a kernel may use, by kind of device.
MEMORY = {"TPU v4": 16 << 20}
OTHERS_MEMORY = 32 << 20


def attention(
    q_BTHD, k_BSKD, v_BSKD, mask: Mask, q_segments_BT, k_segments_BS, bias: None, scale: float
) -> jax.Array:
    """Attention without scores in memory. Each device has its rows and heads. Heads stay side by
    side, as the products around them write and read them. Other backends interpret it, slowly."""
    del bias
    B, T, H, D = q_BTHD.shape
    S = k_BSKD.shape[1]
    (batch, length, heads), (rows, _, shards), k, v = over_devices(q_BTHD, k_BSKD, v_BSKD)
    k, v = (jnp.repeat(x, H // x.shape[2], axis=2) for x in (k, v))
    flat = lambda x: x.reshape(*x.shape[:2], H * D)
    arrays = {"query": q_BTHD, "key": k, "value": v}
    q, k, v = (kept(flat(x), name) for name, x in arrays.items())
    seen = ()
    if mask != Full() or q_segments_BT is not None:
        seen_BTS = dense(mask, T, S, 0, q_segments_BT, k_segments_BS)
        seen = (jnp.broadcast_to(seen_BTS, (B, T, S)).astype(jnp.int32),)
    call = functools.partial(_attention, D, scale, platform() != "tpu")
    mesh = jax.sharding.get_abstract_mesh()
    if not mesh.empty and mesh.size > 1:
        specs = P(batch, length, heads), P(batch, None, heads), P(batch, None, heads)
        call = jax.shard_map(
            call,
            in_specs=(*specs, *[P(batch, length)] * len(seen)),
            out_specs=specs[0],
            check_vma=False,
        )
    n = B // rows * H // shards
    padded = n * -(-T // 8) * 8 * -(-S // 128) * 128
    with jax.named_scope(f"{SCOPE}{n * T * S * D}"), jax.named_scope(f"{SCORES}{padded}"):
        o = call(q, k, v, *seen)
    return kept(o.reshape(B, T, H, D), "context")


def unsupported(q_BTHD, k_BSKD, ways: int) -> str:
    _, T, H, D = q_BTHD.shape
    S, memory = k_BSKD.shape[1], MEMORY.get(device_kind(), OTHERS_MEMORY)
    # Seven arrays of a row, the next ones beside them, and scores of a few heads.
    needed = 14 * max(T, S) * H * D * jnp.dtype(q_BTHD.dtype).itemsize + 24 * T * S
    if needed > memory:
        return (
            f"rows of {max(T, S)} tokens with {H} heads of {D}, which need {needed >> 20} MiB on "
            f"the chip; it has {memory >> 20}"
        )
    return f"a row over {ways} devices: it needs all queries of a row on one" if ways > 1 else ""


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _attention(D: int, scale: float, interpret: bool, q, k, v, *seen):
    """q [B, T, H * D], k and v [B, S, H * D]; seen int32 [B, T, S], if not all is seen."""
    return _call(_forward, "whole_forward", D, scale, interpret, (q, k, v), (), seen, (q,))[0]


def _attention_forward(D, scale, interpret, q, k, v, *seen):
    return _attention(D, scale, interpret, q, k, v, *seen), (q, k, v, seen)


def _attention_backward(D, scale, interpret, kept_arrays, g):
    q, k, v, seen = kept_arrays
    arrays = q, k, v
    out = _call(_backward, "whole_backward", D, scale, interpret, arrays, (g,), seen, arrays)
    return *out, *[None] * len(seen)


_attention.defvjp(_attention_forward, _attention_backward)


def _call(body, name, D, scale, interpret, arrays, more, seen, like):
    """Runs the body for each row: with q, k, v, more arrays and what is seen; results as `like`."""
    inputs = (*arrays, *more, *seen)
    of_row = lambda x: pl.BlockSpec((1, *x.shape[1:]), lambda b: (b, 0, 0))
    return pl.pallas_call(
        functools.partial(body, D=D, scale=scale, masked=bool(seen)),
        grid=(len(inputs[0]),),
        in_specs=[of_row(x) for x in inputs],
        out_specs=[of_row(x) for x in like],
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in like],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel",),
            vmem_limit_bytes=MEMORY.get(device_kind(), OTHERS_MEMORY),
        ),
        interpret=interpret,
        name=name,
    )(*inputs)


def _heads(ref, D: int) -> list[slice]:
    """The columns of each head."""
    return [slice(at, at + D) for at in range(0, ref.shape[-1], D)]


def _dot(a, b, a_axis: int, b_axis: int) -> jax.Array:
    dims = ((a_axis,), (b_axis,)), ((), ())
    return jax.lax.dot_general(a, b, dims, preferred_element_type=jnp.float32)


def _exponentials(q, k, scale: float, seen) -> jax.Array:
    """float32 [T, S], 1 at the largest score of each query."""
    scores = _dot(q, k, 1, 1) * scale
    if seen is not None:
        scores = jnp.where(seen, scores, MASKED)
    return jnp.exp(scores - scores.max(-1, keepdims=True))


def _forward(q_ref, k_ref, v_ref, *refs, D: int, scale: float, masked: bool):
    seen = refs[0][0] > 0 if masked else None
    for at in _heads(q_ref, D):
        e = _exponentials(q_ref[0, :, at], k_ref[0, :, at], scale, seen)
        v = v_ref[0, :, at]
        o = _dot(e.astype(v.dtype), v, 1, 0) / e.sum(-1, keepdims=True)
        refs[-1][0, :, at] = o.astype(v.dtype)


def _backward(q_ref, k_ref, v_ref, g_ref, *refs, D: int, scale: float, masked: bool):
    seen = refs[0][0] > 0 if masked else None
    dq_ref, dk_ref, dv_ref = refs[-3:]
    for at in _heads(q_ref, D):
        q, k, v, g = (ref[0, :, at] for ref in (q_ref, k_ref, v_ref, g_ref))
        e = _exponentials(q, k, scale, seen)
        p = e / e.sum(-1, keepdims=True)
        dp = _dot(g, v, 1, 1)
        ds = p * (dp - (p * dp).sum(-1, keepdims=True)) * scale
        p, ds = p.astype(q.dtype), ds.astype(q.dtype)
        dq_ref[0, :, at] = _dot(ds, k, 1, 0).astype(q.dtype)
        dk_ref[0, :, at] = _dot(ds, q, 0, 0).astype(q.dtype)
        dv_ref[0, :, at] = _dot(p, g, 0, 0).astype(q.dtype)
