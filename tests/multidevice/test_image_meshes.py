"""Models of images give the numbers of one device on several, statistics of batches included, with
every kind of augmentation, and resume exactly."""

import functools

import jax
import numpy as np
import pytest

from tests import families
from tests.families import mesh_of, train

MESHES = [(2, 2, 2), (8, 1, 1), (1, 8, 1)]
QUICK = (("vit", (2, 2, 2)),)


@pytest.fixture(scope="module")
def single(corpus_file, cache_dir, tmp_path_factory):
    """(what makes a config and batches, family -> metrics of one device)."""
    make = families.Families(corpus_file, cache_dir, tmp_path_factory.mktemp("none"))
    one_device = lambda family: train(make(family, "float32"), mesh_of(jax.devices()))
    return make, functools.cache(one_device)


@pytest.mark.parametrize(
    "family, sizes",
    [
        pytest.param(f, m, marks=() if (f, m) in QUICK else pytest.mark.slow)
        for f in families.IMAGES
        for m in MESHES
    ],
    ids=str,
)
def test_several_devices_train_as_one(single, family, sizes, tmp_path):
    make, want = single
    mesh = mesh_of(jax.devices(), data=sizes[0], fsdp=sizes[1], tensor=sizes[2])
    history = train(make(family, "float32"), mesh, tmp_path)
    for metrics, expected in zip(history, want(family), strict=True):
        for name, value in expected.items():
            np.testing.assert_allclose(metrics[name], value, rtol=2e-4, err_msg=name)
