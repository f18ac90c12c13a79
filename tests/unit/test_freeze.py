"""Parameters that match optim.freeze are not differentiated; the others train as without it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigjax import optim, tasks
from bigjax.parallel import mesh as mesh_lib
from bigjax.train import needed
from bigjax.train import program as program_lib
from bigjax.train.state import make_init
from bigjax.train.step import make_step
from bigjax.trees import count, merge, named_leaves, partition
from tests import helpers

B, T = 2, 8
FREEZE = {"none": "", "stack": "stack", "all but the last": "embed|position|stack"}
BELOW, FIRST = "embed|position", "embed|position|layer_0/"


@functools.cache
def program(freeze: str, differentiate_all=False, accumulate: int = 1, scan: bool = True):
    """(state, step, batch) of a small model."""
    c = helpers.load_config("tests/tiny.py")
    with c.unlocked():
        c.model = dict(name="gpt", d_model=8, n_layers=2, n_heads=2, max_len=T, vocab_size=20)
        c.model.update(dropout=0.0, tie_embeddings=False, scan=scan)
        c.data.seq_len, c.optim.freeze = T, freeze
    task = tasks.build(helpers.filled(c))
    params = jax.eval_shape(task.init, jax.random.key(0))["params"]
    tx = optim.make(c.optim, 10, params)
    trained = True if differentiate_all else optim.trained(c.optim, params)
    schedule = lambda step: 1e-2
    step = make_step(task, tx, schedule, seed=0, accumulate=accumulate, trained=trained)
    rng = np.random.default_rng(0)
    batch = {name: jnp.ones(x.shape, x.dtype) for name, x in task.batch_shapes(B, 0).items()}
    batch.update({name: rng.integers(0, 20, (B, T)) for name in ("inputs", "targets")})
    return jax.jit(make_init(task, tx.init, 0, False))(), step, batch


def products(freeze: str, **options) -> int:
    """The number of matrix products of a step; those in a loop count once."""
    state, step, batch = program(freeze, **options)
    jaxpr = jax.make_jaxpr(step)(state, {}, batch).jaxpr
    return sum(e.primitive.name == "dot_general" for e in helpers.equations(jaxpr))


@pytest.mark.parametrize("accumulate", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_a_step_has_no_gradients_of_frozen_parameters(accumulate):
    none, stack, below = (products(x, accumulate=accumulate) for x in FREEZE.values())
    # Each kernel of a layer (query, key, value, out, up, down) has a product for its gradient.
    assert none - stack == 6
    # Nothing below is trained, so that no gradient passes through the layers. Each layer has eight
    # products in the forward pass, and as many for the gradients of their inputs.
    assert stack - below == 8 + 2


def test_freezing_some_layers_saves_their_gradients_only_without_scan():
    """The layers of a scanned stack share one array, whose gradient one loop computes."""
    assert products(BELOW) == products(FIRST)
    saved = products(BELOW, scan=False) - products(FIRST, scan=False)
    assert saved == 6 + 8 + 2  # gradients of the kernels of one layer, and of their inputs


@pytest.mark.parametrize(
    "name, remat, devices",
    [("stack", "none", 1), ("stack", "full", 2), ("all but the last", "full", 1)],
)
def test_mfu_counts_only_the_flops_that_frozen_parameters_leave(name, remat, devices):
    """Of each kernel a third is its gradient; a third is that of its inputs, if any is trained."""
    c = helpers.load_config("tests/tiny.py")
    with c.unlocked():
        c.model = dict(name="gpt", d_model=8, n_layers=2, n_heads=2, max_len=T, vocab_size=20)
        c.model.update(dropout=0.0, tie_embeddings=False, remat=remat)
        c.data.seq_len, c.train.batch_size = T, 8
    mesh = mesh_lib.make_mesh(dict(data=devices), jax.devices()[:devices])
    flops = []
    for freeze in ("", FREEZE[name]):
        with c.unlocked():
            c.optim.freeze = freeze
        filled = helpers.filled(c)
        flops.append(program_lib.make(filled, tasks.build(filled), mesh).task.flops_per_example)
    kernels, head, scores = 2 * 12 * 8 * 8, 8 * 20, 2 * 2 * 8 * T  # of a token; all scores
    forward = kernels + head + scores
    saved = kernels if name == "stack" else 2 * (kernels + scores)
    assert flops[1] / flops[0] == pytest.approx((3 * forward - saved) / (3 * forward), abs=0.03)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_the_flops_that_are_needed_do_not_depend_on_the_attention_kernel(dropout):
    """A Pallas kernel's own FLOPs are not in the program, in which its body appears once."""
    shares = []
    for kernel in ("auto", "splash", "einsum"):
        c = helpers.load_config("tests/tiny.py")
        with c.unlocked():
            c.model = dict(name="bert", d_model=16, n_layers=2, n_heads=2, attention=kernel)
            c.model.update(max_len=128, vocab_size=20, attention_dropout=dropout, preset="")
            c.task = dict(name="mlm_nsp")
            c.data.seq_len = 128
        c = helpers.filled(c)
        params = jax.eval_shape(tasks.build(c).init, jax.random.key(0))["params"]
        trained = jax.tree.map(lambda x: x.ndim < 2, params)
        mesh = mesh_lib.make_mesh({}, jax.devices()[:1])
        shares.append(needed.share(c, mesh, params, trained))
    assert shares[0] == shares[1] == shares[2] and 0.5 < shares[0] < 0.9


@pytest.mark.parametrize(
    "name", [pytest.param("stack", marks=pytest.mark.slow), "all but the last"]
)
def test_the_others_train_as_if_all_were_differentiated(name):
    runs = []
    for differentiate_all in (False, True):
        state, step, batch = program(FREEZE[name], differentiate_all)
        metrics = {}
        for _ in range(3):
            state, metrics = jax.jit(step)(state, {}, batch)
        runs.append((named_leaves(state), metrics))
    (got, metrics), (want, other) = runs
    assert got.keys() == want.keys() and metrics.keys() == other.keys()
    for key, x in want.items():
        np.testing.assert_allclose(got[key], x, rtol=1e-6, atol=1e-8, err_msg=key)
    for key, x in other.items():
        if key != "grad_norm":
            np.testing.assert_allclose(metrics[key], x, rtol=1e-6, err_msg=key)
    assert 0 < metrics["grad_norm"] < other["grad_norm"]  # only of trained parameters


def test_frozen_parameters_do_not_change_and_have_no_moments():
    state, step, batch = program(FREEZE["stack"])
    after, _ = jax.jit(step)(state, {}, batch)
    for name, x in named_leaves(state.params).items():
        same = np.array_equal(named_leaves(after.params)[name], x)
        assert same == name.startswith("stack/"), name
    moments = [k for k in named_leaves(state.opt_state) if "/mu/" in k]
    assert moments and not any("stack" in k for k in moments)


@pytest.mark.parametrize("scan", [True, False])
def test_trained_parameters_are_counted_by_layer(scan):
    params = program("", scan=scan)[0].params
    sizes = {name: x.size for name, x in named_leaves(params).items()}
    layers = sum(n for name, n in sizes.items() if name.startswith("stack"))
    c = helpers.load_config("tests/tiny.py").optim
    for freeze, n in (("", 0), ("stack", layers), ("layer_1/", layers / 2)):
        with c.unlocked():
            c.freeze = freeze
        assert optim.count_trained(c, params) == sum(sizes.values()) - n


@pytest.mark.parametrize("remat", ["none", "full"])
def test_batch_normalisation_that_is_frozen_keeps_its_statistics_and_uses_them(remat):
    c = helpers.load_config("configs/resnet/digits.py:tiny")
    with c.unlocked():
        c.model.remat, c.optim.freeze = remat, "^stem|^stage_1"
        c.task.labels = tuple("0123456789")
    task = tasks.build(helpers.filled(c))
    params = jax.eval_shape(task.init, jax.random.key(0))["params"]
    tx, trained = optim.make(c.optim, 10, params), optim.trained(c.optim, params)
    step = jax.jit(make_step(task, tx, lambda step: 1e-2, seed=0, trained=trained))
    state = jax.jit(make_init(task, tx.init, 0, False))()
    rng = np.random.default_rng(0)
    batch = {name: jnp.ones(x.shape, x.dtype) for name, x in task.batch_shapes(B, 0).items()}
    images = rng.integers(0, 128, (B, 8, 8, 1), np.uint8)
    batch["image"] = images
    after, metrics = step(state, {}, batch)
    moved = {
        name
        for name, x in named_leaves(after.extras).items()
        if not np.array_equal(x, named_leaves(state.extras)[name])
    }
    assert moved and all("/stage_2" in name for name in moved)
    # Frozen layers do not see the other images of a batch: with other statistics, other features.
    other = jax.tree_util.tree_map(lambda x: x + 1, state.extras["batch_stats"]["stem_norm"])
    extras = {"batch_stats": {**state.extras["batch_stats"], "stem_norm": other}}
    _, changed = step(state._replace(extras=extras), {}, batch)
    assert changed["loss"] != metrics["loss"]


def test_partition_and_merge():
    tree = {"a": {"b": np.ones(2), "c": np.zeros(3)}, "d": [np.ones(4), np.zeros(5)]}
    mask = {"a": {"b": True, "c": False}, "d": [False, True]}
    parts, rest = partition(tree, mask)
    assert (count(parts), count(rest)) == (7, 7)
    assert [*named_leaves(parts)] == ["a/b", "d/1"] and [*named_leaves(rest)] == ["a/c", "d/0"]
    for one, other in ((parts, rest), (rest, parts)):
        merged = merge(one, other)
        assert jax.tree.structure(merged) == jax.tree.structure(tree)
        assert all(x is y for x, y in zip(jax.tree.leaves(merged), jax.tree.leaves(tree)))
    assert count(partition(tree, True)[1]) == count(partition(tree, False)[0]) == 0


def test_flops_of_a_convolution():
    """2 for each output and each element of its filter: 3 x 3 x 4 channels."""
    run = lambda x, filters: jax.lax.conv(x, filters, (1, 1), "SAME")
    jaxpr = jax.make_jaxpr(run)(jnp.ones((2, 4, 8, 8)), jnp.ones((5, 4, 3, 3))).jaxpr
    assert needed._count(jaxpr) == 2 * (2 * 5 * 8 * 8) * (3 * 3 * 4)
