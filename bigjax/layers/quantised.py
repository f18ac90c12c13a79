"""Weights in 8 or 4 bits, which are not trained: a layer multiplies by them in the compute dtype.

int8: symmetric, with a scale for each output. nf4: the 16 values of QLoRA's NormalFloat
(https://arxiv.org/abs/2305.14314, appendix E), scaled by the largest magnitude of each block of 64
inputs of an output.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

KINDS = ("int8", "nf4")
BLOCK = 64  # of nf4
NF4 = np.array(
    [
        *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
        *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
        *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
        *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
    ],
    np.float32,
)


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("values", "scale"),
    meta_fields=("kind", "inputs", "outputs"),
)
@dataclasses.dataclass(frozen=True)
class Quantised:
    """A kernel [*inputs, *outputs], possibly of several layers, which add a first axis to both
    arrays.

    values: int8 [*inputs, *outputs]; of nf4 uint8 [inputs / 2, *outputs], two inputs in each.
    scale: float32 [1, ..., *outputs]; of nf4 [inputs / block, *outputs].
    """

    values: jax.Array
    scale: jax.Array
    kind: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]

    def dequantised(self, dtype) -> jax.Array:
        """The kernel in a dtype, of each layer if there are several."""
        if self.values.ndim > (len(self.inputs) if self.kind == "int8" else 1) + len(self.outputs):
            one = lambda values, scale: dataclasses.replace(self, values=values, scale=scale)
            return jax.vmap(lambda v, s: one(v, s).dequantised(dtype))(self.values, self.scale)
        if self.kind == "int8":
            return (self.values.astype(jnp.float32) * self.scale).astype(dtype)
        pairs = jnp.stack([self.values & 15, self.values >> 4], axis=1)
        numbers = jnp.asarray(NF4)[pairs].reshape(len(self.scale), -1, *self.outputs)
        kernel = numbers * self.scale[:, None]
        return kernel.reshape(*self.inputs, *self.outputs).astype(dtype)


def quantise(kernel: jax.Array, kind: str, n_inputs: int, stacked: bool) -> Quantised:
    """The kernel in 8 or 4 bits. n_inputs: its axes of inputs; stacked: the first is of layers."""
    if stacked:
        return jax.vmap(lambda k: quantise(k, kind, n_inputs, False))(kernel)
    kernel = kernel.astype(jnp.float32)
    inputs, outputs = kernel.shape[:n_inputs], kernel.shape[n_inputs:]
    if kind == "int8":
        largest = jnp.abs(kernel).max(tuple(range(n_inputs)), keepdims=True)
        scale = jnp.maximum(largest, 1e-30) / 127
        values = jnp.round(kernel / scale).astype(jnp.int8)
        return Quantised(values, scale, kind, inputs, outputs)
    block = block_of(inputs)
    blocks = kernel.reshape(-1, block, *outputs)
    scale = jnp.maximum(jnp.abs(blocks).max(1), 1e-30)
    middles = jnp.asarray((NF4[1:] + NF4[:-1]) / 2)
    codes = jnp.searchsorted(middles, blocks / scale[:, None]).astype(jnp.uint8)
    codes = codes.reshape(-1, 2, *outputs)
    return Quantised(codes[:, 0] | codes[:, 1] << 4, scale, kind, inputs, outputs)


def block_of(inputs: tuple[int, ...]) -> int:
    """The inputs that share a scale of nf4: 64, or the largest divisor that both have."""
    return math.gcd(BLOCK, math.prod(inputs))


def axes(names: tuple[str | None, ...], like: Quantised) -> Quantised:
    """The logical axes of both arrays from those of the kernel, that of layers included."""
    n = len(like.inputs)
    lead = names[: len(names) - n - len(like.outputs)]
    ins, outs = names[len(lead) : len(lead) + n], names[len(lead) + n :]
    if like.kind == "int8":
        values, scale = names, (*lead, *(None,) * n, *outs)
    else:
        values = scale = (*lead, ins[0], *outs)
    return dataclasses.replace(like, values=values, scale=scale)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def product(x: jax.Array, kernel: Quantised, n: int, dtype: str) -> jax.Array:
    """x @ kernel over the last n dimensions of x. The backward pass dequantises again: what would
    be kept for it is the complete kernel of every layer."""
    contracted = tuple(range(x.ndim - n, x.ndim)), tuple(range(n))
    w = kernel.dequantised(x.dtype)
    return jax.lax.dot_general(x, w, (contracted, ((), ())), preferred_element_type=dtype)


def _forward(x, kernel, n, dtype):
    return product(x, kernel, n, dtype), (kernel, jnp.zeros((), x.dtype))


def _backward(n, dtype, kept, g):
    kernel, like = kept
    w, m = kernel.dequantised(like.dtype), len(kernel.outputs)
    over = tuple(range(g.ndim - m, g.ndim)), tuple(range(n, n + m))
    return jax.lax.dot_general(g.astype(like.dtype), w, (over, ((), ()))), None


product.defvjp(_forward, _backward)
