"""Runs that end before their last step: a non-finite loss, early stopping, a full disk."""

import json
import re
import subprocess
import sys

import pytest

from tests.helpers import bigjax

pytestmark = pytest.mark.usefixtures("one_device")


def test_a_non_finite_loss_stops_the_run_with_an_explanation(capsys, tiny_flags, tmp_path):
    code, _, err = bigjax(
        capsys,
        "train",
        *tiny_flags,
        f"--workdir={tmp_path}/run",
        "--config.optim.learning_rate=2e17",
        "--config.optim.clip_norm=0",
        "--config.optim.warmup_steps=12",
        "--config.checkpoint.every=1",
        "--config.checkpoint.keep=50",
    )
    assert code == 1  # parameters grow until their norm overflows
    step = int(re.search(r"norm of step (\d+) \(batch \d+, examples text:\d+, text:\d+", err)[1])
    record = json.loads((tmp_path / "run" / f"nonfinite-{step}.json").read_text())
    assert len(record["examples"]) == 8
    assert len(record["norms"]["params"]["stack/layers/mlp/up/kernel"]) == 2  # by layer
    saved = sorted(
        int(p.name) for p in (tmp_path / "run" / "checkpoints").iterdir() if p.name.isdigit()
    )
    assert saved == list(range(1, step)) and step > 1
    assert bigjax(capsys, "eval", f"--workdir={tmp_path}/run", "--json")[0] == 0  # and it is usable


@pytest.mark.slow
def test_early_stopping_survives_a_restart(tiny_flags, tmp_path, capsys):
    # Two evaluations at each of its steps; the watched one is not the last of them.
    arguments = [
        "train",
        *tiny_flags,
        f"--workdir={tmp_path}/run",
        "--config.train.early_stop.metric=eval/valid/loss",
        "--config.train.early_stop.min_delta=10",
        "--config.train.early_stop.patience=2",
    ]
    assert bigjax(capsys, *arguments, "--config.train.steps=10")[0] == 0
    arguments.append("--config.train.steps=200")
    code, out, err = bigjax(capsys, *arguments)
    # The best value was at step 10, before the restart; those at 20 and 30 are not better.
    assert code == 0 and "Stopping early at step 30" in out, err
    code, out, _ = bigjax(capsys, *arguments)
    assert code == 0 and "early stopping ended it at step 30" in out
    code, out, _ = bigjax(capsys, *arguments, "--config.train.early_stop.patience=3")
    assert code == 0 and "Stopping early at step 40" in out


def test_a_stop_before_the_first_evaluation_is_clean(tiny_flags, tmp_path, capsys, monkeypatch):
    from bigjax.train import hooks

    monkeypatch.setattr(hooks.StopOnSignal, "due", lambda self, step: step == 3)
    code, out, err = bigjax(
        capsys,
        "train",
        *tiny_flags,
        f"--workdir={tmp_path}/run",
        "--config.checkpoint.best=eval/valid/loss",
        "--config.checkpoint.every=5",
    )
    assert code == 0 and "checkpoints/3" in out and "--step=best" not in out, err
    code, _, err = bigjax(capsys, "eval", f"--workdir={tmp_path}/run", "--step=best")
    assert code == 2 and "no saved step" in err


def test_a_full_disk_stops_cleanly_and_keeps_the_older_checkpoint(tiny_flags, tmp_path, capsys):
    workdir = f"--workdir={tmp_path}/run"
    assert bigjax(capsys, "train", *tiny_flags, workdir, "--config.train.steps=10")[0] == 0
    # Files are limited to 20 kB: too little for a checkpoint, enough for a line of metrics.
    limited = subprocess.run(
        [
            "bash",
            "-c",
            'ulimit -f 20; exec "$@"',
            "-",
            sys.executable,
            "-m",
            "bigjax.main",
            "train",
            *tiny_flags,
            workdir,
        ],
        text=True,
        capture_output=True,
    )
    assert limited.returncode == 1, limited.stderr
    assert "could not be written" in limited.stderr and "intact: [10]" in limited.stderr
    assert "Traceback" not in limited.stderr
    code, out, err = bigjax(capsys, "train", *tiny_flags, workdir, "--config.train.steps=12")
    assert code == 0 and "Resuming from step 10" in out, err
