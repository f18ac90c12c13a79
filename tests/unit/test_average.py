"""Where a run keeps a moving average, it is what is evaluated, opened and started from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigjax import config as config_lib
from bigjax import tasks
from bigjax.parallel import mesh as mesh_lib
from bigjax.parallel import sharding
from bigjax.train import hooks, init_from, load
from bigjax.train import workdir as workdir_lib
from bigjax.train.checkpoint import Checkpoints
from bigjax.train.state import State
from bigjax.trees import named_leaves
from tests.helpers import TINY


@pytest.mark.parametrize("average", [None, "average"])
def test_evaluation_while_training(average):
    written, state = [], State(7, "parameters", (), "extras", average, False)
    evaluator = lambda params, extras, step: {params: (extras, step)}
    write = lambda step, name, values: written.append((step, name, values))
    hook = hooks.Evaluate("valid", evaluator, 5, 7, write, lambda seconds: None)
    assert [step for step in range(1, 8) if hook.due(step)] == [5, 7]
    hook(7, state)
    found = average or "parameters"
    assert written == [(7, "valid", {f"eval/valid/{found}": ("extras", 7)})]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A work folder whose parameters are all 1 and whose average is 2, and its config."""
    c, folder = config_lib.load_file(TINY), tmp_path_factory.mktemp("run")
    with c.unlocked():
        c.model.n_layers, c.train.ema = 1, 0.9
    shapes = jax.eval_shape(tasks.build(c).init, jax.random.key(0))["params"]
    full = lambda n: jax.tree.map(lambda x: jax.device_put(np.full(x.shape, n, x.dtype)), shapes)
    workdir_lib.write_config(folder, c)
    checkpoints = Checkpoints(folder)
    state = State(jnp.int32(3), full(1), (), {}, full(2), jnp.bool_(False))
    checkpoints.save(3, state, {"data": "", "early_stop": {}}, {})
    checkpoints.wait()
    checkpoints.close()
    return str(folder), c


@pytest.fixture
def mesh():
    """One device's; whatever mesh another test's run has left."""
    one = mesh_lib.make_mesh(dict(data=1, fsdp=1, tensor=1), jax.devices()[:1])
    with jax.set_mesh(one):
        yield one


def values(params) -> set:
    return {float(v) for x in named_leaves(params).values() for v in np.unique(x)}


def test_a_run_that_is_opened(run, mesh):
    loaded = load.load(*run, None, None)
    assert values(loaded.params) == {2} and loaded.step == 3


def test_a_run_that_is_started_from(run, mesh, tmp_path):
    source = init_from.open_source(run[0], str(tmp_path))
    shapes = jax.eval_shape(tasks.build(run[1]).init, jax.random.key(0))["params"]
    fresh = jax.tree.map(
        lambda x: jax.device_put(np.zeros(x.shape, x.dtype), sharding.replicated(mesh)), shapes
    )
    found = init_from.initialise(fresh, source, "^position", lambda text: None)
    assert values(found) == {0, 2}
    assert values({"x": found["position"]["embedding"]}) == {0}
