"""bigjax.models.convnet against torch.nn, frozen by make_convnet.py: logits, loss, gradients and
running statistics in float32; bfloat16 within its precision.

Errors are measured as in test_gpt.py."""

import functools
import pathlib

from flax.traverse_util import unflatten_dict
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigjax import losses
from bigjax.models import convnet
from bigjax.trees import named_leaves
from tests.parity.test_gpt import GRADIENT_BAR, OUTPUT_BAR, error

HERE = pathlib.Path(__file__).parent
PIXELS = dict(mean=(0.5,), std=(0.5,), dropout=0.0)
ALEXNET = dict(
    image_size=63, filters=(6, 0, 8, 0), sizes=(11, 5), stride=4, padding=2, pool=3, hidden=(10,)
)
VGG = dict(image_size=9, filters=(6, 0, 8, 8, 0), hidden=(10, 10), norm="batchnorm")
CONFIGS = {"alexnet": {**ALEXNET, **PIXELS}, "vgg": {**VGG, **PIXELS}}
# The numbers of the layers of the Sequential, by our names.
LAYERS = {
    "alexnet": {"conv_1": 0, "conv_2": 3, "hidden_1": 7, "head": 9},
    "vgg": {
        "conv_1": 0,
        "norm_1": 1,
        "conv_2": 4,
        "norm_2": 5,
        "conv_3": 7,
        "norm_3": 8,
        "hidden_1": 12,
        "hidden_2": 14,
        "head": 16,
    },
}


@functools.cache
def frozen(name: str) -> dict[str, np.ndarray]:
    with np.load(HERE / "convnet.npz") as f:
        return {k.removeprefix(f"{name}/"): x for k, x in f.items() if k.startswith(f"{name}/")}


def ours(name: str, kind: str) -> dict[str, np.ndarray]:
    """{our name: array} of 'params' or 'grads'."""
    arrays, out = frozen(name), {}
    for layer, i in LAYERS[name].items():
        weight = arrays[f"{kind}/{i}.weight"]
        if layer.startswith("norm"):
            out[f"{layer}/scale"] = weight
        else:
            out[f"{layer}/kernel"] = weight.transpose(2, 3, 1, 0) if weight.ndim == 4 else weight.T
        out[f"{layer}/bias"] = arrays[f"{kind}/{i}.bias"]
    return out


def tree(arrays):
    return unflatten_dict({tuple(k.split("/")): jnp.asarray(x) for k, x in arrays.items()})


def computed(name: str, dtype: str):
    """(loss, logits, statistics, gradients) of a step of training."""
    arrays, c = frozen(name), convnet.Config(**CONFIGS[name], dtype=dtype)
    model = convnet.Model(c, 3)
    images = (jnp.asarray(arrays["images"].transpose(0, 2, 3, 1)) + 1) / 2 * 255
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    stats = {}
    if "batch_stats" in variables:
        named = named_leaves(variables["batch_stats"])
        stats = tree({k: np.full(x.shape, float(k.endswith("var"))) for k, x in named.items()})

    @jax.jit
    def run(params):
        def loss(params):
            variables = {"params": params, "batch_stats": stats}
            out, new = model.apply(variables, images, mutable=["batch_stats"])
            n = jnp.ones(len(images))
            total, weight = losses.cross_entropy(out.logits, arrays["labels"], n)
            return total / weight, (out.logits, new)

        return jax.value_and_grad(loss, has_aux=True)(params)

    (loss, (logits, new)), gradients = run(tree(ours(name, "params")))
    return loss, logits, named_leaves(new.get("batch_stats", {})), named_leaves(gradients)


@pytest.mark.parametrize("name", LAYERS)
def test_a_step_of_training(name):
    loss, logits, statistics, gradients = computed(name, "float32")
    arrays, wanted = frozen(name), ours(name, "grads")
    assert error(logits, arrays["logits"]) < OUTPUT_BAR
    assert float(loss) == pytest.approx(float(arrays["loss"]), rel=1e-5)
    assert gradients.keys() == wanted.keys()
    largest = max(np.abs(x).max() for x in wanted.values())
    for key, x in wanted.items():
        # Before batch normalisation a bias has no effect: its gradient is 0 but for rounding.
        scale = largest if name == "vgg" and key.startswith("conv") and "bias" in key else None
        assert error(gradients[key], x, scale) < GRADIENT_BAR, key
    for layer, i in LAYERS[name].items():
        if layer.startswith("norm"):
            for key, its in (("mean", "running_mean"), ("var", "running_var")):
                assert error(statistics[f"{layer}/{key}"], arrays[f"stats/{i}.{its}"]) < OUTPUT_BAR


@pytest.mark.parametrize("name", LAYERS)
def test_in_bfloat16(name):
    loss, logits, *_ = computed(name, "bfloat16")
    assert error(logits, frozen(name)["logits"]) < 0.05
    assert float(loss) == pytest.approx(float(frozen(name)["loss"]), rel=0.05)
