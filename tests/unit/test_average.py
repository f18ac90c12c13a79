"""The moving average of a run is used for evaluation, loading and init_from."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bigjax import tasks
from bigjax.parallel import mesh as mesh_lib
from bigjax.parallel import sharding
from bigjax.train import first_state, hooks, init_from, load
from bigjax.train import workdir as workdir_lib
from bigjax.train.checkpoint import Checkpoints
from bigjax.train.state import State, make_init
from bigjax.train.step import make_step
from bigjax.trees import named_leaves
from tests import helpers


@pytest.mark.parametrize("average", [None, {"params": "average", "counts": 2}])
def test_evaluation_while_training(average):
    written, state = [], State(7, "parameters", (), {"counts": 1}, average, False)
    evaluator = lambda params, extras, step: {params: (extras, step)}
    write = lambda step, name, values: written.append((step, name, values))
    hook = hooks.Evaluate("valid", evaluator, 5, 7, write, lambda seconds: None)
    assert [step for step in range(1, 8) if hook.due(step)] == [5, 7]
    hook(7, state)
    name, counts = ("average", 2) if average else ("parameters", 1)
    assert written == [(7, "valid", {f"eval/valid/{name}": ({"counts": counts}, 7)})]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A work folder whose parameters are all 1 and whose average is 2, and its config."""
    c, folder = helpers.load_config("tests/tiny.py"), tmp_path_factory.mktemp("run")
    with c.unlocked():
        c.model.n_layers, c.train.ema = 1, 0.9
    shapes = jax.eval_shape(tasks.build(c).init, jax.random.key(0))["params"]
    full = lambda n: jax.tree.map(lambda x: jax.device_put(np.full(x.shape, n, x.dtype)), shapes)
    workdir_lib.write_config(folder, c)
    checkpoints = Checkpoints(folder)
    average = {"params": full(2)}
    state = State(jnp.int32(3), full(1), (), {}, average, jnp.bool_(False))
    checkpoints.save(3, state, {"data": "", "early_stop": {}}, {})
    checkpoints.wait()
    checkpoints.close()
    return str(folder), c


@pytest.fixture
def mesh():
    """A mesh of one device, independent of the mesh of other tests."""
    one = mesh_lib.make_mesh(dict(data=1, fsdp=1, tensor=1), jax.devices()[:1])
    with jax.set_mesh(one):
        yield one


def values(params) -> set:
    return {float(v) for x in named_leaves(params).values() for v in np.unique(x)}


def test_loading_a_run(run, mesh):
    loaded = load.load(*run, None, None)
    assert values(loaded.params) == {2} and loaded.step == 3


def test_other_weights_of_a_step_have_another_fingerprint(run, mesh, tmp_path):
    """A run that is trained again has the same folder and steps."""
    first = load.load(*run, None, None)
    assert load.load(*run, None, None).fingerprint == first.fingerprint
    workdir_lib.write_config(tmp_path, run[1])
    checkpoints = Checkpoints(tmp_path)
    params = jax.tree.map(lambda x: x + 1, first.params)
    state = State(jnp.int32(3), params, (), {}, {"params": params}, jnp.bool_(False))
    checkpoints.save(3, state, {"data": "", "early_stop": {}}, {})
    checkpoints.close()
    again = load.load(str(tmp_path), run[1], None, None)
    assert again.step == first.step and again.fingerprint != first.fingerprint


def test_init_from_a_run(run, mesh, tmp_path):
    source = init_from.open_source(run[0], str(tmp_path))
    shapes = jax.eval_shape(tasks.build(run[1]).init, jax.random.key(0))["params"]
    fresh = jax.tree.map(
        lambda x: jax.device_put(np.zeros(x.shape, x.dtype), sharding.replicated(mesh)), shapes
    )
    params = init_from.initialise(fresh, source, "^position", lambda text: None)
    assert values(params) == {0, 2}
    assert values({"x": params["position"]["embedding"]}) == {0}


def test_counters_and_flags_are_copied_into_the_average():
    def loss(params, extras, parts, batch, rng, train):
        state = {"batches": extras["state"]["batches"] + 1, "seen": extras["state"]["seen"] | True}
        return ((params["kernel"] ** 2).sum(), jnp.float32(1)), ({}, {"state": state})

    state = {"batches": jnp.int32(0), "seen": jnp.bool_(False)}
    init = lambda rng: {"params": {"kernel": jnp.ones(2)}, "state": state}
    task, tx = helpers.task(init, loss, {"kernel": (None,)}), optax.sgd(0.25)
    state = make_init(task, tx.init, 0, True)()
    step = jax.jit(make_step(task, tx, lambda step: 0.25, seed=0, ema=0.5))
    for _ in range(3):
        state, _ = step(state, {}, {})
    assert int(state.ema["state"]["batches"]) == 3 and bool(state.ema["state"]["seen"])
    assert float(state.ema["params"]["kernel"][0]) not in (1, float(state.params["kernel"][0]))


def test_extras_are_averaged_too(mesh, tmp_path):
    """Such as a running mean of batches, which evaluation uses with the averaged parameters."""

    def loss(params, extras, parts, batch, rng, train):
        seen = extras["counts"]["seen"] + train * batch["y"].mean()
        total = ((params["kernel"] - batch["y"]) ** 2).sum()
        return (total, jnp.float32(2)), (
            {"seen": (seen, jnp.float32(1))},
            {"counts": {"seen": seen}},
        )

    variables = {"params": {"kernel": jnp.zeros(2)}, "counts": {"seen": jnp.float32(0)}}
    task = helpers.task(lambda rng: variables, loss, {"kernel": (None,)})
    task.axes["counts"] = {"seen": ()}
    tx = optax.sgd(0.25)
    state = make_init(task, tx.init, 0, True)()
    step = jax.jit(make_step(task, tx, lambda step: 0.25, seed=0, ema=0.5))
    kernel, seen, want = 0.0, 0.0, {"kernel": 0.0, "seen": 0.0}
    for y in (1.0, 3.0, -2.0):
        state, _ = step(state, {}, {"y": jnp.full(2, y)})
        kernel, seen = kernel - 0.25 * (kernel - y), seen + y
        want = {k: 0.5 * want[k] + 0.5 * x for k, x in (("kernel", kernel), ("seen", seen))}
    assert float(state.extras["counts"]["seen"]) == seen
    assert float(state.ema["counts"]["seen"]) == want["seen"] != seen
    assert float(state.ema["params"]["kernel"][0]) == pytest.approx(want["kernel"])

    # Evaluation, while training and of a loaded run, takes both from the average.
    got = []
    evaluator = lambda params, extras, step: got.append((params, extras)) or {}
    hooks.Evaluate("valid", evaluator, 1, 3, lambda *_: None, lambda seconds: None)(3, state)
    ((params, extras),) = got
    assert float(extras["counts"]["seen"]) == want["seen"]
    assert float(params["kernel"][0]) == pytest.approx(want["kernel"])
    c = helpers.load_config("tests/tiny.py")
    with c.unlocked():
        c.train.ema = 0.5
    workdir_lib.write_config(tmp_path, c)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(3, state, {"data": "", "early_stop": {}}, {})
    checkpoints.wait()
    checkpoints.close()
    with pytest.MonkeyPatch.context() as m:
        m.setattr(tasks, "build", lambda config: task)
        loaded = load.load(str(tmp_path), c, None, None)
    assert float(loaded.extras["counts"]["seen"]) == want["seen"]
    assert float(loaded.params["kernel"][0]) == pytest.approx(want["kernel"])
    source = init_from.open_source(str(tmp_path), "")
    assert source.shapes == {"kernel": (2,), "counts/seen": ()}


def test_replaced_parameters_share_no_memory_with_extras_or_the_average():
    """A step donates the memory of each array once."""
    x = jnp.arange(3.0)
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    before = State(jnp.int32(0), {"a": x}, (), {"stats": x}, {"params": x}, jnp.array(False))
    shardings = jax.tree_util.tree_map(lambda _: here, before._replace(ema=here))
    state = first_state.replaced(before, {"a": 2 * x}, {"stats": before.params["a"]}, shardings)
    state = state._replace(params={"a": before.params["a"]})  # which the extras followed from
    pointers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree_util.tree_leaves(state)]
    assert len({*pointers}) == len(pointers)
    np.testing.assert_array_equal(state.ema["params"]["a"], [0, 2, 4])
    np.testing.assert_array_equal(state.ema["stats"], [0, 1, 2])
