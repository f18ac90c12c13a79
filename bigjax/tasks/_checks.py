"""Checks that the modules of a config's task and model do what bigjax expects of them."""

from collections.abc import Callable, Mapping
import functools
import inspect
from typing import Any

import jax

from bigjax.errors import UserError
from bigjax.trees import path_name

# A step reports these itself; a task's metrics have other names.
STEP_METRICS = ("loss", "learning_rate", "grad_norm", "param_norm", "update_norm")
_LOSS = (
    "((loss_sum, weight_sum), (metrics, extras)): two scalar arrays, a dict {name: (sum, weight)} "
    "of scalar arrays, and the collections beside the parameters"
)
_CALLS = {
    "init": "rng",
    "loss": "params, extras, frozen, batch, rng, train",
    "load_data": "log, tokenizer, splits=splits",
    "batch_shapes": "batch_size, step",
    "outputs": "params, extras, frozen, batch",
    "augment": "batch, rng",
    "features": "params, extras, frozen, batch",
    "load_input": "spec, log, tokenizer",
}


def check_call(function: Callable, arguments: str, what: str) -> None:
    """Raises UserError if a function does not accept arguments such as 'a, b, rng=rng'."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # of a function without one, such as a builtin
        return
    names = [a.partition("=") for a in arguments.split(", ")]
    try:
        signature.bind(
            *[name for name, keyword, _ in names if not keyword],
            **{name: name for name, keyword, _ in names if keyword},
        )
    except TypeError as e:
        raise UserError(
            f"{what} has the parameters {signature}, but bigjax calls it with ({arguments}): {e}. "
            "Correct its parameters."
        ) from e


def check_calls(task: Any, what: str) -> None:
    """Raises UserError if a function of a Task has other parameters. what: names it in messages."""
    for name, arguments in _CALLS.items():
        if (function := getattr(task, name)) is not None:
            check_call(function, arguments, f"{what}{name}")


def checked_loss(loss: Callable, what: str) -> Callable:
    """Task.loss, with its result checked whenever it is traced."""

    @functools.wraps(loss)
    def checked(params, extras, frozen, batch, rng, train):
        result = loss(params, extras, frozen, batch, rng, train)
        if not _is_loss(result):
            raise UserError(f"{what} returned {described(result)}; it must return {_LOSS}.")
        for name in result[1][0]:
            if name in STEP_METRICS or any(c.isspace() for c in name):
                raise UserError(
                    f"{what} returns a metric named {name!r}. Give it a name without white space, "
                    f"and none of {', '.join(STEP_METRICS)}, which every step reports itself."
                )
        return result

    return checked


def _is_loss(x: Any) -> bool:
    pair = lambda x: isinstance(x, tuple | list) and len(x) == 2
    scalars = lambda x: pair(x) and all(_is_scalar(y) for y in x)
    if not (pair(x) and scalars(x[0]) and pair(x[1])):
        return False
    metrics, extras = x[1]
    named = isinstance(metrics, Mapping) and all(isinstance(name, str) for name in metrics)
    return named and all(scalars(m) for m in metrics.values()) and isinstance(extras, Mapping)


def _is_scalar(x: Any) -> bool:
    return isinstance(x, int | float) or getattr(x, "shape", None) == ()


def described(x: Any) -> str:
    """A result in a message: '(float32[8], {'nll': float32[]})'."""
    if isinstance(x, jax.Array) or hasattr(x, "dtype"):
        return f"{x.dtype}{list(x.shape)}"
    if isinstance(x, Mapping):
        return "{" + ", ".join(f"{k!r}: {described(v)}" for k, v in x.items()) + "}"
    if isinstance(x, tuple | list):
        return "(" + ", ".join(map(described, x)) + ")"
    return repr(x) if x is None or isinstance(x, int | float | str) else type(x).__name__


def check_variables(task: Any, shapes: Any) -> None:
    """Raises UserError if what Task.init returns and Task.axes do not belong together.

    shapes: ShapeDtypeStructs of what init returns.
    """
    if not isinstance(shapes, Mapping) or "params" not in shapes:
        returned = sorted(shapes) if isinstance(shapes, Mapping) else type(shapes).__name__
        raise UserError(
            f"Task.init returned {returned}; it must return the variables, {{'params': ...}} and "
            "the model's other collections."
        )
    is_leaf = lambda x: isinstance(x, tuple)
    arrays, axes = (
        {path_name(path): x for path, x in leaves}
        for leaves in (
            jax.tree_util.tree_leaves_with_path(shapes),
            jax.tree_util.tree_leaves_with_path(task.axes, is_leaf=is_leaf),
        )
    )
    for name in [*arrays, *axes]:
        if name not in axes or name not in arrays:
            where, other = ("axes", "init") if name not in axes else ("init", "axes")
            raise UserError(
                f"Task.{other} has {name}, but Task.{where} does not. Task.axes must be the tree "
                "that Task.init returns, with a tuple of axis names in place of each array: see "
                "bigjax.layers.params.logical_axes."
            )


def check_data(data: Any) -> None:
    """Raises UserError for a result of Task.load_data that is not data.batches.Data."""
    for name in ("split", "fingerprint", "tokenizer"):
        if not hasattr(data, name):
            raise UserError(
                f"Task.load_data returned {described(data)}, which has no {name!r}. It must return "
                "data with split, fingerprint and tokenizer, such as bigjax.data.arrays.ArrayData."
            )
