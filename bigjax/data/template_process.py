"""Templates in Jinja, which may come from anyone, rendered with limits on time, memory and size."""

from collections.abc import Mapping, Sequence
import contextlib
import functools
import importlib.util
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from typing import Any
import weakref

from bigjax.data import _template_worker
from bigjax.errors import UserError

SECONDS = 2.0  # of CPU time for one conversation
_WALL_SECONDS = 60.0  # where the process gets no CPU time
_MEMORY = 1 << 30
_MAX_CHARS = 20_000_000
# Characters that no text has: Unicode reserves them for the use within a program.
NONCHARACTERS = tuple(map(chr, range(0xFDD0, 0xFDF0)))


class TemplateProcess:
    """A process that renders one Jinja template in a sandbox; it starts when it is needed.

    date: that strftime_now gives, as YYYY-MM-DD; '' = today. form: "chat", or "harness" for a
    template of an evaluation's rows, see _template_worker.py. May be used from several threads.
    """

    def __init__(
        self,
        template: str,
        name: str,
        date: str = "",
        seconds: float = SECONDS,
        form: str = "chat",
    ) -> None:
        self._template, self._name, self._date, self._seconds = template, name, date, seconds
        self._form = form
        self._lock = threading.Lock()
        self._child: subprocess.Popen | None = None

    def render(self, contexts: Sequence[Mapping[str, Any]]) -> list[str]:
        """The text of each context, plain JSON.

        Raises UserError, with the name of the template, if it is not valid, refuses the values,
        reads what the sandbox forbids, or exceeds a limit: of time for all contexts together.
        """
        request = {
            "template": self._template,
            "contexts": list(contexts),
            "date": self._date,
            "form": self._form,
        }
        with self._lock:
            reply = self._ask(json.dumps(request).encode() + b"\n")
        if "error" in reply:
            raise UserError(f"{self._name} cannot be rendered: {reply['error'].rstrip('.')}.")
        return reply["texts"]

    def close(self) -> None:
        """Ends the process; the next `render` starts another one."""
        child, self._child = self._child, None
        if child is not None:
            _end(child)

    def _ask(self, request: bytes) -> dict[str, Any]:
        child = self._running()
        try:
            _write(child, request)
            line = _read_line(child, time.monotonic() + _WALL_SECONDS)
        except TimeoutError:
            line = b""
        except BaseException:  # such as Ctrl-C: a late answer must not be taken for the next one
            self.close()
            raise
        if line:
            return json.loads(line)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(1)
        code = child.poll()
        self.close()
        if code in (-signal.SIGPROF, None):
            return {"error": f"it does not end within {self._seconds:g} seconds"}
        return {"error": f"its process ended with code {code}, such as for lack of memory"}

    def _running(self) -> subprocess.Popen:
        if self._child is None or self._child.poll() is not None:
            self.close()
            numbers = map(str, (self._seconds, _MEMORY, _MAX_CHARS))
            # -I, -S: neither the environment nor the packages change what it imports.
            self._child = subprocess.Popen(
                [sys.executable, "-I", "-S", _template_worker.__file__, *numbers, *_folders()],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
            weakref.finalize(self, _end, self._child)
        return self._child


@functools.cache
def _folders() -> tuple[str, ...]:
    """The folders from which the process imports Jinja."""
    origins = [importlib.util.find_spec(name).origin for name in ("jinja2", "markupsafe")]
    return tuple(dict.fromkeys(os.path.dirname(os.path.dirname(origin)) for origin in origins))


def _end(child: subprocess.Popen) -> None:
    if child.poll() is None:
        child.kill()
    child.wait()
    for pipe in (child.stdin, child.stdout):
        with contextlib.suppress(OSError):
            pipe.close()


def _write(child: subprocess.Popen, request: bytes) -> None:
    with contextlib.suppress(BrokenPipeError):  # the process has ended, as reading will show
        child.stdin.write(request)
        child.stdin.flush()


def _read_line(child: subprocess.Popen, deadline: float) -> bytes:
    """A line, b'' if the process has ended. Raises TimeoutError."""
    file, parts = child.stdout.fileno(), []
    while not (parts and parts[-1].endswith(b"\n")):
        ready, _, _ = select.select([file], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            raise TimeoutError
        parts.append(os.read(file, 1 << 20))
        if not parts[-1]:
            return b""
    return b"".join(parts)
