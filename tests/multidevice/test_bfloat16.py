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
from tests.e2e import test_bert, test_headline
from tests.helpers import TINY
from tests.multidevice import test_seqgan_meshes

STEPS, SAVED_AT = 4, 2
FAMILIES = ("gpt", "bert", "labelled", "seqgan", "headline", "headline rounds")
# How far a metric may lie from float32's, relative to it. The language models differ by 3e-4. The
# generators draw some other tokens, as one probability in 256 is rounded.
BARS = {"seqgan": 0.05, "headline rounds": 0.05}


@pytest.fixture(scope="module")
def make(corpus_file, cache_dir, tmp_path_factory):
    """(family, the type it computes in) -> (config, batches)."""
    folder = tmp_path_factory.mktemp("tables")
    labelled = test_bert.write_table(folder / "train.tsv", 100)
    headlines = test_headline.write_table(folder / "train.jsonl")
    loaded = {}

    def of(family, dtype):
        file, values = {
            "gpt": (TINY, {}),
            "bert": (test_bert.TINY_BERT, {}),
            "labelled": (test_bert.TINY_BERT + ":labelled", {"data.train": labelled}),
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
            if family in BARS:  # adversarial rounds from the start
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

    return of


def train(made, sizes, folder=None):
    """The metrics of each step on a mesh (data, fsdp, tensor). folder: the state is saved after
    SAVED_AT steps; going on from there has to give the same bits."""
    c, batches = made
    mesh = mesh_lib.make_mesh(
        dict(zip(("data", "fsdp", "tensor"), sizes)), jax.devices()[: np.prod(sizes)]
    )
    with jax.set_mesh(mesh):
        program = program_lib.make(c, tasks.build(c), mesh)
        rows = c.train.batch_size

        def run(state, steps):
            found = []
            for i in steps:
                batch = sharding.put_batch(mesh, batches.batch_at(i), slice(0, rows), rows)
                state, metrics = program.step(state, None, batch)
                found.append(unpack(jax.device_get(metrics)))
            return state, found

        state = jax.jit(program.init, out_shardings=program.shardings)()
        assert not any(x.dtype == "bfloat16" for x in jax.tree.leaves(state))
        state, found = run(state, range(SAVED_AT))
        if folder:
            checkpoints = Checkpoints(folder)
            checkpoints.save(SAVED_AT, state, {}, {})
            checkpoints.wait()
        end, more = run(state, range(SAVED_AT, STEPS))
        if folder:
            state, _ = checkpoints.restore_latest(program.abstract, print)
            checkpoints.close()
            again, same = run(state, range(SAVED_AT, STEPS))
            assert same == more
            jax.tree.map(np.testing.assert_array_equal, again, end)
    return found + more


@pytest.fixture(scope="module")
def single(make):
    """family -> metrics of float32 on one device."""
    results = {}

    def of(family):
        if family not in results:
            results[family] = train(make(family, "float32"), (1, 1, 1))
        return results[family]

    return of


QUICK = {  # one each: on 1, 2 and 8 devices, along every axis
    "gpt": (2, 2, 2),
    "bert": (1, 2, 1),
    "labelled": (1, 1, 1),
    "seqgan": (2, 1, 1),
    "headline": (2, 1, 1),
}
ALL = [(1, 1, 1), (2, 1, 1), (1, 2, 1), (1, 1, 2), (8, 1, 1), (1, 8, 1), (2, 2, 2)]


@pytest.mark.parametrize(
    "family, sizes",
    [
        pytest.param(family, sizes, marks=() if sizes == QUICK.get(family) else pytest.mark.slow)
        for family in FAMILIES
        for sizes in ALL
        if (family, sizes) != ("seqgan", (1, 8, 1))  # its 4 + 4 + 4 filters do not divide by 8
    ],
    ids=str,
)
def test_losses_are_those_of_float32_and_a_run_resumes(make, single, family, sizes, tmp_path):
    found = train(make(family, "bfloat16"), sizes, tmp_path)
    differ = False
    for got, want in zip(found, single(family), strict=True):
        assert got.keys() == want.keys()
        for name in want:
            if name.endswith("loss"):
                assert got[name] == pytest.approx(want[name], rel=BARS.get(family, 1e-3)), name
                differ |= got[name] != want[name]
    assert differ  # it was bfloat16


@pytest.mark.slow
def test_micro_batches_and_a_state_that_waits_in_the_hosts_memory(make):
    found = []
    for accumulate in (1, 2):
        c, batches = make("gpt", "bfloat16")
        with c.unlocked():
            c.model.dropout = 0.0
            c.train.accumulate, c.optim.offload = accumulate, accumulate > 1
        found.append([m["loss"] for m in train((c, batches), (2, 2, 2))])
    np.testing.assert_allclose(*found, rtol=2e-4)
