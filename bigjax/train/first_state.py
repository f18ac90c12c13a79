"""The state that a run starts with: its own checkpoint, resume_from, init_from, or scratch."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from bigjax.data.files import cache_dir
from bigjax.errors import UserError
from bigjax.optim import schedules
from bigjax.peft import joined
from bigjax.train import frozen, init_from, source_checks
from bigjax.train import workdir as workdir_lib
from bigjax.train.checkpoint import Checkpoints
from bigjax.train.state import State


class First(NamedTuple):
    """start: its step. is_new: whether this work folder has no checkpoint of this run yet."""

    state: State
    start: int
    is_new: bool


def find(config, workdir: str, task, log) -> Callable | None:
    """Task.prepare's function, which prepares the parameters of a run from scratch; else None.

    Called before the data are read. Raises UserError if the work folder has a run that cannot be
    resumed with this config, and as Task.prepare does.
    """
    if workdir_lib.has_checkpoints(workdir):
        workdir_lib.check_same_run(workdir, config, log)
        return None
    return None if config.resume_from or config.init_from else task.prepare()


def make(run, prepare: Callable | None, source: init_from.Source | None) -> First:
    """The first state of a train.run.Run. source: what init_from names, if it is open."""
    c, log = run.config, run.progress.log
    saved = run.checkpoints.restore_latest(run.program.abstract, log)
    if saved:
        return _resumed(run, *saved, "this work folder", str(run.folder), is_new=False)
    if c.resume_from:
        workdir_lib.check_same_run(c.resume_from, c, log)
        other = Checkpoints(workdir_lib.existing(c.resume_from), read_only=True)
        saved = other.restore_latest(run.program.abstract, log)
        if not saved:
            raise UserError(f"config.resume_from={c.resume_from!r} has no checkpoint.")
        return _resumed(run, *saved, c.resume_from, c.resume_from, is_new=True)
    return First(_initial_state(run, prepare, source), 0, True)


def _resumed(run, state: State, meta: dict, place: str, folder: str, is_new: bool) -> First:
    c, log, start = run.config, run.progress.log, meta["step"]
    if meta.get("data") != run.corpus.fingerprint:
        raise UserError(
            "The data or the tokenizer is not what this run was trained on (files or installed "
            "packages have changed), so it cannot be resumed exactly. Train in another --workdir "
            f"with --config.init_from={folder}."
        )
    frozen.check_same(run.frozen.fingerprints, meta.get("frozen", {}))
    run.early_stop.restore(meta.get("early_stop", {}))
    log(f"Resuming from step {start} of {place}.")
    if jax.process_index() == 0 and run.program.schedule and start < c.train.steps:
        n = run.program.task.updates * run.program.task.epochs
        if changed := schedules.change(workdir_lib.read_config(folder), c, start, n):
            log(changed)
    return First(state, start, is_new)


def _initial_state(run, prepare: Callable | None, source: init_from.Source | None) -> State:
    """The state at step 0."""
    c, task, log = run.config, run.program.task, run.progress.log
    base = task.frozen[task.starts_from].source if task.starts_from else ""
    if c.init_from == base:  # the frozen part: none of its parameters is this run's
        source = None
    elif c.init_from and not source:
        source = init_from.open_source(c.init_from, cache_dir(c), c.model.name, c.python_path)
    if source:
        of_run = run.program.abstract
        stored = {} if task.extras_of else of_run.extras  # else they follow from the parameters
        init_from.check_family({**of_run.params, **stored}, source, c.init_reset, c.model.name)
        source_checks.check_tokenizer(
            source, task.axes["params"], c.init_reset, run.corpus.tokenizer, log, c.python_path
        )
        labels = c.task.get("labels", ())
        source_checks.check_labels(
            source, of_run.params, task.label_head, c.init_reset, labels, log
        )
        if task.starts_from:
            source_checks.check_adapter(source, run.frozen.fingerprints[task.starts_from])
    state = run.program.init()
    params, extras = state.params, state.extras
    if task.starts_from:
        params, extras = _of_base(run, params, extras)
    if source:
        log(f"Starting at step 0 with the parameters of {c.init_from}.")
        stored = {k: extras[k] for k in stored}
        adapt = init_from.adapter(c)
        loaded = init_from.initialise({**params, **stored}, source, c.init_reset, log, adapt)
        params, extras = ({k: loaded[k] for k in tree} for tree in (params, stored))
    elif task.starts_from:
        log("Starting at step 0.")
        if task.first:
            make = jax.jit(task.first, out_shardings=run.program.shardings.params)
            params = make(params, run.frozen.arrays)
    else:
        log("Starting from scratch.")
        params = (prepare or task.prepare())(params, run.corpus)
        if params is state.params:
            return state
    if task.extras_of:
        extras = task.extras_of(params, state.extras)
    return replaced(state, params, extras, run.program.shardings)


def _of_base(run, params, extras) -> tuple:
    """(params, extras) with the values of the frozen part that Task.starts_from names, where it
    has them: of extras, and of parameters that are trained in full."""
    c, task, log = run.config, run.program.task, run.progress.log
    base = task.frozen[task.starts_from]
    if not base.source:
        return params, extras
    source = init_from.open_source(base.source, cache_dir(c), base.model, c.python_path)
    axes, tokenizer = joined(base.axes["params"], task.axes["params"]), run.corpus.tokenizer
    source_checks.check_tokenizer(
        source, axes, "", tokenizer, log, c.python_path, key="config.peft.base"
    )
    labels = tuple(c.task.get("labels", ()))
    kept = init_from.in_both({**params, **extras}, source)
    if labels != source.labels:  # the outputs of its head stand for something else
        kept = [n for n in kept if not n.startswith(f"{task.label_head}/")]
    if not kept:
        return params, extras
    only = source._replace(shapes={n: source.shapes[n] for n in kept})
    loaded = init_from.initialise({**params, **extras}, only, "", log)
    return {k: loaded[k] for k in params}, {k: loaded[k] for k in extras}


def replaced(state: State, params, extras, shardings: State) -> State:
    """The state with other parameters and extras, which its moving average starts with too."""
    # Copies: the first step donates the memory of its arguments, so no array may occur twice.
    copy = lambda tree, like: jax.device_put(jax.tree_util.tree_map(jnp.copy, tree), like)
    extras = copy(extras, shardings.extras)
    ema = None
    if state.ema is not None:
        ema = copy({"params": params, **extras}, shardings.ema)
    return state._replace(params=params, extras=extras, ema=ema)
