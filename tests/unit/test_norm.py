"""Normalisation by hand, and the epsilon of a model's config."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigjax.layers.basic import Norm
from bigjax.models import bert, gpt, t5
from tests import helpers


@pytest.mark.parametrize("kind", ["layernorm", "rmsnorm"])
def test_norms_by_hand_with_a_large_epsilon(kind):
    rng = np.random.default_rng(0)
    x, scale, bias = rng.normal(1.0, 0.1, (3, 8)), rng.normal(size=8), rng.normal(size=8)
    centred = x - x.mean(-1, keepdims=True) if kind == "layernorm" else x
    want = scale * centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 0.05)
    params = {"scale": jnp.float32(scale)}
    if kind == "layernorm":
        want, params = want + bias, params | {"bias": jnp.float32(bias)}
    got = Norm(kind, eps=0.05).apply({"params": params}, jnp.float32(x))
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_an_offset_norm_multiplies_by_one_more_than_its_scale():
    x = jnp.float32([[1, -2, 3]])
    scale = jnp.float32([0.5, 0, -1])
    norm = Norm("rmsnorm", offset=True)
    np.testing.assert_array_equal(norm.init(jax.random.key(0), x)["params"]["scale"].value, 0)
    want = Norm("rmsnorm").apply({"params": {"scale": 1 + scale}}, x)
    np.testing.assert_array_equal(norm.apply({"params": {"scale": scale}}, x), want)


SIZES = dict(vocab_size=11, max_len=4, d_model=8, n_layers=2, n_heads=2, norm_eps=0.25)


@pytest.mark.parametrize(
    "model, n",
    [
        (gpt.Model(gpt.Config(**SIZES)), 2 + 1),
        (gpt.Model(gpt.Config(**SIZES, norm="rmsnorm")), 2 + 1),
        (gpt.Model(gpt.Config(**SIZES, norm="rmsnorm", norm_place="both", qk_norm="head")), 6 + 1),
        (bert.Model(bert.Config(**SIZES), ("mlm",)), 1 + 2 + 1),
        (t5.Model(t5.Config(**SIZES)), 2 + 1 + 3 + 1),
        (t5.Model(t5.Config(**SIZES, norm="layernorm", post_norm=True)), 2 + 3),
    ],
    ids=["layernorm", "rmsnorm", "norms on both sides", "bert", "t5", "t5, norms last"],
)
def test_every_norm_of_a_model_has_the_epsilon_of_the_config(model, n):
    """A scanned layer is traced once."""
    tokens = [jnp.zeros((1, 4), int)] * (2 if isinstance(model, t5.Model) else 1)
    variables = jax.eval_shape(model.init, jax.random.key(0), *tokens)
    jaxpr = jax.make_jaxpr(lambda v: model.apply(v, *tokens))(variables)
    added = []
    for e in helpers.equations(jaxpr.jaxpr):
        if e.primitive.name == "add" and hasattr(e.invars[1], "val"):
            last = float(e.invars[1].val)
        elif e.primitive.name == "rsqrt":
            added.append(last)
    assert added == [0.25] * n
