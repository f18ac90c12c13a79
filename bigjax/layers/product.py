"""Products of activations and weights."""

import functools
import math

import jax

from bigjax.parallel.mesh import platform


def product(x: jax.Array, kernel: jax.Array, n: int, dtype: str) -> jax.Array:
    """The product over the last n dimensions of x and the first n of kernel, in dtype.

    x and kernel have one dtype.
    """
    return (_product_on_cpu if platform() == "cpu" else _product)(x, kernel, n, dtype)


def _product(x, kernel, n, dtype):
    contracted = tuple(range(x.ndim - n, x.ndim)), tuple(range(n))
    return jax.lax.dot_general(x, kernel, (contracted, ((), ())), preferred_element_type=dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _product_on_cpu(x, kernel, n, dtype):
    """`_product` with a gradient that XLA computes on a CPU without transposing x or its own
    argument: it would where the rows have several dimensions. Without forward mode (jax.jvp)."""
    return _product(x, kernel, n, dtype)


def _forward(x, kernel, n, dtype):
    # Without the barrier x would be computed again for the gradient, slowly, by columns.
    value = jax.lax.optimization_barrier(x.value)
    y = _product(value, kernel.value, n, dtype)
    return y, (value if kernel.perturbed else None, kernel.value, () if x.perturbed else None)


def _backward(n, dtype, saved, g):
    """None for what has no gradient."""
    del dtype
    x, kernel, x_has_gradient = saved
    inputs, outputs = kernel.shape[:n], kernel.shape[n:]
    d_x = d_kernel = None
    if x_has_gradient is not None:
        axes = tuple(range(g.ndim - len(outputs), g.ndim)), tuple(range(n, kernel.ndim))
        d_x = jax.lax.dot_general(g, kernel, (axes, ((), ())), preferred_element_type=kernel.dtype)
    if x is not None:
        x, g = x.reshape(-1, math.prod(inputs)), g.reshape(-1, math.prod(outputs))
        d_kernel = _over_rows(x, g, kernel.dtype).reshape(kernel.shape)
    return d_x, d_kernel


def _over_rows(x, g, dtype):
    """x.T @ g, [D, F]. XLA's product is faster if the narrower of both is the left one."""
    over_rows = (((0,), (0,)), ((), ()))
    if x.shape[1] <= g.shape[1]:
        return jax.lax.dot_general(x, g, over_rows, preferred_element_type=dtype)
    transposed = jax.lax.dot_general(g, x, over_rows, preferred_element_type=dtype)
    return jax.lax.optimization_barrier(transposed).T  # XLA would swap x and g instead


_product_on_cpu.defvjp(_forward, _backward, symbolic_zeros=True)
