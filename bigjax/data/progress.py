"""Progress of work of unknown length: a live line on a terminal, a few plain lines elsewhere."""

from collections.abc import Callable
import sys
import time

_LOG_EVERY_SECONDS = 30.0


class Progress:
    """A context manager; `add(n_bytes)` after each piece of work.

    On a terminal it shows a spinner with the megabytes done and their speed until the work is done.
    Into a file or a pipe it writes one line every 30 s, so none for short work.
    """

    def __init__(self, title: str, log: Callable[[str], None] = print) -> None:
        self._title, self._log = title, log
        self._done = 0
        self._bar = self._task = None

    def __enter__(self) -> "Progress":
        self._start = self._logged = time.monotonic()
        if sys.stdout.isatty():
            from rich import progress

            self._bar = progress.Progress(
                progress.SpinnerColumn(),
                progress.TextColumn("{task.description}"),
                progress.FileSizeColumn(),
                progress.TransferSpeedColumn(),
                progress.TimeElapsedColumn(),
                transient=True,
            )
            self._bar.start()
            self._task = self._bar.add_task(self._title, total=None)
        return self

    def add(self, n_bytes: int) -> None:
        """Counts `n_bytes` of text as done, and shows it."""
        self._done += n_bytes
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done)
            return
        now = time.monotonic()
        if now - self._logged >= _LOG_EVERY_SECONDS:
            self._logged = now
            rate = self._done / 1e6 / (now - self._start)
            self._log(f"{self._title}: {self._done / 1e6:,.0f} MB of text, {rate:.1f} MB/s")

    def __exit__(self, *exc: object) -> None:
        if self._bar is not None:
            self._bar.stop()
