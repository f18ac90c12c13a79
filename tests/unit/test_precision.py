"""Computing in bfloat16: cancellations, long sums and the training state are in float32."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from bigjax import config, losses, optim
from bigjax.errors import RunError, UserError
from bigjax.layers import params as params_lib
from bigjax.layers.basic import ACTIVATIONS, Dense, Embed, Norm, Output
from bigjax.layers.recurrent import Recurrent
from bigjax.losses import vocabulary
from bigjax.parallel import mesh as mesh_lib
from bigjax.train import program as program_lib
from bigjax.train.checkpoint import Checkpoints
from bigjax.train.state import State, abstract, cast, make_init
from bigjax.train.step import make_step
from bigjax.train.stored import as_stored
from bigjax.trees import named_leaves
from tests import helpers

X = np.linspace(-10, 10, 2001).astype(np.float32).astype(np.float64)


def _gelu(x):
    inner = np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)
    return x * special.expit(2 * inner)  # (1 + tanh(a)) / 2, without its cancellation


# In float64; each as (f, its slope).
EXACT = {
    "gelu_exact": (
        lambda x: x * special.ndtr(x),
        lambda x: special.ndtr(x) + x * np.exp(-x * x / 2) / np.sqrt(2 * np.pi),
    ),
    "gelu": (_gelu, lambda x: (_gelu(x + 1e-6) - _gelu(x - 1e-6)) / 2e-6),
    "swiglu": (
        lambda x: x * special.expit(x),
        lambda x: special.expit(x) * (1 + x * special.expit(-x)),
    ),
}


@pytest.mark.parametrize("dtype, bar", [("bfloat16", 2**-8), ("float32", 2e-5)])
@pytest.mark.parametrize("name", EXACT)
def test_activations(name, dtype, bar):
    """Values within one rounding, at -10 as at 10; slopes, which cross zero, by their size."""
    x = jnp.asarray(X, dtype)
    exact = np.asarray(x, np.float64)
    y, slope = jax.jit(lambda x: jax.jvp(ACTIVATIONS[name], (x,), (jnp.ones_like(x),)))(x)
    assert y.dtype == slope.dtype == dtype
    f, d = (of(exact) for of in EXACT[name])
    np.testing.assert_allclose(np.asarray(y, np.float64), f, rtol=bar, atol=1e-30)
    np.testing.assert_allclose(np.asarray(slope, np.float64), d, rtol=bar, atol=max(bar / 50, 2e-6))


def gradients(module, x, weights):
    """(in bfloat16, in float32) gradients of a weighted sum of the outputs, by path."""
    grads = []
    for dtype in ("bfloat16", "float32"):
        m = module.clone(dtype=dtype)
        variables = params_lib.unbox(m.init(jax.random.key(0), x))

        def total(params, x):
            out = jax.tree.leaves(m.apply(params, x))[0]
            return (out.astype(jnp.float32) * weights).sum()

        g = jax.jit(jax.grad(total))(variables, x)
        assert {a.dtype for a in jax.tree.leaves(g)} == {jnp.dtype("float32")}
        grads.append(jax.tree.leaves(g))
    return zip(*grads)


ROWS = 20_000


@pytest.mark.parametrize(
    "module, x, shape",
    [
        (Embed(3, 4), np.arange(ROWS) % 2, (ROWS, 4)),
        (Dense((4,), ("embed",), ("mlp",)), np.ones((ROWS, 2), np.float32), (ROWS, 4)),
        (Norm(), np.tile(np.float32([1, 2, 3, 5]), (ROWS, 1)), (ROWS, 4)),
        (Recurrent("gru", 4), np.ones((4, 400, 2), np.float32), (4, 400, 4)),
    ],
    ids=["embedding", "dense", "norm", "gru"],
)
def test_gradients_that_sum_many_rows_or_time_steps(module, x, shape):
    """As in float32 except for the rounding of each term. Sums in bfloat16 stop growing."""
    weights = np.random.default_rng(0).normal(1, 0.1, shape).astype(np.float32)
    for half, single in gradients(module, jnp.asarray(x), weights):
        np.testing.assert_allclose(half, single, rtol=0.02, atol=0.02 * np.abs(single).max())


def test_logits_are_not_rounded():
    """Of logits that differ by 1 in 1000, half would be equal in bfloat16."""
    types = dict(dtype="bfloat16", out_dtype="float32")
    layer = (50,), ("embed",), ("vocab",)
    dense, output = Dense(*layer, **types), Output(*layer, dtype="bfloat16")
    x = jnp.ones((1, 256), jnp.bfloat16)
    params = {"params": {"kernel": jnp.full((256, 50), 1 / 32), "bias": jnp.arange(50) / 1000}}
    y = dense.apply(params, x)
    np.testing.assert_array_equal(y, output.apply(params, x).product())
    np.testing.assert_allclose(y[0], 8 + np.arange(50) / 1000, rtol=1e-6)
    targets = jnp.arange(50)
    total, _ = vocabulary.linear_cross_entropy(
        jnp.broadcast_to(x, (1, 50, 256)),
        params["params"]["kernel"].astype(x.dtype),
        params["params"]["bias"],
        None,
        targets[None],
        jnp.ones((1, 50)),
    )
    np.testing.assert_allclose(
        total, losses.cross_entropy(y.repeat(50, 0), targets, jnp.ones(50))[0], rtol=1e-6
    )


# --- The training state ----------------------------------------------------------------------


def task(dtype, next_extras=lambda extras: extras):
    """Least squares on one kernel; kernel and sums have this dtype."""

    def loss(params, extras, frozen, batch, rng, train):
        error = ((params["kernel"] - batch["y"]) ** 2).astype(dtype)
        weight = jnp.ones((), dtype) * len(batch["y"])
        return (error.sum(), weight), ({"error": (error.sum(), weight)}, next_extras(extras))

    variables = {"params": {"kernel": jnp.ones(4, dtype)}, "counts": {"seen": jnp.ones(2, dtype)}}
    batch = lambda size, step: {"y": jax.ShapeDtypeStruct((size, 4), "float32")}
    result = helpers.task(lambda rng: variables, loss, {"kernel": ("norm",)}, batch_shapes=batch)
    return dataclasses.replace(result, axes={**result.axes, "counts": {"seen": (None,)}})


def optimizer(name, params):
    o = config.new_config().optim
    o.update(dict(name=name, learning_rate=1e-2, schedule="constant", clip_norm=0.0))
    return optim.make(o, 100, params)


@pytest.mark.parametrize("name", ["adamw", "lamb", "adafactor", "sgd"])
def test_parameters_moments_and_averages_are_float32_for_any_dtype(name):
    states = []
    for dtype in ("float32", "bfloat16"):
        t = task(dtype)
        state = make_init(t, (tx := optimizer(name, t.init(None)["params"])).init, 0, True)()
        step = jax.jit(make_step(t, tx, lambda s: 1e-2, seed=0, ema=0.999))
        types = jax.tree.map(lambda x: x.dtype, state)
        assert not any(t == jnp.bfloat16 for t in jax.tree.leaves(types))
        for i in range(60):
            state, _ = step(state, None, {"y": jnp.full((2, 4), 3.0 if i < 20 else 2.0)})
        assert jax.tree.map(lambda x: x.dtype, state) == types
        assert float(state.ema["params"]["kernel"][0]) > 1.001  # bfloat16 would have stayed at 1
        states.append(named_leaves((state.params, state.opt_state, state.ema)))
    for key, x in states[0].items():
        np.testing.assert_allclose(states[1][key], x, rtol=0.01, err_msg=key)


def test_micro_batches_are_summed_in_float32():
    y = np.random.default_rng(0).normal(2, 1, (128, 4)).astype(jnp.bfloat16)
    t, results = task("bfloat16"), []
    for accumulate in (1, 64):
        state = make_init(t, (tx := optimizer("sgd", t.init(None)["params"])).init, 0, False)()
        step = make_step(t, tx, lambda s: 1e-2, seed=0, accumulate=accumulate)
        state, metrics = jax.jit(step)(state, None, {"y": y})
        assert {x.dtype for x in metrics.values()} == {jnp.dtype("float32")}
        results.append((state.params["kernel"], metrics["error"], metrics["grad_norm"]))
    exact = np.mean((1 - y.astype(np.float64)) ** 2) * 4
    np.testing.assert_allclose(results[1][1], exact, rtol=1e-3)  # in bfloat16 1% off
    np.testing.assert_allclose(results[1][0], results[0][0], rtol=1e-5)
    np.testing.assert_allclose(results[1][2], results[0][2], rtol=1e-3)


def test_a_step_that_changes_a_dtype_or_a_shape_is_refused():
    c, mesh = (
        helpers.filled(config.new_config()),
        mesh_lib.make_mesh(dict(data=1), jax.devices()[:1]),
    )
    for change, words in (
        (lambda seen: {"seen": seen.astype(jnp.bfloat16)}, "bfloat16\\[2\\]"),
        (lambda seen: {"seen": seen[:1]}, "float32\\[1\\]"),
        (lambda seen: {}, "absent"),
        (lambda seen: {"seen": seen, "more": seen}, "absent"),
    ):
        with pytest.raises(RunError, match=f"counts/(seen|more) .*{words}"):
            next_extras = lambda extras: {"counts": change(extras["counts"]["seen"])}
            program_lib.make(c, task("float32", next_extras), mesh)


def saved(folder, state):
    checkpoints = Checkpoints(folder)
    checkpoints.save(1, state, {}, {})
    checkpoints.wait()
    checkpoints.close()


def test_a_checkpoint_of_bfloat16_arrays_is_checked_and_then_cast(tmp_path):
    """As older versions wrote: a run resumes from it in float32 with the same numbers."""
    state = State(
        jnp.int32(1),
        {"kernel": jnp.linspace(0, 1, 64), "steps": jnp.arange(3)},
        {"mu": jnp.linspace(1, 2, 64), "count": jnp.int32(1)},
        {},
        None,
        jnp.bool_(False),
    )
    half = cast(state, jnp.bfloat16)
    saved(tmp_path / "run", half)
    want = abstract(state, jax.tree.map(lambda x: x.sharding, state))
    got, _ = Checkpoints(tmp_path / "run").restore_latest(want, print)
    for name, x in named_leaves(state).items():
        assert named_leaves(got)[name].dtype == x.dtype
        np.testing.assert_array_equal(named_leaves(got)[name], named_leaves(half)[name])
    narrow = {"params": cast(want.params, jnp.bfloat16)}  # as when a run is loaded to generate
    saved(tmp_path / "single", state)
    items, _ = Checkpoints(tmp_path / "single", read_only=True).restore(1, narrow)
    np.testing.assert_array_equal(items["params"]["kernel"], half.params["kernel"])
    other = {"params": {**want.params, "kernel": want.params["kernel"].update(shape=(32,))}}
    with pytest.raises(UserError, match=r"kernel has the shape \(64,\) in it, and \(32,\) in"):
        as_stored(other["params"], tmp_path / "run" / "checkpoints" / "1" / "params")
