"""Speed, utilisation, and the line on a terminal."""

import io
import time

import jax
import numpy as np
import pytest

from bigjax.train import metrics


def test_lines_are_json_where_numbers_are_not_finite(tmp_path):
    writer = metrics.Writer(tmp_path, 0, tensorboard=False)
    writer.write(1, {"loss": float("nan"), "a": float("-inf"), "b": np.float32(1.5).item()})
    writer.close()
    line = (tmp_path / "metrics.jsonl").read_text()
    assert line == '{"step": 1, "loss": null, "a": null, "b": 1.5}\n'


class FakeDevice:
    device_kind = "TPU v5 lite"


def test_speed_leaves_out_what_was_not_training(monkeypatch):
    monkeypatch.setattr(jax, "devices", lambda: [FakeDevice()] * 8)
    clock = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    speed = metrics.Speed(batch_size=16, seq_len=10, flops_per_example=197e12)
    assert "tokens_per_sec" not in speed.read(1)  # the first step compiles
    clock[0] += 30.0
    speed.pause(20.0)  # an evaluation
    speed.waited += 2.5
    got = speed.read(6)
    assert got["steps_per_sec"] == pytest.approx(0.5)
    assert got["examples_per_sec"] == pytest.approx(8)
    assert got["tokens_per_sec"] == pytest.approx(80)
    assert got["data_wait_fraction"] == pytest.approx(0.25)
    assert got["mfu"] == pytest.approx(8 / 8)  # one example a second is one chip's peak


def test_no_utilisation_where_the_peak_is_not_known():
    speed = metrics.Speed(16, 10, 1e12)
    speed.read(1)
    assert "mfu" not in speed.read(2)


def test_a_live_line_on_a_terminal(monkeypatch):
    screen = io.StringIO()
    screen.isatty = lambda: True
    monkeypatch.setattr("sys.stdout", screen)
    monkeypatch.setenv("TERM", "xterm")
    progress = metrics.Progress(10)
    progress.log("before")
    progress.update(3, {"loss": 2.5, "tokens_per_sec": 1234.0})
    progress.log("between")
    progress.close()
    text = screen.getvalue()
    assert "before" in text and "between" in text
    assert "step 3/10" in text and "loss 2.5000" in text and "1,234 tokens/s" in text


def test_lines_that_cannot_be_read_are_dropped_when_a_run_goes_on(tmp_path):
    kept = b'{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.5}\n'
    odd = b'{"step": 2, "l\n[1]\nnull\n{"step": "x"}\n{"\xff": 1}\n'
    (tmp_path / "metrics.jsonl").write_bytes(kept + odd + b'{"step": 3, "loss": 1.0}\n')
    metrics.Writer(tmp_path, 2, tensorboard=False).close()
    assert (tmp_path / "metrics.jsonl").read_bytes() == kept
