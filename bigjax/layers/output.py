"""Losses of an output layer over a large vocabulary, sharded over a mesh.

Each device computes those of its own rows and tokens; gradients of kernel and bias are summed over
devices once, after all tokens.
"""

from collections.abc import Callable
import functools
from typing import Any, NamedTuple

import jax
from jax.sharding import PartitionSpec as P

from bigjax import losses
from bigjax.linear import Linear
from bigjax.losses import vocabulary
from bigjax.parallel import sharding
from bigjax.parallel.mesh import platform

LOGITS_AT_ONCE = 2**25  # per device: 128 MiB in float32
GRADIENTS_AT_ONCE = 2**28  # per device: half a GiB in bfloat16
CPU_PARTS = vocabulary.PARTS


def linear_losses(
    x_BTD,
    kernel_DV,
    bias_V,
    softcap,
    targets_BT,
    weights_BT,
    label_smoothing: float = 0.0,
    z: float = 0.0,
) -> dict[str, jax.Array]:
    """vocabulary.linear_losses of the global batch."""
    layout = _layout(x_BTD, kernel_DV)
    options = layout.parts, label_smoothing, z
    arrays = x_BTD, kernel_DV, bias_V, softcap, targets_BT, weights_BT
    if not layout.axes:
        return vocabulary.linear_losses(*arrays, *options)

    def shard(gradients, x, *arrays):
        sums, d = vocabulary.linear_parts(x, *arrays, *options, gradients)
        sums = jax.lax.psum(sums, layout.axes)
        return (sums, layout.summed(d, arrays[:2])) if gradients else sums

    def mapped(gradients, *arrays):
        return layout.map(
            functools.partial(shard, gradients),
            (layout.spec, P(), P(), P(), layout.spec, layout.spec),
            (P(), layout.gradient_specs) if gradients else P(),
        )(*arrays)

    @jax.custom_vjp
    def run(*arrays):
        return mapped(False, *arrays)

    def backward(gradients, g):
        by = vocabulary.total_cotangent(g, label_smoothing, z)
        return *vocabulary.scaled(gradients, by), None, None, None

    run.defvjp(functools.partial(mapped, True), backward)
    return run(*arrays)


def linear_log_probs(
    x_BTD, kernel_DV, bias_V, softcap, targets_BT, temperature: float = 1.0
) -> jax.Array:
    """vocabulary.linear_log_probs [B, T] of the global batch, of logits / temperature."""
    linear = Linear(x_BTD, kernel_DV, bias_V, softcap)
    measure = vocabulary.at_temperature(losses.log_probs, temperature)
    return _map_logits(measure, linear, targets_BT)


def linear_log_probs_and_hits(
    x_BTD, kernel_DV, bias_V, softcap, targets_BT
) -> tuple[jax.Array, jax.Array]:
    """losses.log_probs_and_hits, each [B, T], of the global batch; without gradients."""
    linear = Linear(x_BTD, kernel_DV, bias_V, softcap)
    return _map_logits(losses.log_probs_and_hits, linear, targets_BT)


def linear_log_probs_and_entropy(
    x_BTD, kernel_DV, bias_V, softcap, targets_BT, temperature: float = 1.0
) -> tuple[jax.Array, jax.Array]:
    """vocabulary.linear_log_probs_and_entropy, each [B, T], of the global batch, of
    logits / temperature."""
    linear = Linear(x_BTD, kernel_DV, bias_V, softcap)
    measure = vocabulary.at_temperature(losses.log_probs_and_entropy, temperature)
    return _map_logits(measure, linear, targets_BT)


def linear_divergence(
    student: Linear,
    teacher: Linear,
    temperature: float = 1.0,
    reverse: bool = False,
) -> jax.Array:
    """vocabulary.linear_divergence [B, T] of the global batch; only the student has gradients."""
    measure = vocabulary.divergence_from(temperature, reverse)
    return _map_logits(measure, student, teacher[0], teacher[1:])


def _map_logits(measure: Callable, linear: Linear, per_token, shared=None) -> Any:
    """vocabulary.map_logits of the global batch."""
    layout = _layout(*linear[:2])
    if not layout.axes:
        return vocabulary.map_logits(measure, linear, per_token, shared, layout.parts)
    inputs = (layout.spec, P(), P(), P()), layout.spec, P()

    def forward(linear, per_token, shared):
        return vocabulary.map_logits(measure, linear, per_token, shared, layout.parts)

    def backward(linear, per_token, shared, g):
        d = vocabulary.map_logits_gradients(measure, layout.parts, linear, per_token, shared, g)
        return layout.summed(d, linear[1:3])

    @jax.custom_vjp
    def run(*arrays):
        return layout.map(forward, inputs, layout.spec)(*arrays)

    run.defvjp(
        lambda *arrays: (run(*arrays), arrays),
        lambda arrays, g: (
            (
                *layout.map(backward, (*inputs, layout.spec), layout.gradient_specs)(*arrays, g),
                None,
            ),
            None,
            None,
        ),
    )
    return run(tuple(Linear(*linear)), per_token, shared)


class _Layout(NamedTuple):
    """spec: of the tokens. axes: the mesh axes that they are sharded over. parts: how many tokens a
    device processes at a time. scattered: whether kernel's gradient is sharded over fsdp.
    """

    spec: P
    axes: tuple[str, ...]
    parts: vocabulary.Parts
    scattered: bool

    @property
    def gradient_specs(self) -> tuple:
        """Of x, kernel and bias."""
        return self.spec, P("fsdp") if self.scattered else P(), P()

    def map(self, function: Callable, in_specs, out_specs) -> Callable:
        return jax.shard_map(
            function,
            in_specs=in_specs,
            out_specs=out_specs,
            axis_names=set(self.axes),
            check_vma=False,
        )

    def summed(self, gradients: tuple, layer: tuple) -> tuple:
        """Gradients of a device's tokens for x, kernel and bias: summed over devices for the layer.

        They are summed in float32: it is more exact, and XLA aborts on a CPU when a program that is
        manual in part, such as this one, sums bfloat16 over devices.
        """
        d_x, d_kernel, d_bias = gradients
        others = self.axes
        if self.scattered:
            d_kernel = jax.lax.psum_scatter(d_kernel, "fsdp", tiled=True)
            others = tuple(a for a in self.axes if a != "fsdp")
        d_kernel = jax.lax.psum(d_kernel, others)
        d_bias = jax.lax.psum(d_bias, self.axes)
        return d_x, *vocabulary.like((d_kernel, d_bias), layer)


def _layout(x_BTD, kernel_DV) -> _Layout:
    mesh = jax.sharding.get_abstract_mesh()
    spec = (
        P()
        if mesh.empty
        else sharding.spec(mesh, x_BTD.shape[:2], ("batch", "length"), "the tokens")
    )
    axes = tuple(a for part in spec for a in sharding.mesh_axes(part))
    columns = kernel_DV.shape[-1] // mesh.shape.get("tensor", 1)
    rows = lambda at_once: max(1, at_once // columns)
    parts = vocabulary.Parts(rows(LOGITS_AT_ONCE), rows(GRADIENTS_AT_ONCE))
    if platform() == "cpu":
        parts = CPU_PARTS
    scattered = "fsdp" in axes and kernel_DV.shape[0] % mesh.shape["fsdp"] == 0
    return _Layout(spec, axes, parts, scattered)
