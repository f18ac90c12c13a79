"""AlexNet and VGG: exact parameter counts, FLOPs, and what they refuse."""

import jax
import jax.numpy as jnp
import pytest

from bigjax.errors import UserError
from bigjax.layers.params import unbox
from bigjax.models import convnet
from bigjax.train import needed
from bigjax.trees import count


def shapes(c, n_labels=1000):
    images = jax.ShapeDtypeStruct((1, c.image_size, c.image_size, c.channels), jnp.uint8)
    return unbox(jax.eval_shape(convnet.Model(c, n_labels).init, jax.random.key(0), images)), images


@pytest.mark.parametrize(
    "preset, n, statistics",
    [
        ("alexnet", 61_100_840, 0),
        ("vgg11", 132_863_336, 0),
        ("vgg13", 133_047_848, 0),
        ("vgg16", 138_357_544, 0),
        ("vgg19", 143_667_240, 0),
        ("vgg11-bn", 132_868_840, 5_504),
        ("vgg16-bn", 138_365_992, 8_448),
        ("vgg19-bn", 143_678_248, 11_008),
    ],
)
def test_parameters(preset, n, statistics):
    """Those that torchvision states, at 224 pixels with 1,000 classes."""
    variables, _ = shapes(convnet.Config(**convnet.PRESETS[preset]))
    assert count(variables["params"]) == n
    assert count(variables.get("batch_stats", {})) == statistics


@pytest.mark.parametrize("preset, size", [("alexnet", 224), ("alexnet", 99), ("vgg11", 64)])
def test_flops_are_those_of_its_products(preset, size):
    c = convnet.Config(**convnet.PRESETS[preset], image_size=size)
    variables, images = shapes(c, 0)
    jaxpr = jax.make_jaxpr(lambda v, x: convnet.Model(c, 0).apply(v, x).features)(variables, images)
    features, size, *_, side = next(iter(convnet.layers(c)))
    first = 2.0 * size**2 * 3 * features * side**2
    assert convnet.flops_per_image(c) == 3 * needed._count(jaxpr.jaxpr) - first


def test_dropout_is_for_training_and_depends_on_the_key():
    c = convnet.Config(image_size=8, filters=(4, 0), hidden=(32,))
    images = jax.random.uniform(jax.random.key(1), (2, 8, 8, 3)) * 255
    model = convnet.Model(c, 3)
    variables = unbox(model.init(jax.random.key(0), images))
    run = jax.jit(lambda rng: model.apply(variables, images, rng=rng).logits)
    plain = model.apply(variables, images).logits
    one, two = run(jax.random.key(2)), run(jax.random.key(3))
    assert not jnp.allclose(one, plain) and not jnp.allclose(one, two)


@pytest.mark.parametrize(
    "fields, words",
    [
        (dict(image_size=16), "model.image_size=16 is too small for the 13 layers"),
        (dict(filters=(0, 64)), "has to begin with a convolution"),
        (dict(filters=()), "has to begin with a convolution"),
        (dict(filters=(8, 8), sizes=(3,)), "model.sizes has 1 entries, but model.filters 2"),
        (dict(norm="layernorm"), "model.norm is 'layernorm'; allowed: none, batchnorm"),
        (dict(dropout=1.0), "model.dropout"),
    ],
)
def test_what_does_not_fit_is_refused(fields, words):
    with pytest.raises(UserError, match=words):
        convnet.Config(**fields)
