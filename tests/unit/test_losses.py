"""Losses against scikit-learn and by hand."""

import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import log_loss

from bigjax import losses

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(3, 4, 7)).astype(np.float32) * 3
TARGETS = RNG.integers(0, 7, (3, 4))
WEIGHTS = RNG.integers(0, 2, (3, 4)).astype(np.float32)
P = np.exp(LOGITS) / np.exp(LOGITS).sum(-1, keepdims=True)


def test_cross_entropy():
    total, weight = losses.cross_entropy(LOGITS, TARGETS, WEIGHTS)
    assert weight == WEIGHTS.sum()
    want = log_loss(TARGETS.ravel(), P.reshape(-1, 7), sample_weight=WEIGHTS.ravel(),
                    labels=range(7))
    np.testing.assert_allclose(total / weight, want, rtol=1e-5)


def test_label_smoothing_is_cross_entropy_with_a_smoothed_target():
    total, _ = losses.cross_entropy(LOGITS, TARGETS, WEIGHTS, label_smoothing=0.1)
    q = 0.9 * np.eye(7)[TARGETS] + 0.1 / 7
    want = -(q * np.log(P)).sum(-1)
    np.testing.assert_allclose(total, (want * WEIGHTS).sum(), rtol=1e-5)


def test_z_loss_and_accuracy():
    total, weight = losses.z_loss(LOGITS, WEIGHTS)
    np.testing.assert_allclose(
        total, (np.log(np.exp(LOGITS).sum(-1)) ** 2 * WEIGHTS).sum(), rtol=1e-5)
    hits, weight = losses.accuracy(LOGITS, TARGETS, WEIGHTS)
    assert hits == ((LOGITS.argmax(-1) == TARGETS) * WEIGHTS).sum() and weight == WEIGHTS.sum()


def test_large_logits_stay_finite():
    total, _ = losses.cross_entropy(jnp.array([[1e5, 0.0]]), jnp.array([1]), jnp.ones(1))
    assert total == pytest.approx(1e5)
