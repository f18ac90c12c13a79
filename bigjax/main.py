"""The `bigjax` command: reads flags and dispatches."""

from collections.abc import Iterator
import os
import pathlib
import re
import signal
import sys
import sysconfig
import traceback
import types

from bigjax import cpu, process
from bigjax.errors import RunError, UserError, file_failure


def main(argv: list[str]) -> int:
    """Runs one command and returns its exit code.

    0: done; 2: bad input; 75: a transient failure, after which the same command may succeed;
    130 and 143: ended by Ctrl-C and SIGTERM; 1: anything else.
    """
    try:
        cpu.keep_freed_memory()  # before jax is imported and threads start
        process.watch_signals()
        from bigjax import cli

        return cli.run(argv)
    except KeyboardInterrupt as e:
        return _interrupted(getattr(e, "number", signal.SIGINT))
    except (UserError, RunError) as e:
        error = e
    except BrokenPipeError:  # `bigjax config | head`
        _tell_hosts("the reader of its output has closed it", 1)
        raise
    except Exception as e:
        if number := process.interrupted():  # while importing C++, for example
            return _interrupted(number)
        from bigjax import cloud

        error = _setting_failure(e) or _backend_failure(e) or cloud.failure(e) or file_failure(e)
        error = error or _own_code_failure(e)
        if error is None:
            _tell_hosts(f"{type(e).__name__}: {e}", 1, e)
            raise
    _tell_hosts(str(error), error.exit_code)
    print(f"bigjax: {error}", file=sys.stderr)
    return error.exit_code


def _interrupted(number: int) -> int:
    process.caught()
    text, code = process.describe(number), process.exit_code(number)
    _tell_hosts(text, code)
    print(f"bigjax: {text}", file=sys.stderr)
    return code


def _tell_hosts(text: str, code: int, unexpected: BaseException | None = None) -> None:
    """Ends the run on all hosts, if it has several."""
    hosts = sys.modules.get("bigjax.parallel.hosts")  # not imported for this: jax is slow to import
    if hosts:
        hosts.fail(text, code, unexpected)


def _frames(error: Exception) -> Iterator[types.CodeType]:
    """The code object of each frame in an error's traceback."""
    trace = error.__traceback__
    while trace:
        yield trace.tb_frame.f_code
        trace = trace.tb_next


def _setting_failure(error: Exception) -> UserError | None:
    """The error for an invalid environment setting that stops jax's import; None for any other."""
    inside = os.path.join("jax", "_src", "")
    frames = [code for code in _frames(error) if inside in code.co_filename]
    importing = any(code.co_name == "<module>" for code in frames)
    settings = any(code.co_filename.endswith("config.py") for code in frames)
    if not (isinstance(error, ValueError) and importing and settings):
        return None
    text = str(error)
    named = re.findall("jax_[a-z0-9_]+", text.lower())
    variables = [n for name in named if (n := name.upper()) in os.environ]
    variables = variables or sorted(n for n in os.environ if n.startswith("JAX_"))
    return UserError(
        f"jax rejects an environment variable: {text[:400]}. Correct or unset "
        f"{' or '.join(dict.fromkeys(variables))}."
    )


def _backend_failure(error: Exception) -> UserError | None:
    """The error for jax not being able to start its devices; None for any other.

    Any call that asks for a device may be the first to start jax, so the error itself is examined.
    """
    inside = any(
        code.co_name == "backends" and code.co_filename.endswith("xla_bridge.py")
        for code in _frames(error)
    )
    text = " ".join(str(error).split())
    if not inside and "Unable to initialize backend" not in text:
        return None
    asked = os.environ.get("JAX_PLATFORMS", "")
    return UserError(
        f"jax cannot start its devices (JAX_PLATFORMS={asked!r}): "
        f"{text[:400] or 'this machine has no such device, or its plugin is not installed'}. Set "
        "JAX_PLATFORMS=cpu to run on the CPU; if another process uses the TPU or GPU, end that "
        "process first."
    )


def _own_code_failure(error: Exception) -> UserError | None:
    """The error for an exception that passed through a file of the user's; None for any other.

    It shows the frames of these files only. None also if the environment asks jax for all frames.
    """
    frames = [f for f in traceback.extract_tb(error.__traceback__) if _is_own(f.filename)]
    if not frames or os.environ.get("JAX_TRACEBACK_FILTERING", "").lower() == "off":
        return None
    report = traceback.TracebackException.from_exception(error)
    report.__notes__ = None  # jax's, about frames that it removed
    return UserError(
        f"Your own code raised {type(error).__name__}:\n"
        f"{''.join(traceback.format_list(frames))}{''.join(report.format_exception_only())}"
        "JAX_TRACEBACK_FILTERING=off shows the frames of bigjax and jax too."
    )


def _is_own(file: str) -> bool:
    """Whether a file of Python code belongs to the user: not to Python, a package or bigjax."""
    folders = [os.path.dirname(os.path.abspath(__file__)), *sysconfig.get_paths().values()]
    installed = any(os.path.abspath(file).startswith(os.path.join(f, "")) for f in folders)
    return not installed and os.path.isfile(file)


def cli() -> None:
    if pathlib.Path(sys.argv[0]).stem in ("bigjax", "main"):  # else a program of the user's
        cpu.restart_with_huge_pages()
    process.open_streams()
    process.handle_signals()
    try:
        code = main(sys.argv[1:])
        sys.stdout.flush()
        if not code:
            process.caught()  # nothing is left to interrupt, and a signal would break Python's exit
    except process.Interrupted as e:  # while an error was printed
        code = _interrupted(e.number)
    except BrokenPipeError:
        process.close_output()
        code = 1
    except RunError as e:  # raised by standard output
        process.close_output()
        print(f"bigjax: {e}", file=sys.stderr)
        code = e.exit_code
    if code:  # Python's exit would wait for threads of what was interrupted or has failed:
        os._exit(code)  # Orbax's threads wait ten minutes for a save that could not start
    sys.exit(code)


if __name__ == "__main__":
    cli()
