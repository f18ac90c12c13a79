"""An encoder on a mesh gives the numbers of one device: pre-training, packed fine-tuning."""

import jax
import numpy as np
import pytest

from bigjax import tasks
from bigjax.infer import predict
from bigjax.parallel import mesh as mesh_lib
from tests import helpers
from tests.conftest import write_table
from tests.helpers import TINY_BERT
from tests.multidevice.test_meshes import assert_same, sizes, train


@pytest.fixture(scope="module")
def make(corpus_file, cache_dir, tmp_path_factory):
    """variant -> (config, its data)."""
    table = write_table(tmp_path_factory.mktemp("table") / "train.tsv", 200)

    def load(variant):
        c = helpers.load_config(TINY_BERT + variant)
        with c.unlocked():
            c.data.cache_dir = cache_dir
            if variant:
                c.data.train = table
            else:
                c.data.sources.text.path = corpus_file
            # Dropout of every kind where micro-batches are not compared with the full batch
            c.model.dropout = c.model.attention_dropout = 0.1 if variant else 0.0
        tasks.resolve(c)
        return c, tasks.build(c).load_data(lambda text: None)

    return load


@pytest.fixture(scope="module")
def one_device(make):
    return {variant: train(*_arguments(make(variant), (1, 1, 1))) for variant in ("", ":labelled")}


def _arguments(config_and_data, mesh_sizes):
    """For `train`."""
    c, data = config_and_data
    return c, mesh_sizes, data


@pytest.mark.parametrize(
    "mesh_sizes, variant",
    [
        ((2, 2, 2), ""),
        pytest.param((2, 1, 4), ":labelled", marks=pytest.mark.slow),
        pytest.param((2, 1, 4), "", marks=pytest.mark.slow),
        pytest.param((2, 2, 2), ":labelled", marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_loss_and_parameters_after_ten_steps(make, one_device, mesh_sizes, variant):
    trained = train(*_arguments(make(variant), mesh_sizes))
    assert_same(trained, one_device[variant])
    kernel = trained[2].params["stack"]["layers"]["attention"]["query"]["kernel"]
    assert kernel.sharding.spec[-1] == "tensor" or kernel.sharding.spec[2] == "tensor"
    assert kernel.addressable_shards[0].data.size < kernel.size


@pytest.mark.slow
def test_accumulation_equals_the_large_batch(make, one_device):
    c, corpus = make("")
    with c.unlocked():
        c.train.accumulate = 2
    assert_same(train(c, (2, 2, 2), corpus), one_device[""])


def test_predictions_on_a_mesh(make, one_device):
    c, corpus = make(":labelled")
    task, data = tasks.build(c), corpus.split("valid", batch_size=8)
    outputs = []
    for mesh_sizes in ((1, 1, 1), (2, 1, 4)):
        n = int(np.prod(mesh_sizes))
        mesh = mesh_lib.make_mesh(sizes(*mesh_sizes), jax.devices()[:n])
        with jax.set_mesh(mesh):
            params = jax.tree.map(np.asarray, one_device[":labelled"][2].params)
            outputs.append(predict.make_outputs(task, mesh, True)(params, {}, {}, data))
    (expected, expected_sums), (predictions, sums) = outputs
    np.testing.assert_allclose(np.stack(predictions), np.stack(expected), atol=1e-5)
    np.testing.assert_allclose(sums["loss"], expected_sums["loss"], rtol=1e-5)
    assert expected_sums["loss"][1] == data.n_examples
