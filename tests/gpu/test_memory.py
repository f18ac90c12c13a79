"""The memory of a training step on a GPU is what `bigjax plan` says, within 10%."""

import json
import os
import subprocess
import sys

import jax
import pytest

from bigjax import main
from bigjax.plan import chips
from tests.helpers import ROOT

# Steps of gigabytes, of which the work space of CUDA's libraries is a small part; for the CPU
# one of megabytes.
STEPS = {
    "gpt": ("configs/gpt/gpt2.py:124m", "model.remat=none", "train.batch_size=8"),
    "gpt, micro-batches": (
        "configs/gpt/gpt2.py:124m",
        "train.batch_size=32",
        "train.accumulate=4",
    ),
    "bert, float32": (
        "configs/bert/base.py:phase2",
        "init_from=",
        "model.dtype=float32",
        "train.batch_size=8",
    ),
    "tiny": ("configs/gpt/gpt2.py:tiny", "train.batch_size=4"),
}


CASES = [pytest.param("gpu", name, marks=pytest.mark.gpu) for name in STEPS if name != "tiny"]


@pytest.mark.parametrize("platform, name", [*CASES, ("cpu", "tiny")])
def test_the_peak_is_what_the_plan_says(platform, name, device, tmp_path, monkeypatch, capsys):
    file, *changes = STEPS[name]
    changes = [*changes, "mesh.data=1", "mesh.fsdp=1", f"data.cache_dir={tmp_path}"]
    flags = [f"--config={file}", *(f"--config.{change}" for change in changes)]
    if platform == "gpu":
        if "H100" not in device.device_kind and "H200" not in device.device_kind:
            pytest.skip(f"the plan is for an H100, and this is {device.device_kind}")
        planned = plan(flags)
    else:
        planned = plan_for_cpu(flags, monkeypatch, capsys)
    assert planned["hbm_gib"] > 2 * planned["parameters_gib"]  # parameters, moments, activations
    measured = run("-m", "tests.gpu.peak", *flags)
    assert (measured["platform"] == "cpu") == (platform == "cpu") and measured["loss"] > 0
    print(f"{name}: planned {planned['hbm_gib']:.3f} GiB, {measured}")
    assert measured["peak_bytes"] == pytest.approx(planned["hbm_gib"] * 2**30, rel=0.1)


def plan(flags: list[str]) -> dict:
    """The numbers of `bigjax plan` for one H100."""
    return run("-m", "bigjax.main", "plan", *flags, "--topology=h100:1", "--json")


def plan_for_cpu(flags: list[str], monkeypatch, capsys) -> dict:
    """The same for a device of this process, in place of an H100."""
    monkeypatch.setattr(chips, "devices", lambda topology, slices: jax.devices("cpu")[:1])
    monkeypatch.setattr(chips, "before_jax", lambda: None)
    assert main.main(["plan", *flags, "--topology=h100:1", "--json"]) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def run(*arguments: str) -> dict:
    """What a Python process prints on its last line. A GPU has the settings of a user's run: the
    process decides which kernels are the fastest."""
    env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS" or "xla_gpu" not in v}
    done = subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=600,
        env=env,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])
