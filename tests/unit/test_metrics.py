"""Speed, utilisation, metrics.jsonl, and the progress line."""

import io
import time

import jax
import numpy as np
import pytest

from bigjax import tasks
from bigjax.plan import chips
from bigjax.plural import plural
from bigjax.train import metrics
from tests import helpers


def test_values_that_are_not_finite_are_null(tmp_path):
    writer = metrics.Writer(tmp_path, 0, tensorboard=False)
    writer.write(1, {"loss": float("nan"), "a": float("-inf"), "b": np.float32(1.5).item()})
    writer.close()
    line = (tmp_path / "metrics.jsonl").read_text()
    assert line == '{"step": 1, "loss": null, "a": null, "b": 1.5}\n'


def a_task(unit, units_per_example, flops=0.0):
    return helpers.task(
        None, None, {}, unit=unit, units_per_example=units_per_example, flops_per_example=flops
    )


@pytest.mark.parametrize(
    "unit, size, rates, line, amount",
    [
        ("tokens", 10, {"tokens_per_sec": 80.0}, "80 tokens/s", "16 x 10 tokens"),
        ("images", 1, {"images_per_sec": 8.0}, "8 images/s", "16 images"),
        ("examples", 1, {}, "8 examples/s", "16 examples"),
        (
            "audio_seconds",
            2.5,
            {"audio_seconds_per_sec": 20.0},
            "20 audio seconds/s",
            "16 x 2.5 audio seconds",
        ),
    ],
)
def test_throughput_is_in_the_unit_of_the_task(
    unit, size, rates, line, amount, monkeypatch, capsys
):
    clock = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    task = a_task(unit, size)
    speed = metrics.Speed(task, 16)
    speed.read(1)
    clock[0] += 2.0
    values = speed.read(2)
    throughput = {k: v for k, v in values.items() if k.endswith("_per_sec")}
    assert throughput == {"steps_per_sec": 0.5, "examples_per_sec": 8.0, **rates}
    metrics.Progress(2).update(2, values, unit)
    assert line in capsys.readouterr().out
    assert tasks.amount(task, 16) == amount


def test_one_is_singular():
    image, text = a_task("images", 1), a_task("tokens", 10)
    assert tasks.amount(image, 1) == "1 image" and tasks.amount(image, 0) == "0 images"
    assert tasks.amount(text, 1) == "1 x 10 tokens"
    assert image.describe(5, 4) == "1 step" and image.describe(5, 0) == "5 steps"
    counts = (0.4, 1, 1.4, 2)  # printed without decimals
    assert [plural(n, "batch") for n in counts] == ["batches", "batch", "batch", "batches"]


def test_only_steps_are_counted_where_they_differ():
    speed = metrics.Speed(a_task("tokens", 10), 0)
    speed.read(1)
    assert "steps_per_sec" in (values := speed.read(2)) and "tokens_per_sec" not in values


class FakeDevice:
    device_kind = "TPU v5 lite"


def test_speed_excludes_pauses(monkeypatch):
    monkeypatch.setattr(jax, "devices", lambda: [FakeDevice()] * 8)
    clock = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    speed = metrics.Speed(a_task("tokens", 10, 197e12), batch_size=16)
    assert "tokens_per_sec" not in speed.read(1)  # the first step compiles
    clock[0] += 30.0
    speed.pause(20.0)  # an evaluation
    speed.waited += 2.5
    got = speed.read(6)
    assert got["steps_per_sec"] == pytest.approx(0.5)
    assert got["examples_per_sec"] == pytest.approx(8)
    assert got["tokens_per_sec"] == pytest.approx(80)
    assert got["data_wait_fraction"] == pytest.approx(0.25)
    assert got["mfu"] == pytest.approx(8 / 8)  # one example per second is one chip's peak


@pytest.mark.parametrize(
    "kind, chip",
    [("TPU v4", "v4"), ("TPU v5 lite", "v5e"), ("TPU v5e", "v5e"), ("TPU v5", "v5p")]
    + [("TPU v5p", "v5p"), ("TPU v6 lite", "v6e"), ("TPU v6e", "v6e"), ("TPU7x", "tpu7x")],
)
def test_runs_and_plans_have_the_same_peak_of_a_device(kind, chip):
    """On a TPU7x a device is half of a chip."""
    assert metrics.PEAK_FLOPS[kind] == chips.CHIPS[chip].peak * 1e12


def test_no_utilisation_if_the_peak_is_unknown():
    speed = metrics.Speed(a_task("tokens", 10, 1e12), 16)
    speed.read(1)
    assert "mfu" not in speed.read(2)


def test_a_live_line_on_a_terminal(monkeypatch):
    screen = io.StringIO()
    screen.isatty = lambda: True
    monkeypatch.setattr("sys.stdout", screen)
    monkeypatch.setenv("TERM", "xterm")
    progress = metrics.Progress(10)
    progress.log("before")
    progress.update(3, {"loss": 2.5, "tokens_per_sec": 1234.0}, "tokens")
    progress.log("between")
    progress.close()
    text = screen.getvalue()
    assert "before" in text and "between" in text
    assert "step 3/10" in text and "loss 2.5000" in text and "1,234 tokens/s" in text


def test_unreadable_lines_are_dropped_when_a_run_resumes(tmp_path):
    kept = b'{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.5}\n'
    odd = b'{"step": 2, "l\n[1]\nnull\n{"step": "x"}\n{"\xff": 1}\n'
    (tmp_path / "metrics.jsonl").write_bytes(kept + odd + b'{"step": 3, "loss": 1.0}\n')
    metrics.Writer(tmp_path, 2, tensorboard=False).close()
    assert (tmp_path / "metrics.jsonl").read_bytes() == kept
