"""`bigjax train`: from a config to a trained model in a work folder. `_train` has the stages."""

from typing import Any, NamedTuple

from etils import epath
import jax

from bigjax import config as config_lib
from bigjax import data, evals, optim, tasks
from bigjax.data.files import cache_dir
from bigjax.errors import NO_SPACE, RunError, TransientError, UserError
from bigjax.parallel import hosts, sharding
from bigjax.parallel import mesh as mesh_lib
from bigjax.plural import plural
from bigjax.train import debug, first_state, frozen, load, loop, metrics, nonfinite, stages
from bigjax.train import hooks as hooks_lib
from bigjax.train import program as program_lib
from bigjax.train import rollouts as rollouts_lib
from bigjax.train import workdir as workdir_lib
from bigjax.train.checkpoint import LATE, Checkpoints
from bigjax.train.lease import Lease
from bigjax.train.reporter import Reporter
from bigjax.trees import count


class Run(NamedTuple):
    """What the first stages of a run have created, for the first state and the loop."""

    config: Any
    program: program_lib.Program
    corpus: data.Data
    batches: data.Batches  # of training
    frozen: frozen.Parts
    folder: epath.Path
    lease: Lease
    checkpoints: Checkpoints
    early_stop: hooks_lib.EarlyStop
    progress: metrics.Progress


def train(config, workdir: str) -> None:
    """Trains, or resumes training, in a work folder; docs/train.md lists the files that it writes.

    Raises UserError for bad input, before anything expensive; NonFinite; SaveError; TransientError
    where the same call may succeed later: storage fails, another host is late or lost, or another
    process trains in the folder.
    """
    progress, lease = metrics.Progress(config.train.steps), Lease(workdir)
    try:
        _train(config, workdir, progress, lease)
    except OSError as e:
        if e.errno not in NO_SPACE:
            lease.check()  # else it failed because the folder was moved or deleted
            raise
        raise RunError(
            f"The disk is full ({e}). Training stopped; the checkpoints in {workdir} are intact. "
            "Free some space and run the same command."
        ) from e
    finally:
        progress.close()
        lease.release()


def _train(config, workdir: str, progress: metrics.Progress, lease: Lease) -> None:
    """The stages of a run, ordered so that bad input is found before it costs much."""
    log = progress.log
    stages.check(config, workdir)

    hosts.start(config, workdir)  # before anything that starts jax, as reading a checkpoint does
    lease.acquire()
    mesh = mesh_lib.start(config.mesh, config.train.batch_size, config.train.accumulate)
    program_lib.use_compilation_cache(config.train.compilation_cache, mesh)
    _agree_on_checkpoints(workdir)

    config, source = stages.resolve(config, workdir)
    task = tasks.build(config)
    program = program_lib.make(config, task, mesh)
    prepare = first_state.find(config, workdir, task, log)
    last = max(workdir_lib.saved_steps(workdir), default=0)
    if last < config.train.steps:
        program_lib.compile_ahead(program, config.train.batch_size, last)

    corpus = stages.load_data(task, log)
    batches = corpus.split("train", batch_size=config.train.batch_size, seed=config.seed)
    folder = epath.Path(workdir)
    parts = frozen.load(task, mesh, cache_dir(config), log, config.python_path, corpus.tokenizer)
    context = evals.Context(config, task, corpus, mesh, log, folder, parts.arrays)
    evaluators = stages.build_evaluators(context)
    _check_metrics(config, evaluators)

    workdir_lib.make_workdir(workdir)
    hosts.check_shared(workdir)
    checkpoints = Checkpoints(
        folder,
        keep=config.checkpoint.keep,
        best=config.checkpoint.best,
        best_mode=config.checkpoint.best_mode,
        check_held=lease.check,
        log=log,
    )
    early_stop = hooks_lib.EarlyStop(config.train.early_stop, log)
    outputs = folder, lease, checkpoints, early_stop, progress
    run = Run(config, program, corpus, batches, parts, *outputs)
    first = first_state.make(run, prepare, source)
    if not _is_done(run, first.start):
        _describe(run, first.start)
        _write_inputs(run, first.is_new)
        _loop(run, evaluators, first)


def _agree_on_checkpoints(workdir: str) -> None:
    """Checks that all hosts see the same checkpoints, on which the following stages depend."""
    steps = sorted(workdir_lib.saved_steps(workdir))
    hosts.check_equal({"the list of checkpoints": steps}, LATE, TransientError)


def _check_metrics(config, evaluators: dict[str, evals.Evaluator]) -> None:
    """Raises UserError for a watched metric that its evaluation is known not to report."""
    for key in ("train.early_stop.metric", "checkpoint.best"):
        _, _, rest = config_lib.get(config, key).partition("eval/")
        name, _, metric = rest.partition("/")
        known = getattr(evaluators.get(name), "metrics", None)
        if known is not None and metric not in known:
            raise UserError(
                f"config.{key}='eval/{rest}': evaluation {name!r} reports "
                f"{', '.join(known) or 'no metrics'}."
            )


def _is_done(run: Run, start: int) -> bool:
    if run.early_stop.stopped:
        run.progress.log(
            f"This run is done: early stopping ended it at step {start}. To continue, raise "
            "train.early_stop.patience or choose another metric."
        )
        return True
    if start < run.config.train.steps:
        return False
    run.progress.log(
        f"This run is done: it has train.steps={run.config.train.steps}. Raise that to continue, "
        "or use another --workdir."
    )
    return True


def _describe(run: Run, start: int) -> None:
    c, task, mesh = run.config, run.program.task, run.program.mesh
    axes = " x ".join(f"{a}={n}" for a, n in mesh.shape.items() if n > 1) or "one device"
    kind = mesh.devices.flat[0].device_kind
    rows = tasks.amount(task, c.train.batch_size)
    work = f"{task.describe(c.train.steps, start)} of {rows}"
    if n := run.batches.epoch_steps:
        work += f", an epoch is {n:.0f} {plural(n, 'step')}"
    if note := getattr(run.batches, "note", ""):
        work += f", {note}"
    params = run.program.abstract.params
    trained = f", {optim.count_trained(c.optim, params):,} of them trained," * bool(c.optim.freeze)
    frozen_too = count(run.frozen.arrays)
    trained += f", {frozen_too:,} frozen ones beside them," * bool(frozen_too)
    run.progress.log(
        f"{count(params):,} parameters{trained} on {mesh.size} {kind} "
        f"{plural(mesh.size, 'device')}, {axes}; {work}. Compiling..."
    )


def _write_inputs(run: Run, is_new: bool) -> None:
    """Writes the config, and for a new run the files that using the model needs."""
    workdir_lib.write_config(run.folder, run.config)
    if is_new and jax.process_index() == 0:
        if run.corpus.tokenizer:
            run.corpus.tokenizer.save(run.folder / "tokenizer")
        if hasattr(run.corpus, "save"):
            run.corpus.save(run.folder)


def _loop(run: Run, evaluators: dict[str, evals.Evaluator], first: first_state.First) -> None:
    state, start, is_new = first
    config, mesh, log = run.config, run.program.mesh, run.progress.log
    run.lease.check()
    reporter = Reporter(run, start, None if is_new else start)
    stop = hooks_lib.StopOnSignal(start)
    profile = debug.Profile(config.train.profile, run.folder, start, log)
    evaluations = [
        hooks_lib.Evaluate(
            name,
            profile.named(f"eval {name}", evaluators[name]),
            entry.every,
            config.train.steps,
            reporter.write_evaluation,
            reporter.speed.pause,
        )
        for name, entry in config.evals.items()
    ]
    hooks = [
        hooks_lib.StopIfLost(run.lease),
        *evaluations,
        run.early_stop,
        hooks_lib.Save(profile.named("save", reporter.save), config.checkpoint.every),
        stop,
    ]
    rows = sharding.local_rows(mesh, config.train.batch_size)

    def batch_at(step: int, _=None) -> dict:
        """The batch of a step, on the devices; called in the loader's thread while a step runs."""
        batch = run.batches.batch_at(step, rows)
        return sharding.put_batch(mesh, batch, rows, config.train.batch_size)

    rollouts = None
    if run.program.task.rollouts and start < config.train.steps:
        rollouts = rollouts_lib.Rollouts(run, start, reporter.write_samples)

    def step(state, batch):
        batch = rollouts(state, batch) if rollouts else batch
        return run.program.step(state, run.frozen.arrays, batch)

    batches = data.iterate(batch_at, start, config.train.steps)
    try:
        if start == 0:
            for hook in evaluations:
                hook(0, state)
        state, done = loop.run(
            state,
            profile.step(step),
            profile.batches(batches),
            start=start,
            steps=config.train.steps,
            report=reporter.report,
            hooks=hooks,
        )
        if reporter.bad_step:
            at = reporter.bad_step - 1
            batch = rollouts.kept[at] if rollouts else batch_at(at)
            nonfinite.explain(run, reporter.bad_step, reporter.bad_metrics, state, batch)
        if reporter.saved_step != done:
            reporter.save(done, state)
        run.checkpoints.wait()
        if rollouts and rollouts.error:
            raise rollouts.error
    finally:
        batches.close()
        stop.close()
        profile.close()
        reporter.close()
        run.checkpoints.close()
    _conclude(run, done, stop.received)


def _conclude(run: Run, done: int, signal: str | None) -> None:
    config, log = run.config, run.progress.log
    if signal:
        log(f"Stopped by {signal} at step {done}, and saved. The same command resumes from there.")
    best = config.checkpoint.best and load.best_step(str(run.folder))
    if best:  # none if the run stopped before the first evaluation of a saved step
        log(f"The best saved step by {config.checkpoint.best} is {best} (--step=best).")
    log(
        f"Wrote {run.folder}: checkpoints/{done}, metrics.jsonl, config.json"
        + (", tokenizer/" if run.corpus.tokenizer else "")
        + (", tensorboard/" if config.log.tensorboard else "")
    )
