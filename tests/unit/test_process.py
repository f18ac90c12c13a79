"""Signals, streams and devices: what a command says where it cannot run, and how it ends."""

import importlib
import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import jax
import pytest

from bigjax import cli, json_text, main, process
from bigjax.arguments import Arguments
from bigjax.errors import UserError
from bigjax.parallel import mesh as mesh_lib
from bigjax.plan import compile as compile_lib
from bigjax.train import hooks, import_model
from tests import helpers

PYTHON = sys.executable


def python(code: str, *, shell: str = '"$@"', **env) -> subprocess.CompletedProcess:
    """Runs code in a process of its own; shell: how, "$@" being the command."""
    return subprocess.run(
        ["bash", "-c", shell, "-", PYTHON, "-c", code],
        capture_output=True,
        encoding=env.get("PYTHONIOENCODING", "utf-8"),
        env={**os.environ, **env},
        timeout=60,
    )


# A command that prints and does nothing else, and so needs no slow import.
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
def test_what_standard_output_cannot_encode_is_escaped(env):
    done = prints("print('caf\\u00e9 \\u65e5 \\U0001f389 \\ud800 end')", **env)
    assert done.returncode == 0 and "\\u65e5 \\U0001f389 \\ud800 end" in done.stdout, done.stderr


def test_utf8_output_stays_as_it_is():
    done = prints("print('caf\\u00e9')", PYTHONIOENCODING="utf-8")
    assert done.stdout == "caf\u00e9\n"


@pytest.mark.parametrize("flush", [False, True])
def test_a_full_disk_behind_standard_output_is_named(flush):
    done = prints(f"print('x' * 10, flush={flush})", shell='"$@" > /dev/full')
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr == ("bigjax: Standard output cannot be written: No space left on device.\n")


def test_closed_streams_give_their_numbers_to_no_file(tmp_path):
    body = f"f = open({str(tmp_path / 'x')!r}, 'w'); print('lost'); print('e', file=sys.stderr)"
    done = prints(body, shell='"$@" <&- >&- 2>&-')
    assert done.returncode == 0 and (tmp_path / "x").read_text() == ""


def test_a_reader_that_has_had_enough_is_not_told():
    done = prints("[print('x' * 100) for _ in range(10_000)]", shell='"$@" | head -1; exit $?')
    assert done.stderr == "" and done.stdout.count("\n") == 1


# --- Signals ----------------------------------------------------------------------------------

LINE = "bigjax: interrupted by {}. Completed work, such as saved checkpoints, is intact.\n"


@pytest.mark.parametrize(
    "body",
    [
        "os.kill(os.getpid(), signal.SIGINT); time.sleep(30)",
        # Within an import, where an exception may crash a library that is being initialised.
        """
    import pathlib, tempfile
    folder = tempfile.mkdtemp()
    pathlib.Path(folder, "slow_module.py").write_text(
        "import os, signal, time\\ntry: os.kill(os.getpid(), signal.SIGINT); time.sleep(30)\\n"
        "except BaseException: os._exit(3)")
    sys.path.append(folder)
    import slow_module""",
        # A library turns the exception into one of its own, as nanobind does in an import.
        """
    try: os.kill(os.getpid(), signal.SIGINT); time.sleep(30)
    except KeyboardInterrupt: raise ImportError("while initializing")""",
        # In a destructor Python prints it and goes on.
        """
    class A:
        def __del__(self): os.kill(os.getpid(), signal.SIGINT); time.sleep(0.1)
    A(); time.sleep(30)""",
        # Swallowed, or in C++ all the time.
        """
    process.GRACE_SECONDS = 0.2
    try: os.kill(os.getpid(), signal.SIGINT); time.sleep(30)
    except BaseException: pass
    time.sleep(30)""",
        # Twice: the second one within what the first one ends.
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


def test_a_background_job_that_ignores_ctrl_c_goes_on_ignoring_it():
    body = "import os, signal\n    os.kill(os.getpid(), signal.SIGINT); print('done')"
    done = prints(body, shell="trap '' INT; exec \"$@\"")
    assert (done.returncode, done.stdout) == (0, "done\n")


def test_without_the_command_line_a_second_ctrl_c_raises_as_usual():
    assert process.second_interrupt() is signal.default_int_handler
    assert main.main is not None and process.interrupted() is None


# --- Devices ----------------------------------------------------------------------------------

IN_USE = (
    "Unable to initialize backend 'tpu': ABORTED: The TPU is already in use by process with pid "
    "1234. Not attempting to load libtpu.so in this process. (set JAX_PLATFORMS='' to choose)"
)


def test_a_tpu_that_is_in_use(monkeypatch, capsys):
    def run(argv):
        raise RuntimeError(IN_USE)

    monkeypatch.setattr(cli, "run", run)
    monkeypatch.setenv("JAX_PLATFORMS", "tpu")
    assert main.main(["train"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "JAX_PLATFORMS='tpu'" in err and "pid 1234" in err


@pytest.mark.parametrize(
    "platform", ["cuda", pytest.param("nonsense", marks=pytest.mark.slow)]
)  # 'tpu' where libtpu is not installed is said in the same way
def test_devices_that_are_not_here(platform):
    body = "import jax; jax.devices()"
    done = prints(body, JAX_PLATFORMS=platform)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert f"JAX_PLATFORMS='{platform}'" in done.stderr and "JAX_PLATFORMS=cpu" in done.stderr


@pytest.mark.parametrize(
    "name, value",
    [
        ("JAX_NUM_CPU_DEVICES", "abc"),
        pytest.param("JAX_ENABLE_X64", "abc", marks=pytest.mark.slow),
        pytest.param("JAX_TRANSFER_GUARD", "nonsense", marks=pytest.mark.slow),
        pytest.param("JAX_DEFAULT_MATMUL_PRECISION", "nonsense", marks=pytest.mark.slow),
        pytest.param("JAX_COMPILATION_CACHE_MAX_SIZE", "1.5", marks=pytest.mark.slow),
    ],
)
def test_a_setting_that_jax_does_not_take(name, value):
    done = prints("import jax", **{name: value})
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert f"unset {name}." in done.stderr and done.stdout == ""


@pytest.mark.parametrize(
    "name, value",
    [
        ("JAX_ENABLE_X64", True),
        ("JAX_DISABLE_JIT", True),
        ("JAX_NO_EXECUTION", True),
        ("JAX_NUMPY_DTYPE_PROMOTION", "strict"),
        ("JAX_NUMPY_RANK_PROMOTION", "raise"),
        ("JAX_CHECK_TRACER_LEAKS", True),
        ("JAX_TRANSFER_GUARD", "disallow"),
        ("JAX_TRANSFER_GUARD_HOST_TO_DEVICE", "disallow_explicit"),
    ],
)
def test_a_setting_of_jax_with_which_no_step_can_be_made(name, value, monkeypatch, tmp_path):
    """Wherever it comes from: jax does not show guards that the environment sets."""
    mesh_lib.check_settings()
    before = getattr(jax.config, name.lower())
    if "GUARD" in name:
        monkeypatch.setenv(name, value)
    else:
        jax.config.update(name.lower(), value)
    try:
        for start in (
            lambda: mesh_lib.start({}, 8),
            lambda: compile_lib.plans(None, "v5e:1x1"),
            lambda: import_model.import_run(tmp_path / "none", tmp_path / "run", print),
        ):
            with pytest.raises(UserError, match=f"{name} is {value!r}, but .*`unset {name}`"):
                start()
    finally:
        if "GUARD" not in name:
            jax.config.update(name.lower(), before)


def test_settings_of_jax_with_which_bigjax_works(monkeypatch):
    monkeypatch.setenv("JAX_TRANSFER_GUARD", "log")
    for name, value in (("jax_numpy_rank_promotion", "warn"), ("jax_debug_nans", True)):
        before = getattr(jax.config, name)
        jax.config.update(name, value)
        try:
            mesh_lib.check_settings()
        finally:
            jax.config.update(name, before)


@pytest.mark.slow
def test_a_setting_of_the_environment_is_refused_before_anything_is_made(tmp_path):
    flags = [f"--config={helpers.TINY}", f"--workdir={tmp_path}/run"]
    done = subprocess.run(
        [PYTHON, "-m", "bigjax.main", "train", *flags],
        capture_output=True,
        text=True,
        env={**os.environ, "JAX_ENABLE_X64": "1"},
        timeout=120,
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert "JAX_ENABLE_X64 is True" in done.stderr and not (tmp_path / "run").exists()


def test_a_setting_that_our_own_code_gives_is_not_of_the_environment():
    with pytest.raises(ValueError, match="nonsense") as e:
        jax.config.update("jax_numpy_rank_promotion", "nonsense")
    assert main._setting_failure(e.value) is None


def test_an_error_that_is_a_mistake_of_ours_keeps_its_traceback(monkeypatch):
    def run(argv):
        raise AssertionError("a mistake")

    monkeypatch.setattr(cli, "run", run)
    with pytest.raises(AssertionError, match="a mistake"):
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
    """Such as a second Ctrl-C while Python ends."""
    done = prints(
        f"""
    import atexit, os, signal
    atexit.register(lambda: os.kill(os.getpid(), signal.{number}))
    print("done")"""
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


# --- Flags ------------------------------------------------------------------------------------

# What each command takes of what others take: --config, --workdir, and a key of this section.
TAKES = {
    "train": ("config", "workdir", "optim"),
    "eval": ("workdir", "data"),
    "predict": ("workdir", "data"),
    "generate": ("workdir", "mesh"),
    "plan": ("config", "optim"),
    "configs": (),
    "config": ("config", "workdir", "optim"),
    "checkpoint": ("workdir",),
    "report": ("workdir",),
    "seqgan-report": ("workdir",),
    "tokenizer": ("config",),
    "headline": ("workdir", "mesh"),
    "embeddings": ("config", "data"),
    "import": ("workdir", "data"),
    "export": ("workdir",),
}
FLAGS = {
    "config": "--config=configs/gpt/docstrings.py",
    "workdir": "--workdir=/nowhere",
    "optim": "--config.optim.b1=0.5",
    "data": "--config.data.seq_len=8",
    "mesh": "--config.mesh.data=1",
    "log": "--config.log.every=7",
}
# Of sections that the command uses, keys that it does not: a run has its tokenizer and its data.
_OPENED = ("data.tokenizer.kind=bytes", "model.dropout=0.5", "model.attention_dropout=0.5")
SETTLED = {
    "eval": _OPENED,
    "predict": (*_OPENED, "data.train=/nowhere", "data.sources.text.path=/nowhere"),
    "generate": _OPENED,
    "headline": (*_OPENED, "data.train=/nowhere", "model.click_dropout=0.5"),
    "tokenizer": ("data.train=/nowhere", "data.seq_len=8", "data.packing=false"),
}


@pytest.mark.parametrize("command", [*cli.commands()])
def test_no_command_takes_a_flag_that_it_does_not_use(command, capsys):
    takes = TAKES[command]
    every_key = "optim" in takes and command != "plan"
    for name, flag in FLAGS.items():
        used = name in takes or every_key and name in ("data", "mesh", "log")
        if used or command == "plan" and name in ("data", "mesh"):
            continue
        if name == "mesh" and {"workdir", "data"} <= {*takes}:
            continue  # they run the model
        assert main.main([command, flag]) == 2, flag
        err = capsys.readouterr().err
        assert "does not use" in err and err.count("\n") == 1, err
    assert main.main([command, "--nonsense=1"]) == 2
    assert "nonsense" in capsys.readouterr().err

    for key in SETTLED.get(command, ()):
        assert main.main([command, f"--config.{key}"]) == 2
        assert f"does not use config.{key.partition('=')[0]}," in capsys.readouterr().err


def test_flags_that_are_used_are_not_refused(capsys):
    """The other side of the table: what stops these commands is something else."""
    for command, takes in TAKES.items():
        for name in takes:
            if name in ("workdir", "data", "mesh") and "workdir" in takes and command != "train":
                main.main([command, "--workdir=/nowhere", FLAGS[name]][: 2 + (name != "workdir")])
                assert "does not use" not in capsys.readouterr().err, (command, name)


# Keys of sections that a command uses in part: these it uses.
USED = {
    "eval": "data.train data.on_bad_utf8 data.seed evals.valid.split seed",
    "predict": "data.columns.text data.seq_len data.packing data.truncate data.doc_stride",
    "headline": "data.columns.article data.truncate task.hot_words_file",
    "tokenizer": "data.sources.text.path data.tokenizer.kind data.valid_fraction data.cache_dir "
    "data.test_fraction data.on_bad_utf8 init_from",
}


@pytest.mark.parametrize("command", USED)
def test_keys_that_a_command_uses_in_part_of_a_section_are_taken(command):
    flags = [f"--config.{key}=1" for key in USED[command].split()]
    takes = importlib.import_module(cli.commands()[command]).COMMAND
    assert Arguments(flags, takes).overrides == flags


@pytest.mark.parametrize(
    "arguments, words",
    [
        (
            ["generate", "--workdir=/nowhere", "--temperature=0", "--top_k=5"],
            "--top_k would change",
        ),
        (["generate", "--workdir=/nowhere", "--temperature=0", "--seed=5"], "--seed would change"),
        (["generate", "--workdir=/nowhere", "--temperature=nan"], "temperature is nan"),
        (["generate", "--workdir=/nowhere", "--seed=-1"], "--seed is -1"),
        (["generate", "--workdir=/nowhere", f"--seed={2**64}"], "--seed is 184"),
        (["plan", "--topology=v5e:1x1", "--budget-minutes=3"], "it is of --search"),
        (["config", "--config=configs/gpt/text.py", "--workdir=/x"], "--config or --workdir"),
        (["eval", "--workdir=/a", "--workdir=/b"], "accepts one --workdir=FOLDER; got 2"),
        (["train", "--workdir="], "--workdir is empty"),
        (["report", "--workdir=/nowhere", "--out="], "--out is empty"),
    ],
)
def test_flags_that_cannot_be_together_or_be_so(arguments, words, capsys):
    assert main.main(arguments) == 2
    err = capsys.readouterr().err
    assert words in err and err.count("\n") == 1, err


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


def test_a_signal_to_a_forked_child_is_not_for_its_parent():
    body = """
    import os, signal, time
    child = os.fork()
    if not child:
        time.sleep(60)
    time.sleep(0.2)
    os.kill(child, signal.SIGTERM)
    print(os.waitpid(child, 0)[1] == signal.SIGTERM)
    time.sleep(0.5)  # for longer than the parent would be left in peace
    """
    done = prints(body.strip().replace("import os", "process.GRACE_SECONDS = 0.1; import os", 1))
    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr


def test_what_orbax_says_after_a_save_that_failed_is_left_out_and_nothing_else(monkeypatch):
    told = []
    monkeypatch.setattr(sys, "__unraisablehook__", told.append)
    closed, other = (
        SimpleNamespace(exc_value=RuntimeError(text)) for text in ("Event loop is closed", "other")
    )
    for unraisable in (closed, other):
        process.unraisable_hook(unraisable)
    assert told == [other]


def test_a_signal_while_an_error_is_told_gives_no_traceback():
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


def test_training_leaves_a_signal_ignored_that_its_shell_ignores():
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


def test_what_is_written_is_utf8_whatever_the_locale(tmp_path):
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
