"""Losses of an output layer over a large vocabulary, on the shards of a mesh."""

import functools

import jax
from jax.sharding import PartitionSpec as P

from bigjax import losses
from bigjax.parallel import sharding
from bigjax.parallel.mesh import platform

LOGITS_AT_ONCE = 2**27  # on a device: half a GiB in float32
CPU_ROWS = 128  # whose logits stay in the cache


def linear_losses(
    x_BTD, kernel_DV, bias_V, targets_BT, weights_BT, label_smoothing: float = 0.0, z: float = 0.0
) -> dict[str, jax.Array]:
    """losses.linear_losses of the whole batch: each device takes its own rows and tokens, and the
    gradients of kernel and bias are summed once, after the last of them."""
    mesh = jax.sharding.get_abstract_mesh()
    spec = (
        P()
        if mesh.empty
        else sharding.spec(mesh, targets_BT.shape, ("batch", "length"), "the targets")
    )
    cut = {a for part in spec for a in sharding.mesh_axes(part)}
    columns = kernel_DV.shape[-1] // mesh.shape.get("tensor", 1)
    rows = CPU_ROWS if platform() == "cpu" else max(CPU_ROWS, LOGITS_AT_ONCE // columns)
    options = rows, label_smoothing, z
    if not cut:
        return losses.linear_losses(x_BTD, kernel_DV, bias_V, targets_BT, weights_BT, *options)
    scattered = "fsdp" in cut and kernel_DV.shape[0] % mesh.shape["fsdp"] == 0

    def shard(gradients, x, kernel, bias, targets, weights):
        sums, d = losses.linear_parts(x, kernel, bias, targets, weights, *options, gradients)
        # All in float32: it is more exact, and XLA aborts on a CPU when a program that is only in
        # part manual, such as this one, sums bfloat16 over devices.
        sums = jax.lax.psum(sums, tuple(cut))
        if not gradients:
            return sums
        d_x, d_kernel, d_bias = d
        if scattered:
            d_kernel = jax.lax.psum_scatter(d_kernel, "fsdp", tiled=True)
        d_kernel = jax.lax.psum(d_kernel, tuple(cut - ({"fsdp"} if scattered else set())))
        d_bias = jax.lax.psum(d_bias, tuple(cut))
        return sums, (d_x, *losses.like((d_kernel, d_bias), (kernel, bias)))

    def mapped(gradients, *arrays):
        out = (P(), (spec, P("fsdp") if scattered else P(), P())) if gradients else P()
        return jax.shard_map(
            functools.partial(shard, gradients),
            in_specs=(spec, P(), P(), spec, spec),
            out_specs=out,
            axis_names=cut,
            check_vma=False,
        )(*arrays)

    @jax.custom_vjp
    def run(*arrays):
        return mapped(False, *arrays)

    run.defvjp(
        functools.partial(mapped, True), lambda d, g: (*losses.scaled(d, g["total"]), None, None)
    )
    return run(x_BTD, kernel_DV, bias_V, targets_BT, weights_BT)
