"""The device under test."""

import glob

import jax
import pytest

from bigjax.layers.kernels.cudnn import PLATFORMS


@pytest.fixture
def device(request):
    """The device of the parameter `platform`: "gpu", or "cpu", which is not the first CPU device,
    with which it is compared. Without a GPU the test is skipped; with one that jax does not use it
    fails."""
    if request.getfixturevalue("platform") == "cpu":
        return jax.devices("cpu")[-1]
    if jax.default_backend() in PLATFORMS:
        return jax.devices()[0]
    cards = glob.glob("/dev/nvidia[0-9]*")
    if cards and request.config.option.markexpr == "gpu":
        pytest.fail(f"{cards[0]} is a GPU, but jax has only {jax.devices()}: docs/install.md")
    pytest.skip(f"no GPU: jax's devices are {jax.devices()[0].platform} (`pytest -m gpu -n 0`)")


@pytest.fixture
def reference():
    """The device that computes what is expected."""
    return jax.devices("cpu")[0]
