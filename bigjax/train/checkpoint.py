"""Checkpoints: WORKDIR/checkpoints/STEP/{params,opt_state,extras,ema,meta}, by Orbax.

Each item can be restored by itself, onto any mesh. `meta` holds a checksum of every array, so
that a damaged checkpoint is detected and the one before it is used.
"""

from collections.abc import Callable
import contextlib
import logging
import re
import sys
import threading
from typing import Any
import warnings

from etils import epath
import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from bigjax import cloud, paths, process
from bigjax.errors import RunError, TransientError, UserError
from bigjax.parallel import hosts
from bigjax.private import orbax
from bigjax.train import meta as meta_lib
from bigjax.train import workdir as workdir_lib
from bigjax.train.state import State
from bigjax.train.stored import (
    Damaged,
    Missing,
    as_stored,
    cast,
    check_form,
    checksums,
    damage_shown_by,
)
from bigjax.trees import named_leaves

orbax.split_large_arrays(2**20)

ARRAY_ITEMS = ("params", "opt_state", "extras", "ema")
# A folder with this suffix is being deleted; the next start removes what is left of it.
_DELETED = ".orbax-checkpoint-tmp-deleted"

# The remedy where hosts do not see the same files.
LATE = (
    "Storage may show one host's files to the others with a delay: run the same command again. If "
    "the error persists, delete the latest checkpoint, or repair the folder so that all hosts see "
    "all of its files."
)


class SaveError(RunError):
    """A checkpoint could not be written; the older ones are intact."""


# Processes exchange read errors as an index into this tuple: the first class that matches. The
# lowest index over all processes wins, since the last classes make a checkpoint be moved aside.
_KINDS = (TransientError, RunError, UserError, Missing, Damaged)


class _Manager(ocp.CheckpointManager):
    def reached_preemption(self, step: int) -> bool:
        """False. Orbax asks with its own step numbers, in saves and in a thread after them, which
        would delay the step at which all hosts stop; hooks.StopOnSignal determines that step."""
        return False


class Checkpoints:
    """The checkpoints of one work folder."""

    def __init__(
        self,
        workdir,
        *,
        keep: int = 1,
        best: str = "",
        best_mode: str = "min",
        read_only: bool = False,
        check_held: Callable[[], None] = lambda: None,
        log: Callable[[str], None] = print,
    ):
        """keep: how many of the latest steps to keep, besides the best one by the metric `best`.

        check_held: raises if this process may no longer write here; it is called before anything
        is written or deleted. log: prints failures that do not end a run.
        """
        paths.check_run_folder(str(workdir), "the work folder")
        paths.read_any_folder()
        workdir = epath.Path(workdir)
        # Orbax needs an absolute path; `resolve` would treat a gs:// path as a local one.
        self.folder = (workdir if "://" in str(workdir) else workdir.resolve()) / "checkpoints"
        self._keep, self._best, self._best_mode = keep, best, best_mode
        self._read_only, self._check_held, self._log = read_only, check_held, log
        self._pruning, self._not_pruned = None, None
        _silence_abandoned_writes()
        one_file = read_only or cloud.check_writable(str(workdir))
        handlers = {name: ocp.StandardCheckpointHandler(use_ocdbt=one_file) for name in ARRAY_ITEMS}
        self._manager = _Manager(
            self.folder,
            item_handlers={**handlers, "meta": ocp.JsonCheckpointHandler()},
            options=ocp.CheckpointManagerOptions(  # keeps all checkpoints; `_prune` deletes
                cleanup_tmp_directories=not read_only,
                read_only=read_only,
                create=not read_only,
            ),
        )
        # Each process reads independently: if one failed, the manager would wait for it forever.
        me = jax.process_index()
        this_process = ocp.options.MultiprocessingOptions(primary_host=me, active_processes={me})
        self._reader = ocp.Checkpointer(
            ocp.CompositeCheckpointHandler(
                meta=ocp.JsonCheckpointHandler(),
                **{
                    name: ocp.StandardCheckpointHandler(multiprocessing_options=this_process)
                    for name in ARRAY_ITEMS
                },
            ),
            multiprocessing_options=this_process,
        )

    def steps(self) -> list[int]:
        """Saved steps, oldest first."""
        return sorted(workdir_lib.saved_steps(str(self.folder.parent)))

    def _agreed_steps(self) -> list[int]:
        """`steps`. Raises TransientError on all processes if they list different steps."""
        steps = self.steps()
        hosts.check_equal({"the list of checkpoints": steps}, LATE, TransientError)
        return steps

    def save(self, step: int, state: State, meta: dict, metrics: dict[str, float]) -> None:
        """Writes a checkpoint in the background.

        meta: JSON values. metrics: this step's evaluation metrics, saved in `meta`. Raises
        SaveError if this save or the previous one fails, and the errors of cloud.failure.
        """
        self._check_held()
        items = _items(state)
        meta = {
            **meta,
            "step": step,
            "metrics": meta_lib.saved_metrics(metrics),
            "checksums": {k: checksums(v) for k, v in items.items()},
        }
        meta["crc32"] = meta_lib.crc(meta)
        args = {k: ocp.args.StandardSave(v) for k, v in items.items()}
        self._end_pruning()
        try:
            self._manager.save(step, args=ocp.args.Composite(**args, meta=ocp.args.JsonSave(meta)))
        except Exception as e:  # file systems and Orbax raise many kinds
            raise self._failed(e) from e
        if hosts.index() == 0:
            self._pruning = threading.Thread(target=self._prune, daemon=True)
            self._pruning.start()

    def wait(self) -> None:
        """Waits until the last save is complete. Raises SaveError if it fails."""
        try:
            self._manager.wait_until_finished()
            self._manager.check_for_errors()
        except Exception as e:
            raise self._failed(e) from e
        self._end_pruning()

    def _prune(self) -> None:
        """Deletes checkpoints that are neither among the latest nor the best, after the last save.

        Decided by the files on disk, so that a restart decides the same.
        """
        try:
            self._manager.wait_until_finished()
        except Exception:  # reported by `wait` or the next `save`
            return
        try:
            steps = self.steps()
            keep = set(steps[-self._keep :])
            if self._best and len(steps) > self._keep:
                folder = self.folder.parent
                keep.add(meta_lib.best_step(folder, steps, self._best, self._best_mode))
            for step in sorted(set(steps) - keep):
                self._check_held()
                cloud.delete_folder(self.folder / str(step), "commit_success.txt", _DELETED)
        except Exception as e:
            self._not_pruned = e

    def _end_pruning(self) -> None:
        """Waits for the thread that deletes checkpoints. Its failure does not end the run."""
        if self._pruning:
            self._pruning.join()
        self._pruning, error, self._not_pruned = None, self._not_pruned, None
        if error:
            self._check_held()  # raises if it failed because another process has the folder
            self._log(
                f"A checkpoint older than the latest {self._keep} could not be deleted in "
                f"{self.folder}: {_short(error)}. It still uses disk space; the next save tries "
                f"again. Saved and intact: {self.steps()}."
            )

    def _failed(self, error: Exception) -> UserError | RunError:
        try:
            self._check_held()  # raises if it failed because another process has the folder
        except TransientError as e:
            return e
        what = f"A checkpoint could not be written to {self.folder}: "
        if failed := cloud.failure(error, str(self.folder)):
            return type(failed)(what + str(failed))
        if hosts.is_lost(error):
            return TransientError(f"{what}{hosts.LOST}")
        for path in self.folder.glob("*.orbax-checkpoint-tmp*"):  # to free disk space
            path.rmtree(missing_ok=True)
        return SaveError(
            f"{what}{_short(error)}. Saved and intact: {self.steps() or 'none'}. Free disk space "
            "or fix the folder, then run the same command: it resumes from the latest of them."
        )

    def close(self) -> None:
        """Waits for saves in progress. Raises nothing: `wait` reports a failed save, and any other
        error that ends the run must not be hidden by it."""
        with contextlib.suppress(Exception):
            self._manager.close()
        if self._pruning:
            self._pruning.join()
        self._reader.close()

    def meta(self, step: int) -> dict:
        """The data saved beside the arrays. Raises Damaged if it differs from what was saved."""
        meta = self._reader.restore(
            self.folder / str(step), args=ocp.args.Composite(meta=ocp.args.JsonRestore())
        )["meta"]
        if not meta_lib.is_intact(meta, step):
            raise Damaged("meta does not match its checksum, or has unexpected fields")
        return meta

    def resolve_step(self, step: int | None) -> int:
        """step, or the latest for None; the same on all processes. Raises UserError if missing."""
        steps = self._agreed_steps()
        if not steps:
            raise UserError(f"There is no checkpoint in {self.folder}. Train first.")
        if step is not None and step not in steps:
            raise UserError(
                f"There is no checkpoint of step {step} in {self.folder}. Available: {steps}."
            )
        return steps[-1] if step is None else step

    def arrays(self, step: int) -> dict[str, dict[str, Any]]:
        """{item: {path: metadata with shape, dtype, sharding}}, without reading the arrays.

        Raises UserError if it is damaged, and the errors of `restore` if it cannot be read now.
        """
        folder = self.folder / str(step)
        try:
            with ocp.StandardCheckpointer() as reader:
                return {
                    name: named_leaves(reader.metadata(folder / name).item_metadata.tree)
                    for name in ARRAY_ITEMS
                    if (folder / name).exists()
                }
        except Exception as e:
            error = self._read_error(step, e)
            if isinstance(error, Damaged):
                error = UserError(
                    f"Checkpoint {step} in {self.folder} is damaged ({error}). "
                    "Delete its folder to use the others."
                )
            raise error from e

    def restore(self, step: int, abstract: dict[str, Any]) -> tuple[dict[str, Any], dict]:
        """The items named in abstract (trees of ShapeDtypeStruct with shardings), and meta. Arrays
        that were saved with other dtypes are verified as saved, then cast.

        Raises on all processes: Damaged if an array differs from what was saved; TransientError,
        UserError or RunError if the files cannot be read now or processes see different files.
        """
        problem = None
        try:
            folder, meta = self.folder / str(step), self.meta(step)
            for name, tree in abstract.items():
                check_form(tree, meta["checksums"].get(name), folder / name)
            args = {
                k: ocp.args.StandardRestore(as_stored(v, folder / k)) for k, v in abstract.items()
            }
            items = dict(self._reader.restore(folder, args=ocp.args.Composite(**args)))
        except Exception as e:  # a damaged file can make Orbax raise any exception
            error = self._read_error(step, e)
            problem = next(i for i, c in enumerate(_KINDS) if isinstance(error, c)), str(error)
        # If one process cannot read it, none can use it: all compute the checksums together.
        reports = hosts.gather(problem)
        if problems := [p for p in reports if p]:
            kind, text = min(problems)
            if _KINDS[kind] is Missing and None in reports:  # another process has read its files
                raise TransientError(
                    f"Some processes of this run do not see all files of checkpoint "
                    f"{step} in {self.folder}: {text}. {LATE}"
                )
            raise _KINDS[kind](text)
        checked = {f"the checksum of checkpoint {step}": meta["crc32"]}
        hosts.check_equal(checked, LATE, TransientError)
        for name, tree in items.items():
            actual = checksums(tree)
            wrong = [k for k, v in meta["checksums"][name].items() if actual.get(k) != v]
            if wrong:
                raise Damaged(
                    f"{name}: {wrong[0]} and {len(wrong) - 1} other arrays do not match their "
                    "checksums"
                )
        return {k: cast(v, abstract[k]) for k, v in items.items()}, meta

    def _read_error(self, step: int, error: Exception) -> Exception:
        """The error to raise for a failed read: Damaged (or Missing) only if it shows damage."""
        if isinstance(error, Damaged):
            return error
        if failed := cloud.failure(error, str(self.folder)):
            return failed
        if kind := damage_shown_by(error):
            return kind(_short(error))
        return RunError(
            f"Checkpoint {step} in {self.folder} could not be read: {_short(error)}. "
            "That does not mean that it is damaged, so it is left unchanged. Fix the cause, then "
            "run the same command."
        )

    def restore_latest(self, abstract: State, log) -> tuple[State, dict] | None:
        """The latest intact checkpoint and its meta; None if nothing was saved.

        Later ones, which are damaged, are moved to WORKDIR/damaged/. Raises UserError, and moves
        nothing, if all are damaged; and the errors of `restore` if one cannot be read now.
        """
        damaged = {}
        for step in reversed(self._agreed_steps()):
            try:
                items, meta = self.restore(step, _items(abstract))
            except Damaged as e:
                damaged[step] = str(e)
                continue
            for bad, why in damaged.items():
                log(
                    f"Checkpoint {bad} is damaged ({why}); restoring checkpoint {step}."
                    + self._set_aside(bad)
                )
            return State(
                jnp.int32(step),
                items["params"],
                items["opt_state"],
                items.get("extras", abstract.extras),
                items.get("ema"),
                jnp.bool_(False),
            ), meta
        if damaged:
            raise UserError(
                f"No checkpoint in {self.folder} can be read: "
                + "; ".join(f"{step}: {why}" for step, why in damaged.items())
                + ". They are left unchanged. Train in another --workdir."
            )
        return None

    def _set_aside(self, step: int) -> str:
        """Moves a damaged checkpoint, so that its step can be saved again."""
        if self._read_only:
            return ""
        self._check_held()
        target = self.folder.parent / "damaged" / str(step)
        if hosts.index() == 0:
            if target.exists():
                target.rmtree()
            cloud.move_folder(self.folder / str(step), target)
        hosts.gather("moved")
        self._manager.reload()
        return f" Moved to {target}."


def _silence_abandoned_writes() -> None:
    """Suppresses the tracebacks that Orbax's other writes print after one has failed: the failed
    save is reported once, by SaveError."""
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", message="coroutine .* was never awaited")
    sys.unraisablehook = process.unraisable_hook


def _items(state: State) -> dict[str, Any]:
    """The array items of a state, without empty ones, which Orbax rejects."""
    return {
        k: getattr(state, k) for k in ARRAY_ITEMS if jax.tree_util.tree_leaves(getattr(state, k))
    }


def _short(error: Exception) -> str:
    text = " ".join(str(error).split())
    if reason := re.search("No space left on device|Disk quota exceeded|File too large", text):
        return reason[0]  # a C++ library gives it within a thousand characters
    return f"{type(error).__name__}: {text[:200]}"
