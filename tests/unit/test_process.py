"""Signals, standard streams, and how a command ends."""

import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest

from bigjax import cli, json_text, main, process
from bigjax.errors import UserError
from bigjax.train import hooks

PYTHON = sys.executable


def python(code: str, *, shell: str = '"$@"', **env) -> subprocess.CompletedProcess:
    """Runs code in a separate process; shell: a bash script, in which "$@" is the command."""
    return subprocess.run(
        ["bash", "-c", shell, "-", PYTHON, "-c", code],
        capture_output=True,
        encoding=env.get("PYTHONIOENCODING", "utf-8"),
        env={**os.environ, **env},
        timeout=60,
    )


# A command that only prints, so it needs no slow import.
PRINTS = """
import sys
from bigjax import main, process
def run(argv):
    {body}
    return 0
sys.modules["bigjax.cli"] = type(sys)("bigjax.cli")
sys.modules["bigjax.cli"].run = run
import bigjax
bigjax.cli = sys.modules["bigjax.cli"]
main.cli()
"""


def prints(body: str, **how) -> subprocess.CompletedProcess:
    return python(PRINTS.format(body=body), **how)


# --- Standard streams -------------------------------------------------------------------------


@pytest.mark.parametrize("env", [{"PYTHONIOENCODING": "ascii"}, {"PYTHONIOENCODING": "latin-1"}])
def test_unencodable_output_is_escaped(env):
    done = prints("print('caf\\u00e9 \\u65e5 \\U0001f389 \\ud800 end')", **env)
    assert done.returncode == 0 and "\\u65e5 \\U0001f389 \\ud800 end" in done.stdout, done.stderr


def test_utf8_output_is_unchanged():
    done = prints("print('caf\\u00e9')", PYTHONIOENCODING="utf-8")
    assert done.stdout == "caf\u00e9\n"


@pytest.mark.parametrize("flush", [False, True])
def test_a_full_disk_for_standard_output_is_reported(flush):
    done = prints(f"print('x' * 10, flush={flush})", shell='"$@" > /dev/full')
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr == (
        "bigjax: Standard output cannot be written: No space left on device. "
        "Redirect it elsewhere.\n"
    )


def test_files_do_not_get_the_descriptors_of_closed_streams(tmp_path):
    body = f"f = open({str(tmp_path / 'x')!r}, 'w'); print('lost'); print('e', file=sys.stderr)"
    done = prints(body, shell='"$@" <&- >&- 2>&-')
    assert done.returncode == 0 and (tmp_path / "x").read_text() == ""


def test_a_reader_that_closes_the_pipe_causes_no_message():
    done = prints("[print('x' * 100) for _ in range(10_000)]", shell='"$@" | head -1; exit $?')
    assert done.stderr == "" and done.stdout.count("\n") == 1


# --- Signals ----------------------------------------------------------------------------------

LINE = "bigjax: interrupted by {}. Completed work, such as saved checkpoints, is intact.\n"


@pytest.mark.parametrize(
    "body",
    [
        "os.kill(os.getpid(), signal.SIGINT); time.sleep(30)",
        # During an import, where an exception may crash a library that is being initialised.
        """
    import pathlib, tempfile
    folder = tempfile.mkdtemp()
    pathlib.Path(folder, "slow_module.py").write_text(
        "import os, signal, time\\ntry: os.kill(os.getpid(), signal.SIGINT); time.sleep(30)\\n"
        "except BaseException: os._exit(3)")
    sys.path.append(folder)
    import slow_module""",
        # A library replaces the exception by its own, as nanobind does in an import.
        """
    try: os.kill(os.getpid(), signal.SIGINT); time.sleep(30)
    except KeyboardInterrupt: raise ImportError("while initializing")""",
        # In a destructor Python only prints it.
        """
    class A:
        def __del__(self): os.kill(os.getpid(), signal.SIGINT); time.sleep(0.1)
    A(); time.sleep(30)""",
        # Swallowed, or always in C++.
        """
    process.GRACE_SECONDS = 0.2
    try: os.kill(os.getpid(), signal.SIGINT); time.sleep(30)
    except BaseException: pass
    time.sleep(30)""",
        # Twice: the second one while the first is being handled.
        """
    try: os.kill(os.getpid(), signal.SIGINT); time.sleep(30)
    finally: os.kill(os.getpid(), signal.SIGINT); time.sleep(30)""",
    ],
    ids=["plain", "importing", "turned", "destructor", "swallowed", "twice"],
)
def test_ctrl_c_ends_with_one_line(body):
    done = prints("import os, signal, time\n    " + body.strip())
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr == LINE.format("Ctrl-C")


def test_sigterm_ends_with_another_code():
    done = prints(
        "import os, signal, time\n    os.kill(os.getpid(), signal.SIGTERM); time.sleep(9)"
    )
    assert (done.returncode, done.stderr) == (143, LINE.format("SIGTERM"))


def test_a_background_job_that_ignores_ctrl_c_keeps_ignoring_it():
    body = "import os, signal\n    os.kill(os.getpid(), signal.SIGINT); print('done')"
    done = prints(body, shell="trap '' INT; exec \"$@\"")
    assert (done.returncode, done.stdout) == (0, "done\n")


def test_without_the_command_line_a_second_ctrl_c_raises_as_usual():
    assert process.second_interrupt() is signal.default_int_handler
    assert main.main is not None and process.interrupted() is None


def test_an_unexpected_error_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr(cli, "run", abs)  # not a function of this file, which would be a user's
    with pytest.raises(TypeError, match="abs"):
        main.main(["train"])


def test_an_error_does_not_wait_for_threads():
    done = prints(
        """
    import threading, time
    from bigjax.errors import UserError
    threading.Thread(target=time.sleep, args=(100,)).start()
    print("before")
    raise UserError("bad input")"""
    )
    assert (done.returncode, done.stdout) == (2, "before\n")
    assert done.stderr == "bigjax: bad input\n"


@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM"])
def test_a_signal_after_the_work_is_done_changes_nothing(number):
    """Such as a second Ctrl-C while Python exits."""
    done = prints(
        f"""
    import atexit, os, signal
    atexit.register(lambda: os.kill(os.getpid(), signal.{number}))
    print("done")"""
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


# --- JSON -------------------------------------------------------------------------------------


def test_json_has_no_nan_and_no_infinity():
    import numpy as np

    value = {"a": float("nan"), "b": [np.float64("-inf"), 1.5], "c": (float("inf"),), "d": "NaN"}
    assert json_text.dumps(value) == '{"a": null, "b": [null, 1.5], "c": [null], "d": "NaN"}'
    assert json_text.dumps(value["b"], spell=True) == '["-inf", 1.5]'
    assert json_text.count_non_finite(value) == 3 and json_text.count_non_finite([1, "x"]) == 0


def test_a_file_that_cannot_be_used_is_named(monkeypatch, capsys, tmp_path):
    def run(argv):
        open(tmp_path / ("x" * 300))

    monkeypatch.setattr(cli, "run", run)
    assert main.main(["train"]) == 2
    err = capsys.readouterr().err
    assert "xxx" in err and "cannot be used: File name too long" in err and err.count("\n") == 1


def test_user_errors_have_an_exit_code():
    assert UserError.exit_code == 2 and process.exit_code(signal.SIGTERM) == 143


def test_a_signal_to_a_forked_child_does_not_reach_its_parent():
    body = """
    import os, signal, time
    child = os.fork()
    if not child:
        time.sleep(60)
    time.sleep(0.2)
    os.kill(child, signal.SIGTERM)
    print(os.waitpid(child, 0)[1] == signal.SIGTERM)
    time.sleep(0.5)  # longer than the parent's grace period
    """
    done = prints(body.strip().replace("import os", "process.GRACE_SECONDS = 0.1; import os", 1))
    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr


def test_only_orbaxs_errors_after_a_failed_save_or_read_are_suppressed(monkeypatch):
    messages = []
    monkeypatch.setattr(sys, "__unraisablehook__", messages.append)
    given_up, caused = RuntimeError("while reading"), RuntimeError("other")
    given_up.__cause__, caused.__cause__ = GeneratorExit(), ValueError()
    errors = RuntimeError("Event loop is closed"), given_up, caused, RuntimeError("other"), None
    closed, given_up, *others = (SimpleNamespace(exc_value=e) for e in errors)
    for unraisable in (closed, given_up, *others):
        process.unraisable_hook(unraisable)
    assert messages == others


def test_a_signal_while_an_error_is_printed_gives_no_traceback():
    done = prints(
        """
    import signal
    from bigjax.errors import UserError
    class Told(UserError):
        def __str__(self):
            signal.raise_signal(signal.SIGTERM)
    raise Told"""
    )
    assert done.returncode == 143
    assert (
        done.stderr.startswith("bigjax: interrupted by SIGTERM.") and done.stderr.count("\n") == 1
    )


def test_training_keeps_ignoring_a_signal_that_its_shell_ignores():
    old = {n: signal.getsignal(n) for n in process.SIGNALS}
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        stop = hooks.StopOnSignal(0)
        signal.raise_signal(signal.SIGINT)
        assert stop.received is None and not stop.due(1)
        signal.raise_signal(signal.SIGTERM)
        assert stop.received == "SIGTERM" and stop.due(2)
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
        stop.close()
        assert signal.getsignal(signal.SIGTERM) == old[signal.SIGTERM]
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def test_files_are_written_in_utf8_in_any_locale(tmp_path):
    done = python(
        f"""
import locale
from bigjax.projects.seqgan.hot_words import write_hot_words
assert locale.getpreferredencoding(False).upper() not in ("UTF-8", "UTF8")
write_hot_words({str(tmp_path / "words")!r}, {{"\\u65e5\\u672c": 2.0}})
""",
        LC_ALL="C",
        PYTHONUTF8="0",
        PYTHONCOERCECLOCALE="0",
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "words").read_bytes() == "\u65e5\u672c\t2\n".encode()
