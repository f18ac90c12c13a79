"""What a run writes while it trains: metrics of steps and evaluations, and checkpoints."""

import re
import time

import numpy as np

from bigjax import config as config_lib
from bigjax.errors import UserError
from bigjax.evals import derive
from bigjax.train import metrics
from bigjax.train.state import State
from bigjax.train.step import unpack

# The run stops if one of these is not finite. With several networks each has its own, such as
# generator/loss.
FINITE = ("loss", "grad_norm", "param_norm", "update_norm")


class Reporter:
    """Writes metrics and checkpoints of a run.

    bad_step, bad_metrics: the step with metrics that are not finite, and their names; None and []
    without one. saved_step: the newest checkpoint in this work folder, or None.
    """

    def __init__(self, run, start: int, saved_step: int | None):
        """run: a train.run.Run that starts after step `start`."""
        self._run, self._first_step, self.saved_step = run, start + 1, saved_step
        c, task = run.config, run.program.task
        self.bad_step: int | None = None
        self.bad_metrics: list[str] = []
        self._writer = metrics.Writer(run.folder, start, c.log.tensorboard, run.lease.check)
        self.speed = metrics.Speed(task, c.train.batch_size if run.batches.epoch_steps else 0)

    def close(self) -> None:
        self._writer.close()

    def report(self, step: int, metrics: dict, waited: float) -> bool:
        """Writes a step's metrics when they are due; True if one of FINITE is not finite."""
        run, c = self._run, self._run.config
        self.speed.waited += waited
        values = unpack(metrics)
        self.bad_metrics = [
            k for k, v in values.items() if k.split("/")[-1] in FINITE and not np.isfinite(v)
        ]
        if self.bad_metrics:
            self.bad_step = step
            return True
        due = step in (1, c.train.steps) or step % c.log.every == 0
        if due or step == self._first_step:
            values = {**derive(values), **self.speed.read(step)}
            if run.batches.epoch_steps:
                values["epoch"] = step / run.batches.epoch_steps
            run.progress.update(step, values, run.program.task.unit)
        if due:  # only then: a resumed run writes the same lines as an uninterrupted one
            self._writer.write(step, values)
        return False

    def write_evaluation(self, step: int, name: str, values: dict) -> None:
        """Writes the metrics of an evaluation. Raises UserError if a watched one is missing."""
        run = self._run
        for key in ("train.early_stop.metric", "checkpoint.best"):
            metric = config_lib.get(run.config, key)
            if metric.startswith(f"eval/{name}/") and metric not in values:
                raise UserError(
                    f"config.{key}={metric!r}: this evaluation reports only "
                    f"{', '.join(values) or 'no metrics'}."
                )
        if not values:
            return
        latest = run.early_stop.latest
        if step not in latest:
            latest.clear()
        latest.setdefault(step, {}).update(values)
        self._writer.write(step, values)
        short = {
            k.removeprefix("eval/"): v
            for k, v in values.items()
            if not re.search("/(precision|recall)_", k)
        }  # those of each label are in the files only
        run.progress.log(f"step {step}  " + "  ".join(f"{k} {v:.4f}" for k, v in short.items()))

    def write_samples(self, step: int, lines: list[str]) -> None:
        """Appends lines about a step to samples.jsonl."""
        self._writer.append(metrics.SAMPLES, lines)

    def save(self, step: int, state: State) -> None:
        run, start = self._run, time.perf_counter()
        self._writer.flush()  # a killed run resumes after this step, and writes no line twice
        meta = {
            "data": run.corpus.fingerprint,
            "early_stop": dict(run.early_stop.state),
            "frozen": run.frozen.fingerprints,
        }
        run.checkpoints.save(step, state, meta, run.early_stop.latest.get(step, {}))
        self.saved_step = step
        self.speed.pause(time.perf_counter() - start)
