"""The training step, its guard against values that are not finite, the loop, early stopping."""

import dataclasses
import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bigjax import config as config_lib
from bigjax import tasks
from bigjax.errors import UserError
from bigjax.parallel import mesh as mesh_lib
from bigjax.train import hooks, loop, program
from bigjax.train.state import make_init
from bigjax.train.step import make_step
from tests import helpers


def toy_task():
    """Least squares on one weight vector; a batch is {'x': [B, 3], 'y': [B], 'weight': [B]}."""

    def loss(params, extras, frozen, batch, rng, train):
        error = (batch["x"] @ params["w"] - batch["y"]) ** 2 * batch["weight"]
        weight = batch["weight"].sum()
        return (error.sum(), weight), ({"seen": (weight, jnp.float32(1))}, extras)

    init = lambda rng: {"params": {"w": jnp.ones(3)}}
    return helpers.task(init, loss, {"w": ("norm",)})


def batch(seed=0):
    rng = np.random.default_rng(seed)
    return {
        "x": rng.normal(size=(8, 3)).astype("float32"),
        "y": rng.normal(size=8).astype("float32"),
        "weight": rng.integers(0, 3, 8).astype("float32"),
    }


def steps(**options):
    task, tx = toy_task(), optax.sgd(0.1)
    state = make_init(task, tx.init, 0, options.get("ema", 0) > 0)()
    return state, jax.jit(make_step(task, tx, lambda s: 0.1, seed=0, **options))


def test_uneven_weights_add_up_over_micro_batches():
    results = []
    for accumulate in (1, 2, 4):
        state, step = steps(accumulate=accumulate)
        state, metrics = step(state, None, batch())
        results.append((np.asarray(state.params["w"]), float(metrics["loss"])))
    for got in results[1:]:
        np.testing.assert_allclose(got[0], results[0][0], rtol=1e-6)
        np.testing.assert_allclose(got[1], results[0][1], rtol=1e-6)


def test_gradients_are_divided_by_the_weight_and_nothing_else():
    """Exactly, with numbers whose products, sums and quotients are exact in float32."""
    rows = dict(x=np.eye(3), y=[0.0, -1.0, 3.0], weight=[1.0, 1.0, 2.0])
    rows = {k: np.asarray(v, np.float32) for k, v in rows.items()}
    # 2 * (1 - y) * weight / 4, and the loss of (1 + 4 + 2 * 4) / 4.
    gradient, loss = np.float32([0.5, 1.0, -2.0]), 3.25
    for options, scale in (({}, 1.0), ({"accumulate": 3}, 1.0), ({}, 0.125)):
        task, tx = toy_task(), optax.sgd(1.0)
        state = make_init(task, tx.init, 0, False)()
        step = jax.jit(make_step(task, tx, lambda s: 1.0, seed=0, **options))
        new, metrics = step(state, None, {**rows, "weight": rows["weight"] * np.float32(scale)})
        np.testing.assert_array_equal(new.params["w"], 1 - gradient)
        assert float(metrics["loss"]) == loss
        assert float(metrics["grad_norm"]) == np.sqrt(np.float32(5.25))


def test_a_batch_without_weight_changes_nothing():
    state, step = steps()
    rows = batch()
    rows["weight"][:] = 0
    new, metrics = step(state, None, rows)
    np.testing.assert_array_equal(new.params["w"], state.params["w"])
    assert float(metrics["loss"]) == 0 and not bool(new.halted)


@pytest.mark.parametrize("key, value", [("optim.learning_rate", 0.5), ("train.ema", 0.9)])
def test_an_own_step_without_step_keys_refuses_their_values(key, value):
    def make_step(config, params):
        step = lambda state, frozen, batch: (state, {"loss": jnp.float32(0)})
        return lambda params: (), step

    c = helpers.filled(helpers.load_config("tests/tiny.py"))
    default = config_lib.new_config()
    c.optim, c.train.accumulate, c.train.ema = default.optim, 1, 0.0
    mesh = mesh_lib.make_mesh(dict(data=1), jax.devices()[:1])
    task = dataclasses.replace(tasks.build(c), make_step=make_step, step_keys=())
    program.make(c, task, mesh)
    with c.unlocked():
        section, name = key.split(".")
        c[section][name] = value
    with pytest.raises(UserError, match=f"{key}={value}.*its default.*none of optim"):
        program.make(c, task, mesh)


def test_moving_average():
    state, step = steps(ema=0.9)
    new, _ = step(state, None, batch())
    np.testing.assert_allclose(
        new.ema["params"]["w"], 0.9 * state.params["w"] + 0.1 * new.params["w"], rtol=1e-6
    )


def test_a_loss_that_is_not_finite_changes_nothing_but_the_step():
    state, step = steps()
    bad = batch()
    bad["y"][3] = np.inf
    bad["weight"][3] = 1
    new, metrics = step(state, None, bad)
    assert not np.isfinite(metrics["loss"]) and int(new.step) == 1
    np.testing.assert_array_equal(new.params["w"], state.params["w"])


def test_after_a_step_that_is_not_finite_later_steps_change_nothing():
    state, step = steps()
    bad = batch()
    bad["y"][:], bad["weight"][:] = np.nan, 1
    state, _ = step(state, None, bad)
    new, metrics = step(state, None, batch())
    assert np.isfinite(metrics["loss"])
    np.testing.assert_array_equal(new.params["w"], state.params["w"])


def test_an_update_that_overflows_is_not_applied():
    task, tx = toy_task(), optax.sgd(1e38)
    state = make_init(task, tx.init, 0, False)()
    new, metrics = make_step(task, tx, lambda s: 1e38, seed=0)(state, None, batch())
    assert np.isfinite(metrics["loss"]) and not np.isfinite(metrics["update_norm"])
    np.testing.assert_array_equal(new.params["w"], state.params["w"])


def test_a_defect_of_an_optimizer_halts_the_state_and_leaves_it_finite():
    task = toy_task()
    broken = lambda g, *_: ({"w": g["w"].at[1].set(jnp.nan)}, ())
    tx = optax.GradientTransformation(lambda params: (), broken)
    state = make_init(task, tx.init, 0, False)()
    new, metrics = make_step(task, tx, lambda s: 1.0, seed=0)(state, None, batch())
    assert new.halted and not np.isfinite(metrics["update_norm"])
    assert np.isfinite(metrics["grad_norm"]) and np.isfinite(new.params["w"]).all()
    after, _ = make_step(task, tx, lambda s: 1.0, seed=0)(new, None, batch())
    np.testing.assert_array_equal(after.params["w"], new.params["w"])


def test_metrics_come_once_each_in_order_and_before_hooks():
    seen = []

    class Hook:
        def due(self, step):
            return step == 3

        def __call__(self, step, state):
            seen.append(f"hook {step}")

    def step_fn(state, batch):
        return state + batch, {"loss": state}

    state, done = loop.run(
        jnp.int32(0),
        step_fn,
        iter(range(10)),
        start=0,
        steps=5,
        hooks=[Hook()],
        report=lambda step, m, waited: seen.append((step, m["loss"])),
    )
    assert seen == [(1, 0), (2, 0), (3, 1), "hook 3", (4, 3), (5, 6)]
    assert (int(state), done) == (10, 5)


def test_a_report_or_a_hook_can_end_the_loop():
    class Stop:
        def due(self, step):
            return True

        def __call__(self, step, state):
            return step == 2

    quiet = lambda step, m, waited: False
    fn = lambda s, b: (s, {"loss": jnp.float32(0)})
    assert loop.run(0, fn, iter(range(9)), start=0, steps=9, report=quiet, hooks=[Stop()])[1] == 2
    stop = lambda step, m, waited: step == 3
    assert loop.run(0, fn, iter(range(9)), start=0, steps=9, report=stop, hooks=[])[1] == 4


@pytest.mark.parametrize(
    "mode, values, stops_at",
    [("min", [3, 2, 2.5, 1.99, 2.1], 3), ("max", [1, 2, 1, 1], 3), ("min", [4, 3, 2, 1], None)],
)
def test_early_stopping(mode, values, stops_at):
    class Config:
        metric, patience, min_delta = "eval/valid/x", 2, 0.1

    Config.mode = mode
    hook = hooks.EarlyStop(Config, lambda text: None)
    ended = None
    for step, value in enumerate(values):
        hook.latest.clear()
        hook.latest[step] = {"eval/valid/x": value}
        assert hook.due(step) and not hook.due(step + 1)
        json.dumps(hook.state)
        if hook(step, None):
            ended = step
            break

    assert ended == stops_at  # 1.99 improves on 2 by less than min_delta


@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize(
    "min_delta, values, stops_at",
    [
        (0.0, [2.0, 2.0, 2.0], 2),  # a plateau is not an improvement
        (0.0, [2.0, 2.0, 1.5, 1.5, 1.5], 4),
        (0.5, [2.0, 1.5, 1.5], 2),  # nor is exactly min_delta
        (0.5, [2.0, 1.25, 0.75, 0.5, 0.5], None),
    ],
)
def test_an_improvement_exceeds_min_delta(mode, min_delta, values, stops_at):
    sign = 1 if mode == "min" else -1
    c = SimpleNamespace(metric="eval/valid/x", patience=2, min_delta=min_delta, mode=mode)
    hook = hooks.EarlyStop(c, lambda text: None)
    for step, value in enumerate(values):
        hook.latest[step] = {"eval/valid/x": sign * value}
        if hook(step, None):
            break
    assert (step if hook.stopped else None) == stops_at


def test_the_usual_options_of_a_kind_of_device_give_way_to_the_users(monkeypatch):
    """Those of the config, and of the environment."""
    kind = jax.devices()[0].device_kind
    monkeypatch.setitem(program.OPTIONS, kind, {"xla_cpu_enable_fast_math": "false"})
    mesh = mesh_lib.make_mesh({}, jax.devices()[:1])
    assert program.compiler_options({}, mesh) == {"xla_cpu_enable_fast_math": "false"}
    own = {"xla_cpu_enable_fast_math": True, "xla_cpu_enable_fast_min_max": False}
    options = program.compiler_options(own, mesh)
    assert options == {k: str(v) for k, v in own.items()}
    monkeypatch.setenv("LIBTPU_INIT_ARGS", "--xla_cpu_enable_fast_math=true")
    assert program.compiler_options({}, mesh) == {}
