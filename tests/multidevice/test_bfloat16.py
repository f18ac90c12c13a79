"""Every family computes in bfloat16 on one device and on several, follows the losses of float32 on
one device, and resumes exactly."""

import jax
import numpy as np
import pytest

from bigjax import tasks
from bigjax.parallel import mesh as mesh_lib
from bigjax.parallel import sharding
from bigjax.train import program as program_lib
from bigjax.train.checkpoint import Checkpoints
from bigjax.train.step import unpack
from tests import helpers
from tests.conftest import write_table
from tests.e2e import test_headline
from tests.helpers import TINY, TINY_BERT
from tests.multidevice import test_seqgan_meshes

STEPS, SAVED_AT = 4, 2
FAMILIES = ("gpt", "bert", "labelled", "seqgan", "headline", "headline rounds")
# The allowed relative difference of a metric from float32, 1e-3 by default. The language models
# differ by 3e-4. The generators draw some different tokens, as bfloat16 has 8 bits of precision.
TOLERANCES = {"seqgan": 0.05, "headline rounds": 0.05}


@pytest.fixture(scope="module")
def make(corpus_file, cache_dir, tmp_path_factory):
    """(family, dtype of its computation) -> (config, batches)."""
    folder = tmp_path_factory.mktemp("tables")
    labelled = write_table(folder / "train.tsv", 100)
    headlines = test_headline.write_table(folder / "train.jsonl")
    loaded = {}

    def load(family, dtype):
        file, values = {
            "gpt": (TINY, {}),
            "bert": (TINY_BERT, {}),
            "labelled": (TINY_BERT + ":labelled", {"data.train": labelled}),
            "seqgan": (test_seqgan_meshes.TINY, {}),
            "headline": (test_headline.TINY, {"data.train": headlines, "task.mle_rounds": STEPS}),
            "headline rounds": (test_headline.TINY, {"data.train": headlines}),
        }[family]
        c = helpers.load_config(file)
        with c.unlocked():
            if family in ("gpt", "bert"):
                c.data.sources.text.path = corpus_file
            c.data.cache_dir = cache_dir
            c.update_from_flattened_dict(values)
            if family in TOLERANCES:  # adversarial rounds from the start
                c.task.update(mle_rounds=0, discriminator_rounds=0, teacher_forcing=0.1)
                c.task.rollouts = 2
            elif family != "headline":
                c.model.n_layers = 1
                c.train.ema = 0.9
            c.model.dtype = dtype
        tasks.resolve(c)
        if family not in loaded:
            loaded[family] = tasks.build(c).load_data(lambda text: None)
        return c, loaded[family].split("train", batch_size=c.train.batch_size, seed=c.seed)

    return load


def train(config_and_batches, sizes, folder=None):
    """The metrics of each step on a mesh (data, fsdp, tensor).

    folder: the state is saved there after SAVED_AT steps, and training that resumes from it has to
    give the same bits.
    """
    c, batches = config_and_batches
    mesh = mesh_lib.make_mesh(
        dict(zip(("data", "fsdp", "tensor"), sizes)), jax.devices()[: np.prod(sizes)]
    )
    with jax.set_mesh(mesh):
        program = program_lib.make(c, tasks.build(c), mesh)
        rows = c.train.batch_size

        def run(state, steps):
            history = []
            for i in steps:
                batch = sharding.put_batch(mesh, batches.batch_at(i), slice(0, rows), rows)
                state, metrics = program.step(state, None, batch)
                history.append(unpack(jax.device_get(metrics)))
            return state, history

        state = jax.jit(program.init, out_shardings=program.shardings)()
        assert not any(x.dtype == "bfloat16" for x in jax.tree.leaves(state))
        state, first_metrics = run(state, range(SAVED_AT))
        if folder:
            checkpoints = Checkpoints(folder)
            checkpoints.save(SAVED_AT, state, {}, {})
            checkpoints.wait()
        last_state, last_metrics = run(state, range(SAVED_AT, STEPS))
        if folder:
            state, _ = checkpoints.restore_latest(program.abstract, print)
            checkpoints.close()
            resumed_state, resumed_metrics = run(state, range(SAVED_AT, STEPS))
            assert resumed_metrics == last_metrics
            jax.tree.map(np.testing.assert_array_equal, resumed_state, last_state)
    return first_metrics + last_metrics


@pytest.fixture(scope="module")
def single(make):
    """family -> metrics of float32 on one device."""
    results = {}

    def trained(family):
        if family not in results:
            results[family] = train(make(family, "float32"), (1, 1, 1))
        return results[family]

    return trained


QUICK = ("gpt", (2, 2, 2))  # tested by default
ALL = [(1, 1, 1), (2, 1, 1), (1, 2, 1), (1, 1, 2), (8, 1, 1), (1, 8, 1), (2, 2, 2)]


@pytest.mark.parametrize(
    "family, sizes",
    [
        pytest.param(family, sizes, marks=() if (family, sizes) == QUICK else pytest.mark.slow)
        for family in FAMILIES
        for sizes in ALL
        if (family, sizes) != ("seqgan", (1, 8, 1))  # its 4 + 4 + 4 filters do not divide by 8
    ],
    ids=str,
)
def test_losses_equal_those_of_float32_and_a_run_resumes(make, single, family, sizes, tmp_path):
    history = train(make(family, "bfloat16"), sizes, tmp_path)
    rel, differ = TOLERANCES.get(family, 1e-3), False
    for metrics, expected in zip(history, single(family), strict=True):
        assert metrics.keys() == expected.keys()
        for name, value in expected.items():
            if name.endswith("loss"):
                assert metrics[name] == pytest.approx(value, rel=rel), name
                differ |= metrics[name] != value
    assert differ  # it was bfloat16


@pytest.mark.slow
def test_micro_batches_with_an_optimizer_state_in_host_memory(make):
    losses = []
    for accumulate in (1, 2):
        c, batches = make("gpt", "bfloat16")
        with c.unlocked():
            c.model.dropout = 0.0
            c.train.accumulate, c.optim.offload = accumulate, accumulate > 1
        losses.append([m["loss"] for m in train((c, batches), (2, 2, 2))])
    np.testing.assert_allclose(*losses, rtol=2e-4)
