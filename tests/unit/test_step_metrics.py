"""The metrics that a training step reports."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bigjax.train.state import make_init
from bigjax.train.step import make_step, packed, unpack
from tests import helpers


@pytest.mark.parametrize("accumulate", [1, 2])
def test_norms_rate_and_means_by_hand(accumulate):
    """Weighted least squares, clipped to norm 0.5, with learning rates 0.1 and 0.2."""

    def loss(params, extras, frozen, batch, rng, train):
        error = batch["x"] @ params["w"] - batch["y"]
        weight = batch["weight"].sum()
        pair = (error**2 * batch["weight"]).sum(), weight
        return pair, ({"size": (jnp.abs(error).sum(), 1.0 * len(error))}, extras)

    init = lambda rng: {"params": {"w": jnp.ones(3)}}
    task = helpers.task(init, loss, {"w": ("norm",)})
    schedule = lambda step: 0.1 * (step + 1)
    tx = optax.chain(optax.clip_by_global_norm(0.5), optax.sgd(schedule))
    step = jax.jit(packed(make_step(task, tx, schedule, seed=0, accumulate=accumulate)))
    state = make_init(task, tx.init, 0, False)()
    rng, w = np.random.default_rng(0), np.ones(3)
    batch = dict(x=rng.normal(size=(8, 3)), y=rng.normal(size=8), weight=rng.integers(0, 3, 8))
    for rate in (0.1, 0.2):
        state, metrics = step(state, None, jax.tree.map(jnp.float32, batch))
        error = batch["x"] @ w - batch["y"]
        g = 2 * batch["x"].T @ (error * batch["weight"]) / batch["weight"].sum()
        norm = np.linalg.norm(g)
        assert norm > 0.5
        w = w - rate * g * 0.5 / norm
        want = {
            "loss": (error**2 * batch["weight"]).sum() / batch["weight"].sum(),
            "size": np.abs(error).mean(),
            "learning_rate": rate,
            "grad_norm": norm,
            "param_norm": np.linalg.norm(w),
            "update_norm": rate * 0.5,
        }
        assert unpack(metrics) == pytest.approx(want, rel=1e-5)
