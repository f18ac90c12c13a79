"""Runs on many hosts: several local processes with virtual devices, connected by loopback."""

import os
import pathlib
import re
import shutil
import socket
import subprocess
import sys
import time

import pytest

from bigjax.train.lease import Lease
from tests import helpers

STEPS = 20
HEARTBEAT_TIMEOUT = 6  # seconds
DEVICES = 4  # in total
LOST = "another process of this run has died or cannot be reached"


@pytest.fixture(scope="module")
def flags(tiny_flags):
    return [
        *tiny_flags,
        f"--config.train.steps={STEPS}",
        "--config.mesh.fsdp=4",
        "--config.model.n_layers=1",
        "--config.log.every=1",
        "--config.checkpoint.every=5",
        f"--config.hosts.heartbeat_timeout={HEARTBEAT_TIMEOUT}",
    ]


@pytest.fixture(scope="module")
def uninterrupted(flags, tmp_path_factory):
    """The work folder of an uninterrupted run with one process."""
    workdir = tmp_path_factory.mktemp("hosts") / "whole"
    code, out, err = helpers.run("train", *flags, f"--workdir={workdir}", devices=DEVICES)
    assert code == 0, err
    return workdir


def free_port() -> int:
    with socket.create_server(("", 0)) as s:
        return s.getsockname()[1]


def start(n: int, *arguments: str, script="", each=((),) * 4, absent=()) -> list:
    """Starts `bigjax ...`, or a script, as n processes of one run.

    each: additional arguments per process; absent: indices of processes not to start.
    """
    program = ["-c", script] if script else ["-m", "bigjax.main"]
    flags = os.environ["XLA_FLAGS"].replace("device_count=8", f"device_count={DEVICES // n}")
    address = f"127.0.0.1:{free_port()}"
    return [
        subprocess.Popen(
            [sys.executable, *program, *arguments, *each[i]],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={
                **os.environ,
                "XLA_FLAGS": flags,
                "JAX_COORDINATOR_ADDRESS": address,
                "JAX_NUM_PROCESSES": str(n),
                "JAX_PROCESS_ID": str(i),
            },
        )
        for i in range(n)
        if i not in absent
    ]


def ends(processes: list, timeout: float = 240) -> list[tuple[int, str, str]]:
    """(exit code, standard output, standard error) of each process; kills all that remain."""
    try:
        endings = [(p, *p.communicate(timeout=timeout)) for p in processes]
    finally:
        for p in processes:
            p.kill()
    return [(p.returncode, out, err) for p, out, err in endings]


def wait_for(moment, processes, timeout: float = 240) -> None:
    end = time.monotonic() + timeout
    while not moment():
        assert all(p.poll() is None for p in processes), ends(processes)
        assert time.monotonic() < end, "the moment never came"
        time.sleep(0.01)


def lines(workdir) -> int:
    path = workdir / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


def assert_same_numbers(workdir, uninterrupted, zero=None):
    """Compares approximately: sums over processes have another order, so the last bits differ.
    zero: numbers up to this one may be 0."""
    got, want = helpers.read_metrics(workdir), helpers.read_metrics(uninterrupted)
    assert [m["step"] for m in got] == [m["step"] for m in want]
    for a, b in zip(got, want):
        assert a == pytest.approx(b, rel=1e-4, abs=zero), a["step"]


# `bigjax`, where process 1 gets SIGTERM within a save, after all that Orbax asks in it.
STOPPED_IN_A_SAVE = """
import os, signal, sys, time
from orbax.checkpoint import CheckpointManager
from bigjax import main
real = CheckpointManager.save
def save(self, step, **options):
    saved = real(self, step, **options)
    if step == 15:
        if os.environ["JAX_PROCESS_ID"] == "1":
            os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(3)  # all processes are notified within a second
    return saved
CheckpointManager.save = save
sys.exit(main.main(sys.argv[1:]))
"""


def test_resumed_and_stopped_on_two_and_resumed_on_one(flags, uninterrupted, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(uninterrupted, workdir)
    for step in (15, 20):
        shutil.rmtree(workdir / "checkpoints" / str(step))
    command = ["train", *flags, f"--workdir={workdir}"]
    (code, out, err), (other_code, other_out, other_err) = ends(
        start(2, *command, script=STOPPED_IN_A_SAVE)
    )
    assert (code, other_code) == (0, 0), err + other_err
    assert "Resuming from step 10" in out
    step = int(
        re.search(r"Stopped by SIGTERM on one of the hosts at step (\d+), and saved", out)[1]
    )
    assert 15 <= step < STEPS and (workdir / "checkpoints" / str(step)).exists()
    assert "step" not in other_out  # one speaks for all
    assert "bigjax:" not in err + other_err and "terminate" not in err + other_err
    code, out, err = helpers.run(*command, "--config.mesh.fsdp=1", devices=DEVICES)
    assert code == 0 and f"Resuming from step {step}" in out, err
    assert_same_numbers(workdir, uninterrupted)


@pytest.mark.slow
def test_two_hosts_are_refused_where_another_run_trains(flags, uninterrupted, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(uninterrupted, workdir)
    held = Lease(str(workdir))
    held.acquire()
    command = ["train", *flags, f"--workdir={workdir}", f"--config.train.steps={STEPS + 5}"]
    for code, out, err in ends(start(2, *command)):
        assert code == 75 and f"is held by process {os.getpid()} on " in err and not out, err
    held.release()
    (code, out, err), (other_code, _, other_err) = ends(start(2, *command))
    assert (code, other_code) == (0, 0), err + other_err
    assert not list(workdir.glob(".lease*"))


@pytest.mark.slow
def test_killed_on_two_and_resumed_on_four(flags, uninterrupted, tmp_path):
    workdir = tmp_path / "run"
    command = ["train", *flags, f"--workdir={workdir}"]
    two = start(2, *command)
    wait_for(lambda: (workdir / "checkpoints" / "10").exists(), two)
    two[1].kill()
    started = time.monotonic()
    (code, out, err), _ = ends(two)
    assert code == 75 and time.monotonic() - started < HEARTBEAT_TIMEOUT + 20, err
    assert LOST in err
    newest = max(int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdigit())
    (workdir / "checkpoints" / str(newest) / "meta" / "metadata").write_text("damaged")
    four = ends(start(4, *command))
    assert [code for code, _, _ in four] == [0] * 4, four
    assert f"Checkpoint {newest} is damaged" in four[0][1]
    assert f"Resuming from step {newest - 5} of this work folder" in four[0][1]
    assert (workdir / "damaged" / str(newest)).exists()
    assert_same_numbers(workdir, uninterrupted)


@pytest.mark.slow
@pytest.mark.parametrize("config", ["tiny_seqgan.py", "tiny_bert.py:labelled"])
def test_other_tasks_and_their_evaluations(cache_dir, tmp_path, config):
    table = tmp_path / "train.tsv"
    words = ("left", "right")
    table.write_text(
        "text\tlabel\n"
        + "".join(f"word {words[i % 2]} {i} of some\t{words[i % 2]}\n" for i in range(200))
    )
    command = [
        "train",
        f"--config={helpers.TINY.replace('tiny.py', config)}",
        f"--config.data.cache_dir={cache_dir}",
        *[f"--config.data.train={table}"] * config.endswith(":labelled"),
    ]
    assert [code for code, _, _ in ends(start(2, *command, f"--workdir={tmp_path / 'two'}"))] == [
        0,
        0,
    ]
    code, out, err = helpers.run(*command, f"--workdir={tmp_path / 'one'}", devices=DEVICES)
    assert code == 0, err
    assert_same_numbers(tmp_path / "two", tmp_path / "one")


@pytest.mark.slow
def test_rewards_of_two_hosts_and_one_that_fails_on_the_second(tmp_path):
    """Both end, after the state before the failure was saved; then they resume from it."""
    fails = "if N == 3 and pathlib.Path(__file__).with_name(PROCESS).exists():"
    text = pathlib.Path(helpers.TINY.replace("tiny.py", "tiny_grpo.py")).read_text()
    text = text.replace('"""Higher for fewer bytes."""', f"global N; N += 1\n    {fails} 1 / 0")
    own = "import os, pathlib\nN, PROCESS = 0, os.environ.get('JAX_PROCESS_ID', '0')"
    text = text.replace("def short(", f"{own}\ndef short(")
    (tmp_path / "tiny_grpo.py").write_text(text)
    command = ["train", f"--config={tmp_path / 'tiny_grpo.py'}", "--config.checkpoint.every=100"]
    two = [*command, f"--workdir={tmp_path / 'two'}"]
    (tmp_path / "1").touch()
    first, second = ends(start(2, *two))
    assert (first[0], second[0]) == (2, 2)  # the first learns of it from the second
    assert "raised ZeroDivisionError at step 3" in second[2] and "1 / 0" in second[2]
    (tmp_path / "1").unlink()
    (first, second) = ends(start(2, *two))
    assert (first[0], second[0]) == (0, 0) and "Resuming from step 2" in first[1]
    one = [*command, f"--workdir={tmp_path / 'one'}"]
    assert helpers.run(*one, devices=DEVICES)[0] == 0
    assert_same_numbers(tmp_path / "two", tmp_path / "one", zero=1e-6)


# --- Starting and ending together, without training -------------------------------------------

# Joins, and then process 0 waits for the others, which wait for a line.
JOIN = f"""
import bigjax, sys
from bigjax import config
from bigjax.errors import UserError
from bigjax.parallel import hosts
bigjax.__version__ = sys.argv[1]
c = config.load_file({helpers.TINY!r})
c.seed, c.hosts.heartbeat_timeout = int(sys.argv[2]), {HEARTBEAT_TIMEOUT}
try:
    hosts.start(c, "nowhere")
    hosts.check_shared(sys.argv[3])
    print("joined", file=sys.__stdout__, flush=True)
    print(hosts.gather(hosts.index() and sys.stdin.readline()))
except UserError as e:
    hosts.fail(str(e), 2)
"""


def test_different_versions_and_configs_are_reported_on_every_process(tmp_path):
    two = start(2, script=JOIN, each=(("1.0", "0", str(tmp_path)), ("1.1", "3", str(tmp_path))))
    for code, out, err in ends(two, timeout=60):
        assert code == 2 and "joined" not in out
        assert (
            "differ from process 0: on process 1 bigjax is '1.1' and not '1.0', config.seed is "
            "3 and not 0. Run the same command"
        ) in err


# Process 0 takes long to remove a file, as on slow storage.
SLOW_TO_REMOVE = """
import time
from etils import epath
cls = type(epath.Path("a"))
unlink = cls.unlink
def slowly(self, *options, **more):
    time.sleep(1)
    unlink(self, *options, **more)
cls.unlink = slowly
"""


def test_a_work_folder_that_is_not_shared_is_refused_on_every_process(tmp_path):
    (tmp_path / "other").mkdir()
    two = start(
        2,
        script=SLOW_TO_REMOVE + JOIN,
        each=(("1", "0", str(tmp_path)), ("1", "0", str(tmp_path / "other"))),
    )
    for code, out, err in ends(two, timeout=60):
        assert code == 2 and "joined" not in out
        assert "is not the same folder on all hosts: process 1 does not see" in err
    assert [p.name for p in tmp_path.iterdir()] == ["other"]  # nothing is left behind


# Process 1 still lives for some seconds when process 0 has ended, as on a loaded machine.
SLOW_TO_END = """
import os, time
from bigjax.parallel import hosts
acknowledge = hosts._acknowledge
def slowly():
    acknowledge()
    time.sleep(3 * hosts.index())
hosts._acknowledge = slowly
"""


def test_the_exit_code_of_a_failure_is_kept_where_process_0_ends_first(tmp_path):
    two = start(
        2,
        script=SLOW_TO_END + JOIN,
        each=(("1.0", "0", str(tmp_path)), ("1.1", "0", str(tmp_path))),
    )
    for code, out, err in ends(two, timeout=60):
        assert code == 2 and "ended by jax" not in err


# Joins, and then process 1 aborts, as where a check of XLA's fails or memory is broken.
ABORT = JOIN.replace(
    "print(hosts.gather",
    """import ctypes, threading
    hosts.index() and threading.Thread(target=ctypes.CDLL(None).abort).start()
    print(hosts.gather""",
)


def test_a_process_that_aborts_ends_the_others_with_exit_code_75(tmp_path):
    two = start(2, script=ABORT, each=(("1", "0", str(tmp_path)),) * 2)
    assert [p.stdout.readline() for p in two] == ["joined\n"] * 2
    started = time.monotonic()
    (code, _, err), (its_code, _, its_err) = ends(two)
    assert its_code == 1 and LOST not in its_err, its_err
    assert "process 1 of 0 to 1] aborted for the reason above" in its_err
    assert code == 75 and LOST in err and "training resumes from the latest checkpoint" in err
    assert time.monotonic() - started < HEARTBEAT_TIMEOUT + 20


def test_an_unreachable_coordinator(flags, tmp_path):
    command = ["train", *flags, f"--workdir={tmp_path}", "--config.hosts.start_timeout=1"]
    ((code, out, err),) = ends(start(2, *command, absent=(0,)))
    assert code == 75, err
    assert all(
        text in err
        for text in (
            "process 0 does not answer at 127.0.0.1:",
            "on all 2 hosts",
            "this is process 1 (of 0 to 1)",
            "start_timeout=1 seconds",
        )
    ), err
