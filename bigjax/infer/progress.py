"""How far a command is that makes texts for many inputs."""

from collections.abc import Callable
import sys
import time
from typing import Any

from bigjax.plural import plural

LOG_SECONDS = 30.0


class Bar:
    """Inputs done: a bar on a terminal, elsewhere a line every 30 seconds. done: how many."""

    def __init__(
        self,
        n: int,
        done: int,
        verb: str,
        unit: str,
        log: Callable[[str], None],
        stream: Any = None,
    ) -> None:
        """verb: what is done with them, without its ending: 'generat' for 'generating' and
        'generated'. stream: of the bar; by default sys.stdout."""
        self._n, self.done, self._first = n, done, done
        self._verb, self._unit, self._log = verb, unit, log
        self._stream = sys.stdout if stream is None else stream
        self._bar = self._task = None

    def __enter__(self) -> "Bar":
        self._start = self._logged = time.monotonic()
        if self._stream.isatty():
            from rich import console, progress

            self._bar = progress.Progress(
                progress.TextColumn(f"{self._verb}ing"),
                progress.BarColumn(),
                progress.MofNCompleteColumn(),
                progress.TextColumn("{task.description}"),
                progress.TimeElapsedColumn(),
                progress.TimeRemainingColumn(),
                console=console.Console(file=self._stream),
                redirect_stdout=sys.stdout.isatty(),  # else it is a file or a pipe
                transient=True,
            )
            self._bar.start()
            self._task = self._bar.add_task("", total=self._n, completed=self.done)
        return self

    def add(self, n: int, detail: str = "") -> None:
        """n: inputs that are done now. detail: of the progress, such as '0.5 hours'."""
        self.done += n
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done, description=detail)
            return
        now = time.monotonic()
        if now - self._logged >= LOG_SECONDS:
            self._logged = now
            rate = (self.done - self._first) / (now - self._start)
            left = f", about {(self._n - self.done) / rate:.0f} s left" if rate else ""
            self._log(
                f"{self._verb}ed {self.done:,} of {self._n:,} {plural(self._n, self._unit)}"
                f"{f', {detail}' if detail else ''}, {rate:.1f}/s{left}"
            )

    def __exit__(self, *exc: object) -> None:
        if self._bar is not None:
            self._bar.stop()
