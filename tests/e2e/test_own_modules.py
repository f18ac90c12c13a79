"""A user's own model, task, data and evaluation, in a folder beside their config."""

import json

import pytest

from bigjax import main
from tests import helpers

pytestmark = pytest.mark.usefixtures("one_device")

# A straight line through points: no text, no tokenizer, and a running mean beside its parameters.
FILES = {
    "__init__.py": "",
    "line.py": """
import dataclasses

import flax.linen as nn
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Config:
    outputs: int = 1
    momentum: float = 0.5


class Model(nn.Module):
    config: Config

    @nn.compact
    def __call__(self, x, train=False):
        mean = self.variable("batch_stats", "mean", lambda: jnp.zeros(x.shape[1:]))
        if train and not self.is_initializing():
            m = self.config.momentum
            mean.value = m * mean.value + (1 - m) * x.mean(0)
        return nn.Dense(self.config.outputs, name="dense")(x - mean.value)
""",
    "points.py": """
import dataclasses

import numpy as np

from bigjax.data.arrays import ArrayData


@dataclasses.dataclass(frozen=True)
class Config:
    n: int = 64
    file: str = ""

    MAY_CHANGE = ("file",)
    PATHS = ("file",)


class Points(ArrayData):
    def __init__(self, config):
        x = np.random.default_rng(0).normal(1.0, 1.0, (config.n, 3)).astype(np.float32)
        y = x @ np.array([[1.0], [2.0], [3.0]], np.float32)
        arrays = {"x": x, "y": y, "weights": np.ones((config.n, 1), np.float32)}
        super().__init__(dict.fromkeys(("train", "valid", "test"), arrays))


def load_points(config):
    return Points(config)
""",
    "fit.py": """
import dataclasses

import jax
import jax.numpy as jnp

from bigjax import modules, tasks
from bigjax.layers import params as params_lib


@dataclasses.dataclass(frozen=True)
class Config:
    power: float = 2.0


def build(config, options):
    source = tasks.data_module(config, "load_points", "my_own_lab.points")
    model = modules.of(config, "model").Model(modules.options(config, "model"))
    x = jnp.zeros((1, 3))

    def loss(params, extras, frozen, batch, rng, train):
        y, new = model.apply(
            {"params": params, **extras}, batch["x"], train, mutable=["batch_stats"]
        )
        error = (jnp.abs(y - batch["y"]) ** options.power * batch["weights"]).sum()
        return (error, batch["weights"].sum()), ({}, dict(new))

    def batch_shapes(batch_size, step):
        floats = {"x": (batch_size, 3), "y": (batch_size, 1), "weights": (batch_size, 1)}
        return tasks.array_shapes({}, floats)

    return tasks.Task(
        init=lambda rng: params_lib.unbox(dict(model.init(rng, x))),
        axes={
            "params": {"dense": {"kernel": (None, None), "bias": (None,)}},
            "batch_stats": {"mean": (None,)},
        },
        loss=loss,
        load_data=lambda log=print, tokenizer=None, splits=None: source.load_points(config.data),
        batch_shapes=batch_shapes,
        model=model,
        model_config=model.config,
    )
""",
    "slope.py": """
import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Config:
    axis: int = 2


def build(name, options, context):
    def evaluate(params, extras, step):
        mean = np.asarray(extras["batch_stats"]["mean"])
        return {
            "slope": float(params["dense"]["kernel"][options.axis, 0]),
            "mean": float(mean[options.axis]),
        }

    evaluate.metrics = ("slope", "mean")
    return evaluate
""",
}
CONFIG = """
from bigjax import config


def get_config(variant=""):
    c = config.new_config()
    c.model = dict(name="my_own_lab.line")
    c.task = dict(name="my_own_lab.fit")
    c.data = dict(name="my_own_lab.points", n=96)
    c.optim.learning_rate = 0.3
    c.optim.weight_decay = 0.0
    c.train.steps, c.train.batch_size, c.train.ema = 40, 16, 0.5
    c.checkpoint.every, c.log.every, c.log.tensorboard = 20, 10, False
    c.evals = dict(
        valid=dict(kind="loss", every=20, split="valid"),
        slope=dict(kind="my_own_lab.slope", every=20),
    )
    return c
"""


def write(folder):
    (folder / "my_own_lab").mkdir(parents=True)
    for name, text in FILES.items():
        (folder / "my_own_lab" / name).write_text(text)
    (folder / "line.py").write_text(CONFIG)
    return folder


def test_a_users_modules_train_evaluate_and_resume(tmp_path, monkeypatch, capsys):
    lab, run = write(tmp_path / "lab"), tmp_path / "run"
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(lab)
    train = ["train", "--config=line.py", f"--workdir={run}"]
    code = main.main([*train, "--config.data.file=~/x"])
    out, err = capsys.readouterr()
    assert code == 0, err
    assert "16 examples" in out and "tokens" not in out
    lines = helpers.read_metrics(run)
    metrics = {k: v for line in lines for k, v in line.items() if line["step"] == 40}
    first = next(m["loss"] for m in lines if "loss" in m)
    assert metrics["eval/valid/loss"] < 0.05 * first
    assert 2 < metrics["eval/slope/slope"] < 4 and 0.5 < metrics["eval/slope/mean"] < 1.5

    config = json.loads((run / "config.json").read_text())
    assert config["python_path"] == str(lab)
    assert config["data"]["n"] == 96 and config["model"]["momentum"] == 0.5
    assert config["task"]["power"] == 2.0 and config["evals"]["slope"]["axis"] == 2

    # Another process, started anywhere, finds the modules by the run's config alone.
    monkeypatch.chdir(tmp_path / "cwd")
    code, out, err = helpers.run("eval", f"--workdir={run}", "--json", devices=1)
    assert code == 0, err
    again = json.loads(out.splitlines()[-1])
    want = {k: v for k, v in metrics.items() if k.startswith("eval/")}
    assert {k: again[k] for k in want} == pytest.approx(want, rel=1e-5)

    # What the modules do not declare as free is kept by a run that is resumed.
    monkeypatch.chdir(lab)
    for change, words in (
        ("--config.task.power=1.5", "task.power was 2.0, now 1.5"),
        ("--config.data.n=64", "data.n was 96, now 64"),
        ("--config.model.outputs=2", "model.outputs was 1, now 2"),
    ):
        assert main.main([*train, change]) == 2
        assert words in capsys.readouterr().err
    assert main.main([*train, "--config.data.file=/y", "--config.train.steps=60"]) == 0
    out = capsys.readouterr().out
    assert "data.file from" in out and helpers.read_metrics(run)[-1]["step"] == 60

    # The folder has moved: the message says what to do, and that works.
    monkeypatch.chdir(tmp_path)
    lab.rename(tmp_path / "moved")
    code, _, err = helpers.run("eval", f"--workdir={run}", devices=1)
    assert code == 2 and f"config.python_path={str(lab)!r} is not a folder" in err
    assert "Set it to the folder" in err and err.count("\n") == 1
    code, out, err = helpers.run(
        "eval", f"--workdir={run}", "--config.python_path=moved", devices=1
    )
    assert code == 0 and "eval/slope/slope" in out, err
