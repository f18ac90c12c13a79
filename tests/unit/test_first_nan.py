"""train.debug_nans on several devices."""

import jax
import jax.numpy as jnp

from bigjax.layers import output
from bigjax.parallel.mesh import AXES
from bigjax.train import debug


def test_the_first_nan_of_a_step_on_several_devices():
    mesh = jax.make_mesh(
        tuple(2 if a == "data" else 1 for a in AXES),
        AXES,
        axis_types=(jax.sharding.AxisType.Auto,) * len(AXES),
        devices=jax.devices()[:2],
    )
    targets = jnp.zeros((2, 4), jnp.int32)

    def loss(kernel):
        sums = output.linear_losses(
            jnp.ones((2, 4, 8)), kernel, jnp.zeros(16), targets, jnp.ones((2, 4))
        )
        return jnp.log(-sums["total"])

    with jax.set_mesh(mesh):
        assert "nan" in debug.first_nan(jax.grad(loss), jnp.ones((8, 16)))
        assert debug.first_nan(lambda x: x + 1, jnp.ones(2)) == ""
