"""Ctrl-C and SIGTERM at any moment of a real command give one line and an exit code."""

import json
import pathlib
import random
import re
import signal
import time

import pytest

from tests import helpers

LINE = re.compile(r"bigjax: interrupted by (Ctrl-C|SIGTERM)\. .*is intact\.\n")


def interrupted(arguments, moments, how=signal.SIGINT, until=None) -> tuple[int, str, str]:
    """Sends a signal at each of the moments (seconds after the previous one), the first after
    until() is true."""
    process = helpers.command(*arguments, devices=1)
    end = time.monotonic() + 200
    while not handles_sigterm(process.pid) and process.poll() is None:  # Python is starting
        time.sleep(0.01)
    while until and not until() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.02)
    for moment in moments:
        time.sleep(moment)
        process.send_signal(how)
    out, err = process.communicate(timeout=240)
    return process.returncode, out, err


def handles_sigterm(pid: int) -> bool:
    """Whether a process has a handler for SIGTERM."""
    try:
        status = pathlib.Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    return bool(int(re.search(r"SigCgt:\s*(\w+)", status)[1], 16) >> (signal.SIGTERM - 1) & 1)


def check_end(code: int, out: str, err: str) -> None:
    """Either one line on stderr and 128 + the signal, or a clean stop after a step."""
    if code == 0:
        assert "Stopped by SIG" in out and err == "", err
    else:
        assert code in (130, 143) and LINE.fullmatch(err), (code, err)


@pytest.fixture
def arguments(corpus_file, cache_dir, tmp_path):
    return [
        "train",
        f"--config={helpers.TINY}",
        f"--config.data.sources.text.path={corpus_file}",
        f"--config.data.cache_dir={cache_dir}",
        f"--workdir={tmp_path}/run",
        "--config.train.steps=100000",
        "--config.checkpoint.every=1",  # it is almost always saving
        "--config.log.every=1000",
    ]


@pytest.mark.parametrize("how, moment", [(signal.SIGINT, 0.0), (signal.SIGTERM, 0.5)])
def test_a_signal_during_imports(arguments, tmp_path, how, moment):
    code, out, err = interrupted(arguments, [moment], how)
    assert code == 128 + how and LINE.fullmatch(err), err
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(12))
def test_a_signal_at_random_moments_of_start_up_and_compilation(arguments, seed):
    rng = random.Random(seed)
    how = rng.choice([signal.SIGINT, signal.SIGTERM])
    check_end(*interrupted(arguments, [0.9 * seed + 0.9 * rng.random()], how))


@pytest.mark.slow
@pytest.mark.parametrize("gap", [0.0, 0.05, 0.5])
@pytest.mark.parametrize("wait", [0.0, 0.3])
def test_two_signals_during_a_save_and_the_same_command_resumes(arguments, tmp_path, wait, gap):
    folder = tmp_path / "run" / "checkpoints"
    code, out, err = interrupted(arguments, [wait, gap], until=(folder / "2").exists)
    check_end(code, out, err)
    more = [a for a in arguments if "train.steps" not in a]
    saved = max(int(p.name) for p in folder.iterdir() if p.name.isdigit())
    code, out, err = helpers.run(*more, f"--config.train.steps={saved + 2}", devices=1)
    assert code == 0 and err == "" and re.search(r"from step \d+ of this work folder", out), err
    steps = [m["step"] for m in helpers.read_metrics(tmp_path / "run")]
    assert steps == sorted(steps) and all(isinstance(s, int) for s in steps)


@pytest.mark.slow
@pytest.mark.parametrize("command", ["eval", "generate", "config"])
def test_a_signal_during_other_commands(arguments, tmp_path, command):
    if command != "config":
        short = [a for a in arguments if "train.steps" not in a]
        assert helpers.run(*short, "--config.train.steps=2", devices=1)[0] == 0
        assert json.loads((tmp_path / "run" / "config.json").read_text())
    given = [] if command == "config" else [f"--workdir={tmp_path}/run"]
    for moment in (0.0, 0.2 if command == "config" else 1.0):  # config takes less than a second
        code, _, err = interrupted([command, *given], [moment])
        assert code == 130 and LINE.fullmatch(err), err
