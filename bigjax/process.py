"""Signals and standard streams of a command's process.

Uses only the standard library, so that it works before the slow imports, which may be interrupted.
"""

from collections.abc import Callable
import contextlib
import io
import os
import signal
import sys
import threading

from bigjax.errors import RunError

SIGNALS = (signal.SIGINT, signal.SIGTERM)
GRACE_SECONDS = 5.0  # from a signal to the exit, whatever the main thread is doing
# Callbacks for when the process is ended by another thread or another host, where no `finally`
# runs: they release a lease.
before_exit: list[Callable[[], None]] = []


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM, where nothing else handles it. number: the signal."""

    def __init__(self, number: int):
        super().__init__(number)
        self.number = number


class _State:
    installed = False
    first: int | None = None  # the signal that raised Interrupted
    caught = threading.Event()  # `main` has caught it and is printing its message
    ending = threading.Lock()  # held by the thread that ends the process


def exit_code(number: int) -> int:
    """Exit code of a process that a signal ended, as in shells: 130 for Ctrl-C, 143 for SIGTERM."""
    return 128 + number


def describe(number: int) -> str:
    """The message for a signal that ends a command."""
    name = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
    return f"interrupted by {name}. Completed work, such as saved checkpoints, is intact."


# --- Signals ----------------------------------------------------------------------------------


def handle_signals() -> None:
    """Makes the first SIGINT or SIGTERM raise Interrupted, and a second one end the process.

    The process also ends GRACE_SECONDS after the first one if the exception has not reached `main`
    by then: the main thread may be compiling, where Python runs no handler, or a library may have
    swallowed the exception.
    """
    for number in SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:  # a shell's background job ignores Ctrl-C
            signal.signal(number, _handle)
    sys.unraisablehook = unraisable_hook
    _State.installed = True


def watch_signals() -> None:
    """Starts the thread that enforces GRACE_SECONDS, if `handle_signals` was called."""
    if not _State.installed:
        return
    read, write = os.pipe()
    os.set_blocking(write, False)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(read,), daemon=True).start()
    os.register_at_fork(after_in_child=_reset_in_child)
    if _State.first is not None:  # the signal came just before
        os.write(write, bytes([_State.first]))


def interrupted() -> int | None:
    """The signal that has raised Interrupted, if one has: other errors follow from it."""
    return _State.first


def second_interrupt():
    """The handler for a second Ctrl-C while the first is being handled: ends the process."""
    return end if _State.installed else signal.default_int_handler


def caught() -> None:
    """Ignores further signals. Call it after Interrupted was caught or a command has finished."""
    _State.caught.set()
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def run_before_exit() -> None:
    """Runs the callbacks of `before_exit`, each for at most GRACE_SECONDS: storage may hang."""
    for callback in before_exit:
        thread = threading.Thread(target=callback, daemon=True)
        thread.start()
        thread.join(GRACE_SECONDS)


def end(number: int, frame=None) -> None:
    """Ends the process immediately, with one line of output, and the run's other hosts with it."""
    del frame
    if not _State.ending.acquire(blocking=False):
        return  # another thread is doing it
    run_before_exit()
    hosts = sys.modules.get("bigjax.parallel.hosts")
    if hosts:
        with contextlib.suppress(Exception):
            hosts.fail(describe(number), exit_code(number))  # returns only on one host
    with contextlib.suppress(Exception):
        sys.stdout.flush()
    with contextlib.suppress(OSError):
        os.write(2, f"bigjax: {describe(number)}\n".encode())
    os._exit(exit_code(number))


def _handle(number: int, frame) -> None:
    if _State.first is not None or _imports(frame):
        end(number)
    _State.first = number
    raise Interrupted(number)


def _imports(frame) -> bool:
    """Whether an import is in progress: an exception during the initialisation of a C++ module may
    crash the process or turn into an ImportError."""
    while frame:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _watch(read: int) -> None:
    """Reads signal numbers in a separate thread, and ends the process after the grace period."""
    while number := os.read(read, 1):
        if signal.getsignal(number[0]) is _handle and not _State.caught.wait(GRACE_SECONDS):
            end(number[0])


def _reset_in_child() -> None:
    """In a forked child: a signal to the child must not be written to the parent's pipe."""
    signal.set_wakeup_fd(-1)
    for number in SIGNALS:
        if signal.getsignal(number) is _handle:
            signal.signal(number, signal.SIG_DFL)


def unraisable_hook(unraisable) -> None:
    """Ends the process for an Interrupted raised in a destructor or in a C++ callback, where Python
    would only print it."""
    if isinstance(unraisable.exc_value, Interrupted):
        end(unraisable.exc_value.number)
    # After one of Orbax's writes or reads fails, the others raise these; the failure itself is
    # reported. Reads are given up later, when garbage is collected.
    write = str(unraisable.exc_value) == "Event loop is closed"
    read = isinstance(getattr(unraisable.exc_value, "__cause__", None), GeneratorExit)
    if not (write or read):
        sys.__unraisablehook__(unraisable)


# --- Streams ----------------------------------------------------------------------------------


class _Output(io.TextIOWrapper):
    """Standard output with unencodable characters escaped and with errors that name it."""

    def write(self, text: str) -> int:
        with _named():
            return super().write(text)

    def flush(self) -> None:
        with _named():
            super().flush()


@contextlib.contextmanager
def _named():
    try:
        yield
    except BrokenPipeError:  # its reader has closed it
        raise
    except OSError as e:
        raise RunError(
            f"Standard output cannot be written: {e.strerror or e}. Redirect it elsewhere."
        ) from e


def open_streams() -> None:
    """Makes standard output accept any text, and opens streams that were closed on /dev/null.

    The next file that is opened would otherwise get a closed stream's descriptor, and libraries
    would print into it.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free descriptor: this one
    if sys.stderr is None:
        sys.stderr = open(2, "w", errors="backslashreplace", closefd=False)
    if sys.stdout is None:
        sys.stdout = open(1, "w", closefd=False)
    out = sys.stdout
    sys.stdout = _Output(
        out.detach(),
        encoding=out.encoding,
        errors="backslashreplace",
        line_buffering=out.line_buffering,
    )


def close_output() -> None:
    """Discards standard output, so that Python does not try to flush it at exit."""
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
