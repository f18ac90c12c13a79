"""The comparison with MaxText of benchmarks/tpu_plan.py, without a compiler, MaxText or network."""

import importlib
from importlib import metadata
import json
from pathlib import Path
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest

from bigjax.plan import chips, compilers
from bigjax.plan.search import WINDOWED
from bigjax.train.program import SCOPED_VMEM
from tests.unit.test_plan import text

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def load(monkeypatch, tmp_path):
    """load(name) imports a module of benchmarks/; the cache of bigjax is in tmp_path / 'cache'."""
    monkeypatch.setattr(chips, "before_jax", lambda: None)  # it sets variables of the process
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path / "pyenv"))
    (tmp_path / ".cache").mkdir()
    return importlib.import_module


@pytest.fixture
def environment(load, monkeypatch):
    """maxtext_environment, with installed packages on our side."""
    module = load("maxtext_environment")
    monkeypatch.setattr(metadata, "version", lambda name: "1.2")
    return module


class Commands:
    """Answers commands as subprocess.run does. pythons: {path: what it answers for its version}."""

    def __init__(self, pythons, pip_error=""):
        self.pythons, self.pip_error, self.seen = pythons, pip_error, []

    def __call__(self, command, **_):
        self.seen.append(command)
        answer = lambda code, out="", err="": SimpleNamespace(
            returncode=code, stdout=out, stderr=err
        )
        if command[1] == "-c":
            version = self.pythons.get(command[0])
            return answer(0, version + "\n") if version else answer(127, err="not activated")
        if command[1:3] == ["-m", "venv"]:
            inside = Path(command[3], "bin", "python")
            inside.parent.mkdir(parents=True)
            inside.touch()
        if "install" in command and self.pip_error:
            return answer(1, err=self.pip_error)
        return answer(0, "maxtext==0.2.5\n" if "freeze" in command else "")

    def installs(self):
        return [command for command in self.seen if "install" in command]


def test_a_python_on_path_that_does_not_run_is_passed_over(environment, monkeypatch, tmp_path):
    monkeypatch.setattr("shutil.which", lambda name: "/shims/python3.12")
    inside = tmp_path / "pyenv/versions/3.12.1/bin/python3.12"
    inside.parent.mkdir(parents=True)
    inside.touch()
    run = Commands({sys.executable: "3.11", "/shims/python3.12": None, str(inside): "3.12"})
    assert environment.python(run) == inside
    run.pythons["/shims/python3.12"] = "3.12"
    assert environment.python(run) == Path("/shims/python3.12")


def test_without_python_3_12_the_reason_says_what_is_missing(environment, monkeypatch, tmp_path):
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(environment.Unavailable, match="no Python 3.12, which maxtext==0.2.5 needs"):
        environment.prepare(run=Commands({sys.executable: "3.13"}))


def test_an_index_that_does_not_answer_is_a_reason(environment):
    error = (
        "WARNING: Retrying after connection broken\n"
        "ERROR: Could not find a version that satisfies the requirement maxtext==0.2.5\n"
        "ERROR: No matching distribution found for maxtext==0.2.5\n"
    )
    run = Commands({sys.executable: "3.12"}, error)
    for attempt in (1, 2):  # what a failed attempt leaves is not taken for an environment
        with pytest.raises(
            environment.Unavailable,
            match="^could not install maxtext==0.2.5 from PyPI: Could not find .* maxtext==0.2.5$",
        ):
            environment.prepare(lambda *_, **__: None, run)
        assert len(run.installs()) == attempt


def test_an_environment_is_made_once_with_our_versions(environment, monkeypatch):
    run, log = Commands({sys.executable: "3.12"}), lambda *_, **__: None
    python, packages = environment.prepare(log, run)
    assert packages == "maxtext==0.2.5\n"
    assert {"maxtext==0.2.5", "jax==1.2", "libtpu==1.2"} < {*run.installs()[0]}
    assert environment.prepare(log, run) == (python, packages)
    assert len(run.installs()) == 1
    python.unlink()  # a link to a Python that has been removed
    environment.prepare(log, run)
    assert len(run.installs()) == 2
    monkeypatch.setattr(metadata, "version", lambda name: "1.3")
    assert environment.prepare(log, run)[0] != python


def test_a_missing_package_of_ours_is_a_reason(environment, monkeypatch):
    def version(name):
        if name == "libtpu":
            raise metadata.PackageNotFoundError(name)
        return "1.2"

    monkeypatch.setattr(metadata, "version", version)
    with pytest.raises(environment.Unavailable, match="libtpu is not installed"):
        environment.requirements()


def write_step(folder, program, peak_bytes):
    report = {"parameters": 7, "mesh": {"data": 1, "fsdp": 4}, "peak_bytes": peak_bytes}
    (folder / "report.json").write_text(json.dumps(report))
    if program:
        (folder / "program.txt").write_text(program)


def test_a_step_is_compiled_once_for_each_key(load, tmp_path):
    sides, compiled = load("tpu_sides"), []

    def step(key, program="HloModule step", peak=8.0):
        def compile_step(folder):
            compiled.append(key)
            write_step(folder, program, peak)

        return sides._cached("side", (key,), compile_step, lambda *_, **__: None)

    first = step("a")
    assert (first.text, first.peak_bytes, first.parameters) == ("HloModule step", 8.0, 7)
    assert step("a") == first and compiled == ["a"]
    assert step("b", None, None).text is None  # does not fit
    assert step("b", None, None).text is None and compiled == ["a", "b"]
    for path in (tmp_path / ".cache").rglob("*.txt.gz"):
        path.write_bytes(path.read_bytes()[:20])
    assert step("a") == first and compiled == ["a", "b", "a"]


def test_kernels_without_a_scope_count_as_ours_do(load):
    """The program of our layers, with its scopes taken out, reads as before."""
    sides = load("tpu_sides")
    scope = re.compile(r"metadata=\{(attention_product_\d+)\}")
    program = scope.sub(r'metadata={op_name="jit(step)/\1/splash"}', text("splash"))
    bare = scope.sub('metadata={op_name="jit(step)/splash"}', text("splash"))
    step = lambda program: sides.Step(program, 1.0, 1, {"data": 1, "fsdp": 4, "tensor": 1})
    want, got = (step(p).costs("v5e:2x2") for p in (program, bare))
    assert bare != program and want.kernel_flops > 0
    assert got == want
    assert sides.scoped(program) == program
    one_row = bare.replace("bf16[4,2,128,64]{3,2,1,0", "bf16[2,128,64]{2,1,0")  # its axis goes
    assert step(one_row).costs("v5e:2x2").kernel_flops == pytest.approx(want.kernel_flops / 4)


def test_a_step_on_one_device_is_read(load):
    step = load("tpu_sides").Step(text("scanned"), 1.0, 1, {"data": 1, "fsdp": 1})
    assert step.costs("v5e:1x1").flops > 0


def test_both_sides_get_the_same_layout_batch_and_flags(load):
    plan = load("tpu_plan")
    model = plan.MODELS["7b"]
    layout = model.layouts[1]
    config = plan.our_config(model, layout, plan.OFF)
    assert dict(config.mesh) == {"data": 8, "fsdp": 16, "sequence": 1, "tensor": 2}
    assert config.model.remat == "dots" and config.data.seq_len == 2048
    assert config.train.compiler_options.to_dict() == {WINDOWED: "1000000"}
    settings = dict(s.split("=", 1) for s in plan.their_settings(model, layout, plan.OFF, True))
    rows = float(settings["per_device_batch_size"]) * model.devices
    assert rows == config.train.batch_size == 256
    assert settings["max_target_length"] == "2048"
    assert settings["remat_policy"] == "minimal_with_context"
    assert [settings[f"ici_{a}_parallelism"] for a in ("data", "fsdp", "tensor")] == [
        "8",
        "16",
        "2",
    ]
    assert settings["compile_xla_flags"] == f"--{WINDOWED}=1000000"
    assert settings["use_iota_embed"] == "true"


def test_defaults_of_maxtext_are_left_to_it(load):
    plan = load("tpu_plan")
    keys = {s.split("=")[0] for s in plan.their_settings(plan.MODELS["1.3b"], None, {})}
    assert not keys & {"remat_policy", "ici_fsdp_parallelism", "compile_xla_flags"}
    assert "use_iota_embed" not in keys


def reading(plan, work, communication=0.1):
    return plan.Reading(
        work, work / 2, 0.1, communication, (work + 0.1, work + 0.1 + communication), 9.5
    )


@pytest.fixture
def comparison(load, monkeypatch, tmp_path):
    """tpu_plan with steps that are not compiled: seconds[side] gives the work of a step with
    windowed einsum and without; the seconds of use_iota_embed are 2. given: the options of ours."""
    plan, given = load("tpu_plan"), []
    seconds = {"ours": (0.5, 0.4), "theirs": (0.9, 0.3)}

    def ours(self, layout, options):
        given.append(options)
        return reading(plan, seconds["ours"][WINDOWED in options])

    def theirs(self, layout, options, iota):
        if self.missing:
            return None
        return reading(plan, 2.0 if iota else seconds["theirs"][WINDOWED in options])

    monkeypatch.setattr(plan, "KEPT", tmp_path / "tpu_plan.json")
    monkeypatch.setattr(plan.Comparison, "ours", ours)
    monkeypatch.setattr(plan.Comparison, "theirs", theirs)
    monkeypatch.setattr(plan.tpu_sides, "missing", lambda: "")
    monkeypatch.setattr(compilers, "check", lambda compiler: None)
    return SimpleNamespace(plan=plan, seconds=seconds, given=given)


def run(plan, monkeypatch, capsys, *flags):
    monkeypatch.setattr(sys, "argv", ["tpu_plan.py", *flags])
    plan.main()
    return capsys.readouterr().out.splitlines()


def test_the_line_of_json_is_of_best_flags_and_more_is_better(comparison, monkeypatch, capsys):
    lines = run(comparison.plan, monkeypatch, capsys, "--models=1.3b", "--json")
    result = json.loads(lines[-1])
    assert {*result} == {"name", "ours", "theirs", "ratio", "unit"}
    assert result["name"] == "tpu_plan" and "1.3b" in result["unit"]
    # Each side without windowed einsum: 0.4 seconds of ours, 0.3 of theirs.
    assert result["ours"] == pytest.approx(2.5) and result["theirs"] == pytest.approx(1 / 0.3)
    assert result["ratio"] == pytest.approx(0.75)
    comparison.seconds["ours"] = (0.2, 0.25)  # now with it
    result = json.loads(run(comparison.plan, monkeypatch, capsys, "--models=1.3b", "--json")[-1])
    assert result["ratio"] == pytest.approx(1.5)


def test_ours_has_the_memory_on_the_chip_that_maxtext_has(comparison):
    """By default it would have 32 MiB, and MaxText the compiler's 16."""
    comparison.plan.Comparison(comparison.plan.MODELS["1.3b"], "").rows()
    memory = [options.get(SCOPED_VMEM) for options in comparison.given[:3]]
    assert memory == ["16384", "16384", "32768"]


def test_the_table_has_a_row_of_each_kind(comparison, monkeypatch, capsys):
    plan = comparison.plan
    lines = run(plan, monkeypatch, capsys, "--models=1.3b,7b")
    rows = [line for line in lines if line.startswith("| ") and "---" not in line]
    for model in ("1.3b", "7b"):
        assert sum(model in row for row in rows) == 1
    for kind in ("full remat", "dots remat", "best flags", "use_iota_embed", "own defaults"):
        assert any(kind in row for row in rows), kind
    windowed = next(row for row in rows if "full remat, the compiler's defaults" in row)
    assert "| 0.9000, 0.5000 | 1.800 | 0.4500, 0.2500 |" in windowed
    assert "9.50, 9.50" in windowed


def test_the_page_has_the_rows_of_the_script(comparison, monkeypatch, capsys):
    first = lambda lines: [line.split(" | ")[0] for line in lines if line.startswith("| ")]
    page = (BENCHMARKS.parent / "docs" / "benchmarks.md").read_text(encoding="utf-8").splitlines()
    printed = run(comparison.plan, monkeypatch, capsys, "--models=1.3b,7b,7b-4096,175b")
    assert len(first(printed)) > 30
    end = next(i for i, line in enumerate(page) if line.startswith("At equal layout"))
    assert first(page[page.index("## MaxText") : end]) == first(printed)


def test_the_page_has_the_tables_of_what_was_read(load):
    plan = load("tpu_plan")
    page = (BENCHMARKS.parent / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    for name, model in plan.MODELS.items():
        assert plan.table(model, plan.kept(name)) in page


def test_what_is_read_is_kept_for_each_model(comparison, monkeypatch, capsys):
    plan = comparison.plan
    printed = "\n".join(run(plan, monkeypatch, capsys, "--models=7b"))
    run(plan, monkeypatch, capsys, "--models=1.3b")
    assert plan.table(plan.MODELS["7b"], plan.kept("7b")) in printed
    assert [*json.loads(plan.KEPT.read_text())] == ["1.3b", "7b"]


def test_without_maxtext_the_reason_is_printed(comparison, monkeypatch, capsys):
    plan = comparison.plan
    monkeypatch.setattr(plan.tpu_sides, "missing", lambda: "no Python 3.12")
    lines = run(plan, monkeypatch, capsys, "--models=1.3b", "--json")
    assert lines[0] == "MaxText is skipped: no Python 3.12."
    result = json.loads(lines[-1])
    assert result["theirs"] is None and result["ratio"] is None
    assert result["skipped"] == "no Python 3.12" and result["ours"] == pytest.approx(2.5)


def test_models_that_differ_are_refused(load):
    plan = load("tpu_plan")
    comparison = plan.Comparison(plan.MODELS["1.3b"], "")
    step = lambda n: plan.tpu_sides.Step(None, None, n, {"data": 1})
    assert comparison._reading("MaxText", step(5)) is None
    with pytest.raises(SystemExit, match="'MaxText': 5, 'bigjax': 6"):
        comparison._reading("bigjax", step(6))


def test_an_unknown_model_is_refused(load, monkeypatch, capsys):
    plan = load("tpu_plan")
    with pytest.raises(SystemExit):
        run(plan, monkeypatch, capsys, "--models=1.3b,9b")
    assert "9b is not one of 1.3b, 7b, 7b-4096, 175b" in capsys.readouterr().err


FAKE = """
import jax
import tensorflow as tf  # not installed
from google.cloud import storage
from flax import nnx
from maxtext import where

@tf.function
def decorated(x: tf.Tensor | None): return x

class Derived(storage.Client): pass

class Compiled:
    def memory_analysis(self):
        import types
        return types.SimpleNamespace(peak_memory_in_bytes=123)
    def as_text(self): return "HloModule theirs"

def jit_and_compile(func, args, kwargs, mesh, *rest):
    if "per_device_batch_size=64" in ARGV:
        raise RuntimeError("RESOURCE_EXHAUSTED: Ran out of memory on HBM")
    if "per_device_batch_size=0" in ARGV:
        raise RuntimeError("INTERNAL: something else")
    return Compiled()

def main(argv):
    global ARGV
    ARGV = argv
    assert argv[1].endswith("maxtext/configs/base.yml"), argv
    import types
    state = nnx.State({"model": {"w": nnx.Param(jax.numpy.ones((2, 3))),
                                 "count": nnx.RngCount(jax.numpy.ones(()))}})
    mesh = types.SimpleNamespace(shape={"data": 1, "fsdp": 4})
    jit_and_compile(None, (state,), {}, mesh, None, None)
    raise AssertionError("what follows a compilation is not run")
"""


@pytest.mark.parametrize(
    "rows, code, peak", [("4", 0, 123.0), ("64", 0, None), ("0", 1, "no report")]
)
def test_their_program_is_kept(tmp_path, rows, code, peak):
    """With a package in the form of MaxText's, whose imports are not all installed."""
    package = tmp_path / "maxtext"
    inner = package / "trainers" / "pre_train"
    inner.mkdir(parents=True)
    for folder in (package, package / "trainers", inner):
        (folder / "__init__.py").touch()
    (package / "where.py").touch()
    (inner / "train_compile.py").write_text(FAKE)
    done = subprocess.run(
        [
            sys.executable,
            str(BENCHMARKS / "maxtext_compile.py"),
            str(tmp_path),
            f"per_device_batch_size={rows}",
        ],
        env={"PYTHONPATH": str(tmp_path), "PATH": "", "JAX_PLATFORMS": "cpu", "HOME": "/"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == code, done.stderr
    if code:
        assert "INTERNAL: something else" in done.stderr
        return
    report = json.loads((tmp_path / "report.json").read_text())
    assert report == {"parameters": 6, "mesh": {"data": 1, "fsdp": 4}, "peak_bytes": peak}
    program = tmp_path / "program.txt"
    assert program.exists() == (peak is not None)
    assert peak is None or program.read_text() == "HloModule theirs"
