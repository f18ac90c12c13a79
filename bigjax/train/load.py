"""Loads a trained model from a run's work folder."""

from collections.abc import Sequence
import dataclasses
import json
from typing import Any, NamedTuple

from etils import epath
import jax

from bigjax import tasks
from bigjax.data.files import cache_dir
from bigjax.data.tokenizers.base import hash_of
from bigjax.errors import UserError
from bigjax.models import Decoder
from bigjax.parallel import hosts, sharding
from bigjax.parallel import mesh as mesh_lib
from bigjax.train import frozen, meta
from bigjax.train import workdir as workdir_lib
from bigjax.train.checkpoint import Checkpoints, Damaged
from bigjax.train.state import abstract, cast, split


class Loaded(NamedTuple):
    """A trained model.

    params, extras: the moving averages if the run keeps them; params have the dtype
    config.model.param_dtype. frozen: the frozen parts of its task. fingerprint: 16 hex digits that
    follow from the checksums in the checkpoint, and hence from the weights.
    """

    config: Any
    task: Any
    mesh: Any
    params: Any
    extras: Any
    frozen: dict[str, Any]
    step: int
    fingerprint: str

    @property
    def variables(self) -> dict[str, Any]:
        """{'params': ...} and the other collections, as the task's model and decoder need them."""
        return self.task.variables(self.params, self.extras, self.frozen)


def best_step(workdir: str) -> int | None:
    """The saved step with the best value of checkpoint.best, the earliest of equal ones.

    None if no saved step has a finite value. Raises UserError if the run has no checkpoint.best.
    """
    best = workdir_lib.read_config(workdir).checkpoint
    if not best.best:
        raise UserError(
            f"{workdir!r} has no best step: it was trained with checkpoint.best=''. Choose a step "
            "by its number, or train with checkpoint.best set to a metric, such as "
            "'eval/valid/loss'."
        )
    saved = workdir_lib.saved_steps(workdir)  # without Orbax: it would start jax before `load`
    return meta.best_step(epath.Path(workdir), sorted(saved), best.best, best.best_mode)


def load(workdir: str, config, step: int | None, batch_size: int | None) -> Loaded:
    """The model of a saved step (None: the latest) on the mesh of config.

    batch_size: the size of batches that will be sharded over the mesh; None if there are none.
    Raises UserError if the step does not exist, is damaged, or was trained with other frozen parts.
    """
    hosts.start(config, workdir)
    folder = workdir_lib.existing(workdir)
    mesh = mesh_lib.start(config.mesh, batch_size)  # before Orbax, which starts jax
    checkpoints = Checkpoints(folder, read_only=True)
    step = checkpoints.resolve_step(step)
    task = tasks.build(config)
    parts = frozen.load(task, mesh, cache_dir(config), lambda text: None, config.python_path)
    params, extras, saved = _restore(config, task, mesh, checkpoints, step)
    frozen.check_same(parts.fingerprints, saved.get("frozen", {}))
    weights = saved["checksums"] | ({"frozen": parts.fingerprints} if parts.arrays else {})
    fingerprint = hash_of(json.dumps(weights, sort_keys=True))
    return Loaded(config, task, mesh, params, extras, parts.arrays, step, fingerprint)


def decoder_of(loaded: Loaded, family: Any, overrides: Sequence[str] = ()) -> tuple[Decoder, Any]:
    """The decoder of a family, and its variables; on a CPU in float32 unless the dtype is
    overridden. A CPU multiplies only float32, and would convert weights of bfloat16 for every few
    tokens. overrides: of the command line."""
    c, variables = loaded.task.model_config, loaded.variables
    chosen = any(a.startswith("--config.model.dtype=") for a in overrides)
    if loaded.mesh.devices.flat[0].platform == "cpu" and hasattr(c, "dtype") and not chosen:
        c = dataclasses.replace(c, dtype="float32")
        variables = jax.jit(cast, static_argnums=1)(variables, "float32")
    return loaded.task.decoder(family.decoder(c)), variables


def _restore(config, task, mesh, checkpoints: Checkpoints, step: int) -> tuple[Any, Any, dict]:
    """(params, extras, meta) of a saved step: the moving averages if the run keeps them."""
    variables = jax.eval_shape(task.init, jax.random.key(0))
    variables = {
        **cast(variables, "float32"),
        "params": cast(variables["params"], config.model.get("param_dtype", "float32")),
    }
    variables = abstract(variables, sharding.of_params(mesh, variables, task.axes))
    params, extras = split(variables)
    if config.train.ema:
        wanted = {"ema": variables}
    else:
        wanted = {"params": params, **({"extras": extras} if extras else {})}
    try:
        items, saved = checkpoints.restore(step, wanted)
    except Damaged as e:
        raise UserError(
            f"Checkpoint {step} of {checkpoints.folder.parent} is damaged ({e}). Choose another "
            f"--step; available: {checkpoints.steps()}."
        ) from e
    if config.train.ema:
        return *split(items["ema"]), saved
    return items["params"], items.get("extras", {}), saved
