"""An interceptor adds parameters to Dense layers: LoRA (https://arxiv.org/abs/2106.09685) on
unchanged models."""

import dataclasses
import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigjax.errors import UserError
from bigjax.layers import params as params_lib
from bigjax.layers.basic import Dense, Output
from bigjax.layers.conv import Conv
from bigjax.layers.output import linear_losses
from bigjax.layers.recurrent import Recurrent
from bigjax.models import bert, gpt
from bigjax.parallel import mesh as mesh_lib
from bigjax.parallel import sharding
from bigjax.trees import named_leaves, path_name

RANK = 2
CHOSEN = "attention/(query|value|out)$|mlp/down$|^head$"
SIZES = dict(vocab_size=64, max_len=16, d_model=16, n_layers=2, n_heads=4)
TOKENS = np.random.default_rng(0).integers(0, 64, (8, 16))
MODELS = {
    "gpt": (lambda c: gpt.Model(c), gpt.Config(**SIZES, tie_embeddings=False)),
    "bert": (
        lambda c: bert.Model(c, ("tagger",), 3),
        bert.Config(**SIZES, dropout=0.0, attention_dropout=0.0),
    ),
}


def lora(call, arguments, keywords, context, chosen=CHOSEN):
    """Adds (x a) b to the output of selected Dense layers."""
    y, dense = call(*arguments, **keywords), context.module
    is_dense = isinstance(dense, Dense) and context.method_name == "__call__"
    if not is_dense or not re.search(chosen, "/".join(dense.path)):
        return y
    (x,) = arguments
    n = len(dense.in_axes)
    lead, inputs = x.shape[:-n], x.shape[-n:]
    normal = nn.initializers.normal(0.3)
    a = params_lib.param(dense, "a", normal, (*inputs, RANK), (*dense.in_axes, None))
    b = params_lib.param(dense, "b", normal, (RANK, *dense.features), (None, *dense.out_axes))
    low_rank, b = x.reshape(*lead, -1) @ a.reshape(-1, RANK), b.reshape(RANK, -1)
    if isinstance(dense, Output):  # not multiplied yet
        return y.plus(low_rank, b)
    return y + (low_rank @ b).reshape(y.shape)


def merged(tree: dict) -> dict:
    """The parameters with a b merged into the kernels."""
    if not isinstance(tree, dict):
        return tree
    if "a" in tree:
        kernel, a, b = tree["kernel"], tree["a"], tree["b"]
        layers = kernel.shape[: a.ndim + b.ndim - 2 - kernel.ndim]  # of a scanned stack
        product = jnp.einsum(
            "...ir,...ro->...io",
            a.reshape(*layers, -1, RANK),
            b.reshape(*layers, RANK, -1),
        )
        tree = {**tree, "kernel": kernel + product.reshape(kernel.shape)}
        tree = {k: v for k, v in tree.items() if k not in ("a", "b")}
    return {k: merged(v) for k, v in tree.items()}


@pytest.mark.parametrize(
    "scan, remat",
    [pytest.param(True, "none", marks=pytest.mark.slow), (True, "full"), (False, "dots")],
)
@pytest.mark.parametrize("name", MODELS)
def test_factors_are_added_to_selected_layers(name, scan, remat):
    make, c = MODELS[name]
    model = make(dataclasses.replace(c, scan=scan, remat=remat))

    def loss(params, tokens):
        out = model.apply({"params": params}, tokens)
        if out.heads:
            return jnp.square(out.heads["tagger"]).mean()
        in_parts = linear_losses(*out.linear, tokens, jnp.ones(tokens.shape))["total"]
        return in_parts / tokens.size

    with nn.intercept_methods(lora):
        boxed = jax.eval_shape(model.init, jax.random.key(0), TOKENS)
        axes = params_lib.logical_axes(boxed)["params"]
        init = lambda: params_lib.unbox(model.init(jax.random.key(0), TOKENS))["params"]
        shapes = jax.eval_shape(init)
        mesh = mesh_lib.make_mesh(dict(data=2, fsdp=2, tensor=2))
        with jax.set_mesh(mesh):
            shardings = sharding.of_params(mesh, shapes, axes)
            params = jax.jit(init, out_shardings=shardings)()
            on_eight, g = jax.jit(jax.value_and_grad(loss))(params, TOKENS)
    factors = {k: x for k, x in named_leaves(g).items() if k.split("/")[-1] in ("a", "b")}
    layers = 1 if scan else 2
    assert len(factors) == 2 * 4 * layers + 2 * (name == "gpt")  # its head
    assert all(float(jnp.abs(x).max()) > 0 for x in factors.values())
    params = jax.device_get(params)
    plain_loss = jax.jit(lambda params: loss(merged(params), TOKENS))
    plain = plain_loss(params)
    np.testing.assert_allclose(on_eight, plain, rtol=1e-5)
    without = jax.tree_util.tree_map_with_path(
        lambda path, x: np.zeros_like(x) if path_name(path).endswith("/b") else x, params
    )
    assert abs(float(plain_loss(without)) - float(plain)) > 1e-3 * float(plain)


@pytest.mark.parametrize("change", [lambda y: y * 2, lambda y: 2 * y, lambda y: y + 1])
def test_arithmetic_with_an_output_layer_is_refused(change):
    """It would be that of a tuple."""
    double = lambda call, arguments, keywords, context: change(call(*arguments, **keywords))
    with nn.intercept_methods(double), pytest.raises(TypeError, match=r"\.plus.*\.product\(\)"):
        Output((4,), ("embed",), ("vocab",)).init(jax.random.key(0), jnp.ones((1, 2)))


def test_a_text_shorter_than_a_convolution_is_refused():
    with pytest.raises(UserError, match="over 3 tokens.*text of only 2: pad it to at least 3"):
        Conv(5, 3).init(jax.random.key(0), jnp.ones((1, 2, 4)))


@pytest.mark.parametrize(
    "layer, n",
    [(Recurrent("lstm", 4), 1), (Recurrent("gru", 4, 2, bidirectional=True), 4), (Conv(5, 3), 1)],
)
def test_factors_are_added_to_inputs_of_recurrent_layers_and_to_convolutions(layer, n):
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 6, 3)), jnp.float32)

    def run(params):
        return jax.tree.leaves(layer.apply({"params": params}, x))[0]

    with nn.intercept_methods(functools.partial(lora, chosen="")):
        params = jax.jit(lambda: params_lib.unbox(layer.init(jax.random.key(0), x))["params"])()
        y = jax.jit(run)(params)
    assert sum(path.endswith("a") for path in named_leaves(params)) == n
    np.testing.assert_allclose(y, jax.jit(lambda p: run(p))(merged(params)), atol=1e-6)
    assert jnp.abs(y - jax.jit(lambda p: run(p))(without_factors(params))).max() > 1e-3


def without_factors(tree):
    if not isinstance(tree, dict):
        return tree
    return {k: without_factors(v) for k, v in tree.items() if k not in ("a", "b")}
