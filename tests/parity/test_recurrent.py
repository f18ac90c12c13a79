"""bigjax.layers.recurrent against torch's LSTM, GRU and RNN.

make_recurrent.py froze the reference in float32. The error of a tensor is max |ours - theirs| /
max |theirs|. Largest seen: 1e-6 in outputs and states, 3e-6 in gradients.
"""

import functools
import itertools
import pathlib

import jax
import numpy as np
import pytest

from bigjax.layers.params import unbox
from bigjax.layers.recurrent import CELLS, Recurrent
from bigjax.trees import named_leaves

HERE = pathlib.Path(__file__).parent
BAR = 1e-5


@functools.cache
def stored() -> dict:
    with np.load(HERE / "recurrent.npz") as f:
        return dict(f)


def reference(case: str) -> dict:
    return {
        name.removeprefix(case + "/"): x
        for name, x in stored().items()
        if name.startswith(case + "/")
    }


def our_state(cell: str, theirs):
    """torch's [S, L, B, H] as a tuple over layers and directions."""
    return tuple(zip(*theirs)) if cell == "lstm" else tuple(theirs[0])


def their_state(cell: str, ours):
    """The inverse of our_state."""
    return np.stack([np.stack(part) for part in zip(*ours)] if cell == "lstm" else [np.stack(ours)])


def our_tree(flat, shapes):
    """A vector of the file as a tree; it holds the leaves in the order of their names."""
    leaves, structure = jax.tree_util.tree_flatten(shapes)
    *pieces, rest = np.split(flat, np.cumsum([s.size for s in leaves]))
    assert not rest.size
    return jax.tree_util.tree_unflatten(
        structure, [x.reshape(s.shape) for x, s in zip(pieces, leaves)]
    )


@functools.cache
def compiled(cell: str, layers: int, directions: int, scan: bool, masked: bool):
    """(run, shapes of the parameters). run(ref) -> y, new_state and gradients, by name."""
    ref = reference(f"{cell}-{layers}-{directions}-full")
    model = Recurrent(cell, ref["y"].shape[-1] // directions, layers, directions == 2, scan)
    shapes = jax.eval_shape(lambda: unbox(model.init(jax.random.key(0), ref["x"])["params"]))

    def loss(params, x, state, mask, ref):
        y, new = model.apply({"params": params}, x, mask if masked else None, state)
        new_weights = our_state(cell, ref["state_weights"])
        total = (y * ref["y_weights"]).sum() + sum(
            (a * b).sum() for a, b in zip(*map(jax.tree_util.tree_leaves, (new, new_weights)))
        )
        return total, (y, new)

    step = jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))

    def run(ref):
        mask = np.arange(ref["x"].shape[1]) < ref["lengths"][:, None]
        (grads, x, state), (y, new) = step(
            our_tree(ref["params"], shapes), ref["x"], our_state(cell, ref["state"]), mask, ref
        )
        return dict(
            y=y,
            new_state=their_state(cell, new),
            x_grad=x,
            state_grad=their_state(cell, state),
            grads=grads,
        )

    return run, shapes


def error(ours, theirs) -> float:
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape and np.isfinite(ours).all()
    return np.abs(ours - theirs).max() / np.abs(theirs).max()


def errors(ours: dict, ref: dict, shapes) -> dict:
    """The errors of every output, and of the gradient of every parameter."""
    grads = named_leaves(our_tree(ref["grads"], shapes))
    return {
        **{name: error(x, ref[name]) for name, x in ours.items() if name != "grads"},
        **{name: error(x, grads[name]) for name, x in named_leaves(ours["grads"]).items()},
    }


# Unrolled, only the loop over time differs: the most general case is enough.
@pytest.mark.parametrize(
    "layers, directions, length, loop",
    [
        *itertools.product((1, 2), (1, 2), ("full", "packed"), ("scanned",)),
        (2, 2, "packed", "unrolled"),
    ],
)
@pytest.mark.parametrize("cell", CELLS)
def test_outputs_states_and_gradients(cell, layers, directions, length, loop):
    ref = reference(f"{cell}-{layers}-{directions}-{length}")
    run, shapes = compiled(cell, layers, directions, loop == "scanned", length == "packed")
    relative = errors(run(ref), ref, shapes)
    assert max(relative.values()) < BAR, relative


def one_weight(ref):
    """One weight is changed by 1%."""
    params = ref["params"].copy()
    params[-1] *= 1.01
    return {**ref, "params": params}


def no_mask(ref):
    return {**ref, "lengths": np.full_like(ref["lengths"], ref["x"].shape[1])}


def swapped_layers_of_state(ref):
    return {**ref, "state": ref["state"][:, ::-1]}


@pytest.mark.parametrize("mistake", [one_weight, no_mask, swapped_layers_of_state])
@pytest.mark.parametrize("cell", CELLS)
def test_the_bar_notices(cell, mistake):
    ref = reference(f"{cell}-2-2-packed")
    run, shapes = compiled(cell, 2, 2, True, True)  # already compiled above
    relative = errors(run(mistake(ref)), ref, shapes)
    assert max(relative["y"], relative["new_state"]) > 3 * BAR
