"""What kernels share."""

import math

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from bigjax.parallel import sharding

# The prefix of a named scope around a kernel's call, which holds the number of multiplications of
# one product of queries x keys. XLA does not know a kernel's FLOPs: plan/predict.py reads this.
SCOPE = "attention_product_"
# Likewise the number of scores of the kernel `whole`, as registers hold them.
SCORES = "attention_scores_"
# Of so many keys for each query a CPU computes the scores in less time with the keys on the left.
FEW = 8
MASKED = -1e30  # not infinity: a row without keys yields a mean, not NaN


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


def dot(a, b, a_axis: int, b_axis: int, dtype=jnp.float32) -> jax.Array:
    """The product of [B, H, ., .] and [B, H, ., .] over one axis each, for each B and H."""
    contracted = ((a_axis,), (b_axis,)), ((0, 1), (0, 1))
    return jax.lax.dot_general(a, b, contracted, preferred_element_type=dtype)


def scores(q_BHTD, k_BHSD) -> jax.Array:
    """The products of queries and keys, float32 [B, H, T, S]."""
    if q_BHTD.shape[2] * FEW <= k_BHSD.shape[2]:
        transposed = dot(k_BHSD, q_BHTD, 3, 3)
        return jax.lax.optimization_barrier(transposed).swapaxes(2, 3)  # or XLA swaps both
    return dot(q_BHTD, k_BHSD, 3, 3)
