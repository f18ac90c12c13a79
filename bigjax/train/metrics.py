"""Where metrics are written: WORKDIR/metrics.jsonl, TensorBoard files, and a progress line."""

from collections.abc import Callable
import json
import pathlib
import sys
import tempfile
import time

from etils import epath
import jax
import psutil

from bigjax import json_text, paths
from bigjax.tasks import Task

# Peak dense bfloat16 FLOP/s per device, from the vendors' data sheets. A chip is one device, except
# that each of a TPU7x's two cores is one: half of the chip's 2,307 TFLOP/s.
PEAK_FLOPS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5p": 459e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "TPU7x": 1153.5e12,
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H200": 989e12,
}

METRICS, SAMPLES = "metrics.jsonl", "samples.jsonl"  # in a work folder: a line has its step
UPLOAD_SECONDS = 30  # a bucket accepts about one write per second of an object


class Writer:
    """Appends the metrics of steps to the files.

    Objects in a bucket cannot be appended to: for a bucket the files are written to a local folder
    and uploaded completely at most every UPLOAD_SECONDS and by `flush`.
    """

    def __init__(
        self,
        workdir,
        resumed_at: int,
        tensorboard: bool,
        check_held: Callable[[], None] = lambda: None,
    ):
        """check_held: raises if this process may no longer write to the work folder."""
        self._check_held = check_held
        self._workdir = self._folder = epath.Path(workdir)
        self._active = jax.process_index() == 0
        self._board = None
        if not self._active:
            return
        self._remote = "://" in str(workdir)
        if self._remote:
            self._folder = epath.Path(tempfile.mkdtemp(prefix="bigjax-"))
            self._uploaded, self._sizes = time.monotonic(), {}
        for name in (METRICS, SAMPLES):
            self._forget_after(resumed_at, name)
        if tensorboard:
            import tensorboardX  # slow to import

            self._board = tensorboardX.SummaryWriter(
                str(self._folder / "tensorboard"), purge_step=resumed_at + 1
            )

    def _forget_after(self, step: int, name: str) -> None:
        """Drops the lines that will be written again: those after `step`, from which training
        resumes; all for step 0, which is evaluated again."""
        old = self._workdir / name
        if not old.exists():
            return
        kept = []
        for line in old.read_bytes().splitlines():
            try:
                if 0 < step >= json.loads(line)["step"]:
                    kept.append(line + b"\n")
            except (ValueError, LookupError, TypeError):
                pass  # a line truncated when the process was killed
        paths.write_atomically(self._folder / name, b"".join(kept))

    def write(self, step: int, metrics: dict[str, float]) -> None:
        if not self._active:
            return
        self.append(METRICS, [json_text.dumps({"step": step, **metrics})])
        if self._board:  # one event for all: add_scalar for each takes ten times as long
            from tensorboardX.proto.summary_pb2 import Summary

            self._board.file_writer.add_summary(
                Summary(value=[Summary.Value(tag=k, simple_value=v) for k, v in metrics.items()]),
                step,
            )
        if self._remote and time.monotonic() - self._uploaded > UPLOAD_SECONDS:
            self.flush()

    def append(self, name: str, lines: list[str]) -> None:
        """Appends lines to a file of the work folder: METRICS or SAMPLES."""
        if not self._active:
            return
        if not self._remote:
            self._check_held()
        with (self._folder / name).open("a") as f:
            f.write("".join(f"{line}\n" for line in lines))

    def flush(self) -> None:
        """Makes everything written so far durable."""
        if self._board:
            self._board.flush()
        if not self._active or not self._remote:
            return
        self._check_held()
        for path in [p for p in pathlib.Path(self._folder).rglob("*") if p.is_file()]:
            name, content = str(path.relative_to(self._folder)), path.read_bytes()
            if self._sizes.get(name) != len(content):  # they only grow
                paths.write_atomically(self._workdir / name, content)
                self._sizes[name] = len(content)
        self._uploaded = time.monotonic()

    def close(self) -> None:
        if self._board:
            self._board.close()
            self._board = None
        try:
            self.flush()
        finally:
            if self._active and self._remote:
                self._folder.rmtree()


REWARD = "reward"  # of tasks with rollouts, whose loss says little


def is_loss(name: str) -> bool:
    """Whether a training metric is a loss; each of several networks has one."""
    return name.split("/")[-1] == "loss"


class Speed:
    """Steps, examples, the task's units and FLOPs per second between two calls of `read`, without
    the time of evaluations and saving."""

    def __init__(self, task: Task, batch_size: int):
        """batch_size 0: steps are of different kinds, so only steps are counted."""
        self._task, self._batch = task, batch_size
        self._peak = PEAK_FLOPS.get(jax.devices()[0].device_kind, 0) * jax.device_count()
        self._step, self._time, self.waited = None, 0.0, 0.0

    def restart(self, step: int) -> None:
        """Measures from this step on. Called after the first step, which compiles."""
        self._step, self._time, self.waited = step, time.perf_counter(), 0.0

    def pause(self, seconds: float) -> None:
        """Excludes time that was not training."""
        self._time += seconds

    def read(self, step: int) -> dict[str, float]:
        now = time.perf_counter()
        out = {"host_memory_gib": psutil.Process().memory_info().rss / 2**30}
        if self._step is not None:
            seconds = max(now - self._time, 1e-9)
            steps = (step - self._step) / seconds
            rate, task = steps * self._batch, self._task
            out.update(steps_per_sec=steps, data_wait_fraction=self.waited / seconds)
            if self._batch:
                out["examples_per_sec"] = rate
                out[f"{task.unit}_per_sec"] = rate * task.units_per_example
            if self._peak and task.flops_per_example:
                out["mfu"] = rate * task.flops_per_example / self._peak
        self.restart(step)
        return out


class Progress:
    """Progress for people: a live line at the bottom of a terminal, plain lines elsewhere."""

    def __init__(self, steps: int):
        self._steps, self._start, self._live, self._task = steps, None, None, None
        if sys.stdout.isatty():
            from rich import progress

            self._live = progress.Progress(
                progress.TextColumn("step {task.completed}/{task.total}"),
                progress.BarColumn(),
                progress.TextColumn("{task.fields[numbers]}"),
                progress.TimeRemainingColumn(),
            )

    def log(self, text: str) -> None:
        """Prints a separate line, in one process only."""
        # Asked as late as this because process_index starts jax.
        if jax.process_index():
            return
        if self._live and self._task is not None:
            self._live.console.print(text, markup=False, highlight=False)
        else:
            print(text, flush=True)

    def update(self, step: int, metrics: dict[str, float], unit: str = "examples") -> None:
        """unit: of the task, whose rate is shown."""
        if jax.process_index():
            return
        now = time.perf_counter()
        shown = {k: v for k, v in metrics.items() if is_loss(k) or k == REWARD}
        numbers = "  ".join(f"{k} {v:.4f}" for k, v in shown.items())
        if f"{unit}_per_sec" in metrics:
            numbers += f"  {metrics[f'{unit}_per_sec']:,.0f} {unit.replace('_', ' ')}/s"
        if "mfu" in metrics:
            numbers += f"  MFU {metrics['mfu']:.1%}"
        if self._live:
            if self._task is None:
                self._live.start()
                self._task = self._live.add_task(
                    "", total=self._steps, completed=step, numbers=numbers
                )
            self._live.update(self._task, completed=step, numbers=numbers)
            return
        eta = ""
        if self._start is None:
            self._start = (step, now)  # after the step that compiled
        elif step > self._start[0]:
            left = (self._steps - step) * (now - self._start[1]) / (step - self._start[0])
            eta = f"  ETA {int(left // 60)}:{int(left % 60):02d}"
        print(f"step {step}/{self._steps}  {numbers}{eta}", flush=True)

    def close(self) -> None:
        if self._live:
            self._live.stop()
