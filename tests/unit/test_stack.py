"""Stacks with alternating kinds of layers, sums of layers, and variables of any collection."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigjax.errors import UserError
from bigjax.layers import params as params_lib
from bigjax.layers.basic import Dense
from bigjax.layers.stack import Stack
from bigjax.trees import layer_locations, named_leaves

D = 6


@dataclasses.dataclass(frozen=True)
class Config:
    scan: bool = True
    remat: str = "none"


class Narrow(nn.Module):
    """Counts its calls in its own collection, and returns the size of its output as a sum."""

    config: Config

    @nn.compact
    def __call__(self, x, i, shared, cache, rng):
        y = Dense((D,), ("embed",), ("norm",), name="a")(jnp.tanh(x)) * shared
        seen = self.variable("counts", "seen", jnp.zeros, ())
        if self.is_mutable_collection("counts"):
            seen.value += i + 1
        return x + y, (cache, {"size": jnp.square(y).mean()})


class Wide(nn.Module):
    config: Config

    @nn.compact
    def __call__(self, x, i, shared, cache, rng):
        h = Dense((2 * D,), ("embed",), ("mlp",), name="up")(x)
        y = Dense((D,), ("mlp",), ("embed",), name="down")(jnp.tanh(h))
        return x + y, (cache, {"size": jnp.square(y).mean(), "wide": jnp.float32(1)})


class Model(nn.Module):
    config: Config
    blocks: tuple = (Narrow, Wide)
    n: int = 4

    @nn.compact
    def __call__(self, x):
        c = self.config
        x, _, sums = Stack(self.blocks, c, self.n, c.scan, c.remat, name="stack")(x, 2.0)
        return x, sums


X = np.random.default_rng(0).standard_normal((3, D)).astype(np.float32)


def variables(**options):
    """Initialised in the scanned form."""
    return params_lib.unbox(Model(Config(), **options).init(jax.random.key(0), X))


@pytest.mark.parametrize(
    "blocks, n",
    [
        ((Narrow, Wide), 4),
        ((Narrow,), 3),
        ((Wide, Narrow, Wide), 6),
        ((Narrow, Wide, Narrow), 5),  # one period, and two layers after it
    ],
)
@pytest.mark.parametrize("remat", [pytest.param("none", marks=pytest.mark.slow), "full"])
def test_scanned_and_unrolled_give_the_same(blocks, n, remat):
    scanned = variables(blocks=blocks, n=n)

    def run(c, tree):
        def loss(params):
            state = {**tree, "params": params}
            (x, sums), new = Model(c, blocks, n).apply(state, X, mutable=["counts"])
            return (x**2).sum() + sums["size"], (x, sums, new)

        (_, out), g = jax.value_and_grad(loss, has_aux=True)(tree["params"])
        return out, g

    (x, sums, new), g = jax.jit(run, static_argnums=0)(Config(remat=remat), scanned)
    unrolled = params_lib.unrolled(scanned)
    got = jax.jit(run, static_argnums=0)(Config(scan=False, remat=remat), unrolled)
    want = ((x, sums, params_lib.unrolled(new)), params_lib.unrolled(g))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6), got, want)
    assert sums["size"] > 0
    if Wide in blocks:
        assert float(sums["wide"]) == [blocks[i % len(blocks)] for i in range(n)].count(Wide)
    counts = named_leaves(got[0][2])
    assert {k: float(v) for k, v in counts.items()} == {
        f"counts/stack/layer_{i}/seen": 2 * i + 2
        for i in range(n)
        if blocks[i % len(blocks)] is Narrow
    }


def test_paths_of_alternating_layers():
    scanned = variables()
    unrolled = named_leaves(params_lib.unrolled(scanned))
    leaves = named_leaves(scanned)
    locations = layer_locations(leaves)
    assert locations.keys() == unrolled.keys()
    for name, (leaf, i) in locations.items():
        np.testing.assert_array_equal(unrolled[name], leaves[leaf][i])
    stacked = params_lib.stack_layers(params_lib.unrolled(scanned)["params"]["stack"], kinds=2)
    jax.tree.map(np.testing.assert_array_equal, stacked, scanned["params"]["stack"])


def test_stacked_variables_have_the_layer_axis_first():
    shapes = jax.eval_shape(Model(Config()).init, jax.random.key(0), X)
    axes = params_lib.logical_axes(shapes)
    layers = axes["params"]["stack"]["layers"]
    assert layers["block_0_of_2"]["a"]["kernel"] == ("layers", "embed", "norm")
    assert layers["block_1_of_2"]["down"]["kernel"] == ("layers", "mlp", "embed")


def test_layers_after_the_last_period_keep_their_unrolled_names():
    stack = variables(n=5)["params"]["stack"]
    assert stack.keys() == {"layers", "layer_4"} and stack["layer_4"].keys() == {"a"}
    assert stack["layers"]["block_1_of_2"]["up"]["kernel"].shape == (2, D, 2 * D)
    unrolled = params_lib.unrolled(stack)
    assert unrolled.keys() == {f"layer_{i}" for i in range(5)}
    again = params_lib.stack_layers(unrolled, kinds=2)
    jax.tree.map(np.testing.assert_array_equal, again, stack)
    few = variables(blocks=(Narrow, Wide, Wide), n=2)["params"]["stack"]
    assert few.keys() == {"layer_0", "layer_1"} == params_lib.stack_layers(few, kinds=3).keys()


@pytest.mark.parametrize("scan, n, words", [(True, 4, "scan=True"), (False, 3, "cache of 3")])
def test_a_cache_that_would_be_dropped_is_refused(scan, n, words):
    stack = Stack((Narrow, Wide), Config(), 4, scan)
    with pytest.raises(UserError, match=words):
        jax.eval_shape(lambda: stack.init(jax.random.key(0), X, 2.0, [None] * n))


@pytest.mark.parametrize(
    "blocks, n, remat, loop",
    [
        ((Narrow,), 3, "none", False),
        ((Narrow, Wide), 4, "none", False),
        ((Narrow,), 3, "full", True),
        ((Narrow,), 13, "none", True),
    ],
)
def test_a_cpu_has_a_loop_only_over_many_layers_or_to_save_memory(blocks, n, remat, loop):
    model, tree = Model(Config(remat=remat), blocks, n), variables(blocks=blocks, n=n)
    gradient = jax.grad(lambda x: model.apply(tree, x)[0].sum())
    assert ("while" in jax.jit(gradient).lower(X).as_text()) == loop
