"""A checkpoint that was saved on one mesh is restored on another."""

import jax
import numpy as np
import pytest

from bigjax import data, tasks
from bigjax.parallel import mesh as mesh_lib
from bigjax.parallel import sharding
from bigjax.train import program as program_lib
from bigjax.train.checkpoint import Checkpoints
from bigjax.train.step import unpack
from bigjax.trees import named_leaves
from tests import helpers

SAVED_ON = dict(fsdp=4, tensor=2)


def train(c, mesh_sizes, corpus, initial_state, steps):
    """(losses of `steps`, parameters before them, state after them) on a mesh.

    mesh_sizes: {axis: size}; other axes have size 1. initial_state(program): the first state.
    """
    mesh = mesh_lib.make_mesh(
        {axis: mesh_sizes.get(axis, 1) for axis in mesh_lib.AXES},
        jax.devices()[: int(np.prod([*mesh_sizes.values()]))],
    )
    with jax.set_mesh(mesh):
        program = program_lib.make(c, tasks.build(c), mesh)
        state = initial_state(program)
        before = named_leaves(jax.device_get(state.params))  # a step donates its state
        batches = corpus.split("train", batch_size=c.train.batch_size, seed=c.seed)
        losses = []
        for i in steps:
            batch = sharding.put_batch(
                mesh, batches.batch_at(i), slice(0, c.train.batch_size), c.train.batch_size
            )
            state, metrics = program.step(state, None, batch)
            losses.append(unpack(jax.device_get(metrics))["loss"])
    return losses, before, state


@pytest.fixture(scope="module")
def saved(tmp_path_factory, corpus_file, cache_dir):
    """(config, corpus, folder, parameters saved after 3 steps, losses of the next 3)."""
    c = helpers.load_config("tests/tiny.py")
    with c.unlocked():
        c.data.sources.text.path, c.data.cache_dir = corpus_file, cache_dir
        c.train.ema = 0.9
        c.model.n_layers = 1
    corpus = data.load_text(c.data, log=lambda text: None)
    folder = tmp_path_factory.mktemp("elastic")

    def new_state(program):
        return program.init()

    _, _, state = train(c, SAVED_ON, corpus, new_state, range(3))
    for axis in SAVED_ON:  # otherwise no other sharding is restored
        assert any(
            axis in str(x.sharding.spec) and not x.is_fully_replicated
            for x in jax.tree.leaves(state.params)
        ), axis
    checkpoints = Checkpoints(folder)
    checkpoints.save(3, state, {}, {})
    checkpoints.wait()
    losses, before, _ = train(c, SAVED_ON, corpus, lambda program: state, range(3, 6))
    return c, corpus, folder, before, losses


RESTORED_ON = [
    dict(data=2, tensor=2),
    *(
        pytest.param(sizes, marks=pytest.mark.slow)
        for sizes in (dict(data=1), dict(data=2), dict(data=2, fsdp=2, tensor=2))
    ),
]


@pytest.mark.parametrize("mesh_sizes", RESTORED_ON, ids=str)
def test_restored_on_another_mesh(saved, mesh_sizes):
    c, corpus, folder, saved_params, expected = saved

    def restored(program):
        state, meta = Checkpoints(folder, read_only=True).restore_latest(program.abstract, print)
        assert meta["step"] == 3
        shardings = jax.tree.map(lambda x: x.sharding, state.params)
        assert shardings == program.shardings.params
        return state

    losses, params, _ = train(c, mesh_sizes, corpus, restored, range(3, 6))
    for name, x in saved_params.items():
        np.testing.assert_array_equal(params[name], x, err_msg=name)
    np.testing.assert_allclose(losses, expected, rtol=2e-5)
