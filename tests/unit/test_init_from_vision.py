"""Starting from a Vision Transformer of other sizes: positions are resized, all else is refused."""

import jax
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest

from bigjax import config as config_lib
from bigjax import interop, modules
from bigjax.errors import UserError
from bigjax.layers.params import unbox
from bigjax.models import vit
from bigjax.models.images import resized_grid
from bigjax.parallel import mesh as mesh_lib
from bigjax.train import export_model, import_model, init_from, stages
from bigjax.train import load as load_lib
from bigjax.train import run as train_lib
from bigjax.train import workdir as workdir_lib
from tests.unit.test_interop_vision import reference, write


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The same model, of images of 28 and patches of 7, as a Hugging Face folder and as a run."""
    root = tmp_path_factory.mktemp("vit")
    folder = write(root / "folder", *reference("vit"))
    import_model.import_run(folder, str(root / "run"), lambda line: None)
    return root / "folder", root / "run"


def config(**changes):
    sizes = dict(image_size=28, patch=7, d_model=24, n_layers=2, n_heads=3, d_ff=40)
    return vit.Config(**{**sizes, **changes})


def fresh(c, mesh):
    """Parameters of zeros, whose last axes are sharded over 8 devices where they divide."""
    images = jax.ShapeDtypeStruct((1, c.image_size, c.image_size, 3), np.uint8)
    shapes = jax.eval_shape(vit.Model(c, 3).init, jax.random.key(0), images)["params"]

    def zeros(x):
        spec = P(*[None] * (x.ndim - 1), "fsdp") if x.shape[-1] % 8 == 0 else P()
        return jax.device_put(np.zeros(x.shape, x.dtype), jax.sharding.NamedSharding(mesh, spec))

    return jax.tree_util.tree_map(zeros, unbox(shapes))


@pytest.fixture(scope="module")
def mesh():
    return mesh_lib.make_mesh(dict(data=1, fsdp=8), jax.devices()[:8])


def start(folder, c, mesh, log=lambda line: None, reset="", tmp="/tmp"):
    source = init_from.open_source(str(folder), tmp)
    adapt = lambda theirs, names: vit.adapt(theirs, c, names)
    return init_from.initialise(fresh(c, mesh), source, reset, log, adapt)


@pytest.mark.parametrize("kind", [0, 1], ids=["folder", "run"])
@pytest.mark.parametrize("size", [42, 14], ids=["up", "down"])
def test_positions_of_another_image_size(folders, mesh, kind, size, tmp_path):
    lines: list[str] = []
    params = start(folders[kind], config(image_size=size), mesh, lines.append, tmp=str(tmp_path))
    given = interop.read(folders[0])
    grid = size // 7
    want = resized_grid(given.load("position"), 4, grid)
    position = params["position"]
    assert position.sharding.spec == P(None, "fsdp") and position.shape == (grid**2, 24)
    np.testing.assert_array_equal(position, want)
    np.testing.assert_array_equal(params["class_position"], given.load("class_position"))
    kernel = params["stack"]["layers"]["mlp"]["up"]["kernel"]
    np.testing.assert_array_equal(kernel[1], given.load("stack/layer_1/mlp/up/kernel"))
    (row,) = [line for line in "\n".join(lines).splitlines() if line.startswith("resized")]
    assert f"position, 16 x 24 to {grid**2} x 24" in row
    assert not any(line.startswith("new") for line in lines)


def test_positions_of_the_same_size_are_copied(folders, mesh, tmp_path):
    lines: list[str] = []
    params = start(folders[1], config(), mesh, lines.append, tmp=str(tmp_path))
    np.testing.assert_array_equal(params["position"], interop.read(folders[0]).load("position"))
    assert "resized" not in "\n".join(lines)


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(patch=14), r"model.patch=7, but this run has model.patch=14.*init_reset='\^patch/'"),
        (dict(d_model=48), "model.d_model=24, but this run has model.d_model=48.*remove your own"),
        (dict(n_layers=1), r"model.n_layers=2, but .* model.n_layers=1.*init_reset='\^stack/'"),
        (dict(n_layers=3), "model.n_layers=2, but .* model.n_layers=3"),
        (dict(n_heads=4), "model.n_heads=3, but .* model.n_heads=4"),
        (dict(d_ff=8), "model.d_ff=40, but .* model.d_ff=8"),
        (dict(channels=1), "model.channels=3, but .* model.channels=1"),
    ],
    ids=str,
)
def test_other_sizes_are_refused(folders, changes, message):
    source = interop.read(folders[0])
    with pytest.raises(UserError, match=message):
        vit.adapt(source.model, config(**changes), source.names)


def test_a_part_that_is_reset_may_have_other_sizes(folders, mesh, tmp_path):
    """Another patch size, if its filters are drawn from scratch: positions are then resized."""
    c = config(patch=14)
    params = start(folders[0], c, mesh, reset="^patch/", tmp=str(tmp_path))
    assert params["position"].shape == (4, 24) and np.any(params["position"])
    assert params["patch"]["kernel"].shape == (14, 14, 3, 24) and not np.any(
        params["patch"]["kernel"]
    )


def test_fixed_positions_and_reset_ones_are_not_resized(folders):
    source = interop.read(folders[0])
    names = [n for n in source.names if n != "position"]
    assert vit.adapt(source.model, config(image_size=42), names) == {}
    fixed = {**source.model, "position": "sincos2d"}
    assert vit.adapt(fixed, config(image_size=42, position="sincos2d"), names) == {}


def test_the_table_has_the_sizes_of_the_source_where_nothing_is_loaded(folders, mesh, tmp_path):
    """A head for 3 labels starts one for 5."""
    source = init_from.open_source(str(folders[1]), str(tmp_path))
    params = fresh(config(), mesh)
    params["head"] = {k: np.zeros((*x.shape[:-1], 5), x.dtype) for k, x in params["head"].items()}
    params["head"] = jax.device_put(params["head"], jax.sharding.NamedSharding(mesh, P()))
    lines: list[str] = []
    init_from.initialise(params, source, "^head/", lines.append)
    rows = [line.split() for line in "\n".join(lines).splitlines()]
    heads = {row[0]: row[2:] for row in rows if row[1] == "head"}
    assert heads == {"new": ["2", "125"], "unused": ["2", "75"]}  # 24 x 5 + 5 and 24 x 3 + 3


def run_config(name, folder, size, **more):
    c = config_lib.new_config()
    c.init_from, c.init_reset = str(folder), "^head/"
    c.model = dict(name=name, preset="init_from", image_size=size)
    c.task = dict(name="image_classify")
    c.data = dict(name="images", train="digits", size=size, channels=3)
    c.train.steps, c.train.batch_size = 2, 16
    c.update(more)
    return c


def test_an_image_size_beside_the_sizes_of_a_source(folders):
    """It need not be a multiple of the default patch, but of the source's."""
    c = run_config("vit", folders[0], 42)
    assert modules.filled(c).model.image_size == 42
    resolved, _ = stages.resolve(c)
    assert (resolved.model.patch, resolved.model.image_size, resolved.model.n_layers) == (7, 42, 2)
    with pytest.raises(UserError, match="image_size=40 is not a multiple of model.patch=7"):
        stages.resolve(run_config("vit", folders[0], 40))
    c.model.depth = 3
    with pytest.raises(UserError, match="Unknown config key 'model.depth'"):
        modules.filled(c)


@pytest.mark.parametrize("reset", ["", "^head/"])
def test_a_source_of_another_family_is_named_at_once(folders, tmp_path, reset):
    """Neither the shapes nor the labels, which differ too, are what the user has to mend."""
    c = run_config("resnet", folders[1], 16, init_reset=reset)
    c.model = dict(name="resnet", image_size=16, units=(1, 1), width=8)
    with pytest.raises(UserError, match="holds a model 'vit', but config.model.name is 'resnet'"):
        train_lib.train(c, str(tmp_path / "run"))


def test_a_source_that_does_not_exist_has_to_be_downloaded(tmp_path):
    """It may be named as Hugging Face names its models."""
    with pytest.raises(UserError, match="download that model of Hugging Face into a folder"):
        init_from.open_source("google/bit-50", str(tmp_path))


def test_a_source_of_another_family_may_fit(folders, mesh, tmp_path):
    source = init_from.open_source(str(folders[1]), str(tmp_path))
    init_from.check_family(fresh(config(), mesh), source, "", "my_lab.vit")
    with pytest.raises(UserError, match="holds a model 'vit', but config.model.name is 'my_lab"):
        init_from.check_family(fresh(config(d_ff=8), mesh), source, "", "my_lab.vit")


@pytest.mark.slow
def test_a_trained_resnet_is_exported_with_its_statistics(tmp_path):
    folder = write(tmp_path / "in", *reference("resnet"))
    c = run_config("resnet", folder, 16)
    train_lib.train(c, str(tmp_path / "run"))
    export_model.export_run(str(tmp_path / "run"), str(tmp_path / "out"), log=lambda line: None)
    resolved = workdir_lib.read_config(str(tmp_path / "run"))
    saved = load_lib.load(str(tmp_path / "run"), resolved, None, None)
    stats = saved.extras["batch_stats"]["stage_2_unit_1"]["norm_3"]
    before, after = interop.read(folder), interop.read(tmp_path / "out")
    assert after.model["image_size"] == 16 and len(after.task["labels"]) == 10
    for key in ("mean", "var"):
        name = f"batch_stats/stage_2_unit_1/norm_3/{key}"
        np.testing.assert_array_equal(after.load(name), stats[key])
        assert np.abs(after.load(name) - before.load(name)).max() > 1e-3
