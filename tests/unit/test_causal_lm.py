"""Task causal_lm: its loss and its metrics."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigjax import config, losses, tasks
from tests import helpers


def build(**options):
    c = config.new_config()
    c.model = dict(
        name="gpt", vocab_size=16, max_len=8, d_model=8, n_layers=1, n_heads=2, dropout=0.5
    )
    c.task = dict(name="causal_lm", **options)
    c.data = dict(name="text", seq_len=8)
    return tasks.build(helpers.filled(c))


BATCH = dict(
    inputs=jnp.arange(16).reshape(2, 8),
    targets=(jnp.arange(16).reshape(2, 8) * 7) % 16,
    weights=jnp.array([[1.0] * 8, [1.0] * 3 + [0.0] * 5]),
    target_bytes=jnp.array([9, 2]),
)


@pytest.fixture(scope="module")
def params():
    init = jax.jit(lambda k: build().init(k)["params"])(jax.random.key(0))
    return jax.tree.map(lambda x: 20 * x, init)


def loss(task, params, train):
    return task.loss(params, {}, None, BATCH, jax.random.key(1), train)


def test_smoothing_and_z_loss_are_in_the_training_loss_only(params):
    plain, both = build(), build(label_smoothing=0.2, z_loss=0.1)
    (want, weight), (metrics, _) = loss(plain, params, False)
    (evaluated, _), (same, _) = loss(both, params, False)
    assert evaluated == want and same["nll"] == metrics["nll"] and weight == 11
    # In training the loss has both terms, with logits under dropout with this key
    (trained, _), (metrics, _) = loss(both, params, True)
    logits, _ = both.model.apply({"params": params}, BATCH["inputs"], rng=jax.random.key(1))
    want = (
        losses.cross_entropy(logits, BATCH["targets"], BATCH["weights"], label_smoothing=0.2)[0]
        + 0.1 * losses.z_loss(logits, BATCH["weights"])[0]
    )
    np.testing.assert_allclose(trained, want, rtol=1e-6)
    np.testing.assert_allclose(
        metrics["nll"][0],
        losses.cross_entropy(logits, BATCH["targets"], BATCH["weights"])[0],
        rtol=1e-6,
    )
    assert abs(trained - metrics["nll"][0]) > 0.1


def test_dropout_is_only_in_training(params):
    task = build()
    assert loss(task, params, True)[0][0] != loss(task, params, False)[0][0]


def test_bits_per_byte_are_over_the_bytes_of_the_targets(params):
    _, (metrics, _) = loss(build(), params, False)
    assert metrics["nats_per_byte"] == (metrics["nll"][0], 11.0)
