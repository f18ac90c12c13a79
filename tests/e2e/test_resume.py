"""A run that is killed at any moment resumes and gives bit-identical results."""

import pathlib
import re
import signal
import time

import pytest

from tests import helpers

STEPS = 40


def train(*flags, devices=2) -> tuple[int, str, str]:
    return helpers.run("train", *flags, devices=devices)


@pytest.fixture(scope="module")
def flags(tiny_flags):
    return [
        *tiny_flags,
        "--config.train.ema=0.9",
    ]


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A compilation cache for runs on one device, which makes the tests faster."""
    return f"--config.train.compilation_cache={tmp_path_factory.mktemp('compiled')}"


@pytest.fixture(scope="module")
def uninterrupted(flags, tmp_path_factory):
    """The work folder of an uninterrupted run."""
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    code, out, err = train(*flags, f"--workdir={workdir}")
    assert code == 0, err
    return workdir


def lines(workdir):
    path = workdir / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


MOMENTS = {
    "before the first checkpoint": lambda w: lines(w) > 1,
    "while saving": lambda w: list(w.glob("checkpoints/20.*tmp*")),
    "after a checkpoint": lambda w: (w / "checkpoints" / "30").exists() and lines(w) > 11,
}


def stop_at(moment, workdir, flags, how, devices=2) -> tuple[int, str]:
    """Starts a run and sends it a signal when moment(workdir) is true: exit code, output."""
    process = helpers.command("train", *flags, f"--workdir={workdir}", devices=devices)
    while not moment(workdir):
        assert process.poll() is None, f"it ended before the moment came: {process.stderr.read()}"
        time.sleep(0.0005)
    process.send_signal(how)
    out, _ = process.communicate(timeout=120)
    return process.returncode, out


def assert_equal_runs(a, b):
    assert helpers.read_metrics(a) == helpers.read_metrics(b)
    want = helpers.saved_checksums(b, STEPS)
    assert helpers.saved_checksums(a, STEPS) == want and {"params", "opt_state", "ema"} == set(want)


@pytest.mark.parametrize(
    "moment",
    [
        moment if moment == "while saving" else pytest.param(moment, marks=pytest.mark.slow)
        for moment in MOMENTS
    ],
)
def test_kill_and_run_again(flags, uninterrupted, tmp_path, moment):
    workdir = tmp_path / "run"
    code, _ = stop_at(MOMENTS[moment], workdir, flags, signal.SIGKILL)
    assert code == -signal.SIGKILL
    assert not (workdir / "checkpoints" / str(STEPS)).exists()
    code, out, err = train(*flags, f"--workdir={workdir}")
    assert code == 0, err
    if moment != "before the first checkpoint":
        assert re.search(r"Resuming from step [123]0 of this work folder", out)
    assert_equal_runs(workdir, uninterrupted)


@pytest.mark.slow
@pytest.mark.parametrize(
    "how",
    [signal.SIGTERM, signal.SIGINT],
    ids=lambda s: s.name,
)
def test_a_signal_saves_and_prints_how_to_resume(flags, uninterrupted, tmp_path, how):
    workdir = tmp_path / "run"
    code, out = stop_at(lambda w: lines(w) > 4, workdir, flags, how)
    step = int(
        re.search(rf"Stopped by {how.name} at step (\d+), and saved. The same command", out)[1]
    )
    assert code == 0 and (workdir / "checkpoints" / str(step)).exists()
    code, out, err = train(*flags, f"--workdir={workdir}")
    assert code == 0 and f"Resuming from step {step}" in out, err
    assert_equal_runs(workdir, uninterrupted)


@pytest.mark.slow
def test_two_concurrent_starts(flags, kept, tmp_path):
    """The second start is refused, also beside a run that was killed and resumed."""
    workdir = tmp_path / "run"
    more = [*flags, kept, "--config.train.steps=100000"]
    for how in (signal.SIGKILL, signal.SIGTERM):
        before = lines(workdir)
        first = helpers.command("train", *more, f"--workdir={workdir}", devices=1)
        while lines(workdir) < before + 5:
            assert first.poll() is None, first.stderr.read()
            time.sleep(0.05)
        started = time.monotonic()
        code, out, err = train(*more, f"--workdir={workdir}", devices=1)
        assert code == 75 and f"is held by process {first.pid} on " in err, err
        assert time.monotonic() - started < 60 and not out
        first.send_signal(how)
        assert first.wait(120) == (0 if how == signal.SIGTERM else -how)
    assert not list(workdir.glob(".lease*"))
    steps = [m["step"] for m in helpers.read_metrics(workdir)]
    assert steps == sorted(steps) and len(set(steps)) > 5


def test_a_finished_run_is_unchanged_by_another_start(flags, uninterrupted):
    before = (uninterrupted / "metrics.jsonl").read_bytes()
    code, out, _ = train(*flags, f"--workdir={uninterrupted}")
    assert code == 0 and "This run is done" in out
    assert (uninterrupted / "metrics.jsonl").read_bytes() == before


@pytest.mark.slow  # multidevice/test_elastic.py restores on other meshes
@pytest.mark.parametrize("devices, mesh", [(8, ("data=2", "fsdp=2", "tensor=2")), (1, ())])
def test_another_mesh_or_device_count_continues_the_same_batches(
    flags, uninterrupted, tmp_path, devices, mesh
):
    workdir = tmp_path / "run"
    moment = lambda w: (w / "checkpoints" / "20").exists()
    stop_at(moment, workdir, flags, signal.SIGKILL)
    more = [f"--config.mesh.{axis}" for axis in mesh]
    code, out, err = train(*flags, *more, f"--workdir={workdir}", devices=devices)
    assert code == 0, err
    assert f"on {devices} cpu device" in out
    got, want = helpers.read_metrics(workdir), helpers.read_metrics(uninterrupted)
    assert [m["step"] for m in got] == [m["step"] for m in want]
    for a, b in zip(got, want):
        for key in a:
            assert a[key] == pytest.approx(b[key], rel=2e-3), (a["step"], key)


def test_resume_from_and_init_from(flags, kept, uninterrupted, tmp_path):
    branch = tmp_path / "branch"
    code, out, err = train(
        *flags,
        kept,
        f"--workdir={branch}",
        f"--config.resume_from={uninterrupted}",
        "--config.train.steps=45",
        devices=1,
    )
    assert code == 0 and f"Resuming from step {STEPS} of {uninterrupted}" in out, err
    assert {m["step"] for m in helpers.read_metrics(branch)} == {45}
    code, out, err = helpers.run("generate", f"--workdir={branch}", "--max_tokens=4")
    assert code == 0, err  # the branch has all it needs, the tokenizer too
    fresh = tmp_path / "fresh"
    code, out, err = train(
        *flags,
        kept,
        f"--workdir={fresh}",
        f"--config.init_from={uninterrupted}",
        "--config.train.steps=5",
        devices=1,
    )
    assert code == 0 and "Starting at step 0 with the parameters" in out, err
    losses = lambda workdir: {
        m["step"]: m["eval/valid/loss"]
        for m in helpers.read_metrics(workdir)
        if "eval/valid/loss" in m
    }
    # The run evaluates its moving average, which init_from loads.
    assert losses(fresh)[0] == pytest.approx(losses(uninterrupted)[STEPS], rel=1e-5)
    assert not pathlib.Path(branch / "damaged").exists()
