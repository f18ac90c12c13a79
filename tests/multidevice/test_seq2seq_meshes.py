"""Encoder-decoders on a mesh give the numbers of one device."""

import pytest

from bigjax import tasks
from tests import helpers
from tests.audio_files import make_table
from tests.families import write_pairs
from tests.helpers import TINY_SEQ2SEQ
from tests.multidevice.test_meshes import assert_same, train


@pytest.fixture(scope="module")
def make(corpus_file, cache_dir, tmp_path_factory):
    """variant -> (config, its data)."""
    folder = tmp_path_factory.mktemp("pairs")
    tables = {"": write_pairs(folder / "rows.tsv", 300), ":whisper": make_table(folder, 40)}

    def load(variant):
        c = helpers.load_config(TINY_SEQ2SEQ + variant)
        with c.unlocked():
            c.data.cache_dir = cache_dir
            if variant == ":spans":
                c.data.sources.text.path = corpus_file
            else:
                c.data.train = tables.get(variant, tables[""])
        return c, tasks.build(c).load_data(lambda text: None)

    return load


@pytest.fixture(scope="module")
def one_device(make):
    results = {}

    def trained(variant):
        if variant not in results:
            c, data = make(variant)
            results[variant] = train(c, (1, 1, 1), data)
        return results[variant]

    return trained


@pytest.mark.parametrize(
    "mesh_sizes, variant",
    [
        ((2, 2, 2), ""),
        pytest.param((1, 2, 2, 2), "", marks=pytest.mark.slow),  # fsdp, tensor, sequence
        pytest.param((8, 1, 1), "", marks=pytest.mark.slow),
        pytest.param((2, 1, 2, 2), "", marks=pytest.mark.slow),
        pytest.param((2, 2, 2), ":spans", marks=pytest.mark.slow),
        ((2, 2, 2), ":lstm"),
        pytest.param((1, 2, 2, 2), ":lstm", marks=pytest.mark.slow),
        pytest.param((2, 2, 2), ":whisper", marks=pytest.mark.slow),
        pytest.param((1, 2, 2, 2), ":whisper", marks=pytest.mark.slow),
        pytest.param((8, 1, 1), ":whisper", marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_loss_and_parameters_after_ten_steps(make, one_device, mesh_sizes, variant):
    """With dropout of every kind, and packed pairs; of recordings with CTC and masked times."""
    c, data = make(variant)
    trained = train(c, mesh_sizes, data)
    assert_same(trained, one_device(variant))
    assert trained[0][-1] < trained[0][0] - 0.5
    if mesh_sizes[2] > 1 and variant != ":lstm":
        sides = trained[2].params["encoder"], trained[2].params["decoder"]
        for layers in (side["stack"]["layers"]["attention"] for side in sides):
            assert "tensor" in layers["query"]["kernel"].sharding.spec
    if mesh_sizes[2] > 1 and variant in ("", ":spans"):
        table = trained[2].params["encoder"]["relative"]["embedding"]
        assert "tensor" in table.sharding.spec
