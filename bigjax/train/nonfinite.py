"""What to say of a step whose loss or gradient was not finite."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from bigjax import json_text
from bigjax.errors import RunError
from bigjax.train import debug
from bigjax.train.state import State
from bigjax.trees import named_leaves


class NonFinite(RunError):
    """The loss is NaN or infinite."""


def explain(run, step: int, metrics: list[str], state: State, batch: Mapping) -> None:
    """Writes the norms by layer of a step to the work folder, and raises NonFinite.

    run: a train.run.Run. metrics: those that were not finite. state: before the step; batch: its.
    """
    task, config = run.task, run.config
    rng = jax.random.fold_in(jax.random.key(config.seed), step - 1)

    def norms(params, extras, frozen, batch):
        def loss(p):
            (total, weight), _ = task.loss(p, extras, frozen, batch, rng, True)
            return total / weight

        trees = {"params": params}
        if not task.make_step:  # which may have more than one gradient
            trees["gradients"] = jax.grad(loss)(params)
        return {
            kind: {k: _layer_norms(k, x) for k, x in named_leaves(tree).items()}
            for kind, tree in trees.items()
        }

    run.checkpoints.wait()  # of one that is being saved, which is then listed below
    run.lease.check()
    of_layers = jax.jit(norms)(state.params, state.extras, run.frozen, batch)
    of_layers = jax.tree_util.tree_map(lambda x: np.asarray(x).tolist(), jax.device_get(of_layers))
    path = run.folder / f"nonfinite-{step}.json"
    examples = run.batches.examples_at(step - 1)
    if jax.process_index() == 0:
        content = {"step": step, "examples": examples, "norms": of_layers}
        path.write_text(json_text.dumps(content, indent=1, spell=True))
    saved = run.checkpoints.steps()
    raise NonFinite(
        f"{', '.join(metrics)} of step {step} (batch {step - 1}, examples "
        f"{_brief(examples)}) is not finite. Norms by layer are in {path}. "
        f"{f'The checkpoints {saved} are intact.' if saved else 'No checkpoint was saved yet.'}"
        f"{_first_nan(run, step, state, batch)} Lower {task.rate_key(metrics[0], step - 1)}, clip "
        "gradients, or look at those examples."
    )


def _first_nan(run, step: int, state: State, batch) -> str:
    """A sentence about the operation that made the NaN, if train.debug_nans asks for it."""
    if not run.config.train.debug_nans:
        return ""
    before = state._replace(step=jnp.int32(step - 1), halted=jnp.bool_(False))
    operation = debug.first_nan(run.program.step.__wrapped__, before, run.frozen, batch)
    return (
        f" The first NaN: {operation}."
        if operation
        else " No operation gave NaN when that step was run again: it is an overflow."
    )


def _layer_norms(name: str, x: jax.Array) -> jax.Array:
    """The norm of a parameter; of each layer where a scanned stack holds them together."""
    axes = tuple(range(1, x.ndim)) if "layers" in name.split("/") else None
    return jnp.sqrt(jnp.square(x.astype(jnp.float32)).sum(axis=axes))


def _brief(items: list, n: int = 8) -> str:
    return ", ".join(map(str, items[:n])) + (", ..." if len(items) > n else "")
