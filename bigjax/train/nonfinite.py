"""Reports a step whose loss or gradient was not finite."""

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
    """Writes the norms per layer of a step to the work folder, and raises NonFinite.

    run: a train.run.Run. metrics: names of the non-finite ones. state: before the step. batch: of
    the step.
    """
    task, config = run.program.task, run.config
    rng = jax.random.fold_in(jax.random.key(config.seed), step - 1)

    def norms(params, extras, frozen, batch):
        trees = {"params": params}
        if gradients := run.program.gradients:
            trees["gradients"] = gradients(params, extras, frozen, batch, rng)
        return {
            kind: {k: _layer_norms(k, x) for k, x in named_leaves(tree).items()}
            for kind, tree in trees.items()
        }

    run.checkpoints.wait()  # so that a save in progress is listed below
    run.lease.check()
    parts = run.frozen.arrays
    layer_norms = jax.device_get(jax.jit(norms)(state.params, state.extras, parts, batch))
    layer_norms = jax.tree_util.tree_map(lambda x: np.asarray(x).tolist(), layer_norms)
    path = run.folder / f"nonfinite-{step}.json"
    examples = run.batches.examples_at(step - 1)
    if jax.process_index() == 0:
        content = {"step": step, "examples": examples, "norms": layer_norms}
        path.write_text(json_text.dumps(content, indent=1, spell=True))
    saved = run.checkpoints.steps()
    raise NonFinite(
        f"Not finite: {', '.join(metrics)} of step {step} (batch {step - 1}, examples "
        f"{_brief(examples)}). Norms per layer are in {path}. "
        f"{f'The checkpoints {saved} are intact.' if saved else 'No checkpoint was saved yet.'}"
        f"{_first_nan(run, step, state, batch)} Lower {task.rate_key(metrics[0], step - 1)}, clip "
        "gradients (optim.clip_norm), or check those examples."
    )


def _first_nan(run, step: int, state: State, batch) -> str:
    """A sentence naming the operation that produced the NaN, with train.debug_nans; else ''."""
    if not run.config.train.debug_nans:
        return ""
    before = state._replace(step=jnp.int32(step - 1), halted=jnp.bool_(False))
    operation = debug.first_nan(run.program.step.__wrapped__, before, run.frozen.arrays, batch)
    return (
        f" The first NaN: {operation}."
        if operation
        else " No operation gave NaN when the step was repeated, so the cause is an overflow."
    )


def _layer_norms(name: str, x: jax.Array) -> jax.Array:
    """The norm of a parameter; of each layer for a parameter of a scanned stack."""
    axes = tuple(range(1, x.ndim)) if "layers" in name.split("/") else None
    return jnp.sqrt(jnp.square(x.astype(jnp.float32)).sum(axis=axes))


def _brief(items: list, n: int = 8) -> str:
    return ", ".join(map(str, items[:n])) + (", ..." if len(items) > n else "")
