"""SeqGAN on the command line: runs stopped in any phase resume to the same numbers."""

import json
import pathlib
import re
import signal
import time

import pytest

from bigjax.main import main
from tests import helpers

TINY = str(pathlib.Path(__file__).parents[1] / "tiny_seqgan.py")
STEPS = 8  # four adversarial rounds, so that a signal in the first is not too late


@pytest.fixture(scope="module")
def run_flags(cache_dir):
    return [f"--config.data.cache_dir={cache_dir}", f"--config.train.steps={STEPS}"]


@pytest.fixture(scope="module")
def flags(run_flags):
    """The flags of a run without evaluations."""
    return [f"--config={TINY}:rounds", *run_flags]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """A compilation cache shared by the starts of a run on one device."""
    return f"--config.train.compilation_cache={tmp_path_factory.mktemp('compiled')}"


@pytest.fixture(scope="module")
def uninterrupted(run_flags, compiled, tmp_path_factory):
    """The work folder and the output of an uninterrupted run."""
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    code, out, err = helpers.run(
        "train", f"--config={TINY}", *run_flags, compiled, f"--workdir={workdir}", devices=1
    )
    assert code == 0, err
    return workdir, out


def rounds(lines: list[dict]) -> list[dict]:
    """The lines of training rounds."""
    return [m for m in lines if not any(k.startswith("eval/") for k in m)]


def stop_after(step, workdir, flags, how) -> str:
    """The output of a run that gets a signal after a round is saved."""
    process = helpers.command("train", *flags, f"--workdir={workdir}", devices=1)
    while not (workdir / "checkpoints" / str(step)).exists():
        assert process.poll() is None, f"the run ended too early: {process.stderr.read()}"
        time.sleep(0.0005)
    process.send_signal(how)
    out, err = process.communicate(timeout=120)
    assert process.returncode == (0 if how == signal.SIGTERM else -how), err
    return out


# Each signal once in each phase. test_a_resumed_run_keeps_its_phases is quicker.
@pytest.mark.slow
@pytest.mark.parametrize(
    "signals",
    [
        (signal.SIGKILL, signal.SIGTERM, signal.SIGKILL),
        (signal.SIGTERM, signal.SIGKILL, signal.SIGTERM),
    ],
    ids=lambda signals: "-".join(s.name for s in signals),
)
def test_a_run_stopped_in_each_phase_resumes_exactly(
    flags, compiled, uninterrupted, tmp_path, signals
):
    workdir, saved, flags = tmp_path / "run", 0, [*flags, compiled]
    for step, how in zip((1, 3, 5), signals):  # the first round of each phase
        out = stop_after(step, workdir, flags, how)
        if saved:
            assert f"Resuming from step {saved} of this work folder" in out
        saved = max(int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdigit())
        assert step <= saved < STEPS
    code, out, err = helpers.run("train", *flags, f"--workdir={workdir}", devices=1)
    assert code == 0 and f"Resuming from step {saved}" in out, err
    assert helpers.read_metrics(workdir) == rounds(helpers.read_metrics(uninterrupted[0]))
    want = helpers.saved_checksums(uninterrupted[0], STEPS)
    assert helpers.saved_checksums(workdir, STEPS) == want
    assert {"params", "opt_state", "extras"} == set(want)


def test_the_output_of_a_run(uninterrupted):
    workdir, out = uninterrupted
    assert "2 mle, 2 discriminator, 4 adversarial" in out and "updates of 16 x 4 tokens" in out
    lines = helpers.read_metrics(workdir)
    losses = {m["step"]: {k for k in m if k.endswith("/loss")} for m in rounds(lines)}
    assert losses == {
        **dict.fromkeys((1, 2), {"generator/loss"}),
        **dict.fromkeys((3, 4), {"discriminator/loss"}),
        **dict.fromkeys((5, 6, 7, 8), {"generator/loss", "discriminator/loss"}),
    }
    nll = {m["step"]: m["eval/oracle/nll_test"] for m in lines if "eval/oracle/nll_test" in m}
    assert set(nll) == {0, 2, 4, 6, 8}
    assert nll[2] < nll[0] - 0.05 and nll[4] == nll[2] and len({nll[4], nll[6], nll[8]}) == 3


def test_eval_equals_the_metrics_of_the_run(uninterrupted, capsys):
    workdir, _ = uninterrupted
    assert main(["eval", f"--workdir={workdir}"]) == 0
    out = capsys.readouterr().out
    last = [m for m in helpers.read_metrics(workdir) if "eval/oracle/nll_test" in m][-1]
    match = re.search(r"nll_test\D*([\d.]+)", out)
    assert float(match[1]) == pytest.approx(last["eval/oracle/nll_test"], abs=2e-3), out


@pytest.mark.parametrize(
    "key, value",
    [
        ("reward", "constant"),
        ("mle_rounds", 99),
        ("discriminator_rounds", 0),
        ("mle_updates", 5),
        ("pretrain_updates", 5),
        ("generator_updates", 5),
        ("discriminator_updates", 5),
    ],
)
def test_a_resumed_run_keeps_its_phases(uninterrupted, run_flags, capsys, key, value):
    code = main(
        [
            "train",
            f"--config={TINY}",
            *run_flags,
            f"--workdir={uninterrupted[0]}",
            f"--config.task.{key}={value}",
            "--config.train.steps=9",
        ]
    )
    assert code == 2 and f"task.{key} was" in capsys.readouterr().err


@pytest.mark.parametrize(
    "network, more",
    [
        ("generator", ["optim.learning_rate=1e30", "task.mle_rounds=4", "optim.clip_norm=0.0"]),
        (
            "discriminator",
            ["task.discriminator_learning_rate=1e30", "optim.clip_norm=0.0", "task.mle_rounds=1"],
        ),
    ],
)
def test_a_run_that_diverges_names_the_network(flags, tmp_path, capsys, network, more):
    workdir = tmp_path / "run"
    more = [f"--config.{m}" for m in (*more, "checkpoint.keep=9")]
    code = main(["train", *flags, *more, f"--workdir={workdir}"])
    err = capsys.readouterr().err
    assert code == 1 and re.search(rf"Not finite: {network}/\w+.* of step (\d+) ", err), err
    key = "optim" if network == "generator" else "task.discriminator"
    assert f"Lower {key}" in err and "learning_rate, clip" in err
    other = {"generator", "discriminator"} - {network}
    assert f"{other.pop()}/" not in err
    bad = int(re.search(r"of step (\d+)", err)[1])
    saved = sorted(int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdigit())
    assert saved == list(range(1, bad))
    assert json.loads((workdir / f"nonfinite-{bad}.json").read_text())["step"] == bad
