"""A run on a GPU that is killed and started again ends with the bits of one that was not."""

import os
import re
import signal

import pytest

from tests import helpers
from tests.e2e.test_resume import assert_equal_runs, stop_at, train
from tests.gpu import on_both


@pytest.mark.parametrize("platform, dtype", on_both([("bfloat16",)]))
def test_a_killed_run_resumes_bit_for_bit(platform, dtype, device, tiny_flags, tmp_path):
    """With XLA_FLAGS of tests/conftest.py: otherwise XLA measures kernels and chooses, in each
    start anew, and some sum in varying order."""
    if platform == "gpu":
        assert "deterministic" in os.environ["XLA_FLAGS"]
    flags = [*tiny_flags, "--config.train.ema=0.9", f"--config.model.dtype={dtype}"]
    code, out, err = train(*flags, f"--workdir={tmp_path}/whole", devices=1)
    assert code == 0 and f"on 1 {device.device_kind} device" in out, err
    moment = lambda workdir: (workdir / "checkpoints" / "20").exists()
    code, _ = stop_at(moment, tmp_path / "killed", flags, signal.SIGKILL, devices=1)
    assert code == -signal.SIGKILL
    code, out, err = train(*flags, f"--workdir={tmp_path}/killed", devices=1)
    assert code == 0 and re.search(r"Resuming from step [23]0 of this work folder", out), err
    assert_equal_runs(tmp_path / "killed", tmp_path / "whole")
    steps = [m["step"] for m in helpers.read_metrics(tmp_path / "killed")]
    assert max(steps) == 40
