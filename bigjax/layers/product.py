"""Products of activations and weights."""

import functools
import math

import jax
from jax.custom_derivatives import SymbolicZero

from bigjax.layers import quantised
from bigjax.layers.quantised import Quantised
from bigjax.parallel.mesh import platform


def product(x: jax.Array, kernel: jax.Array | Quantised, n: int, dtype: str) -> jax.Array:
    """The product over the last n dimensions of x and the first n of kernel, in dtype.

    x and kernel have one dtype, unless the kernel is quantised.
    """
    if isinstance(kernel, Quantised):
        return quantised.product(x, kernel, n, dtype)
    return (_product_on_cpu if platform() == "cpu" else _product)(x, kernel, n, dtype)


def _product(x, kernel, n, dtype):
    contracted = tuple(range(x.ndim - n, x.ndim)), tuple(range(n))
    return jax.lax.dot_general(x, kernel, (contracted, ((), ())), preferred_element_type=dtype)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def _product_on_cpu(x, kernel, n, dtype):
    """`_product` with a gradient that XLA computes on a CPU without transposing x or its own
    argument: it would where the rows have several dimensions."""
    return _product(x, kernel, n, dtype)


def _derivative(n, dtype, values, tangents):
    (x, kernel), (d_x, d_kernel) = values, tangents
    # Without the barrier x would be computed again for the gradient, slowly, by columns.
    x = jax.lax.optimization_barrier(x)
    y = _product(x, kernel, n, dtype)
    parts = []
    if not isinstance(d_x, SymbolicZero):
        parts.append(_product(d_x, kernel, n, dtype))
    if not isinstance(d_kernel, SymbolicZero):
        parts.append(_over_rows(x, d_kernel, n, dtype).reshape(y.shape))
    return y, sum(parts)


def _over_rows(x, kernel, n, dtype):
    """The product, of matrices, [rows, outputs]: XLA computes its gradient for the kernel as
    x.T @ g, which is faster if the narrower of both is the left one. The gradient is transposed
    then, which costs more than it saves for few rows."""
    inputs, outputs = math.prod(kernel.shape[:n]), math.prod(kernel.shape[n:])
    x, kernel = x.reshape(-1, inputs), kernel.reshape(inputs, outputs)
    if inputs <= outputs or len(x) < outputs:
        return _product(x, kernel, 1, dtype)
    kernel = jax.lax.optimization_barrier(kernel.T)  # XLA would swap x and g instead
    return jax.lax.dot_general(x, kernel, (((1,), (1,)), ((), ())), preferred_element_type=dtype)


_product_on_cpu.defjvp(_derivative, symbolic_zeros=True)
