"""Frozen parts of a task: parameters that it uses without training them, from another run."""

import json
import shutil
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigjax import main, tasks
from bigjax.errors import UserError
from bigjax.parallel import mesh as mesh_lib
from bigjax.parallel.sharding import Axis
from bigjax.train import frozen
from bigjax.train import program as program_lib
from bigjax.train import workdir as workdir_lib
from bigjax.train.checkpoint import Checkpoints
from bigjax.train.state import State
from bigjax.trees import named_leaves
from tests import helpers

pytestmark = pytest.mark.usefixtures("one_device")

# Next-token prediction that also reports the loss of a frozen teacher of the same sizes.
TASK = """
import dataclasses

from bigjax.tasks import Frozen, causal_lm


@dataclasses.dataclass(frozen=True)
class Config:
    teacher: str = ""

    PATHS = ("teacher",)
    MAY_CHANGE = ("teacher",)


def build(config, options):
    student = causal_lm.build(config, causal_lm.Config())
    init = lambda rng: student.init(rng)["params"]

    def loss(params, extras, frozen, batch, rng, train):
        pair, (metrics, extras) = student.loss(params, extras, {}, batch, rng, train)
        teacher, _ = student.loss(frozen["teacher"], {}, {}, batch, rng, False)
        return pair, ({**metrics, "teacher": teacher}, extras)

    parts = {"teacher": Frozen(init, student.axes["params"], options.teacher)}
    return dataclasses.replace(student, loss=loss, frozen=parts)
"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A folder with the task my_frozen_lab.distil."""
    folder = tmp_path_factory.mktemp("lab")
    (folder / "my_frozen_lab").mkdir()
    (folder / "my_frozen_lab" / "__init__.py").touch()
    (folder / "my_frozen_lab" / "distil.py").write_text(TASK)
    yield str(folder)
    for name in [n for n in sys.modules if n.startswith("my_frozen_lab")]:
        del sys.modules[name]
    if str(folder) in sys.path:
        sys.path.remove(str(folder))


@pytest.fixture(scope="module")
def small(corpus_file, cache_dir):
    return [
        f"--config={helpers.TINY}",
        f"--config.data.sources.text.path={corpus_file}",
        f"--config.data.cache_dir={cache_dir}",
        *("--config.model.d_model=16", "--config.model.n_layers=1", "--config.model.n_heads=2"),
        *("--config.train.steps=2", "--config.checkpoint.every=2", "--config.log.every=1"),
        *("--config.evals.valid.every=2", "--config.evals.zest.every=2"),
    ]


@pytest.fixture(scope="module")
def teacher(small, tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher") / "run"
    assert main.main(["train", *small, f"--workdir={folder}", "--config.seed=5"]) == 0
    return folder


@pytest.fixture(scope="module")
def distil(small, lab, teacher):
    return [
        *small,
        *("--config.task.name=my_frozen_lab.distil", f"--config.python_path={lab}"),
        f"--config.task.teacher={teacher}",
    ]


@pytest.fixture(scope="module")
def student(distil, tmp_path_factory):
    folder = tmp_path_factory.mktemp("student") / "run"
    assert main.main(["train", *distil, f"--workdir={folder}"]) == 0
    return folder


def evaluated(folder) -> dict:
    """The evaluation metrics of step 2."""
    metrics = {}
    for line in helpers.read_metrics(folder):
        if line["step"] == 2:
            metrics.update({k: v for k, v in line.items() if k.startswith("eval/")})
    return metrics


def test_a_frozen_part_is_passed_to_the_loss_in_training_and_evaluation(teacher, student, capsys):
    own, metrics = evaluated(teacher), evaluated(student)
    for split in ("valid", "zest"):
        # The same as in its own run; the student is another model.
        assert metrics[f"eval/{split}/teacher"] == pytest.approx(
            own[f"eval/{split}/loss"], rel=1e-6
        )
        assert metrics[f"eval/{split}/loss"] != metrics[f"eval/{split}/teacher"]
    steps = [m["teacher"] for m in helpers.read_metrics(student) if "teacher" in m]
    assert len(steps) == 2 and np.isfinite(steps).all()
    code = main.main(["eval", f"--workdir={student}", "--json"])
    out, err = capsys.readouterr()
    assert code == 0, err
    assert json.loads(out.splitlines()[-1])["eval/valid/teacher"] == pytest.approx(
        own["eval/valid/loss"], rel=1e-6
    )


def test_a_frozen_part_is_not_in_the_state(student):
    saved = helpers.saved_checksums(student, 2)
    assert saved and not any("teacher" in name for name in saved)
    assert json.loads((student / "config.json").read_text())["task"]["name"].endswith("distil")


def test_a_run_resumes_only_with_the_same_frozen_parameters(
    small, distil, teacher, student, tmp_path, capsys
):
    run, other = tmp_path / "run", tmp_path / "other"
    shutil.copytree(student, run)
    shutil.copytree(teacher, other)
    # A copy at another path has the same parameters.
    moved = [*distil, f"--config.task.teacher={other}", f"--workdir={run}"]
    assert main.main(["train", *moved, "--config.train.steps=3"]) == 0
    capsys.readouterr()
    # A teacher that was trained further has other parameters.
    further = ["train", *small, "--config.seed=5", "--config.train.steps=3"]
    assert main.main([*further, f"--workdir={other}"]) == 0
    before = (run / "metrics.jsonl").read_bytes()
    assert main.main(["train", *moved, "--config.train.steps=4"]) == 2
    err = capsys.readouterr().err
    assert "The frozen part 'teacher' of this task is not the one that this run" in err
    assert (run / "metrics.jsonl").read_bytes() == before
    export = ["export", f"--to={tmp_path}/exported"]
    for command in (["eval"], ["generate"], export):
        assert main.main([*command, f"--workdir={run}"]) == 2
        assert "The frozen part 'teacher' of this task is not the one" in capsys.readouterr().err
    assert not (tmp_path / "exported").exists()
    assert main.main([*export, f"--workdir={student}"]) == 0


def test_a_source_that_does_not_fit_or_does_not_exist(distil, tmp_path, capsys):
    for change, words in (
        (f"--config.task.teacher={tmp_path}/none", "none' is neither a run's work folder nor"),
        ("--config.model.d_model=32", "does not match the frozen part 'teacher': "),
    ):
        assert main.main(["train", *distil, change, f"--workdir={tmp_path}/run"]) == 2
        err = capsys.readouterr().err
        assert words in err, err
    assert not (tmp_path / "run" / "checkpoints").exists()


def task_of(source: str) -> tasks.Task:
    shapes = {"w": jnp.zeros((8, 4)), "b": jnp.zeros(4)}
    init = lambda rng: {"params": {"kernel": jax.random.normal(rng, (4,))}}

    def loss(params, extras, parts, batch, rng, train):
        y = batch["x"] @ parts["base"]["w"] + parts["base"]["b"] + params["kernel"]
        return ((y**2).sum(), jnp.float32(y.size)), ({}, extras)

    part = tasks.Frozen(lambda rng: shapes, {"w": ("mlp", "embed"), "b": (None,)}, source)
    batch = lambda size, step: {"x": jax.ShapeDtypeStruct((size, 8), jnp.float32)}
    return helpers.task(init, loss, {"kernel": (None,)}, batch_shapes=batch, frozen={"base": part})


def test_a_frozen_part_is_planned_by_its_shapes_and_sharded(mesh_of_one):
    """Nothing is read: its source does not exist."""
    task, c = task_of("/nowhere"), helpers.load_config("tests/tiny.py")
    mesh = jax.sharding.AbstractMesh(
        (1, 2, 1, 2),
        ("data", "fsdp", "sequence", "tensor"),
        axis_types=(jax.sharding.AxisType.Auto,) * 4,
    )
    shapes = frozen.shapes(task, mesh)["base"]
    assert all(isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree.leaves(shapes))
    assert shapes["w"].sharding.spec == jax.P("tensor", "fsdp")
    program = program_lib.make(c, task, mesh_of_one)
    traced = program_lib.trace(program, c.train.batch_size, 0)
    arguments = [x.shape for x in jax.tree.leaves(traced.in_avals)]
    assert (8, 4) in arguments  # an argument, not a constant of the program
    assert not any(np.shape(x) == (8, 4) for x in traced.jaxpr.consts)
    with pytest.raises(UserError, match="/nowhere"):
        frozen.load(task, mesh_of_one, "", print)


def test_without_a_source_a_frozen_part_is_initialised(mesh_of_one):
    parts = frozen.load(task_of(""), mesh_of_one, "", print).arrays
    assert parts["base"]["w"].shape == (8, 4) and not np.any(parts["base"]["w"])


class WithStatistics:
    """config.task: one parameter, with an axis of its own, and one statistic."""

    @staticmethod
    def build(config, options):
        variables = {"params": {"kernel": jnp.zeros(4)}, "statistics": {"mean": jnp.zeros(2)}}
        task = helpers.task(
            lambda rng: variables, None, {"kernel": (Axis("of_a_teacher", "tensor"),)}
        )
        task.axes["statistics"] = {"mean": (None,)}
        return task


def test_a_frozen_run_has_its_sharding_rules_and_all_collections(mesh_of_one, tmp_path):
    c = helpers.load_config("tests/tiny.py")
    with c.unlocked():
        c.task = dict(name=f"{__name__}.WithStatistics")
    workdir_lib.write_config(tmp_path, c)
    params, extras = {"kernel": jnp.arange(4.0)}, {"statistics": {"mean": jnp.ones(2)}}
    state = State(jnp.int32(1), params, (), extras, None, jnp.bool_(False))
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state, {"data": "", "early_stop": {}}, {})
    checkpoints.wait()
    checkpoints.close()
    _, part = tasks.frozen_run(str(tmp_path))
    assert part.axes["params"]["kernel"][0].rule == "tensor"
    student = helpers.task(None, None, {}, frozen={"teacher": part})
    loaded = frozen.load(student, mesh_of_one, "", print).arrays["teacher"]
    assert jax.tree.all(jax.tree.map(jnp.array_equal, loaded, {"params": params, **extras}))
    with pytest.raises(UserError, match="not the work folder of a run"):
        tasks.frozen_run(str(tmp_path / "none"))


@pytest.fixture
def mesh_of_one():
    mesh = mesh_lib.make_mesh(dict(data=1), jax.devices()[:1])
    with jax.set_mesh(mesh):
        yield mesh


def test_a_fingerprint_depends_on_every_value():
    base = {"w": jnp.ones((4, 4)), "b": jnp.zeros(4)}
    fingerprints = frozen.fingerprints({"a": base, "b": base})
    assert fingerprints["a"] == fingerprints["b"]
    for name in named_leaves(base):
        changed = {k: x.at[(0,) * x.ndim].add(1e-6) if k == name else x for k, x in base.items()}
        assert frozen.fingerprints({"a": changed})["a"] != fingerprints["a"]
    ids = frozen.fingerprints({"a": base})
    frozen.check_same(ids, {"a": fingerprints["a"], "more": "x"})
    with pytest.raises(UserError, match="frozen part 'a'"):
        frozen.check_same(ids, {})
