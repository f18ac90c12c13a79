"""train.debug_nans on several devices."""

import jax
import jax.numpy as jnp
import numpy as np

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
    targets = np.zeros((2, 4), np.int32)

    def loss(kernel):
        sums = output.linear_losses(
            np.ones((2, 4, 8), np.float32), kernel, np.zeros(16), None, targets, np.ones((2, 4))
        )
        return jnp.log(-sums["total"])

    with jax.set_mesh(mesh):
        assert "nan" in debug.first_nan(jax.grad(loss), jnp.ones((8, 16)))
        assert debug.first_nan(lambda x: x + 1, jnp.ones(2)) == ""
