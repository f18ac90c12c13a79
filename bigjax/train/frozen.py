"""Frozen parts of a task (tasks.Frozen): loaded and sharded over the mesh once, never trained."""

from collections.abc import Callable
import hashlib
from typing import Any, NamedTuple

import jax

from bigjax.errors import UserError
from bigjax.parallel import sharding
from bigjax.tasks import Frozen, Task
from bigjax.train import init_from, source_checks
from bigjax.train.state import abstract, split
from bigjax.train.stored import checksums


class Parts(NamedTuple):
    """arrays: {name: tree of arrays on the mesh}. fingerprints: {name: hash of its values}."""

    arrays: dict[str, Any]
    fingerprints: dict[str, str]


def shapes(task: Task, mesh) -> dict[str, Any]:
    """{name: tree of ShapeDtypeStructs with shardings}, without reading anything."""
    return {name: _shapes(part, mesh) for name, part in task.frozen.items()}


def load(
    task: Task,
    mesh,
    cache_dir: str,
    log: Callable[[str], None],
    python_path: str = "",
    tokenizer=None,
) -> Parts:
    """The frozen parts of a task.

    cache_dir: of config.data. python_path: of the config, for a part's own family. tokenizer: of
    the run, None: not compared. Raises UserError if a source lacks a parameter or its shape
    differs, and if a part 'reference', which reads the same tokens, has another tokenizer.
    """
    parts = {}
    for name, part in task.frozen.items():
        target = stored = _shapes(part, mesh)
        if part.as_read:
            target = _shapes(part._replace(init=part.as_read[0], axes=part.as_read[1]), mesh)
        if part.source:
            what = f"the frozen part {name!r}"
            source = init_from.open_source(
                part.source, cache_dir, part.model, python_path, f"The source of {what}, "
            )
            if name == "reference":
                axes = part.axes.get("params", part.axes)
                source_checks.check_tokenizer(
                    source, axes, "", tokenizer, log, python_path, key="the reference"
                )
            parts[name] = _load(target, source, what)
            if part.as_read:
                on = jax.tree_util.tree_map(lambda x: x.sharding, stored)
                parts[name] = jax.jit(part.as_read[2], out_shardings=on)(parts[name])
            log(f"Loaded the frozen part {name!r} from {source.where}.")
        else:
            shardings = jax.tree_util.tree_map(lambda x: x.sharding, stored)
            parts[name] = jax.jit(part.init, out_shardings=shardings)(jax.random.key(0))
    return Parts(parts, fingerprints(parts))


def _load(target, source: init_from.Source, what: str):
    if not (isinstance(target, dict) and "params" in target):
        return init_from.load_all(target, source, what)
    params, extras = split(target)
    loaded = init_from.load_all({**params, **extras}, source, what)
    return {"params": {k: loaded[k] for k in params}, **{k: loaded[k] for k in extras}}


def _shapes(part: Frozen, mesh):
    key = jax.eval_shape(jax.random.key, 0)  # no array: the devices of a plan compute nothing
    shapes = jax.eval_shape(part.init, key)
    return abstract(shapes, sharding.of_params(mesh, shapes, part.axes))


def fingerprints(parts: dict[str, Any]) -> dict[str, str]:
    """{name: hash of its values}."""
    return {
        name: hashlib.sha256(repr(sorted(checksums(tree).items())).encode()).hexdigest()[:16]
        for name, tree in parts.items()
    }


def check_same(now: dict[str, str], saved: dict[str, str]) -> None:
    """Raises UserError if a run was saved with frozen parameters of other fingerprints."""
    for name, fingerprint in now.items():
        if saved.get(name) != fingerprint:
            raise UserError(
                f"The frozen part {name!r} of this task is not the one that this run was trained "
                "with: its source was trained further, or replaced. Restore it, or train "
                "again in another --workdir."
            )
