"""benchmarks/train_gpu.py: its own code with sides that stand in, and its sides with a tiny model
on a CPU."""

import argparse
import importlib.util
import json
import os
import subprocess
import sys

import pytest

from tests.helpers import ROOT

FOLDER = ROOT / "benchmarks"
ABOUT = {"parameters": 124_439_808, "loss": 10.9, "device": "NVIDIA H100", "what": "a side"}


@pytest.fixture
def train_gpu(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    spec = importlib.util.spec_from_file_location("train_gpu", FOLDER / "train_gpu.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Side:
    """Stands in for sides.Side: ours takes one second for a step, the others take two."""

    about_of = {}

    def __init__(self, name):
        self.name, self.about = name, {**ABOUT, **self.about_of.get(name, {})}
        if name == "plan":
            self.about = {"peak_bytes": 3 * 2**30, "what": "for h100:1"}

    def __call__(self, task):
        ours = self.name == "ours"
        return {"seconds": int(task) * (1 if ours else 2), "peak_bytes": 2**30 * (3 if ours else 4)}

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass


def run(train_gpu, monkeypatch, **about_of):
    monkeypatch.setattr(Side, "about_of", about_of)
    monkeypatch.setattr(train_gpu.sides, "Side", Side)
    monkeypatch.setattr(sys, "argv", ["train_gpu.py", "--json", "--rounds=3", "--steps=4"])
    train_gpu.main()


def test_what_it_prints(train_gpu, monkeypatch, capsys):
    run(train_gpu, monkeypatch)
    out = capsys.readouterr().out
    assert out.count("peak memory 4.00 GiB") == 2 and "plan says 3.00 GiB" in out
    tokens = 32 * 1024
    assert json.loads(out.splitlines()[-1]) == {
        "name": "train_gpu",
        "unit": "tokens/s",
        "ours": tokens,
        "theirs": tokens / 2,
        "ratio": 2.0,
        "transformers": tokens / 2,
        "ratio_transformers": 2.0,
        "peak_bytes": {
            "ours": 3 * 2**30,
            "theirs": 4 * 2**30,
            "transformers": 4 * 2**30,
            "plan": 3 * 2**30,
        },
    }


@pytest.mark.parametrize(
    "about_of, words",
    [
        (dict(theirs=dict(parameters=1)), "differ"),
        (dict(transformers=dict(device="cpu")), "differ"),
        (dict(theirs=dict(loss=10.7)), "not the same"),
        (dict(ours=dict(loss=3.0)), "not near 10.82"),
        (dict(ours=dict(loss=float("nan"))), "not near 10.82"),
    ],
)
def test_sides_that_do_other_work_are_refused(train_gpu, monkeypatch, about_of, words):
    with pytest.raises(SystemExit, match=words):
        run(train_gpu, monkeypatch, **about_of)


def test_a_cpu_is_refused_without_tiny(train_gpu):
    with pytest.raises(SystemExit, match="finds no GPU"):
        train_gpu._check_device("cpu", argparse.Namespace(tiny=False))
    train_gpu._check_device("cpu", argparse.Namespace(tiny=True))
    train_gpu._check_device("gpu", argparse.Namespace(tiny=False))


def script(*arguments: str, **options) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, FOLDER / "train_gpu.py", *arguments],
        capture_output=True,
        text=True,
        timeout=600,
        cwd=ROOT,
        env={**os.environ, "XLA_FLAGS": os.environ["XLA_FLAGS"].replace("count=8", "count=1")},
        **options,
    )


def test_our_side_trains():
    done = script("--tiny", "--accumulate=2", "--side=ours", input="3\n1\n")
    assert done.returncode == 0, done.stderr
    about, three, one = map(json.loads, done.stdout.splitlines())
    assert about["device"] == "cpu" and abs(about["loss"] - 4.57) < 0.1
    assert one["loss"] < three["loss"] < about["loss"] and one["peak_bytes"] is None
    assert three["seconds"] > one["seconds"] > 0


def test_our_side_refuses_a_cpu_before_it_compiles():
    done = script("--side=ours", input="1\n")
    assert done.returncode == 1 and "finds no GPU" in done.stderr and not done.stdout


@pytest.mark.slow
def test_all_sides_of_a_tiny_model():
    """Needs `pip install -e '.[bench]'`, which CI does not have."""
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    done = script("--tiny", "--json", "--rounds=2", "--steps=2", "--accumulate=2")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    for name in ("ours", "theirs", "transformers"):
        assert result[name] > 0 and result["peak_bytes"][name] is None
    assert result["ratio"] == pytest.approx(result["ours"] / result["theirs"], rel=1e-6)
