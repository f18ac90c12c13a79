"""Debugging of a run: an xprof trace of some steps, and the operation that produced a NaN first."""

from collections.abc import Callable, Iterator
import pathlib
import tempfile
import traceback
from typing import Any

from etils import epath
import jax

import bigjax
from bigjax import paths

_ROOT = pathlib.Path(bigjax.__file__).parent
_LIBRARIES = {"jax", "flax", "optax", "functools.py", "contextlib.py"}  # path components


class Profile:
    """Writes a trace of steps FIRST to LAST to WORKDIR/profile, for xprof or Perfetto.

    span: 'FIRST:LAST', the value of train.profile; with '' the methods return their arguments
    unchanged. In the trace each step is an annotation 'train' with its number, and calls of
    functions given to `named` have that name; the first step is also annotated 'compile'.
    """

    def __init__(self, span: str, workdir: epath.Path, start: int, log: Callable[[str], None]):
        self._on, self._log = bool(span), log
        self._first, self._last = map(int, span.split(":")) if span else (0, 0)
        self._target, self._folder = workdir / "profile", None
        self._start = self._done = start
        if span and self._first <= start:
            log(
                f"No profile is written: the run is at step {start}, past the first step of "
                f"train.profile={span!r}."
            )
            self._on = False

    def named(self, name: str, function: Callable) -> Callable:
        """The function, annotated with a name in the trace."""
        if not self._on:
            return function

        def annotated(*args):
            with jax.profiler.TraceAnnotation(name):
                return function(*args)

        return annotated

    def batches(self, batches: Iterator) -> Iterator:
        """The batches; the time spent waiting for one is annotated 'data'."""
        return iter(self.named("data", lambda: next(batches, None)), None) if self._on else batches

    def step(self, step: Callable) -> Callable:
        """The training step, which also starts and ends the trace."""
        if not self._on:
            return step
        compiled = self.named("compile", step)

        def traced(state, batch):
            first = self._done == self._start
            self._done += 1
            if self._done == self._first:
                self._begin()
            with jax.profiler.StepTraceAnnotation("train", step_num=self._done):
                out = (compiled if first else step)(state, batch)
            if self._done == self._last:
                jax.block_until_ready(out)
                self.close()
            return out

        return traced

    def _begin(self) -> None:
        remote = "://" in str(self._target)  # the profiler writes to local disks
        self._folder = epath.Path(tempfile.mkdtemp(prefix="bigjax-")) if remote else self._target
        options = jax.profiler.ProfileOptions()
        options.python_tracer_level = 0  # tracing Python calls takes megabytes per step
        jax.profiler.start_trace(str(self._folder), profiler_options=options)

    def close(self) -> None:
        """Ends the trace, if one was started."""
        if self._folder is None:
            return
        folder, self._folder = self._folder, None
        jax.profiler.stop_trace()
        if folder != self._target:
            for path in [p for p in pathlib.Path(folder).rglob("*") if p.is_file()]:
                paths.write_atomically(
                    self._target / path.relative_to(folder).as_posix(), path.read_bytes()
                )
            folder.rmtree()
        self._log(
            f"Wrote {self._target}: steps {self._first} to {self._done}. To view it: "
            f"pip install xprof && xprof --logdir={self._target}"
        )


def first_nan(step: Callable, *args: Any) -> str:
    """Runs step(*args) op by op; returns the first op that gives NaN and its line, or ''.

    step: not compiled, since a compiled one has no separate operations to check. It runs without a
    mesh, on the arrays as they are placed: outside jit, jax does not support a shard_map over a
    subset of the mesh axes.
    """
    no_mesh = jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), ()))
    try:
        with no_mesh, jax.debug_nans(True), jax.disable_jit():
            step(*args)
    except FloatingPointError as e:
        return f"{str(e).splitlines()[0].rstrip('.')}, at {_line(e)}"
    return ""


def _line(error: BaseException) -> str:
    """The innermost line outside libraries that raised an error. For a gradient: the line that is
    differentiated, which jax gives as the cause."""
    frames = []
    while error is not None:
        frames = [
            f
            for f in traceback.extract_tb(error.__traceback__)
            if not _LIBRARIES & {*pathlib.Path(f.filename).parts}
        ] or frames
        error = error.__cause__
    last = frames[-1]
    return f"{_shown(last.filename)}:{last.lineno}, in {last.name}: {last.line}"


def _shown(file: str) -> str:
    path = pathlib.Path(file)
    return str(path.relative_to(_ROOT.parent) if _ROOT in path.parents else path)
