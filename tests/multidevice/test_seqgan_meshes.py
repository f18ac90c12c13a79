"""Rounds on a mesh give the numbers of one device."""

import pathlib

import jax
import numpy as np
import pytest

from bigjax import tasks
from bigjax.parallel import mesh as mesh_lib
from bigjax.parallel import sharding
from bigjax.train import program as program_lib
from bigjax.train.step import unpack
from bigjax.trees import named_leaves
from tests import helpers

TINY = str(pathlib.Path(__file__).parents[1] / "tiny_seqgan.py")


# Rounds of maximum likelihood, of the discriminator, and adversarial ones
PHASES = [(0, 0, 2), pytest.param((1, 1, 1), marks=pytest.mark.slow)]


@pytest.fixture(scope="module", params=PHASES, ids=str)
def phases(request):
    return request.param


@pytest.fixture(scope="module")
def tiny(cache_dir, phases):
    """A config with these rounds, and with more options than the file sets."""
    c = helpers.load_config(TINY)
    with c.unlocked():
        c.data.cache_dir = cache_dir
        c.task.update(
            mle_rounds=phases[0],
            discriminator_rounds=phases[1],
            rollouts=2,
            baseline="batch",
            discriminator_learning_rate=1e-2,
            kl=0.1,
            teacher_forcing=0.1,
            negatives=1,
            discriminator_updates=3,
        )
        c.optim.clip_norm = 1.0
    return c


def train(c, rounds, data, fsdp, tensor):
    """(metrics of each round, parameters by name, state) after these rounds on a mesh."""
    mesh = mesh_lib.make_mesh(
        dict(data=data, fsdp=fsdp, tensor=tensor), jax.devices()[: data * fsdp * tensor]
    )
    task = tasks.build(c)
    rows = task.load_data(log=lambda text: None).split("train", batch_size=16, seed=c.seed)
    with jax.set_mesh(mesh):
        program = program_lib.make(c, task, mesh)
        state = program.init()
        history = []
        for i in range(rounds):
            batch = sharding.put_batch(mesh, rows.batch_at(i), slice(0, 16), 16)
            state, metrics = program.step(state, None, batch)
            history.append(unpack(jax.device_get(metrics)))
    return history, named_leaves(jax.device_get((state.params, state.extras))), state


@pytest.fixture(scope="module")
def one_device(tiny, phases):
    return train(tiny, sum(phases), 1, 1, 1)


@pytest.mark.parametrize(
    "sizes", [pytest.param((8, 1, 1), marks=pytest.mark.slow), (2, 2, 2)], ids=str
)
def test_metrics_and_parameters_after_a_few_rounds(tiny, phases, one_device, sizes):
    history, params, state = train(tiny, sum(phases), *sizes)
    for metrics, expected in zip(history, one_device[0]):
        assert metrics.keys() == expected.keys()
        for name, value in expected.items():
            np.testing.assert_allclose(metrics[name], value, rtol=2e-4, err_msg=name)
    mle, discriminator, adversarial = phases
    assert ["generator/loss" in m for m in history] == (
        [True] * mle + [False] * discriminator + [True] * adversarial
    )
    for name, x in one_device[1].items():
        np.testing.assert_allclose(params[name], x, atol=2e-4, err_msg=name)
    kernel = state.params["generator"]["head"]["kernel"]
    assert kernel.addressable_shards[0].data.size * sizes[1] * sizes[2] == kernel.size
    for kind in ("mle", "adversarial"):
        moments = [
            x
            for name, x in named_leaves(state.opt_state[kind]).items()
            if name.endswith("generator/head/kernel")
        ]
        assert len(moments) == 2 and all(m.sharding == kernel.sharding for m in moments)
