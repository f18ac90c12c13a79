"""Splash attention, a Pallas kernel for TPUs in jax, on the shards of a mesh."""

import jax
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as library
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np

from bigjax.layers.kernels.common import SCOPE, over_devices
from bigjax.layers.mask import Causal, Full, Mask, pairs, table
from bigjax.layers.remat import kept
from bigjax.parallel.mesh import device_kind, platform

BIAS, SOFTCAP = False, True
PLATFORMS = ()

# The number of products of queries x keys in each kernel, for plan/predict.py, see SCOPE. The
# backward pass is one kernel called dkv with 5 products, or dkv with 4 and dq with 3; these are
# counted as 5 and 2, which also add up to 7.
PRODUCTS = {"splash_mha_fwd": 2, "splash_mha_dq": 2, "splash_mha_dkv": 5}

# From schedules of these kernels for each TPU (benchmarks/attention_blocks.py, docs/benchmarks.md).
# A block of 1024 queries and keys, of which 512 keys are processed at once, takes less time than
# the blocks of 512 that a causal mask needs of it.
LARGE, SMALL = 1024, 512
# The widest heads, in bfloat16, that have large blocks, by kind of device (v6e and tpu7x). Those of
# 256 need more than the 16 MiB of memory on the chip that v4 gives a kernel, and gain least on v5e.
WIDEST = {"TPU v6 lite": 256, "TPU7x": 256}
OTHERS_WIDEST = 128
WIDEST_SMALL = 1024  # bytes of a row of a head, up to which its blocks are not smaller than SMALL
# One backward kernel takes less time than two, but writes gradients of the queries for each block
# of keys, and they are summed afterwards. Where that is more memory than this many times the
# queries, two kernels are used.
COPIES = 8
WIDTH = 128  # of a TPU's registers: lengths are multiples of it
PADDED = 1024  # the shortest other lengths, which are padded: of shorter ones it would be too much


def attention(
    q_BTHD,
    k_BSKD,
    v_BSKD,
    mask: Mask,
    q_segments_BT,
    k_segments_BS,
    bias: None,
    scale: float,
    softcap: float = 0.0,
) -> jax.Array:
    """Attention without scores in memory. Each device has its rows and heads. Where the sequence is
    sharded, it has its queries and gathers all keys. Other backends interpret it, slowly."""
    del bias
    T, S = q_BTHD.shape[1], k_BSKD.shape[1]
    if T % WIDTH or S % WIDTH:
        segments = _padded_segments(q_segments_BT, k_segments_BS, len(q_BTHD), T, S)
        q, k, v = (_padded(x) for x in (q_BTHD, k_BSKD, v_BSKD))
        return _attention(q, k, v, mask, *segments, scale, softcap)[:, :T]
    return _attention(q_BTHD, k_BSKD, v_BSKD, mask, q_segments_BT, k_segments_BS, scale, softcap)


def _padded(x, value: int = 0) -> jax.Array:
    """x [B, n, ...] with n padded to a multiple of WIDTH."""
    widths = [(0, 0), (0, -x.shape[1] % WIDTH), *[(0, 0)] * (x.ndim - 2)]
    return jnp.pad(x, widths, constant_values=value)


def _padded_segments(q_BT, k_BS, B: int, T: int, S: int) -> tuple[jax.Array, jax.Array]:
    """The segments of padded queries and keys; no other query sees the keys added. An added query
    sees one key at least, since a softmax over none may be NaN: of as many queries as keys the
    added key in its own place, else, without a mask, those of the last one's segment."""
    q_BT = jnp.zeros((B, T), jnp.int32) if q_BT is None else q_BT
    k_BS = jnp.zeros((B, S), jnp.int32) if k_BS is None else k_BS
    added = -jnp.ones((B, 1), jnp.int32) if T == S else k_BS[:, -1:]
    q = jnp.concatenate([q_BT, jnp.broadcast_to(added, (B, -T % WIDTH))], axis=1)
    return q, _padded(k_BS, -1)


def _attention(
    q_BTHD, k_BSKD, v_BSKD, mask: Mask, q_segments_BT, k_segments_BS, scale: float, softcap: float
) -> jax.Array:
    B, T, H, D = q_BTHD.shape
    S = k_BSKD.shape[1]
    mesh = jax.sharding.get_abstract_mesh()
    (batch, length, heads), (rows, parts, shards), k, v = over_devices(q_BTHD, k_BSKD, v_BSKD)
    arrays = {"query": q_BTHD * scale, "key": k, "value": v}
    q, k, v = (kept(jnp.swapaxes(x, 1, 2), name) for name, x in arrays.items())
    block = blocks(mask, T, S, parts, largest(D, q.dtype, device_kind()))
    kernel = _kernel(H, T, S, mask, shards, parts, block, platform() != "tpu", softcap)
    if q_segments_BT is None:
        call = lambda kernel, q, k, v: jax.vmap(kernel)(q, k, v)
        segments = ()
    else:
        call = lambda kernel, q, k, v, *ids: jax.vmap(kernel)(q, k, v, library.SegmentIds(*ids))
        segments = (q_segments_BT, k_segments_BS)
    if not mesh.empty and mesh.size > 1:
        P = PartitionSpec
        of_kernel = kernel.manual_sharding_spec(NamedSharding(mesh, P(heads, length)))
        keys = P(batch, heads)
        call = jax.shard_map(
            call,
            out_specs=P(batch, heads, length),
            check_vma=False,
            in_specs=(
                of_kernel,
                P(batch, heads, length),
                keys,
                keys,
                *(P(batch, length), P(batch))[: len(segments)],
            ),
        )
    product = _pairs(mask, T, S, parts, block) * B // rows * H // shards * D
    with jax.named_scope(f"{SCOPE}{product}"):
        return jnp.swapaxes(call(kernel, q, k, v, *segments), 1, 2)


def unsupported(q_BTHD, k_BSKD, ways: int, bias=None) -> str:
    del bias
    T, S = q_BTHD.shape[1], k_BSKD.shape[1]
    if T % (WIDTH * ways) and (ways > 1 or T < PADDED):
        return (
            f"{T} queries on {ways} device(s): each processes {WIDTH} at a time, so it needs a "
            f"multiple of {WIDTH * ways}" + (f", or at least {PADDED}" if ways == 1 else "")
        )
    if S % WIDTH and (ways > 1 or S < PADDED):
        return f"{S} keys: it needs a multiple of {WIDTH}, or at least {PADDED}"
    return ""


class _Mask(masks.Mask):
    """A mask in the form of the library, which reads it block by block."""

    def __init__(self, mask: Mask, shape: tuple[int, int]):
        self._mask, self._shape = mask, shape

    @property
    def shape(self) -> tuple[int, int]:
        return self._shape

    def __getitem__(self, at) -> np.ndarray:
        queries, keys = (range(n)[part] for n, part in zip(self._shape, at))
        return table(self._mask, queries, keys)

    def __eq__(self, other) -> bool:
        return isinstance(other, _Mask) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash((type(self), self._mask, self._shape))


def mask_of(mask: Mask, T: int, S: int, shards: int) -> masks.Mask:
    """A mask for the library; one of its own classes where possible, as they need no memory.
    shards: of the queries."""
    if mask == Full():
        return masks.FullMask((T, S))
    if mask == Causal() and T == S:
        return masks.CausalMask((T, S), shard_count=shards)
    return _Mask(mask, (T, S))


def largest(D: int, dtype, kind: str) -> int:
    """The largest block of heads of D on a kind of device."""
    bytes_of_row = D * jnp.dtype(dtype).itemsize
    if D <= WIDEST.get(kind, OTHERS_WIDEST) and jnp.dtype(dtype).itemsize <= 2:
        return LARGE
    return SMALL if bytes_of_row <= WIDEST_SMALL else SMALL // 2


def blocks(mask: Mask, T: int, S: int, shards: int, limit: int = LARGE) -> tuple[int, int]:
    """The sizes of a block of queries and of a block of keys, for T queries in `shards` shards and
    S keys. limit: the largest block that fits."""
    # Other masks are in memory, block by block, and may need few of the scores in a large block.
    if isinstance(mask_of(mask, T, S, shards), _Mask):
        limit = min(limit, SMALL)
    size = lambda n: next(b for b in (LARGE, SMALL, 384, 256, 128) if b <= limit and n % b == 0)
    queries = size(T // shards)
    return queries, queries if S == T else size(S)


def at_once(kv: int) -> int:
    """How many keys of a block of kv are processed at once."""
    return min(kv, SMALL)


def is_fused(S: int, kv: int) -> bool:
    """Whether the backward pass of S keys in blocks of kv is one kernel."""
    return S // kv <= COPIES


def _pairs(mask: Mask, T: int, S: int, shards: int, block: tuple[int, int]) -> int:
    """Pairs of a query and a key, in complete blocks, that a device computes per head; where the
    sequence is sharded, on the device with the most pairs, for which the others wait."""
    n = T // shards
    return max(pairs(mask, S, range(i, i + n), block) for i in range(0, T, n))


def block_sizes(q: int, kv: int, keys: int, fused: bool) -> library.BlockSizes:
    """Blocks of q queries and kv keys in all kernels, of which so many keys are processed at once.
    fused: one backward kernel, not two."""
    return library.BlockSizes(
        block_q=q,
        block_kv=kv,
        block_kv_compute=keys,
        block_q_dkv=q,
        block_kv_dkv=kv,
        block_kv_dkv_compute=keys,
        block_q_dq=None if fused else q,
        block_kv_dq=None if fused else kv,
        use_fused_bwd_kernel=fused,
    )


def _kernel(
    H: int,
    T: int,
    S: int,
    mask: Mask,
    head_shards: int,
    length_shards: int,
    block: tuple[int, int],
    interpret: bool,
    softcap: float = 0.0,
):
    """The library's kernel for H heads, T queries and S keys over all devices."""
    q, kv = block
    return library.make_splash_mha(
        masks.MultiHeadMask([mask_of(mask, T, S, length_shards)] * H),
        block_sizes=block_sizes(q, kv, at_once(kv), is_fused(S, kv)),
        head_shards=head_shards,
        q_seq_shards=length_shards,
        residual_checkpoint_name="context",
        attn_logits_soft_cap=softcap or None,
        interpret=interpret,
    )
