"""A family whose table is in a user's module, with statistics beside its parameters."""

import dataclasses
import pathlib
import sys

import jax
import numpy as np
import pytest

from bigjax import interop, modules
from bigjax.errors import UserError
from bigjax.train import export_model, import_model, init_from
from bigjax.train import load as load_lib
from bigjax.train import workdir as workdir_lib

FOLDER = str(pathlib.Path(__file__).parents[1] / "extension")
NAME = "my_lab.vision.Network"
FLAGS = [f"--config.model.name={NAME}", f"--config.python_path={FOLDER}"]


@pytest.fixture
def network(monkeypatch):
    """The user's model, imported anew."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield modules.find("models", NAME, "model.name", FOLDER)
    for name in [n for n in sys.modules if n.partition(".")[0] == "my_lab"]:
        del sys.modules[name]


def write(folder, network):
    """A Hugging Face folder of random numbers; returns them by our names."""
    model = {"name": NAME, **dataclasses.asdict(network.Config(d_model=4))}
    rng = np.random.default_rng(0)
    params = {
        name: rng.uniform(0.5, 1.5, shape).astype(np.float32)
        for entry in network.HUGGING_FACE[0].entries("MyResNet", model, 2)
        for name, shape in entry.parts
    }
    arguments = dict(family="my_resnet", architecture="MyResNet", model=model, params=params)
    interop.write(folder, **arguments)
    return params


def test_statistics_travel_with_an_import_an_export_and_init_from(network, tmp_path):
    given = write(tmp_path / "in", network)
    assert {"batch_stats/norm_0/mean", "batch_stats/norm_1/var"} <= {*given}
    lines: list[str] = []
    import_model.import_run(str(tmp_path / "in"), str(tmp_path / "run"), lines.append, FLAGS)
    config = workdir_lib.read_config(str(tmp_path / "run"))
    assert (config.model.name, config.model.d_model, config.python_path) == (NAME, 4, FOLDER)
    loaded = load_lib.load(str(tmp_path / "run"), config, None, None)
    for name in ("norm_0", "norm_1"):
        for key, value in loaded.extras["batch_stats"][name].items():
            np.testing.assert_array_equal(value, given[f"batch_stats/{name}/{key}"])
    kernel = given["conv_1/kernel"]
    np.testing.assert_array_equal(loaded.params["conv_1"]["kernel"], kernel)
    files = interop.read(tmp_path / "in", NAME, FOLDER)
    np.testing.assert_array_equal(files.raw("conv1.weight").view(np.float32)[0], kernel[0, 0, 0, 0])
    export_model.export_run(str(tmp_path / "run"), str(tmp_path / "out"), log=lines.append)
    for file in ("config.json", "model.safetensors"):
        assert (tmp_path / "out" / file).read_bytes() == (tmp_path / "in" / file).read_bytes()
    source = init_from.open_source(str(tmp_path / "in"), str(tmp_path), NAME, FOLDER)
    fresh = jax.jit(loaded.task.init)(jax.random.key(1))
    fresh = {**fresh["params"], "batch_stats": fresh["batch_stats"]}
    again = init_from.initialise(fresh, source, "", lines.append)
    stats = jax.device_get(again["batch_stats"]["norm_1"]["var"])
    np.testing.assert_array_equal(stats, given["batch_stats/norm_1/var"])


def test_statistics_that_a_table_lacks_are_refused(network, tmp_path, monkeypatch):
    """Neither a folder without them nor an export that would lose them is accepted."""
    write(tmp_path / "in", network)
    import_model.import_run(str(tmp_path / "in"), str(tmp_path / "run"), str, FLAGS)
    table = network.HUGGING_FACE[0]
    without = dataclasses.replace(
        table, body=lambda m: [e for e in table.body(m) if "running" not in e.name]
    )
    monkeypatch.setattr(network, "HUGGING_FACE", (without,))
    with pytest.raises(UserError, match="lacks 4 arrays .*batch_stats/norm_0/mean.*HUGGING_FACE"):
        import_model.import_run(str(tmp_path / "in"), str(tmp_path / "other"), str, FLAGS)
    (tmp_path / "run" / "huggingface.json").unlink()  # as a run that was trained here
    with pytest.raises(UserError, match="no tensors for 4 arrays .*batch_stats/norm_0/mean"):
        export_model.export_run(str(tmp_path / "run"), str(tmp_path / "out"), log=str)
    assert not (tmp_path / "out").exists()


def test_an_export_that_would_lose_some_parameters_of_a_network_is_refused(
    network, tmp_path, monkeypatch
):
    """Such as those that an interceptor has added to its layers."""
    write(tmp_path / "in", network)
    import_model.import_run(str(tmp_path / "in"), str(tmp_path / "run"), str, FLAGS)
    (tmp_path / "run" / "huggingface.json").unlink()  # as a run that was trained here
    table = network.HUGGING_FACE[0]
    without = dataclasses.replace(
        table, body=lambda m: [e for e in table.body(m) if e.name != "bn1.bias"]
    )
    monkeypatch.setattr(network, "HUGGING_FACE", (without,))
    with pytest.raises(UserError, match="no tensors for 1 parameters .*norm_1/bias.*LoRA"):
        export_model.export_run(str(tmp_path / "run"), str(tmp_path / "out"), log=str)
    assert not (tmp_path / "out").exists()


def test_a_family_that_is_not_named_is_refused(network, tmp_path):
    write(tmp_path / "in", network)
    with pytest.raises(UserError, match="'my_resnet'; supported are bert: .*--config.model.name"):
        interop.read(tmp_path / "in")
    write_bert = ["--config.model.name=bert"]
    with pytest.raises(UserError, match="model_type is 'my_resnet'"):
        import_model.import_run(str(tmp_path / "in"), str(tmp_path / "run"), str, write_bert)
