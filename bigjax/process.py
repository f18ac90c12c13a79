"""What a command's process does about signals and about its standard streams.

Standard library alone, so that it works before the slow imports, which may be interrupted too.
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
GRACE_SECONDS = 5.0  # from a signal to the end, whatever the main thread is doing
# What to do before the process is ended from another thread or on another host's word, where no
# `finally` runs: a lease is given back.
before_exit: list[Callable[[], None]] = []


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM, where nothing takes care of it in another way. number: the signal."""

    def __init__(self, number: int):
        super().__init__(number)
        self.number = number


class _State:
    installed = False
    first: int | None = None  # the signal that raised Interrupted
    caught = threading.Event()  # `main` has it, and is saying so
    ending = threading.Lock()


def exit_code(number: int) -> int:
    """Of a process that a signal ended, as shells say it: 130 for Ctrl-C, 143 for SIGTERM."""
    return 128 + number


def describe(number: int) -> str:
    """What is said of a signal that ends a command."""
    name = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
    return f"interrupted by {name}. What was complete, such as saved checkpoints, is intact."


# --- Signals ----------------------------------------------------------------------------------


def handle_signals() -> None:
    """From here on the first SIGINT or SIGTERM raises Interrupted; a second one ends the process.

    So does GRACE_SECONDS after the first one, if the exception has not reached `main` by then: the
    main thread may be compiling, where Python runs no handler, or a library may have swallowed it.
    """
    for number in SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:  # a shell's background job ignores Ctrl-C
            signal.signal(number, _handle)
    sys.unraisablehook = unraisable_hook
    _State.installed = True


def watch_signals() -> None:
    """Starts the thread that keeps to GRACE_SECONDS, if `handle_signals` was called."""
    if not _State.installed:
        return
    read, write = os.pipe()
    os.set_blocking(write, False)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(read,), daemon=True).start()
    os.register_at_fork(after_in_child=_leave_to_parent)
    if _State.first is not None:  # it came just before
        os.write(write, bytes([_State.first]))


def interrupted() -> int | None:
    """The signal that has raised Interrupted, if one has: other errors follow from it."""
    return _State.first


def second_interrupt():
    """The handler of a Ctrl-C that follows one that is being taken care of: it ends at once."""
    return end if _State.installed else signal.default_int_handler


def caught() -> None:
    """To be called where Interrupted has been caught, or a command has done its work: what follows
    is not cut off."""
    _State.caught.set()
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def run_before_exit() -> None:
    """Does what `before_exit` holds, each for at most GRACE_SECONDS: storage may not answer."""
    for act in before_exit:
        thread = threading.Thread(target=act, daemon=True)
        thread.start()
        thread.join(GRACE_SECONDS)


def end(number: int, frame=None) -> None:
    """Ends the process at once, with one line. On many hosts the others end too."""
    del frame
    if not _State.ending.acquire(blocking=False):
        return  # the other thread does this
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
    """Whether something is being imported: an exception within a module of C++ that is being
    initialised may crash the process, or come out as an ImportError."""
    while frame:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _watch(read: int) -> None:
    """Gets each signal's number in a thread of its own."""
    while number := os.read(read, 1):
        if signal.getsignal(number[0]) is _handle and not _State.caught.wait(GRACE_SECONDS):
            end(number[0])


def _leave_to_parent() -> None:
    """A forked child that gets a signal must not tell its parent, whose pipe it has."""
    signal.set_wakeup_fd(-1)
    for number in SIGNALS:
        if signal.getsignal(number) is _handle:
            signal.signal(number, signal.SIG_DFL)


def unraisable_hook(unraisable) -> None:
    """Python only prints what is raised in a destructor or a callback of C++, and goes on."""
    if isinstance(unraisable.exc_value, Interrupted):
        end(unraisable.exc_value.number)
    # Orbax's other writes raise this when one has failed, which is reported once.
    if str(unraisable.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)


# --- Streams ----------------------------------------------------------------------------------


class _Output(io.TextIOWrapper):
    """Standard output: what it cannot encode is escaped; errors name it, as files' errors do."""

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
    except BrokenPipeError:  # its reader has had enough
        raise
    except OSError as e:
        raise RunError(f"Standard output cannot be written: {e.strerror or e}.") from e


def open_streams() -> None:
    """Makes standard output able to take any text, and gives closed streams a place to go.

    A closed one would also give its number to the next file that is opened, into which libraries
    would then print.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free: this one
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
    """Gives up on standard output, so that Python does not try to write the rest at its end."""
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
