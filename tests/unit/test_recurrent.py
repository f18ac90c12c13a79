"""Recurrent layers: one token at a time, padding, states, causality, errors, devices."""

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np
import pytest

from bigjax.errors import UserError
from bigjax.layers.params import logical_axes, unbox
from bigjax.layers.recurrent import CELLS, Recurrent, empty_state
from bigjax.parallel import mesh as mesh_lib
from bigjax.parallel import sharding
from bigjax.trees import named_leaves

B, T, D, H = 3, 5, 4, 6


def random_like(tree):
    numbers = np.random.default_rng(2)
    return jax.tree_util.tree_map(
        lambda x: numbers.normal(0, 0.5, x.shape).astype(np.float32), tree
    )


def build(cell, n_layers=2, **fields):
    """(model, random parameters, x_BTD)."""
    model = Recurrent(cell, H, n_layers, **fields)
    x = jax.random.normal(jax.random.key(1), (B, T, D))
    return model, random_like(unbox(jax.eval_shape(model.init, jax.random.key(0), x))), x


def random_state(cell, **fields):
    return random_like(empty_state(cell, 2, B, H, **fields))


def assert_close(a, b, atol=1e-6):
    jax.tree_util.tree_map(lambda x, y: np.testing.assert_allclose(x, y, atol=atol), a, b)


@pytest.mark.parametrize("cell", CELLS)
def test_steps_equal_the_complete_sequence(cell):
    model, params, x = build(cell)
    state = random_state(cell)
    y, last = jax.jit(model.apply)(params, x, None, state)

    @jax.jit
    def step_by_step(params, x, state):
        def step(state, x_BD):
            y_BH, state = model.apply(params, x_BD, state, method="step")
            return state, y_BH

        state, y_TBH = jax.lax.scan(step, state, x.swapaxes(0, 1))
        return y_TBH.swapaxes(0, 1), state

    assert_close((y, last), step_by_step(params, x, state))


@pytest.mark.parametrize("cell", CELLS)
def test_the_state_continues_from_an_earlier_call(cell):
    model, params, x = build(cell)
    run = jax.jit(model.apply)
    y, last = run(params, x)
    assert_close((y, last), run(params, x, None, empty_state(cell, 2, B, H)))
    first, state = run(params, x[:, :2])
    rest, end = run(params, x[:, 2:], None, state)
    assert_close((y, last), (jnp.concatenate([first, rest], 1), end))


@pytest.mark.parametrize("cell", CELLS)
def test_padding_has_no_effect(cell):
    model, params, x = build(cell, bidirectional=True)
    state = random_state(cell, bidirectional=True)
    n = 3  # tokens of the first two rows; the last is all padding
    mask = jnp.arange(T) < jnp.array([n, n, 0])[:, None]
    run = jax.jit(model.apply)
    y, last = run(params, jnp.where(mask[..., None], x, 1e3), mask, state)
    alone, last_alone = run(params, x[:, :n], None, state)
    row = lambda tree, b: jax.tree_util.tree_map(lambda s: s[b], tree)
    for b in (0, 1):
        assert_close((y[b, :n], row(last, b)), (alone[b], row(last_alone, b)))
    assert_close(row(last, 2), row(state, 2), atol=0)
    np.testing.assert_array_equal(y[~mask], 0)


@pytest.mark.parametrize("cell", CELLS)
def test_a_repeated_state_is_that_of_repeated_rows(cell):
    model, params, x = build(cell)
    repeat = lambda tree: jax.tree_util.tree_map(lambda s: jnp.repeat(s, 4, axis=0), tree)
    run = jax.jit(model.apply)
    _, state = run(params, x)
    y, _ = run(params, x, None, state)
    repeated, _ = run(params, repeat(x), None, repeat(state))
    assert_close(repeated, repeat(y))


@pytest.mark.parametrize("bidirectional", [False, True])
def test_only_the_backward_half_sees_the_future(bidirectional):
    model, params, x = build("lstm", n_layers=1, bidirectional=bidirectional)
    half = jnp.arange((1 + bidirectional) * H) < H
    seen = jax.jit(jax.grad(lambda x, of: (model.apply(params, x)[0][:, 2] * of).sum()))
    sees = lambda grad: (jnp.abs(grad).max((0, 2)) > 0).tolist()
    assert sees(seen(x, half)) == [True, True, True, False, False]
    if bidirectional:
        assert sees(seen(x, ~half)) == [False, False, True, True, True]


@pytest.mark.parametrize("cell, bidirectional", [("lstm", True), ("gru", False)])
def test_the_parameters(cell, bidirectional):
    model = Recurrent(cell, H, 2, bidirectional)
    boxed = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((B, T, D)))["params"]
    shapes = {name: x.shape for name, x in named_leaves(unbox(boxed)).items()}
    gates, width = (4, 2 * H) if cell == "lstm" else (3, H)
    want = {}
    for direction in ("forward", "backward")[: 1 + bidirectional]:
        for i, d_input in enumerate((D, width)):
            want |= {
                f"{direction}_{i}/kernel": (d_input, gates * H),
                f"{direction}_{i}/recurrent_kernel": (H, gates * H),
                f"{direction}_{i}/bias": (gates * H,),
            }
            if cell == "gru":
                want[f"{direction}_{i}/candidate_bias"] = (H,)
    assert shapes == want


@pytest.mark.parametrize("cell", CELLS)
def test_initial_values(cell):
    init = jax.jit(Recurrent(cell, 64, init_std=0.3).init)
    params = unbox(init(jax.random.key(0), jnp.zeros((1, 1, 64))))
    for name, value in named_leaves(params).items():
        if name.endswith("bias"):
            np.testing.assert_array_equal(value, 0)
        else:
            assert abs(float(value.std()) - 0.3) < 0.02


def test_bfloat16():
    model, params, x = build("lstm", dtype="bfloat16")
    run = jax.jit(model.apply)
    y, state = run(params, x)
    exact, _ = jax.jit(build("lstm")[0].apply)(params, x)
    assert {a.dtype for a in jax.tree_util.tree_leaves((y, state))} == {jnp.dtype("bfloat16")}
    assert 1e-4 < float(jnp.abs(y - exact).max()) < 0.05
    float32 = empty_state("lstm", 2, B, H)  # is accepted too
    np.testing.assert_array_equal(y, run(params, x, None, float32)[0])


def test_a_sharded_batch_and_sharded_rows_of_kernels():
    model, params, _ = build("gru", n_layers=1)
    x = jax.random.normal(jax.random.key(1), (8, T, D))
    lengths = jnp.array([5, 1, 2, 3, 4, 5, 0, 2])
    mask = jnp.arange(T) < lengths[:, None]

    def loss(params, x, mask):
        y, _ = model.apply(params, x, mask)
        return jnp.square(y).sum()

    want = jax.jit(jax.grad(loss))(params, x, mask)
    mesh = mesh_lib.make_mesh(dict(data=2, fsdp=2, tensor=2))
    boxed = jax.eval_shape(model.init, jax.random.key(0), x)
    shardings = sharding.of_params(mesh, unbox(boxed), logical_axes(boxed))
    kernel = shardings["params"]["forward_0"]["recurrent_kernel"]
    assert kernel == NamedSharding(mesh, PartitionSpec("fsdp"))
    with jax.set_mesh(mesh):
        rows = sharding.of_batch(mesh)
        got = jax.jit(jax.grad(loss), in_shardings=(shardings, rows, rows))(
            jax.device_put(params, shardings), *jax.device_put((x, mask), rows)
        )
    assert_close(want, got, atol=1e-5)


@pytest.mark.parametrize(
    "fields, message",
    [
        (dict(cell="ltsm"), "Unknown recurrent cell 'ltsm'. Did you mean 'lstm'"),
        (dict(d_model=0), "d_model is 0"),
        (dict(n_layers=0), "n_layers is 0"),
    ],
)
def test_invalid_fields_are_refused(fields, message):
    with pytest.raises(UserError, match=message):
        Recurrent(**fields).init(jax.random.key(0), jnp.zeros((B, T, D)))


def test_an_unknown_cell_has_no_state():
    with pytest.raises(UserError, match="Allowed: gru, lstm, rnn"):
        empty_state("transformer", 1, B, H)


def test_invalid_calls_are_refused():
    model, params, x = build("lstm")
    with pytest.raises(UserError, match=r"mask has shape \(3, 4\), the input \(3, 5, 4\)"):
        model.apply(params, x, jnp.ones((B, T - 1), bool))
    for wrong in (
        empty_state("lstm", 1, B, H),
        empty_state("gru", 2, B, H),
        empty_state("lstm", 2, B + 1, H),
    ):
        with pytest.raises(UserError, match="Create it with empty_state"):
            model.apply(params, x, None, wrong)
        with pytest.raises(UserError, match="Create it with empty_state"):
            model.apply(params, x[:, 0], wrong, method="step")


def test_steps_of_both_directions_are_refused():
    model, params, x = build("gru", bidirectional=True)
    with pytest.raises(UserError, match="set bidirectional=False"):
        model.apply(params, x[:, 0], random_state("gru", bidirectional=True), method="step")
