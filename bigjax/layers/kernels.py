"""Attention kernels. All take q [B, T, H, D], k and v [B, S, K, D] with H a multiple of K, a mask
(layers/mask.py), segments [B, T], [B, S] or None, a bias of the scores [B or 1, H or 1, T, S] or
None, and a scale; all return [B, T, H, D] with the same numbers. Scores and softmax are in float32.
`attend` selects a kernel.
"""

from collections.abc import Mapping
import functools
import math

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from bigjax.errors import UserError
from bigjax.layers.mask import Causal, Full, Mask, dense, key_range
from bigjax.parallel import sharding
from bigjax.parallel.mesh import platform

KERNELS = ("einsum", "blocked", "splash", "cudnn")
BY_PLATFORM = {"cpu": "blocked", "tpu": "splash", "gpu": "cudnn", "cuda": "cudnn"}
KERNEL_RESIDUALS = (
    "attention_residuals"  # the name of the arrays that a kernel's backward pass needs
)
MASKED = -1e30  # not infinity: a row without keys yields a mean, not NaN


def attend(
    q,
    k,
    v,
    *,
    mask: Mask,
    start=0,
    q_segments=None,
    k_segments=None,
    bias=None,
    scale: float | None = None,
    kernel: str = "auto",
    dropout: float = 0.0,
    rng=None,
) -> jax.Array:
    """Softmax attention: by a kernel for complete sequences, by `einsum` with a cache.

    start: the index of the first query among the keys, an int or int [B]. scale: of the scores, by
    default 1 / sqrt(D). dropout: of the attention weights; off without an rng. kernel: 'auto', the
    backend's, or a name of KERNELS; `einsum` is used for lengths, dtypes and widths of heads that
    the kernel does not support, as when generating from a short prompt: training refuses them at
    its start, see `check`. Raises UserError if a kernel is named and the model has a bias that it
    never supports, or dropout, which only training has.
    """
    whole = isinstance(start, int) and start == 0
    dropping = rng is not None and dropout > 0
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    if kernel != "auto" and whole:
        _refuse(kernel, _never_supported(kernel, bias is not None, dropping))
    if kernel == "auto":
        kernel = BY_PLATFORM.get(platform(), "einsum")
    visible = (mask, q_segments, k_segments)
    if whole:
        supported = _supports(kernel, q, k, bias, dropping)
        if supported and kernel == "blocked":
            return blocked(q, k, v, *visible, bias, scale)
        if supported and kernel == "splash":
            from bigjax.layers import splash  # slow to import

            return splash.splash(q, k, v, *visible, scale, platform() != "tpu")
        if supported and kernel == "cudnn":
            return cudnn(q, k, v, *visible, bias, scale)
    seen = dense(mask, q.shape[1], k.shape[1], start, q_segments, k_segments)
    return einsum(q, k, v, seen, bias, scale, dropout if dropping else 0.0, rng)


def check(
    kernel: str,
    lengths: Mapping[str, int],
    mesh: jax.sharding.Mesh,
    dtype: str = "bfloat16",
    head_dim: int = 8,
    dropout: float = 0.0,
) -> None:
    """Raises UserError if a kernel that a config names cannot train a model on a mesh.

    lengths: {config key: length} of the sequences that attention runs over. dropout: of the
    attention weights.
    """
    if kernel == "auto":
        return
    unit = 128 * mesh.shape["sequence"]
    for key, length in lengths.items():
        if kernel == "splash" and length % unit:
            raise UserError(
                f"model.attention='splash' processes 128 tokens at a time on each of "
                f"mesh.sequence={mesh.shape['sequence']} device(s), and {key} is {length}: use a "
                f"multiple of {unit}, or model.attention='auto'."
            )
    on = mesh.devices.flat[0].platform
    if kernel == "cudnn" and on not in ("gpu", "cuda"):
        raise UserError(
            f"model.attention='cudnn' is for GPUs, but these devices are {on}: use 'auto'."
        )
    _refuse(kernel, _never_supported(kernel, False, dropout > 0))
    for key, length in lengths.items():
        if kernel == "cudnn":
            q = jax.ShapeDtypeStruct((1, length, 1, head_dim), dtype)
            lacks = _cudnn_lacks(q, mesh.shape["sequence"])
            _refuse(kernel, lacks and f"{lacks} ({key}={length})")


def cudnn(
    q_BTHD, k_BSKD, v_BSKD, mask: Mask, q_segments_BT, k_segments_BS, bias, scale: float
) -> jax.Array:
    """cuDNN's fused attention, for 16-bit numbers on NVIDIA GPUs.

    Each device has its rows and heads. A causal mask is built into the kernel. Segments and other
    masks become an array [B, T, S] that the kernel reads, and for which it writes a gradient. Where
    the sequence is sharded, every mask becomes such an array, since cuDNN counts queries from 0;
    each device then has its queries and gathers all keys.
    """
    T, S = q_BTHD.shape[1], k_BSKD.shape[1]
    native = mask == Full() or mask == Causal() and T == S  # built into cuDNN
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        seen = dense(Full() if native else mask, T, S, 0, q_segments_BT, k_segments_BS)
        return _cudnn(q_BTHD, k_BSKD, v_BSKD, seen, bias, scale, native and mask == Causal())
    (batch, length, heads), ways, k, v = over_devices(q_BTHD, k_BSKD, v_BSKD)
    queries = T // ways[1]
    sharded = queries < T
    has_segments, has_bias = q_segments_BT is not None, bias is not None

    def on_device(q, k, v, *more):
        start = jax.lax.axis_index(length) * queries if sharded else 0
        segments, more = (more[:2], more[2:]) if has_segments else ((None, None), more)
        array_mask = mask if sharded or not native else Full()
        seen = dense(array_mask, queries, S, start, *segments)
        causal = native and mask == Causal() and not sharded
        return _cudnn(q, k, v, seen, *(more or (None,)), scale, causal)

    P = PartitionSpec
    queries_at, keys_at = P(batch, length, heads), P(batch, None, heads)
    arrays, specs = [], []
    if has_segments:
        arrays += [q_segments_BT, k_segments_BS]
        specs += [P(batch, length), P(batch)]
    if has_bias:
        arrays.append(bias)
        specs.append(
            P(batch if bias.shape[0] > 1 else None, heads if bias.shape[1] > 1 else None, length)
        )
    return jax.shard_map(
        on_device,
        out_specs=queries_at,
        check_vma=False,
        in_specs=(queries_at, keys_at, keys_at, *specs),
    )(q_BTHD, k, v, *arrays)


def over_devices(q_BTHD, k_BSKD, v_BSKD):
    """The shards of a kernel under shard_map: (mesh axes of rows, queries and heads), [number of
    shards along each], keys and values, whose heads are repeated so that they shard likewise."""
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


def _cudnn(q, k, v, mask_BTS, bias, scale: float, causal: bool) -> jax.Array:
    return jax.nn.dot_product_attention(
        q,
        k,
        v,
        bias,
        mask=None if mask_BTS is None else mask_BTS[:, None],
        scale=scale,
        is_causal=causal,
        implementation="cudnn",
    )


def _refuse(kernel: str, lacks: str) -> None:
    if lacks:
        allowed = ("auto", "einsum") if kernel == "blocked" else ("auto", "blocked", "einsum")
        raise UserError(
            f"model.attention={kernel!r} does not support {lacks}. Change that, or set "
            f"model.attention to {' or '.join(map(repr, allowed))}."
        )


def _never_supported(kernel: str, has_bias: bool, dropping: bool) -> str:
    """What a kernel does not support for any length or dtype, '' if nothing."""
    if dropping and kernel != "einsum":
        return "dropout of the attention weights (model.attention_dropout)"
    return "a bias of the scores, which this model has" if has_bias and kernel == "splash" else ""


def _supports(kernel: str, q_BTHD, k_BSKD, bias, dropping: bool) -> bool:
    if _never_supported(kernel, bias is not None, dropping):
        return False
    if kernel == "cudnn":
        return not _cudnn_lacks(q_BTHD, jax.sharding.get_abstract_mesh().shape.get("sequence", 1))
    if kernel != "splash":
        return True
    from bigjax.layers import splash  # slow to import

    return splash.supports(q_BTHD.shape[1], k_BSKD.shape[1])


def _cudnn_lacks(q_BTHD, ways: int = 1) -> str:
    """What cuDNN does not support, '' if nothing. ways: devices over which queries are sharded.

    All GPUs with cuDNN's attention support heads of at most 128; for an array mask it requires an
    even number of queries on each device.
    """
    T, D = q_BTHD.shape[1], q_BTHD.shape[3]
    if q_BTHD.dtype == jnp.float32:
        return "float32: it needs model.dtype='bfloat16'"
    if D % 8 or D > 128:
        return f"heads of {D}: their width must be a multiple of 8 and at most 128"
    if T % (2 * ways):
        return f"{T} queries on {ways} device(s): each must have an even number"
    return ""


def einsum(
    q_BTHD, k_BSKD, v_BSKD, mask_BTS, bias=None, scale=None, dropout: float = 0.0, rng=None
) -> jax.Array:
    """The plain implementation. mask_BTS: from mask.dense."""
    B, T, H, D = q_BTHD.shape
    K = k_BSKD.shape[2]
    q = q_BTHD.reshape(B, T, K, H // K, D) * (D**-0.5 if scale is None else scale)
    scores = jnp.einsum("btkgd,bskd->bkgts", q, k_BSKD, preferred_element_type=jnp.float32)
    if bias is not None:
        by_group = (K, H // K) if bias.shape[1] > 1 else (1, 1)
        scores += bias.reshape(bias.shape[0], *by_group, *bias.shape[2:])
    if mask_BTS is not None:
        scores = jnp.where(mask_BTS[:, None, None], scores, MASKED)
    p = jax.nn.softmax(scores, axis=-1).astype(v_BSKD.dtype)
    if dropout:
        p = jnp.where(jax.random.bernoulli(rng, 1 - dropout, p.shape), p / (1 - dropout), 0)
    return jnp.einsum("bkgts,bskd->btkgd", p, v_BSKD).reshape(B, T, H, D)


def blocked(
    q_BTHD, k_BSKD, v_BSKD, mask: Mask, q_segments_BT, k_segments_BS, bias, scale: float
) -> jax.Array:
    """Attention in blocks of queries, each with the range of keys that it sees.

    For a causal mask this saves nearly half of the work. Its own gradient keeps the exponentials of
    the scores instead of the many arrays that automatic differentiation would keep.
    """
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
    return heads_first(o)


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
