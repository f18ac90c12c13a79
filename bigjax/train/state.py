"""The state of training, and its shardings over a mesh."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bigjax.errors import RunError
from bigjax.parallel import sharding
from bigjax.trees import named_leaves


class State(NamedTuple):
    """step: int32, updates done. ema: moving averages of {'params': ...} and extras, or None.

    params, opt_state, extras and ema are float32 whatever the compute type: small updates of
    bfloat16 numbers would be rounded away.
    extras: other variables of the model, by collection ({'batch_stats': ...}).
    halted: bool, True after a step that was not finite: only `step` changes from then on, so that
    the loop, which learns of it one step late, still has the state before that step; if only the
    update was not finite, the state with the finite part of it.
    """

    step: jax.Array
    params: Any
    opt_state: Any
    extras: Any
    ema: Any
    halted: jax.Array


def make_init(task, init_optimizer: Callable, seed: int, ema: bool):
    """init() -> State at step 0, a pure function: jit it with out_shardings."""

    def init() -> State:
        variables = cast(task.init(jax.random.key(seed)), jnp.float32)
        params, extras = split(variables)
        return State(
            jnp.int32(0),
            params,
            init_optimizer(params),
            extras,
            variables if ema else None,
            jnp.bool_(False),
        )

    return init


def split(variables: dict) -> tuple[Any, dict]:
    """(parameters, other collections) of the variables of Task.init."""
    return variables["params"], {k: x for k, x in variables.items() if k != "params"}


def cast(tree, dtype):
    """A tree of arrays or ShapeDtypeStructs with its floating-point leaves in this type."""

    def leaf(x):
        if not jnp.issubdtype(x.dtype, jnp.floating) or x.dtype == dtype:
            return x
        return x.update(dtype=dtype) if isinstance(x, jax.ShapeDtypeStruct) else x.astype(dtype)

    return jax.tree_util.tree_map(leaf, tree)


def check_kept(before: State, after: State) -> None:
    """Raises RunError if a step changes the shape or type of a leaf: a run could not resume."""
    old, new = (
        {name: f"{x.dtype}{list(x.shape)}" for name, x in named_leaves(state).items()}
        for state in (before, after)
    )
    for name in [*old, *new]:
        if old.get(name) != new.get(name):
            raise RunError(
                f"The training step changes {name} of its state from {old.get(name, 'absent')} to "
                f"{new.get(name, 'absent')}, so a checkpoint of it could not be resumed. The task, "
                "its model and its optimizer must return every array with its shape and type."
            )


def shardings(mesh, task, shapes: State) -> State:
    """The sharding of every leaf of a state."""
    variables = sharding.of_params(mesh, {"params": shapes.params, **shapes.extras}, task.axes)
    params, extras = split(variables)
    return State(
        step=sharding.replicated(mesh),
        params=params,
        opt_state=sharding.of_opt_state(mesh, shapes.opt_state, shapes.params, params),
        extras=extras,
        ema=None if shapes.ema is None else variables,
        halted=sharding.replicated(mesh),
    )


def abstract(shapes, shardings_):
    """ShapeDtypeStructs with shardings, as targets to restore a checkpoint to."""
    return jax.tree_util.tree_map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings_
    )
