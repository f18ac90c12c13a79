"""Losses against scikit-learn and by hand."""

import contextlib
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import log_loss

from bigjax import losses
from bigjax.layers import output
from bigjax.linear import Linear
from bigjax.losses import vocabulary
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
    """x, kernel, bias, targets, weights; some weights are negative, some 0, in one row all."""
    rng = np.random.default_rng(B * T)
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
    weights = draw(B, T) * rng.integers(0, 2, (B, T))
    weights[0] = 0 if B > 1 else weights[0]
    return draw(B, T, D), draw(D, V) * 2, draw(V), rng.integers(0, V, (B, T)), weights


def both_ways(x, kernel, bias, targets, weights):
    """(value, gradients) of linear_cross_entropy and of cross_entropy of the logits, scaled."""
    ways = (
        lambda x, kernel, bias, *rest: vocabulary.linear_cross_entropy(
            x, kernel, bias, None, *rest
        ),
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


def assert_both_same(both):
    for a, b in zip(*map(jax.tree_util.tree_leaves, both)):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5)


# Small batches with many columns at a time, large ones with one; prime lengths.
@pytest.mark.parametrize("B, T", [(3, 7), (2, 131), (130, 4)])
def test_linear_cross_entropy_and_its_gradients(B, T):
    inputs = linear_inputs(B, T)
    assert_both_same(both_ways(*inputs))
    plain = vocabulary.linear_cross_entropy(
        *inputs[:3], None, *inputs[3:]
    )  # not differentiated, not compiled
    np.testing.assert_allclose(
        plain, losses.cross_entropy(inputs[0] @ inputs[1] + inputs[2], *inputs[3:]), rtol=1e-5
    )


def test_terms_that_are_added_to_an_output_layer_keep_its_bias():
    sizes = {"x": (2, 3, 4), "kernel": (4, 5), "bias": (5,), "a": (2, 3, 2), "b": (2, 5)}
    rng = np.random.default_rng(0)
    x, kernel, bias, a, b = (rng.normal(size=s).astype(np.float32) for s in sizes.values())
    got = Linear(x, kernel, bias).plus(a, b).product()
    np.testing.assert_allclose(got, x @ kernel + a @ b + bias, rtol=1e-5, atol=1e-6)


def test_linear_cross_entropy_with_zero_weights():
    x, kernel, bias, targets, weights = linear_inputs(3, 4)
    ((value, weight), gradients), _ = both_ways(x, kernel, bias, targets, weights * 0)
    assert value == 0 and weight == 0
    assert all((g == 0).all() for g in gradients)


def test_linear_cross_entropy_of_large_logits_is_finite():
    x, kernel, bias, targets, weights = linear_inputs(3, 4)
    both = both_ways(x, kernel * 1e4, bias, targets, weights)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree_util.tree_leaves(both[0]))
    np.testing.assert_allclose(both[0][0], both[1][0], rtol=1e-5)


def test_linear_cross_entropy_of_a_sharded_batch():
    inputs = linear_inputs(8, 6)
    mesh = mesh_lib.make_mesh(dict(data=8, fsdp=1, tensor=1))
    x, targets, weights = jax.device_put((inputs[0], *inputs[3:]), sharding.of_batch(mesh))
    with jax.set_mesh(mesh):
        got = both_ways(x, inputs[1], inputs[2], targets, weights)
    assert_both_same((got[0], both_ways(*inputs)[1]))


def test_linear_cross_entropy_in_bfloat16():
    inputs = linear_inputs(4, 6)
    want = both_ways(*inputs)[1]
    (value, _), gradients = both_ways(*(x.astype(jnp.bfloat16) for x in inputs[:3]), *inputs[3:])[0]
    np.testing.assert_allclose(value, want[0][0], rtol=0.05)
    for ours, theirs in zip(gradients, want[1]):
        assert ours.dtype == jnp.bfloat16
        assert np.abs(ours - theirs).max() < 0.03 * np.abs(theirs).max()


def sums_and_gradients(way, x, kernel, bias):
    def loss(*arguments):
        sums = way(*arguments)
        return sums["total"] * 3, sums

    return jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))(x, kernel, bias)


def smoothed(x, kernel, bias, softcap, targets, weights):
    """From all the logits."""
    logits = x @ kernel + (0 if bias is None else bias)
    logits = logits if softcap is None else softcap * jnp.tanh(logits / softcap)
    return {
        "nll": losses.cross_entropy(logits, targets, weights)[0],
        "hits": losses.accuracy(logits, targets, weights)[0],
        "total": losses.cross_entropy(logits, targets, weights, label_smoothing=0.1)[0]
        + 1e-2 * losses.z_loss(logits, weights)[0],
    }


@pytest.mark.parametrize("biased, softcap", [(True, None), (False, None), (True, 2.5)])
@pytest.mark.parametrize("sizes", [None, (1, 8, 1, 1), (2, 2, 2, 1), (1, 2, 2, 2)])
def test_linear_losses_with_smoothing_and_z_loss_over_a_mesh(sizes, biased, softcap, monkeypatch):
    monkeypatch.setattr(output, "CPU_PARTS", vocabulary.Parts(2, 16))  # several on each device
    x, kernel, bias, targets, weights = linear_inputs(8, 6, D=6, V=12)
    arrays = x, kernel, bias if biased else None
    want = sums_and_gradients(lambda *a: smoothed(*a, softcap, targets, weights), *arrays)
    softcap = None if softcap is None else jnp.float32(softcap)
    mesh = sizes and mesh_lib.make_mesh(dict(zip(mesh_lib.AXES, sizes)))
    with jax.set_mesh(mesh) if mesh else contextlib.nullcontext():
        got = jax.jit(
            lambda *a: sums_and_gradients(
                lambda *a: output.linear_losses(*a, softcap, targets, weights, 0.1, 1e-2), *a
            )
        )(*arrays)
    assert_both_same((got, want))


@pytest.mark.parametrize("sizes", [None, (1, 8, 1, 1)])
def test_nll_has_the_gradient_of_total_or_none_that_passes_unnoticed(sizes):
    x, kernel, bias, targets, weights = linear_inputs(8, 6, D=6, V=12)
    mesh = sizes and mesh_lib.make_mesh(dict(zip(mesh_lib.AXES, sizes)))

    def gradient(key, *options):
        loss = lambda k: output.linear_losses(x, k, bias, None, targets, weights, *options)[key]
        with jax.set_mesh(mesh) if mesh else contextlib.nullcontext():
            return jax.jit(jax.grad(loss))(kernel)

    np.testing.assert_array_equal(gradient("nll"), gradient("total"))
    assert np.isnan(gradient("nll", 0.1)).all() and np.isnan(gradient("nll", 0.0, 1e-2)).all()
    assert np.isfinite(gradient("total", 0.1, 1e-2)).all()


def test_a_bias_stays_in_float32():
    """In bfloat16 two tokens of similar frequency could not be distinguished by their biases."""
    x, kernel, bias, targets, weights = linear_inputs(4, 6)
    x, kernel = (y.astype(jnp.bfloat16) for y in (x, kernel * 1e-3))
    bias = jnp.float32(-10) + 1e-2 * bias
    want, got = (
        sums_and_gradients(lambda *a: way(*a, None, targets, jnp.abs(weights)), x, kernel, bias)
        for way in (smoothed, lambda *a: vocabulary.linear_losses(*a, vocabulary.PARTS, 0.1, 1e-2))
    )
    assert got[0][1]["hits"] == want[0][1]["hits"] < jnp.abs(weights).sum()
    np.testing.assert_allclose(got[0][1]["nll"], want[0][1]["nll"], rtol=1e-5)
    np.testing.assert_allclose(got[1][2], want[1][2], rtol=1e-4, atol=1e-5)


def test_linear_losses_never_hold_all_logits():
    x, kernel, bias, targets, weights = linear_inputs(4, 60, V=32)

    def largest(rows):
        jaxpr = jax.make_jaxpr(
            lambda *a: sums_and_gradients(
                lambda *a: vocabulary.linear_losses(
                    *a, None, targets, weights, vocabulary.Parts(rows, rows)
                ),
                *a,
            )
        )(x, kernel, bias)
        return max(v.aval.size for e in helpers.equations(jaxpr.jaxpr) for v in e.outvars)

    assert largest(40) == 40 * 32 and largest(240) == 240 * 32


def dense_logits(x, kernel, bias, softcap=None):
    logits = jnp.matmul(x, kernel, preferred_element_type=jnp.float32)
    logits = logits if bias is None else logits + bias
    if softcap is None:
        return logits
    softcap = jax.lax.stop_gradient(softcap)
    return softcap * jnp.tanh(logits / softcap)


def dense(kind, *args):
    """What the functions over parts compute, from all the logits."""
    if kind.endswith("KL"):
        student, teacher = args
        return [losses.divergence(dense_logits(*student), dense_logits(*teacher), 1.7, "r" in kind)]
    *linear, targets = args
    log_p = jax.nn.log_softmax(dense_logits(*linear))
    out = [jnp.take_along_axis(log_p, targets[..., None], -1)[..., 0]]
    return out if kind == "log_probs" else [*out, -(jnp.exp(log_p) * log_p).sum(-1)]


def in_parts(kind, *args):
    if kind.endswith("KL"):
        student, teacher = (Linear(*arrays) for arrays in args)
        return [output.linear_divergence(student, teacher, 1.7, "r" in kind)]
    if kind == "log_probs":
        return [output.linear_log_probs(*args)]
    return [*output.linear_log_probs_and_entropy(*args)]


def token_case(kind, dtype=np.float32, biased=True, softcap=None):
    """(the layer to differentiate, its other arguments) of 8 x 6 tokens."""
    x, kernel, bias, targets, _ = linear_inputs(8, 6, D=6, V=12)
    linear = x.astype(dtype), (kernel / 2).astype(dtype), bias if biased else None, softcap
    if not kind.endswith("KL"):
        return linear, [targets]
    rng = np.random.default_rng(1)
    teacher = [rng.normal(size=shape).astype(np.float32) for shape in ((8, 6, 4), (4, 12), (12,))]
    return linear, [(*teacher[:2], teacher[2] if biased else None, softcap)]


def values_and_gradients(way, kind, linear, rest):
    """Per-token values, and the gradients of their sum with random weights."""
    pull = np.random.default_rng(2).normal(size=(2, 8, 6)).astype(np.float32)

    def total(linear):
        args = (linear, *rest) if kind.endswith("KL") else (*linear, *rest)
        out = way(kind, *args)
        return sum((w * x).sum() for w, x in zip(pull, out)), out

    (_, out), gradients = jax.jit(jax.value_and_grad(total, has_aux=True))(linear)
    return out, gradients


@pytest.mark.parametrize(
    "kind, sizes, biased, softcap",
    [
        ("log_probs", None, False, np.float32(2)),
        ("reverse KL", None, True, None),
        ("entropy", (2, 2, 1, 2), True, None),
        ("KL", (2, 2, 1, 2), True, np.float32(2)),
        ("entropy", (1, 4, 2, 1), False, None),
    ],
)
def test_per_token_values_and_gradients_equal_the_dense_ones(
    kind, sizes, biased, softcap, monkeypatch
):
    monkeypatch.setattr(output, "CPU_PARTS", vocabulary.Parts(2, 16))  # several on each device
    case = token_case(kind, biased=biased, softcap=softcap)
    want = values_and_gradients(dense, kind, *case)
    mesh = sizes and mesh_lib.make_mesh(dict(zip(mesh_lib.AXES, sizes)))
    with jax.set_mesh(mesh) if mesh else contextlib.nullcontext():
        got = values_and_gradients(in_parts, kind, *case)
    for a, b in zip(*map(jax.tree.leaves, (got, want)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["entropy", "KL"])
def test_per_token_values_and_gradients_in_bfloat16(kind):
    """Logits are float32; gradients have their arrays' types."""
    case = token_case(kind, jnp.bfloat16)
    (got, d), (want, d_dense) = (
        values_and_gradients(way, kind, *case) for way in (in_parts, dense)
    )
    for a, b in zip(got, want):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    for array, a, b in zip(case[0][:3], d, d_dense):
        assert a.dtype == array.dtype
        np.testing.assert_allclose(
            *(np.float32(y) for y in (a, b)), atol=0.02 * float(np.abs(b).max())
        )


def test_divergence_has_no_teacher_gradient_and_is_zero_between_equals():
    student, (teacher,) = token_case("KL")
    np.testing.assert_allclose(vocabulary.linear_divergence(student, student), 0, atol=1e-6)
    d = jax.grad(lambda t: vocabulary.linear_divergence(student, t).sum())(teacher)
    assert not any(np.any(x) for x in d)
    kl = vocabulary.linear_divergence(student, teacher)
    p, q = (np.asarray(jax.nn.softmax(dense_logits(*x))) for x in (teacher, student))
    np.testing.assert_allclose(kl, (p * np.log(p / q)).sum(-1), rtol=1e-4, atol=1e-6)
    back = vocabulary.linear_divergence(student, teacher, reverse=True)
    np.testing.assert_allclose(back, (q * np.log(q / p)).sum(-1), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["entropy", "KL"])
def test_no_buffer_of_a_compiled_program_has_all_logits(kind, monkeypatch):
    B, T, V = 8, 6, 12

    def largest(rows):
        monkeypatch.setattr(output, "CPU_PARTS", vocabulary.Parts(rows, rows))
        case = token_case(kind)
        with jax.set_mesh(mesh_lib.make_mesh(dict(data=1), jax.devices()[:1])):
            text = (
                jax.jit(lambda linear: values_and_gradients(in_parts, kind, linear, case[1]))
                .lower(case[0])
                .compile()
                .as_text()
            )
        shapes = re.findall(r"f32\[([\d,]+)\]", text)
        return max(int(np.prod([*map(int, s.split(","))])) for s in shapes)

    assert largest(B) < B * T * V <= largest(B * T)


def test_the_largest_logits_of_which_some_are_equal():
    """top_k(1) is the accuracy, also where all logits are equal, as of a head that begins at 0."""
    logits = jnp.array([[0.0, 0, 0, 0], [0.0, 0, 0, 0], [1.0, 3, 2, 3], [1.0, 3, 2, 3]])
    targets, weights = jnp.array([0, 2, 3, 0]), jnp.array([1.0, 1, 1, 1])
    hits = [float(losses.top_k(logits, targets, weights, k)[0]) for k in (1, 2, 3, 4)]
    assert hits == [1, 2, 3, 4]
    assert float(losses.accuracy(logits, targets, weights)[0]) == hits[0]


def _path_likelihood(log_p, targets, blank):
    """The negative log-likelihood, summed over all paths."""
    S, V = log_p.shape
    likelihood = 0.0
    for path in itertools.product(range(V), repeat=S):
        emitted = [x for x, _ in itertools.groupby(path)]
        if [x for x in emitted if x != blank] == list(targets):
            likelihood += np.exp(sum(log_p[s, x] for s, x in enumerate(path)))
    return -np.log(likelihood)


@pytest.mark.parametrize("blank", [0, 3])
def test_ctc_sums_over_all_paths(blank):
    logits = np.random.default_rng(0).normal(size=(3, 5, 4)).astype(np.float32)
    lengths, targets = np.array([5, 3, 4]), [[1, 2, 1], [2], [1, 1]]
    padded, weights = np.full((3, 3), 2), np.zeros((3, 3), np.float32)
    for row, ids in enumerate(targets):
        padded[row, : len(ids)], weights[row, : len(ids)] = ids, 1
    expected = sum(
        _path_likelihood(jax.nn.log_softmax(row[:n]), ids, blank)
        for row, n, ids in zip(logits, lengths, targets)
    )
    total, n = jax.jit(losses.ctc, static_argnums=4)(logits, lengths, padded, weights, blank)
    np.testing.assert_allclose(total, expected, rtol=1e-5)
    assert n == 6


@pytest.mark.parametrize(("length", "n"), [(4, 0), (5, 3)], ids=["too short", "fits"])
def test_ctc_leaves_out_rows_that_are_too_short_for_their_targets(length, n):
    targets, weights = np.array([[1, 1, 1, 0], [2, 0, 0, 0]]), np.array([[1.0, 1, 1, 0], [0] * 4])
    logits = jnp.zeros((2, 6, 3))
    inputs = jnp.array([length, 6]), targets, weights, 0
    (total, count), gradient = jax.value_and_grad(losses.ctc, has_aux=True)(logits, *inputs)
    assert count == n
    assert (total > 0) == (n > 0) and total < 100
    assert np.isfinite(gradient).all() and np.any(gradient[0]) == (n > 0)
    assert not np.any(gradient[1])  # without targets
