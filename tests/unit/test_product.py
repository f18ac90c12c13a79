"""Products of activations and weights, and their gradients on a CPU."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigjax.layers.product import product


@pytest.mark.parametrize(
    "rows, inputs, outputs",
    [((2, 5), (4,), (3, 6)), ((2, 5), (3, 6), (4,)), ((7,), (6,), (6,)), ((), (4,), (3,))],
    ids=["wider", "narrower", "equal", "no rows"],
)
@pytest.mark.parametrize("dtype, out_dtype", [("float32", "float32"), ("bfloat16", "float32")])
def test_products_and_gradients_are_those_of_tensordot(rows, inputs, outputs, dtype, out_dtype):
    rng, n = np.random.default_rng(0), len(inputs)
    x, kernel = (
        jnp.asarray(rng.normal(size=s), dtype) for s in ((*rows, *inputs), (*inputs, *outputs))
    )
    cotangent = jnp.asarray(rng.normal(size=(*rows, *outputs)), out_dtype)

    def both(function):
        y, backward = jax.vjp(function, x, kernel)
        return y, *backward(cotangent)

    got = both(lambda x, kernel: product(x, kernel, n, out_dtype))
    want = both(lambda x, w: jnp.tensordot(x, w, n, preferred_element_type=out_dtype))
    tolerance = 1e-6 if dtype == "float32" else 2**-6
    for a, b in zip(got, want, strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        np.testing.assert_allclose(*(np.float32(y) for y in (a, b)), tolerance, tolerance)


def test_a_product_that_is_not_used_has_no_gradient():
    x, kernel = jnp.ones((2, 3)), jnp.ones((3, 4))
    loss = lambda x, w: (product(x, w, 1, "float32"), x.sum())[1]
    d_x, d_kernel = jax.jit(jax.grad(loss, (0, 1)))(x, kernel)
    assert (d_x == 1).all() and (d_kernel == 0).all()


@pytest.mark.parametrize(
    "rows, inputs, outputs, left, right",
    [(8, 4, 32, "4", "32"), (8, 32, 4, "4", "32"), (1, 64, 16, "64", "16")],
    ids=["wider", "narrower", "few rows"],
)
def test_in_the_gradient_of_a_kernel_the_narrower_side_is_the_left_one(
    rows, inputs, outputs, left, right
):
    """As XLA compiles it: [4, rows] times [rows, 32]. With fewer rows than outputs the gradient is
    not transposed, which would cost more."""
    x, kernel = jnp.ones((rows, 5, inputs)), jnp.ones((inputs, outputs))
    loss = lambda x, kernel: jnp.sin(product(x, kernel, 1, "float32")).sum()
    text = jax.jit(jax.grad(loss, 1)).lower(x, kernel).compile().as_text()
    over_rows = r" f32\[(\d+),(\d+)\]\S* dot\(.*lhs_contracting_dims=.0., rhs_contracting_dims=.0."
    assert re.findall(over_rows, text) == [(left, right)]


@pytest.mark.parametrize("inputs, outputs", [((4,), (3, 6)), ((3, 6), (4,))])
def test_derivatives_of_every_order_and_batches_are_those_of_tensordot(inputs, outputs):
    """Forward, forward over reverse (a Hessian's product), and mapped over kernels."""
    rng, n = np.random.default_rng(0), len(inputs)
    x, d_x = (jnp.asarray(rng.normal(size=(2, 5, *inputs)), "float32") for _ in range(2))
    w, d_w = (jnp.asarray(rng.normal(size=(*inputs, *outputs)), "float32") for _ in range(2))

    def all_of(function):
        loss = lambda x, w: jnp.sin(function(x, w)).sum()
        return (
            jax.jvp(function, (x, w), (d_x, d_w)),
            jax.jvp(jax.grad(loss, (0, 1)), (x, w), (d_x, d_w)),
            jax.vmap(jax.grad(loss, 1), (None, 0))(x, jnp.stack([w, d_w])),
        )

    got = jax.tree.leaves(all_of(lambda x, w: product(x, w, n, "float32")))
    want = jax.tree.leaves(all_of(lambda x, w: jnp.tensordot(x, w, n)))
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, 1e-5, 1e-5)
