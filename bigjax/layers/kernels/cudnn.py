"""cuDNN's fused attention, for 16-bit numbers on NVIDIA GPUs."""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from bigjax.layers.kernels.common import over_devices
from bigjax.layers.mask import Causal, Full, Mask, dense
from bigjax.layers.remat import kept

BIAS, SOFTCAP = True, False
PLATFORMS = ("gpu", "cuda")


def attention(
    q_BTHD, k_BSKD, v_BSKD, mask: Mask, q_segments_BT, k_segments_BS, bias, scale: float
) -> jax.Array:
    """Each device has its rows and heads. A causal mask is built into the kernel. Segments and
    other masks become an array [B, T, S] that the kernel reads, and for which it writes a gradient.
    Where the sequence is sharded, every mask becomes such an array, since cuDNN counts queries from
    0; each device then has its queries and gathers all keys."""
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


def _cudnn(q, k, v, mask_BTS, bias, scale: float, causal: bool) -> jax.Array:
    context = jax.nn.dot_product_attention(
        q,
        k,
        v,
        bias,
        mask=None if mask_BTS is None else mask_BTS[:, None],
        scale=scale,
        is_causal=causal,
        implementation="cudnn",
    )
    return kept(context, "context")


def unsupported(q_BTHD, k_BSKD, ways: int, bias=None) -> str:
    """All GPUs with cuDNN's attention support heads of at most 128; for an array mask it requires
    even numbers of keys and of queries on each device."""
    del bias
    T, D = q_BTHD.shape[1], q_BTHD.shape[3]
    S = k_BSKD.shape[1]
    if q_BTHD.dtype == jnp.float32:
        return "float32: it needs model.dtype='bfloat16'"
    if D % 8 or D > 128:
        return f"heads of {D}: their width must be a multiple of 8 and at most 128"
    if T % (2 * ways):
        return f"{T} queries on {ways} device(s): each must have an even number"
    return f"{S} keys: their number must be even" if S % 2 else ""
