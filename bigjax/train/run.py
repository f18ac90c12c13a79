"""`bigjax train`: from a config to a trained model in a work folder."""

import re
import time

from etils import epath
import jax
import jax.numpy as jnp
import numpy as np

from bigjax import cloud, data, evals, json_text, models, tasks
from bigjax import config as config_lib
from bigjax.errors import NO_ROOM, PassingError, RunError, UserError
from bigjax.evals.context import Context, derive
from bigjax.optim import schedules
from bigjax.parallel import hosts, sharding
from bigjax.parallel import mesh as mesh_lib
from bigjax.train import debug, init_from, load, loop, metrics
from bigjax.train import hooks as hooks_lib
from bigjax.train import program as program_lib
from bigjax.train import workdir as workdir_lib
from bigjax.train.checkpoint import LATE, Checkpoints
from bigjax.train.lease import Lease
from bigjax.train.state import State
from bigjax.train.step import unpack
from bigjax.trees import count, named_leaves

# Else the run stops. Adversarial training has them by network, as generator/loss.
FINITE = ("loss", "grad_norm", "param_norm", "update_norm")


class NonFinite(RunError):
    """The loss is NaN or infinite."""


def train(config, workdir: str) -> None:
    """Trains, or goes on training, in a work folder; README.md says what is written there.

    Raises UserError for bad input, before anything expensive; NonFinite; SaveError; PassingError
    where the same call may go on later: storage fails, another host is late or lost, or another
    process trains in the folder.
    """
    progress, lease = metrics.Progress(config.train.steps), Lease(workdir)
    try:
        _Run(config, workdir, progress, lease).train()
    except OSError as e:
        if e.errno not in NO_ROOM:
            lease.check()  # else it failed because the folder was moved or deleted
            raise
        raise RunError(
            f"There is no room to write to ({e}). Training stopped; the checkpoints "
            f"that {workdir} has are intact. Make room and run the same command."
        ) from e
    finally:
        progress.close()
        lease.release()


class _Run:
    """The parts of one run. Made in the order in which bad input is cheapest to find."""

    def __init__(self, config, workdir: str, progress: metrics.Progress, lease: Lease):
        self.progress, self.log, self.lease = progress, progress.log, lease
        config_lib.check_values(config)
        cloud.check_writable(workdir)
        self.steps, self.batch_size = config.train.steps, config.train.batch_size
        # Before anything that starts jax, as reading another run's checkpoint does.
        hosts.start(config, workdir)
        lease.acquire()
        self.mesh = mesh_lib.start(config.mesh, self.batch_size, config.train.accumulate)
        program_lib.use_compilation_cache(config.train.compilation_cache, self.mesh)
        hosts.check_equal(
            {"the list of checkpoints": sorted(workdir_lib.saved_steps(workdir))},
            LATE,
            PassingError,
        )  # what follows depends on whether there are any
        self.config, self.source = resolved(config, workdir)
        config = self.config
        self.task = tasks.build(config)
        if config.train.debug_nans and self.task.players:
            raise UserError(
                f"train.debug_nans runs a step again, operation by operation; one of "
                f"task {config.task.name!r} is a round of many updates, which would "
                "take hours. Set it to False."
            )
        self.program = program_lib.make(config, self.task, self.mesh)
        self.prepare = None  # of a run from scratch
        if workdir_lib.has_checkpoints(workdir):
            workdir_lib.check_same_run(workdir, config, self.log)
        elif not (config.resume_from or config.init_from):
            self.prepare = self.task.prepare()
        self.corpus = self.task.load_data(self.log)
        hosts.check_equal(
            {"the data's fingerprint": self.corpus.fingerprint},
            "Give all hosts the same files, and the same installed packages.",
        )
        self.data = self.corpus.split("train", batch_size=self.batch_size, seed=config.seed)
        self.rows = sharding.local_rows(self.mesh, self.batch_size)
        self.workdir = epath.Path(workdir)
        context = Context(config, self.task, self.corpus, self.mesh, self.log, self.workdir)
        self.evaluators = {
            name: evals.build(name, entry, context) for name, entry in config.evals.items()
        }
        self._check_metrics()
        workdir_lib.make_workdir(workdir)
        hosts.check_shared(workdir)
        self.checkpoints = Checkpoints(
            self.workdir,
            keep=config.checkpoint.keep,
            best=config.checkpoint.best,
            best_mode=config.checkpoint.best_mode,
            check_held=lease.check,
            log=self.log,
        )
        self.latest = {}  # {step: evaluation metrics}, for early stopping and the best checkpoint
        self.early_stop = hooks_lib.EarlyStop(config.train.early_stop, self.latest, self.log)
        self.saved_step = None

    def _check_metrics(self) -> None:
        """Refuses a metric to watch that its evaluation is known not to give."""
        for key in ("train.early_stop.metric", "checkpoint.best"):
            _, _, rest = config_lib.get(self.config, key).partition("eval/")
            name, _, metric = rest.partition("/")
            known = getattr(self.evaluators.get(name), "metrics", None)
            if known and metric not in known:
                raise UserError(
                    f"config.{key}='eval/{rest}': evaluation {name!r} gives {', '.join(known)}."
                )

    def train(self) -> None:
        state, start = self._first_state()
        if self.early_stop.stopped:
            self.log(
                f"This run is done: early stopping ended it at step {start}. To go on, raise "
                "train.early_stop.patience or choose another metric."
            )
            return
        if start >= self.steps:
            self.log(
                f"This run is done: it has train.steps={self.steps}. Raise that to go on, or "
                "use another --workdir."
            )
            return
        self._describe(start)
        workdir_lib.write_config(self.workdir, self.config)
        new = self.saved_step is None  # a new folder, or a branch
        if new and self.corpus.tokenizer and jax.process_index() == 0:
            self.corpus.tokenizer.save(self.workdir / "tokenizer")
        if new and hasattr(self.corpus, "save") and jax.process_index() == 0:
            self.corpus.save(self.workdir)  # what else the model needs to be used
        self.lease.check()
        self.writer = metrics.Writer(
            self.workdir, start, self.config.log.tensorboard, self.lease.check
        )
        self.speed = metrics.Speed(
            0 if self.task.players else self.batch_size,
            self.config.data.seq_len,
            self.task.flops_per_example,
        )
        stop = hooks_lib.StopOnSignal(start)
        profile = debug.Profile(self.config.train.profile, self.workdir, start, self.log)
        evaluations = [
            hooks_lib.Evaluate(
                name,
                profile.named(f"eval {name}", self.evaluators[name]),
                entry.every,
                self.steps,
                self._write_eval,
                self.speed.pause,
            )
            for name, entry in self.config.evals.items()
        ]
        hooks = [
            hooks_lib.StopIfLost(self.lease),
            *evaluations,
            self.early_stop,
            hooks_lib.Save(profile.named("save", self._save), self.config.checkpoint.every),
            stop,
        ]
        frozen = self.task.frozen()
        batches = data.iterate(self._batch_at, start, self.steps)
        try:
            if start == 0:
                for hook in evaluations:
                    hook(0, state)
            self.first_step = start + 1
            state, done = loop.run(
                state,
                profile.step(lambda s, b: self.program.step(s, frozen, b)),
                profile.batches(batches),
                start=start,
                steps=self.steps,
                report=self._report,
                hooks=hooks,
            )
            if self.bad_step:
                self._explain(state, frozen)
            if self.saved_step != done:
                self._save(done, state)
            self.checkpoints.wait()
        finally:
            batches.close()
            stop.close()
            profile.close()
            self.writer.close()
            self.checkpoints.close()
        if stop.received:
            self.log(
                f"Stopped by {stop.received} at step {done}, and saved. The same command goes "
                "on from there."
            )
        best = self.config.checkpoint.best and load.best_step(str(self.workdir))
        if best:  # not if the run was stopped before the first evaluation of a saved step
            self.log(
                f"The best saved step by {self.config.checkpoint.best} is {best} (--step=best)."
            )
        self.log(
            f"Wrote {self.workdir}: checkpoints/{done}, metrics.jsonl, config.json"
            + (", tokenizer/" if self.corpus.tokenizer else "")
            + (", tensorboard/" if self.config.log.tensorboard else "")
        )

    # --- The first state: own checkpoint, resume_from, init_from, scratch ---------------------

    def _first_state(self) -> tuple[State, int]:
        c = self.config
        found = self.checkpoints.restore_newest(self.program.abstract, self.log)
        source, origin = "this work folder", self.workdir
        if found is None and c.resume_from:
            workdir_lib.check_same_run(c.resume_from, c, self.log)
            other = Checkpoints(workdir_lib.existing(c.resume_from), read_only=True)
            found = other.restore_newest(self.program.abstract, self.log)
            source = origin = c.resume_from
            if found is None:
                raise UserError(f"config.resume_from={c.resume_from!r} has no checkpoint.")
        if found is not None:
            state, meta = found
            saved = meta.get("data")
            if saved and not data.comparable(saved, self.corpus.fingerprint):
                self.log(
                    "warning: this run was saved by an earlier version, whose fingerprint of text "
                    "cannot be compared: make sure that its files, packages and tokenizer are the "
                    "same, and see CHANGELOG for what is read otherwise now."
                )
            elif saved != self.corpus.fingerprint:
                raise UserError(
                    "The text or the tokenizer is not what this run was trained on (files or "
                    "installed packages have changed), so it cannot be resumed exactly. Start "
                    f"another --workdir with --config.init_from={origin}."
                )
            self.early_stop.restore(meta.get("early_stop", {}))
            start = meta["step"]
            self.log(f"Going on from step {start} of {source}.")
            # Adversarial rounds have rates of their own.
            if jax.process_index() == 0 and not self.task.players and start < self.steps:
                old = workdir_lib.read_config(str(origin))
                if changed := schedules.change(old, c, start):
                    self.log(changed)
            self.saved_step = start if source == "this work folder" else None
            return state, start
        source = self.source
        if c.init_from and not source:
            source = init_from.open_source(c.init_from, c.data.cache_dir)
        if source:
            init_from.check_tokenizer(source, c.init_reset, self.corpus.tokenizer, self.log)
            init_from.check_labels(
                source,
                self.program.abstract.params,
                c.init_reset,
                c.task.get("labels", ()),
                self.log,
            )
        state = jax.jit(self.program.init, out_shardings=self.program.shardings)()
        if source:
            self.log(f"Starting at step 0 with the parameters of {c.init_from}.")
            params = init_from.initialise(state.params, source, c.init_reset, self.log)
        else:
            self.log("Starting from scratch.")
            prepare, self.prepare = self.prepare or self.task.prepare(), None
            params = prepare(state.params, self.corpus)
        if params is state.params:
            return state, 0
        # Copies: the first step gives its arguments' memory away, each array's once.
        copy = lambda tree: jax.tree_util.tree_map(jnp.copy, tree)
        extras = state.extras
        if self.task.players:  # the old generators that adversarial training keeps
            extras = jax.device_put(
                {k: copy(params["generator"]) for k in extras}, self.program.shardings.extras
            )
        ema = None if state.ema is None else copy(params)
        return state._replace(params=params, extras=extras, ema=ema), 0

    def _batch_at(self, step: int, rows=None) -> dict:
        """A batch on the devices; the loader's thread does this while a step runs."""
        del rows  # this process's, always
        return sharding.put_batch(
            self.mesh, self.data.batch_at(step, self.rows), self.rows, self.batch_size
        )

    def _describe(self, start: int) -> None:
        mesh = " x ".join(f"{a}={n}" for a, n in self.mesh.shape.items() if n > 1) or "one device"
        kind = self.mesh.devices.flat[0].device_kind
        rows = f"{self.batch_size} x {self.config.data.seq_len} tokens"
        if self.task.players:
            work = (
                f"rounds {start + 1} to {self.steps} ("
                f"{self.task.players.options.describe(self.steps)}), updates of {rows}"
            )
        else:
            work = (
                f"{self.steps - start} steps of {rows}, an epoch is "
                f"{self.data.epoch_steps:.0f} steps"
            )
        if hasattr(self.data, "padding"):
            work += f", {self.data.padding:.1%} of the tokens are padding"
        self.log(
            f"{count(self.program.abstract.params):,} parameters on {self.mesh.size} {kind} "
            f"device(s), {mesh}; {work}. Compiling..."
        )

    # --- Reports ------------------------------------------------------------------------------

    bad_step = None

    def _report(self, step: int, metrics: dict, waited: float) -> bool:
        """Writes a step's numbers when they are due; True if the loss is not finite."""
        self.speed.waited += waited
        values = unpack(metrics)
        self.not_finite = [
            k for k, v in values.items() if k.split("/")[-1] in FINITE and not np.isfinite(v)
        ]
        if self.not_finite:
            self.bad_step = step
            return True
        due = step in (1, self.steps) or step % self.config.log.every == 0
        if due or step == self.first_step:
            values = {**derive(values), **self.speed.read(step)}
            if not self.task.players:  # else rounds of unlike length
                values["epoch"] = step / self.data.epoch_steps
            self.progress.update(step, values)
        if due:  # and no other step: a resumed run writes the lines of an uninterrupted one
            self.writer.write(step, values)
        return False

    def _write_eval(self, step: int, name: str, values: dict) -> None:
        for key in ("train.early_stop.metric", "checkpoint.best"):
            metric = config_lib.get(self.config, key)
            if metric.startswith(f"eval/{name}/") and metric not in values:
                raise UserError(
                    f"config.{key}={metric!r}: this evaluation gives only "
                    f"{', '.join(values) or 'no metrics'}."
                )
        if not values:
            return
        if step not in self.latest:
            self.latest.clear()
        self.latest.setdefault(step, {}).update(values)
        self.writer.write(step, values)
        short = {
            k.removeprefix("eval/"): v
            for k, v in values.items()
            if not re.search("/(precision|recall)_", k)
        }  # the file and the report have them
        self.log(f"step {step}  " + "  ".join(f"{k} {v:.4f}" for k, v in short.items()))

    def _save(self, step: int, state: State) -> None:
        start = time.perf_counter()
        self.writer.flush()  # a run that is killed goes on after this, and writes no line twice
        meta = {"data": self.corpus.fingerprint, "early_stop": dict(self.early_stop.state)}
        self.checkpoints.save(step, state, meta, self.latest.get(step, {}))
        self.saved_step = step
        self.speed.pause(time.perf_counter() - start)

    def _explain(self, state: State, frozen) -> None:
        """Writes per-layer norms of the step whose loss was not finite, and raises NonFinite."""
        step = self.bad_step
        batch = self._batch_at(step - 1)
        rng = jax.random.fold_in(jax.random.key(self.config.seed), step - 1)

        def norms(params, extras, frozen, batch):
            def loss(p):
                (total, weight), _ = self.task.loss(p, extras, frozen, batch, rng, True)
                return total / weight

            trees = {"params": params}
            if not self.task.players:  # a round has no one gradient
                trees["gradients"] = jax.grad(loss)(params)
            return {
                kind: {k: _layer_norms(k, x) for k, x in named_leaves(tree).items()}
                for kind, tree in trees.items()
            }

        self.checkpoints.wait()  # of one that is being saved, which is then listed below
        self.lease.check()
        found = jax.jit(norms)(state.params, state.extras, frozen, batch)
        found = jax.tree_util.tree_map(lambda x: np.asarray(x).tolist(), jax.device_get(found))
        path = self.workdir / f"nonfinite-{step}.json"
        examples = self.data.examples_at(step - 1)
        if jax.process_index() == 0:
            path.write_text(
                json_text.dumps(
                    {"step": step, "examples": examples, "norms": found}, indent=1, spell=True
                )
            )
        saved = self.checkpoints.steps()
        raise NonFinite(
            f"{', '.join(self.not_finite)} of step {step} (batch {step - 1}, examples "
            f"{_brief(examples)}) is not finite. Norms by layer are in {path}. "
            f"{f'The checkpoints {saved} are intact.' if saved else 'No checkpoint was saved yet.'}"
            f"{self._first_nan(state, frozen, batch)} Lower {self._learning_rate()}, clip "
            "gradients, or look at those examples."
        )

    def _first_nan(self, state: State, frozen, batch) -> str:
        """A sentence about the operation that made the NaN, if train.debug_nans asks for it."""
        if not self.config.train.debug_nans:
            return ""
        before = state._replace(step=jnp.int32(self.bad_step - 1), halted=jnp.bool_(False))
        found = debug.first_nan(self.program.step.__wrapped__, before, frozen, batch)
        return (
            f" The first NaN: {found}."
            if found
            else " No operation gave NaN when that step was run again: it is an overflow."
        )

    def _learning_rate(self) -> str:
        """The key of the learning rate of what is not finite."""
        if self.task.players and self.not_finite[0].startswith("discriminator"):
            return "task.discriminator_learning_rate"
        if self.task.players and self.task.players.options.round(self.bad_step - 1)[0] != "mle":
            return "task.adversarial_learning_rate"
        return "optim.learning_rate"


def resolved(config, workdir: str = ""):
    """The config with what init_from and the data decide written into it, and what init_from names
    if that was opened for it."""
    config = config.copy_and_resolve_references()
    source = init_from.fill(config, workdir)
    with config.unlocked():
        config.model.update(models.all_fields(config.model))
    tasks.resolve(config)
    return config.lock(), source


def _layer_norms(name: str, x: jax.Array) -> jax.Array:
    """The norm of a parameter; of each layer where a scanned stack holds them together."""
    axes = tuple(range(1, x.ndim)) if "layers" in name.split("/") else None
    return jnp.sqrt(jnp.square(x.astype(jnp.float32)).sum(axis=axes))


def _brief(items: list, n: int = 8) -> str:
    return ", ".join(map(str, items[:n])) + (", ..." if len(items) > n else "")
