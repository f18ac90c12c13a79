"""Losses against scikit-learn and by hand."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import log_loss

from bigjax import losses
from bigjax.layers import output
from bigjax.parallel import mesh as mesh_lib
from bigjax.parallel import sharding
from tests import helpers

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(3, 4, 7)).astype(np.float32) * 3
TARGETS = RNG.integers(0, 7, (3, 4))
WEIGHTS = RNG.integers(0, 2, (3, 4)).astype(np.float32)
P = np.exp(LOGITS) / np.exp(LOGITS).sum(-1, keepdims=True)


def test_cross_entropy():
    total, weight = losses.cross_entropy(LOGITS, TARGETS, WEIGHTS)
    assert weight == WEIGHTS.sum()
    want = log_loss(
        TARGETS.ravel(), P.reshape(-1, 7), sample_weight=WEIGHTS.ravel(), labels=range(7)
    )
    np.testing.assert_allclose(total / weight, want, rtol=1e-5)


def test_label_smoothing_is_cross_entropy_with_a_smoothed_target():
    total, _ = losses.cross_entropy(LOGITS, TARGETS, WEIGHTS, label_smoothing=0.1)
    q = 0.9 * np.eye(7)[TARGETS] + 0.1 / 7
    want = -(q * np.log(P)).sum(-1)
    np.testing.assert_allclose(total, (want * WEIGHTS).sum(), rtol=1e-5)


def test_z_loss_and_accuracy():
    total, weight = losses.z_loss(LOGITS, WEIGHTS)
    np.testing.assert_allclose(
        total, (np.log(np.exp(LOGITS).sum(-1)) ** 2 * WEIGHTS).sum(), rtol=1e-5
    )
    hits, weight = losses.accuracy(LOGITS, TARGETS, WEIGHTS)
    assert hits == ((LOGITS.argmax(-1) == TARGETS) * WEIGHTS).sum() and weight == WEIGHTS.sum()


def test_large_logits_stay_finite():
    total, _ = losses.cross_entropy(jnp.array([[1e5, 0.0]]), jnp.array([1]), jnp.ones(1))
    assert total == pytest.approx(1e5)


def linear_inputs(B, T, D=5, V=11):
    """x, kernel, bias, targets, weights; of the weights some are 0, a whole row, or negative."""
    rng = np.random.default_rng(B * T)
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
    weights = draw(B, T) * rng.integers(0, 2, (B, T))
    weights[0] = 0 if B > 1 else weights[0]
    return draw(B, T, D), draw(D, V) * 2, draw(V), rng.integers(0, V, (B, T)), weights


def both_ways(x, kernel, bias, targets, weights):
    """(value, gradients) of linear_cross_entropy and of cross_entropy of the logits, scaled."""
    ways = (
        losses.linear_cross_entropy,
        lambda x, kernel, bias, *rest: losses.cross_entropy(x @ kernel + bias, *rest),
    )

    def scaled(way, *differentiated):
        total, weight = way(*differentiated, targets, weights)
        return 3 * total, weight

    return [
        jax.jit(jax.value_and_grad(lambda *a: scaled(way, *a), (0, 1, 2), has_aux=True))(
            x, kernel, bias
        )
        for way in ways
    ]


def assert_both_same(found):
    for a, b in zip(*map(jax.tree_util.tree_leaves, found)):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5)


# Few rows take many columns at a time, many rows one; lengths that are prime.
@pytest.mark.parametrize("B, T", [(1, 13), (3, 7), (2, 131), (3, 60), (130, 4)])
def test_linear_cross_entropy_and_its_gradients(B, T):
    inputs = linear_inputs(B, T)
    assert_both_same(both_ways(*inputs))
    plain = losses.linear_cross_entropy(*inputs)  # not differentiated, not compiled
    np.testing.assert_allclose(
        plain, losses.cross_entropy(inputs[0] @ inputs[1] + inputs[2], *inputs[3:]), rtol=1e-5
    )


def test_linear_cross_entropy_of_weights_that_are_all_zero():
    x, kernel, bias, targets, weights = linear_inputs(3, 4)
    ((value, weight), gradients), _ = both_ways(x, kernel, bias, targets, weights * 0)
    assert value == 0 and weight == 0
    assert all((g == 0).all() for g in gradients)


def test_linear_cross_entropy_of_large_logits_stays_finite():
    x, kernel, bias, targets, weights = linear_inputs(3, 4)
    found = both_ways(x, kernel * 1e4, bias, targets, weights)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree_util.tree_leaves(found[0]))
    np.testing.assert_allclose(found[0][0], found[1][0], rtol=1e-5)


def test_linear_cross_entropy_of_a_batch_over_devices():
    inputs = linear_inputs(8, 6)
    mesh = mesh_lib.make_mesh(dict(data=8, fsdp=1, tensor=1))
    x, targets, weights = jax.device_put((inputs[0], *inputs[3:]), sharding.of_batch(mesh))
    with jax.set_mesh(mesh):
        got = both_ways(x, inputs[1], inputs[2], targets, weights)
    assert_both_same((got[0], both_ways(*inputs)[1]))


def test_linear_cross_entropy_in_half_precision():
    inputs = linear_inputs(4, 6)
    want = both_ways(*inputs)[1]
    (value, _), gradients = both_ways(*(x.astype(jnp.bfloat16) for x in inputs[:3]), *inputs[3:])[0]
    np.testing.assert_allclose(value, want[0][0], rtol=0.05)
    for ours, theirs in zip(gradients, want[1]):
        assert ours.dtype == jnp.bfloat16
        assert np.abs(ours - theirs).max() < 0.03 * np.abs(theirs).max()


def sums_and_gradients(way, x, kernel, bias):
    return jax.value_and_grad(lambda *a: ((s := way(*a))["total"] * 3, s), (0, 1, 2), has_aux=True)(
        x, kernel, bias
    )


def smoothed(x, kernel, bias, targets, weights):
    """From all the logits."""
    logits = x @ kernel + (0 if bias is None else bias)
    return {
        "nll": losses.cross_entropy(logits, targets, weights)[0],
        "hits": losses.accuracy(logits, targets, weights)[0],
        "total": losses.cross_entropy(logits, targets, weights, label_smoothing=0.1)[0]
        + 1e-2 * losses.z_loss(logits, weights)[0],
    }


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("sizes", [None, (1, 8, 1, 1), (2, 2, 2, 1), (1, 2, 2, 2)])
def test_linear_losses_with_smoothing_and_z_loss_over_a_mesh(sizes, biased, monkeypatch):
    monkeypatch.setattr(output, "CPU_ROWS", 2)  # several parts on each device
    x, kernel, bias, targets, weights = linear_inputs(8, 6, D=6, V=12)
    arrays = x, kernel, bias if biased else None
    want = sums_and_gradients(lambda *a: smoothed(*a, targets, weights), *arrays)
    mesh = sizes and mesh_lib.make_mesh(dict(zip(mesh_lib.AXES, sizes)))
    with jax.set_mesh(mesh) if mesh else contextlib.nullcontext():
        got = jax.jit(
            lambda *a: sums_and_gradients(
                lambda *a: output.linear_losses(*a, targets, weights, 0.1, 1e-2), *a
            )
        )(*arrays)
    assert_both_same((got, want))


def test_a_bias_stays_in_float32():
    """In bfloat16 two tokens of about one frequency would be one: their biases are large."""
    x, kernel, bias, targets, weights = linear_inputs(4, 6)
    x, kernel = (y.astype(jnp.bfloat16) for y in (x, kernel * 1e-3))
    bias = jnp.float32(-10) + 1e-2 * bias
    want, got = (
        sums_and_gradients(lambda *a: way(*a, targets, jnp.abs(weights)), x, kernel, bias)
        for way in (smoothed, lambda *a: losses.linear_losses(*a, 128, 0.1, 1e-2))
    )
    assert got[0][1]["hits"] == want[0][1]["hits"] < jnp.abs(weights).sum()
    np.testing.assert_allclose(got[0][1]["nll"], want[0][1]["nll"], rtol=1e-5)
    np.testing.assert_allclose(got[1][2], want[1][2], rtol=1e-4, atol=1e-5)


def test_linear_losses_never_hold_all_logits():
    x, kernel, bias, targets, weights = linear_inputs(4, 60, V=32)

    def largest(rows):
        jaxpr = jax.make_jaxpr(
            lambda *a: sums_and_gradients(
                lambda *a: losses.linear_losses(*a, targets, weights, rows), *a
            )
        )(x, kernel, bias)
        return max(v.aval.size for e in helpers.equations(jaxpr.jaxpr) for v in e.outvars)

    assert largest(40) == 40 * 32 and largest(240) == 240 * 32
