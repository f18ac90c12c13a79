"""Every family computes in bfloat16 on one device and on several, follows the losses of float32 on
one device, and resumes exactly."""

import jax
import numpy as np
import pytest

from tests import families
from tests.families import mesh_of, train

TEXTS = ("gpt", "bert", "labelled", "t5", "lstm", "seqgan", "headline", "headline rounds")
FAMILIES = (*TEXTS, *families.RECORDINGS, *families.IMAGES)
# The allowed relative difference of a metric from float32, 1e-3 by default. The language models
# differ by 3e-4. The generators draw some different tokens, as bfloat16 has 8 bits of precision.
TOLERANCES = dict.fromkeys(families.ADVERSARIAL, 0.05)


@pytest.fixture(scope="module")
def make(corpus_file, cache_dir, tmp_path_factory):
    return families.Families(corpus_file, cache_dir, tmp_path_factory.mktemp("tables"))


@pytest.fixture(scope="module")
def single(make):
    """family -> metrics of float32 on one device."""
    results = {}

    def trained(family):
        if family not in results:
            results[family] = train(make(family, "float32"), mesh_of(jax.devices()))
        return results[family]

    return trained


QUICK = ("gpt", (2, 2, 2))  # tested by default
ALL = [(1, 1, 1), (2, 1, 1), (1, 2, 1), (1, 1, 2), (8, 1, 1), (1, 8, 1), (2, 2, 2)]


def mesh(data: int, fsdp: int, tensor: int):
    return mesh_of(jax.devices(), data=data, fsdp=fsdp, tensor=tensor)


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
    history = train(make(family, "bfloat16"), mesh(*sizes), tmp_path)
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
        losses.append([m["loss"] for m in train((c, batches), mesh(2, 2, 2))])
    np.testing.assert_allclose(*losses, rtol=2e-4)
