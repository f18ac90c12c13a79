"""Which dimensions of parameters are sharded over which axes of the mesh."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigjax.errors import UserError
from bigjax.layers.params import logical_axes, unbox, weight
from bigjax.layers.stack import Stack
from bigjax.models import bert, gpt, t5
from bigjax.parallel import mesh as mesh_lib
from bigjax.parallel import sharding
from bigjax.trees import named_leaves

SIZES = dict(vocab_size=24, max_len=8, d_model=8, n_layers=2, n_heads=4)
F, X, _ = "fsdp", "tensor", None
LAYER = {
    "attention/query/kernel": (_, F, X),
    "attention/query/bias": (_, X),
    "attention/key/kernel": (_, F, X),
    "attention/value/kernel": (_, F, X),
    "attention/out/kernel": (_, X, _, F),
    "mlp/up/kernel": (_, F, X),
    "mlp/up/bias": (_, X),
    "mlp/down/kernel": (_, X, F),
    "norm_1/scale": (),
}
TABLES = {"embed/embedding": (X, F), "position/embedding": (_, F)}
ENCODER_DECODER = {
    "embed/embedding": (X, F),
    **{f"encoder/stack/layers/{k}": v for k, v in LAYER.items() if "bias" not in k},
    **{f"decoder/stack/layers/{k}": v for k, v in LAYER.items() if "bias" not in k},
    "decoder/stack/layers/cross_attention/key/kernel": (_, F, X),
    "decoder/stack/layers/cross_attention/out/kernel": (_, X, _, F),
    "encoder/relative/embedding": (_, X),
    "decoder/relative/embedding": (_, X),
    "head/kernel": (F, X),
}
CASES = {
    "gpt": (gpt.Model(gpt.Config(**SIZES, tie_embeddings=False)), LAYER | {"head/kernel": (F, X)}),
    # One key head is for all devices.
    "multi-query": (
        gpt.Model(gpt.Config(**SIZES, n_kv_heads=1)),
        LAYER | {"attention/key/kernel": (_, F), "attention/value/kernel": (_, F)},
    ),
    "bert": (bert.Model(bert.Config(**SIZES), ("mlm",)), LAYER | {"mlm/bias": (X,)}),
    "t5": (t5.Model(t5.Config(**SIZES, tie_embeddings=False)), ENCODER_DECODER),
}


@pytest.mark.parametrize("case", CASES)
def test_parameters_are_sharded_like_megatron_and_fsdp(case):
    """Tensor: outputs of the first of two kernels and inputs of the second. fsdp: all kernels."""
    model, want = CASES[case]
    tokens = [jnp.zeros((1, 1), int)] * (2 if case == "t5" else 1)
    boxed = jax.eval_shape(model.init, jax.random.key(0), *tokens)["params"]
    mesh = mesh_lib.make_mesh(dict(data=2, fsdp=2, sequence=1, tensor=2))
    shardings = named_leaves(sharding.of_params(mesh, unbox(boxed), logical_axes(boxed)))
    for path, spec in (want if case == "t5" else want | TABLES).items():
        path = path if path.split("/")[0] in boxed else f"stack/layers/{path}"
        assert tuple(shardings[path].spec) == spec, path


def test_an_axis_without_a_rule_is_refused_with_the_nearest_one():
    mesh = mesh_lib.make_mesh(dict(data=1), jax.devices()[:1])
    with pytest.raises(UserError) as e:
        sharding.spec(mesh, (4, 2), ("embed", "heds"), "parameter head/kernel")
    for words in ("parameter head/kernel", "axis 'heds'", "'heads'?", "sharding.Axis('heds', "):
        assert words in str(e.value)


def test_an_axis_may_be_sharded_over_several_mesh_axes():
    mesh = mesh_lib.make_mesh(dict(data=2, fsdp=2, tensor=2))
    axis = sharding.Axis("expert", ("fsdp", "tensor"))
    assert tuple(sharding.spec(mesh, (8, 3), (axis, None), "parameter up")) == (("fsdp", "tensor"),)
    with pytest.raises(UserError, match="which is not a mesh axis"):
        sharding.Axis("expert", ("fsdp", "experts"))


def test_an_array_with_two_axes_over_one_mesh_axis_is_refused():
    names = (sharding.Axis("expert", "fsdp"), "embed", "mlp")
    with pytest.raises(UserError) as e:
        sharding.spec(mesh_lib.make_mesh(dict(data=4, fsdp=2)), (4, 8, 8), names, "parameter up")
    for words in ("parameter up", "'expert' and 'embed'", "mesh axis fsdp=2", "None"):
        assert words in str(e.value)
    one = mesh_lib.make_mesh(dict(data=8))
    assert tuple(sharding.spec(one, (4, 8, 8), names, "parameter up")) == ()


@dataclasses.dataclass(frozen=True)
class Config:
    axis: sharding.Axis
    scan: bool = True


class Experts(nn.Module):
    """A layer of experts whose weights have an axis of its own."""

    config: Config

    @nn.compact
    def __call__(self, x_BD, i, shared, cache, rng):
        shape, axes = (4, 8, 8), (self.config.axis, "embed", None)
        w = weight(self, "kernel", nn.initializers.normal(1.0), shape, axes, "float32")
        y = jnp.einsum("bd,edf->ebf", x_BD, w)
        y = sharding.constrain(y, self.config.axis, "batch", None)
        return jnp.tanh(y.sum(0)), (cache, {})


def test_two_modules_of_a_process_map_one_name_to_different_mesh_axes():
    x = np.random.default_rng(0).standard_normal((4, 8)).astype(np.float32)
    mesh = mesh_lib.make_mesh(dict(data=2, fsdp=1, sequence=2, tensor=2))
    rules, outputs = ("tensor", "sequence", None), []
    models = [Stack((Experts,), Config(sharding.Axis("expert", rule)), 2) for rule in rules]
    traced = []

    @functools.partial(jax.jit, static_argnums=0)
    def compiled(model, variables, x):
        traced.append(model.config.axis.rule)
        return model.apply(variables, x, None)[0]

    with jax.set_mesh(mesh):
        for model, rule in zip(models, rules):
            boxed = jax.eval_shape(model.init, jax.random.key(0), x, None)
            shardings = sharding.of_params(mesh, unbox(boxed), logical_axes(boxed))
            (spec,) = [tuple(s.spec) for s in named_leaves(shardings).values()]
            assert spec == ((None, rule) if rule else ())
            init = jax.jit(lambda: unbox(model.init(jax.random.key(0), x, None)))
            variables = jax.device_put(init(), shardings)
            outputs.append(compiled(model, variables, x))
    assert traced == list(rules)  # not the program of the first module again
    for y in outputs[1:]:
        np.testing.assert_allclose(y, outputs[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "name, rule, words",
    [("expert", "experts", "'experts', which is not a mesh axis.*fsdp"), ("embed", None, "'fsdp'")],
)
def test_an_axis_with_an_unknown_mesh_axis_or_a_name_of_the_table_is_refused(name, rule, words):
    with pytest.raises(UserError, match=words):
        sharding.Axis(name, rule)
