"""benchmarks/vision_cpu.py with sides that stand in, and benchmarks/images.py with a few photos."""

import importlib.util
import json
import sys

import jax
import numpy as np
import pytest

from bigjax import modules, tasks
from bigjax.trees import count
from tests.helpers import ROOT

FOLDER = ROOT / "benchmarks"


def script(monkeypatch, name):
    monkeypatch.syspath_prepend(FOLDER)
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def vision_cpu(monkeypatch):
    return script(monkeypatch, "vision_cpu")


@pytest.fixture
def images(monkeypatch):
    return script(monkeypatch, "images")


class Side:
    """Stands in for sides.Side: ours_threads takes a second for a step, channels_last two, others
    four.
    `changed`: {name: what its report has instead}."""

    changed = {}

    def __init__(self, name):
        assert sys.argv[-1].startswith("--folder=")
        self.name = name
        self.about = {"parameters": 3, "losses": [7.0, 6.0], "what": "a side"}
        self.about |= self.changed.get(name, {})

    def __call__(self, task):
        seconds = {"ours_threads": 1, "channels_last": 2}
        return {"seconds": seconds.get(self.name.split(".")[1], 4)}

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass


def run(vision_cpu, monkeypatch, changed):
    monkeypatch.setattr(Side, "changed", changed)
    monkeypatch.setattr(vision_cpu.sides, "Side", Side)
    monkeypatch.setattr(sys, "argv", ["vision_cpu.py", "--json", "--rounds=3"])
    vision_cpu.main()


def test_the_fastest_form_of_each_counts(vision_cpu, monkeypatch, capsys):
    run(vision_cpu, monkeypatch, {})
    out = capsys.readouterr().out
    assert "vit ratio 2.000 (bar 1.1), 0.500 with" in out
    assert "resnet ratio 2.000 (bar 0.9), 0.500 with" in out
    speeds = {"ours": 8.0, "theirs": 4.0, "ratio": 2.0, "ratio_default": 0.5}
    assert json.loads(out.splitlines()[-1]) == {
        "name": "vision_cpu",
        **speeds,
        "unit": "images/s",
        "models": {"vit": speeds, "resnet": speeds},
    }


@pytest.mark.parametrize(
    "changed, words",
    [
        ({"vit.ours": {"parameters": 4}}, "models differ"),
        ({"vit.ours": {"losses": [7.01, 6.0]}}, "losses of the first two steps differ"),
        ({"resnet.compiled": {"losses": [7.0, 6.1]}}, "losses of the first two steps differ"),
        ({"resnet.ours": {"losses": [7.0, float("nan")]}}, "losses of the first two steps differ"),
    ],
)
def test_sides_that_do_other_work_are_refused(vision_cpu, monkeypatch, changed, words):
    monkeypatch.setattr(vision_cpu.shutil, "which", lambda name: name)
    with pytest.raises(SystemExit, match=words):
        run(vision_cpu, monkeypatch, changed)


@pytest.mark.parametrize("model, parameters", [("vit", 22_050_664), ("resnet", 25_557_032)])
def test_our_models_are_vit_s_16_and_resnet_50(vision_cpu, model, parameters):
    c = vision_cpu._config(model, "ours", "")
    modules.fill(c)
    variables = jax.eval_shape(tasks.build(c).init, jax.random.key(0))
    assert count(variables["params"]) == parameters


def test_images_prints_every_way(images, monkeypatch, capsys):
    monkeypatch.setattr(images, "BATCH", 2)
    arguments = ["--json", "--rounds=1", "--images=4", "--train-images-per-sec=1000000"]
    monkeypatch.setattr(sys, "argv", ["images.py", *arguments])
    images.main()
    out = capsys.readouterr().out
    result = json.loads(out.splitlines()[-1])
    assert result["ratio"] == pytest.approx(result["ours"] / result["theirs"])
    assert result["unit"] == "images/s" and result["ratio_big_vision"] > 0
    cores = int(out.split("ours: ")[1].split()[0])
    assert 0 <= cores - 5e6 / result["ours"] < 1


def test_all_ways_give_images_of_one_kind(images, tmp_path, monkeypatch):
    monkeypatch.setattr(images, "BATCH", 4)
    paths = images.write_photos(tmp_path / "photos", 4)
    content = paths[0].read_bytes()
    ours = images.ours(str(tmp_path))(0)["image"]
    assert ours.shape == (images.BATCH, 224, 224, 3) and ours.dtype == np.uint8
    theirs, floats = images.pillow(content), images.big_vision(content)
    assert theirs.shape == floats.shape == ours.shape[1:] and theirs.dtype == np.uint8
    assert floats.min() >= -1 and floats.max() <= 1 and floats.std() > 0.1
