"""A family whose table is in a user's module, with statistics beside its parameters."""

import dataclasses
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigjax import interop, modules, tasks
from bigjax.errors import UserError
from bigjax.interop import mapping
from bigjax.layers.conv import Conv
from bigjax.parallel import mesh as mesh_lib
from bigjax.train import export_model, frozen, import_model, init_from
from bigjax.train import load as load_lib
from bigjax.train import workdir as workdir_lib
from tests import helpers

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
    family = network.HUGGING_FACE[0]
    interop.write(folder, family=family, architecture="MyResNet", model=model, params=params)
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
    theirs = lambda name: files.raw(name).view(np.float32)
    torch_kernel = kernel.transpose(3, 2, 0, 1)  # [out, in, height, width]
    np.testing.assert_array_equal(theirs("conv1.weight"), torch_kernel.ravel())
    np.testing.assert_array_equal(theirs("bn1.running_var"), given["batch_stats/norm_1/var"])
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


def import_other_package(folder):
    """Replaces the user's package by another of its name, such as that of a teacher."""
    (folder / "my_lab").mkdir(parents=True)
    (folder / "my_lab" / "__init__.py").touch()
    (folder / "my_lab" / "other.py").write_text("build = 1\n")
    modules.find("tasks", "my_lab.other", "task.name", str(folder))


def test_an_export_after_another_package_of_its_name(network, tmp_path):
    write(tmp_path / "in", network)
    import_model.import_run(str(tmp_path / "in"), str(tmp_path / "run"), str, FLAGS)
    import_other_package(tmp_path / "other")
    model = {"name": NAME, **dataclasses.asdict(network.Config(d_model=4))}
    assert interop.family_of(model, FOLDER).name == "my_resnet"
    import_other_package(tmp_path / "again")
    export_model.export_run(str(tmp_path / "run"), str(tmp_path / "out"), log=str)
    assert (tmp_path / "out" / "model.safetensors").exists()


def test_an_import_of_a_model_without_text(network, tmp_path):
    """Files of a tokenizer are only kept for an export."""
    write(tmp_path / "in", network)
    for files in ((), ("vocab.txt",)):
        for name in files:
            (tmp_path / "in" / name).write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\n")
        lines: list[str] = []
        run, out = tmp_path / f"run{len(files)}", tmp_path / f"out{len(files)}"
        import_model.import_run(str(tmp_path / "in"), str(run), lines.append, FLAGS)
        assert not any("data.tokenizer" in line for line in lines)
        assert "tokenizer" not in workdir_lib.read_config(str(run)).data
        export_model.export_run(str(run), str(out), log=str)
        assert (out / "vocab.txt").exists() == bool(files)


def test_a_frozen_part_of_a_users_family(network, tmp_path):
    given = write(tmp_path / "in", network)
    init = lambda rng: {"kernel": jnp.zeros(given["head/kernel"].shape)}
    part = tasks.Frozen(
        lambda rng: {"head": init(rng)}, {"head": {"kernel": (None, None)}}, str(tmp_path / "in")
    )
    import_other_package(tmp_path / "other")
    mesh = mesh_lib.make_mesh(dict(data=1), jax.devices()[:1])
    load = lambda part: frozen.load(
        helpers.task(None, None, {}, frozen={"teacher": part}), mesh, str(tmp_path), str, FOLDER
    )
    with jax.set_mesh(mesh):
        kernel = load(part._replace(model=NAME)).arrays["teacher"]["head"]["kernel"]
    np.testing.assert_array_equal(kernel, given["head/kernel"])
    with pytest.raises(UserError, match="'my_resnet'; supported are .*tasks.Frozen"):
        load(part)
    with pytest.raises(UserError, match="The source of the frozen part 'teacher', '/none' is nei"):
        load(part._replace(source="/none"))


def test_a_convolution_over_windows_of_tokens():
    """The kernel of layers.conv.Conv, by torch's definition of Conv1d."""
    kernel, bias = mapping.convolution("filters", "conv", (3,), 2, 5, flat=True)
    rng = np.random.default_rng(0)
    theirs, x = rng.normal(size=(5, 2, 3)), rng.normal(size=(4, 7, 2)).astype(np.float32)
    ours = kernel.to_ours(theirs)
    np.testing.assert_array_equal(kernel.gather(ours), theirs)
    conv = Conv(features=5, width=3)
    params = {"kernel": ours["filters/kernel"].astype(np.float32), "bias": np.zeros(5, np.float32)}
    expected = sum(x[:, i : i + 5] @ theirs[:, :, i].T for i in range(3))
    np.testing.assert_allclose(conv.apply({"params": params}, x), expected, atol=1e-5)
    assert (kernel.shape, bias.parts) == ((5, 2, 3), (("filters/bias", (5,)),))


def test_a_family_that_is_not_named_is_refused(network, tmp_path):
    write(tmp_path / "in", network)
    with pytest.raises(UserError, match="'my_resnet'; supported are bert: .*--config.model.name"):
        interop.read(tmp_path / "in")
    write_bert = ["--config.model.name=bert"]
    with pytest.raises(UserError, match="model_type is 'my_resnet'"):
        import_model.import_run(str(tmp_path / "in"), str(tmp_path / "run"), str, write_bert)
