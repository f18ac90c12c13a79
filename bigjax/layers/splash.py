"""Splash attention, a Pallas kernel for TPUs that comes with jax, on the shards of a mesh."""

import jax
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as library
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from bigjax.layers.kernels import KERNEL_RESIDUALS, over_devices

# Products of a query and a key, or of their size, in each kernel; and the name of a scope by which
# a program says how many multiplications one such takes in all. A kernel's FLOPs cannot be seen
# from outside: plan/predict.py reads them here.
PRODUCTS = {"splash_mha_fwd": 2, "splash_mha_dq": 3, "splash_mha_dkv": 4}
SCOPE = "attention_product_"


def splash(q_BTHD, k_BTKD, v_BTKD, segments_BT, causal: bool, interpret: bool = False):
    """Attention that holds no scores in memory, of whole sequences that suit (see below).

    Each device has its rows and heads. Where the sequence is cut, it has its queries and gathers
    the keys of all. interpret: run on any backend, slowly.
    """
    B, T, H, D = q_BTHD.shape
    mesh = jax.sharding.get_abstract_mesh()
    (batch, length, heads), (rows, parts, shards), k, v = over_devices(q_BTHD, k_BTKD, v_BTKD)
    q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q_BTHD * D**-0.5, k, v))
    kernel = _kernel(H, T, causal, shards, parts, interpret)
    if segments_BT is None:
        call = lambda kernel, q, k, v: jax.vmap(kernel)(q, k, v)
        segments = ()
    else:
        call = lambda kernel, q, k, v, *ids: jax.vmap(kernel)(q, k, v, library.SegmentIds(*ids))
        segments = (segments_BT, segments_BT)
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
    product = _pairs(T, parts, causal) * B // rows * H // shards * D
    with jax.named_scope(f"{SCOPE}{product}"):
        return jnp.swapaxes(call(kernel, q, k, v, *segments), 1, 2)


def suits(T: int) -> bool:
    """Whether each device has a multiple of 128 tokens, the width of a TPU's registers."""
    return T % (128 * jax.sharding.get_abstract_mesh().shape.get("sequence", 1)) == 0


def mask_of(T: int, causal: bool, shards: int) -> masks.Mask:
    """Who attends to whom, apart from segments: as kernels.attention_mask. shards: of queries."""
    return masks.CausalMask((T, T), shard_count=shards) if causal else masks.FullMask((T, T))


def _block(T: int) -> int:
    """Tokens of a block. In schedules for v5e one of 512 takes a fifth of the time of 128."""
    return next(b for b in (512, 384, 256, 128) if T % b == 0)


def _pairs(T: int, shards: int, causal: bool) -> int:
    """Of a query and a key, in whole blocks, that a device computes a head; if causal and the
    sequence is cut, the one with the last queries, for which all wait."""
    block = _block(T // shards)
    n = T // block
    rows = range(n - n // shards, n)
    return block * block * sum(i + 1 if causal else n for i in rows)


def _kernel(H: int, T: int, causal: bool, head_shards: int, length_shards: int, interpret: bool):
    """The library's kernel for H heads of T tokens in all."""
    block = _block(T // length_shards)
    blocks = library.BlockSizes(
        block_q=block,
        block_kv=block,
        block_q_dkv=block,
        block_kv_dkv=block,
        block_q_dq=block,
        block_kv_dq=block,
    )
    return library.make_splash_mha(
        masks.MultiHeadMask([mask_of(T, causal, length_shards)] * H),
        block_sizes=blocks,
        head_shards=head_shards,
        q_seq_shards=length_shards,
        residual_checkpoint_name=KERNEL_RESIDUALS,
        interpret=interpret,
    )
