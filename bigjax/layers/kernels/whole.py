"""Attention over short rows, such as the patches of an image, for TPUs: a Pallas kernel with all
scores of a row on the chip, of any length and any width of heads, and with a bias of the scores."""

import functools
from typing import NamedTuple

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from bigjax.layers.kernels.common import MASKED, SCOPE, SCORES, over_devices
from bigjax.layers.mask import Full, Mask, dense
from bigjax.layers.remat import kept
from bigjax.parallel.mesh import device_kind, platform

BIAS = True  # that is the same for all rows: [1, H or 1, T, S]
SOFTCAP = False
PLATFORMS = ()
# As of splash.py: products of queries x keys by the kernel's name. The backward pass computes the
# scores again.
PRODUCTS = {"whole_forward": 2, "whole_backward": 5}
# Bytes on the chip that a kernel may use, by kind of device.
MEMORY = {"TPU v4": 16 << 20}
OTHERS_MEMORY = 32 << 20
LANES = 128  # numbers in a row of a TPU's registers


class Options(NamedTuple):
    """D: width of a head. group: heads that are on the chip at a time. biased: whether each head
    has a bias."""

    D: int
    group: int
    scale: float
    interpret: bool
    biased: bool


def attention(
    q_BTHD, k_BSKD, v_BSKD, mask: Mask, q_segments_BT, k_segments_BS, bias, scale: float
) -> jax.Array:
    """Attention without scores in memory. Each device has its rows and heads. Heads stay side by
    side, as the products around them write and read them. Other backends interpret it, slowly."""
    B, T, H, D = q_BTHD.shape
    S = k_BSKD.shape[1]
    (batch, length, heads), (rows, _, shards), k, v = over_devices(q_BTHD, k_BSKD, v_BSKD)
    k, v = (jnp.repeat(x, H // x.shape[2], axis=2) for x in (k, v))
    flat = lambda x: x.reshape(*x.shape[:2], H * D)
    arrays = {"query": q_BTHD, "key": k, "value": v}
    q, k, v = (kept(flat(x), name) for name, x in arrays.items())
    seen = None
    if mask != Full() or q_segments_BT is not None:
        seen_BTS = dense(mask, T, S, 0, q_segments_BT, k_segments_BS)
        seen = jnp.broadcast_to(seen_BTS, (B, T, S)).astype(jnp.int32)
    if bias is not None:
        bias = jnp.broadcast_to(bias[0], (H, T, S)).astype(jnp.float32)
    own = H // shards
    group = _group(T, S, own, D, q.dtype.itemsize, bias is not None)
    options = Options(D, group or own, scale, platform() != "tpu", bias is not None)
    call = functools.partial(_attention, options)
    mesh = jax.sharding.get_abstract_mesh()
    if not mesh.empty and mesh.size > 1:
        of_row, of_heads = P(batch, length), None if bias is None else P(heads)
        call = jax.shard_map(
            call,
            in_specs=(
                P(batch, length, heads),
                *[P(batch, None, heads)] * 2,
                None if seen is None else of_row,
                of_heads,
            ),
            out_specs=P(batch, length, heads),
            check_vma=False,
        )
    n = B // rows * own
    padded = n * -(-T // 8) * 8 * -(-S // LANES) * LANES
    with jax.named_scope(f"{SCOPE}{n * T * S * D}"), jax.named_scope(f"{SCORES}{padded}"):
        o = call(q, k, v, seen, bias)
    return kept(o.reshape(B, T, H, D), "context")


def unsupported(q_BTHD, k_BSKD, ways: int, bias=None) -> str:
    _, T, H, D = q_BTHD.shape
    S, memory = k_BSKD.shape[1], MEMORY.get(device_kind(), OTHERS_MEMORY)
    size, biased = jnp.dtype(q_BTHD.dtype).itemsize, bias is not None
    if biased and bias.shape[0] > 1:
        return "a bias of each row"
    if not _group(T, S, H, D, size, biased):
        least = min(h for h in range(1, H + 1) if _divides(h, H, D))
        return (
            f"rows of {max(T, S)} tokens with heads of {D}, of which {least} need "
            f"{_needed(T, S, least, D, size, biased) >> 20} MiB on the chip; it has {memory >> 20}"
        )
    return f"a row over {ways} devices: it needs all queries of a row on one" if ways > 1 else ""


def _needed(T: int, S: int, heads: int, D: int, size: int, biased: bool) -> int:
    """Bytes on the chip for so many heads of a row: seven arrays of the row, the next ones beside
    them, scores of a few heads; with a bias that of each head, its gradient, and the next ones."""
    arrays = 14 * max(T, S) * heads * D * size
    return arrays + 24 * T * S + (4 * 4 * heads * T * S if biased else 0)


def _divides(group: int, H: int, D: int) -> bool:
    """Whether the heads can be processed in groups of this number."""
    return H % group == 0 and (group == H or group * D % LANES == 0)


def _group(T: int, S: int, H: int, D: int, size: int, biased: bool) -> int:
    """The largest number of heads that fits on the chip at a time; 0 if none does."""
    memory = MEMORY.get(device_kind(), OTHERS_MEMORY)
    fits = lambda h: _divides(h, H, D) and _needed(T, S, h, D, size, biased) <= memory
    return next((h for h in range(H, 0, -1) if fits(h)), 0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(options: Options, q, k, v, seen=None, bias=None):
    """q [B, T, H * D], k and v [B, S, H * D]; seen int32 [B, T, S] or None: all is seen; bias
    float32 [H, T, S] or None."""
    return _call(_forward, "whole_forward", options, (q, k, v), seen, bias, (q,))[0]


def _attention_forward(options, q, k, v, seen, bias):
    return _attention(options, q, k, v, seen, bias), (q, k, v, seen, bias)


def _attention_backward(options, kept_arrays, g):
    q, k, v, seen, bias = kept_arrays
    like = (q, k, v) if bias is None else (q, k, v, bias)
    d = _call(_backward, "whole_backward", options, (q, k, v, g), seen, bias, like)
    return *d[:3], None, None if bias is None else d[3]


_attention.defvjp(_attention_forward, _attention_backward)


def _call(body, name, options: Options, arrays, seen, bias, like):
    """Runs the body for each group of heads of each row; results as `like`. A bias is that of all
    rows: they come last, so that its gradient stays on the chip while it is summed over them."""
    D, group = options.D, options.group
    B, _, width = arrays[0].shape
    of_heads = lambda x: pl.BlockSpec((1, x.shape[1], group * D), lambda i, b: (b, 0, i))
    of_row = lambda x: pl.BlockSpec((1, *x.shape[1:]), lambda i, b: (b, 0, 0))
    of_bias = lambda x: pl.BlockSpec((group, *x.shape[1:]), lambda i, b: (i, 0, 0))
    inputs, specs = [*arrays], [of_heads(x) for x in arrays]
    for x, spec in ((seen, of_row), (bias, of_bias)):
        if x is not None:
            inputs.append(x)
            specs.append(spec(x))
    sums = len(like) == 4  # over rows
    return pl.pallas_call(
        functools.partial(body, options=options, masked=seen is not None),
        grid=(width // (group * D), B),
        in_specs=specs,
        out_specs=[of_bias(x) if x is bias else of_heads(x) for x in like],
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in like],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary" if sums else "parallel"),
            vmem_limit_bytes=MEMORY.get(device_kind(), OTHERS_MEMORY),
        ),
        interpret=options.interpret,
        name=name,
    )(*inputs)


def _heads(ref, D: int) -> list[slice]:
    """The columns of each head."""
    return [slice(at, at + D) for at in range(0, ref.shape[-1], D)]


def _dot(a, b, a_axis: int, b_axis: int) -> jax.Array:
    dims = ((a_axis,), (b_axis,)), ((), ())
    return jax.lax.dot_general(a, b, dims, preferred_element_type=jnp.float32)


def _extras(refs, options: Options, masked: bool):
    """(what is seen [T, S], or None; the reference of the bias, or None), of the inputs after the
    arrays."""
    seen = refs[0][0] > 0 if masked else None
    return seen, refs[int(masked)] if options.biased else None


def _exponentials(q, k, scale: float, seen, bias) -> jax.Array:
    """float32 [T, S], 1 at the largest score of each query."""
    scores = _dot(q, k, 1, 1) * scale
    if bias is not None:
        scores = scores + bias
    if seen is not None:
        scores = jnp.where(seen, scores, MASKED)
    return jnp.exp(scores - scores.max(-1, keepdims=True))


def _forward(q_ref, k_ref, v_ref, *refs, options: Options, masked: bool):
    seen, bias_ref = _extras(refs, options, masked)
    for i, at in enumerate(_heads(q_ref, options.D)):
        bias = None if bias_ref is None else bias_ref[i]
        e = _exponentials(q_ref[0, :, at], k_ref[0, :, at], options.scale, seen, bias)
        v = v_ref[0, :, at]
        o = _dot(e.astype(v.dtype), v, 1, 0) / e.sum(-1, keepdims=True)
        refs[-1][0, :, at] = o.astype(v.dtype)


def _backward(q_ref, k_ref, v_ref, g_ref, *refs, options: Options, masked: bool):
    seen, bias_ref = _extras(refs, options, masked)
    n = 4 if options.biased else 3
    dq_ref, dk_ref, dv_ref, *d_bias = refs[-n:]
    for d_ref in d_bias:

        @pl.when(pl.program_id(1) == 0)
        def _(d_ref=d_ref):
            d_ref[...] = jnp.zeros(d_ref.shape, d_ref.dtype)

    for i, at in enumerate(_heads(q_ref, options.D)):
        q, k, v, g = (ref[0, :, at] for ref in (q_ref, k_ref, v_ref, g_ref))
        bias = None if bias_ref is None else bias_ref[i]
        e = _exponentials(q, k, options.scale, seen, bias)
        p = e / e.sum(-1, keepdims=True)
        dp = _dot(g, v, 1, 1)
        ds = p * (dp - (p * dp).sum(-1, keepdims=True))
        for d_ref in d_bias:
            d_ref[i] += ds
        ds = ds * options.scale
        p, ds = p.astype(q.dtype), ds.astype(q.dtype)
        dq_ref[0, :, at] = _dot(ds, k, 1, 0).astype(q.dtype)
        dk_ref[0, :, at] = _dot(ds, q, 0, 0).astype(q.dtype)
        dv_ref[0, :, at] = _dot(p, g, 0, 0).astype(q.dtype)
