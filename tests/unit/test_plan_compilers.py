"""Compilers that a plan refuses, and messages about programs that cannot be read."""

import importlib
from importlib import metadata
import importlib.util
import re
import sys
from types import SimpleNamespace

import jax
import pytest

from bigjax import extras, main, tasks
from bigjax.errors import RunError, UserError
from bigjax.parallel import mesh as mesh_lib
from bigjax.plan import chips, compilers, predict, search
from bigjax.plan import compile as compile_lib
from bigjax.plan.compilers import CUDA12, CUDA13, TPU
from bigjax.train import program
from tests import helpers
from tests.unit import test_plan, test_plan_search
from tests.unit.test_plan import text

JAX = {"jax": "0.10.2", "jaxlib": "0.10.2"}
NAMED = [
    "jaxlib<=0.10.2,>=0.10.1",
    "numpy>=2.0",
    'jaxlib<=0.10.2,>=0.10.2; extra == "tpu"',
    'libtpu==0.0.42.*; extra == "tpu"',
    'requests; extra == "tpu"',
    'jaxlib<=0.10.2,>=0.10.2; extra == "cuda12"',
    'jax-cuda12-plugin[with-cuda]<=0.10.2,>=0.10.2; extra == "cuda12"',
    'jax-cuda13-plugin[with-cuda]<=0.10.2,>=0.10.2; extra == "cuda13"',
]


@pytest.fixture
def install(monkeypatch):
    """install({package: version}, requires) pretends that only these packages are installed."""

    def install_only(packages, requires=NAMED, module=True):
        def version(name):
            if name not in packages:
                raise metadata.PackageNotFoundError(name)
            return packages[name]

        def named(name):
            version(name)
            return requires

        monkeypatch.setattr(metadata, "version", version)
        monkeypatch.setattr(metadata, "requires", named)
        cuda13 = "jax-cuda13-plugin" in packages
        find = lambda name: (module and (cuda13 or name != CUDA13.module)) or None
        monkeypatch.setattr(importlib.util, "find_spec", find)

    return install_only


@pytest.mark.parametrize(
    "packages, requires",
    [
        ({**JAX, "libtpu": "0.0.42.1"}, NAMED),
        ({**JAX, "libtpu": "0.0.42"}, NAMED),
        ({**JAX, "libtpu": "0.0.52"}, None),  # a jax built from source
        ({**JAX, "libtpu": "0.0.52"}, ["numpy>=2.0"]),
        ({"jaxlib": "0.10.2", "libtpu": "0.0.52"}, NAMED),  # no metadata of jax
        (
            {**JAX, "libtpu": "0.0.53.dev20261101+nightly"},
            ['libtpu==0.0.53.dev20261101; extra == "tpu"'],
        ),
        ({**JAX, "libtpu-nightly": "0.1.dev5"}, ['libtpu-nightly==0.1.dev5; extra == "tpu"']),
    ],
)
def test_a_matching_compiler_is_accepted(install, packages, requires):
    install(packages, requires)
    compilers.check(TPU)


@pytest.mark.parametrize(
    "packages, message",
    [
        ({"libtpu": "0.0.52"}, r"released with libtpu==0.0.42.\*, but libtpu 0.0.52 is installed"),
        ({"libtpu": "0.0.41"}, "but libtpu 0.0.41 is installed"),
        ({"libtpu": "0.0.420"}, "but libtpu 0.0.420 is installed"),
        ({"libtpu-nightly": "0.1.dev5"}, "but libtpu-nightly 0.1.dev5 is installed"),
        ({}, "an unknown version is installed"),  # a copied folder
        (
            {"libtpu": "0.0.42.1", "libtpu-nightly": "0.1.dev5"},
            r"libtpu and libtpu-nightly are both installed.*pip uninstall libtpu libtpu-nightly",
        ),
        (
            {"libtpu": "0.0.42.1", "jaxlib": "0.10.1"},
            "released with jaxlib.*but jaxlib 0.10.1 is installed",
        ),
    ],
)
def test_a_compiler_of_another_version_is_refused(install, packages, message):
    install({**JAX, **packages})
    with pytest.raises(UserError, match=message) as e:
        compilers.check(TPU)
    assert "pip install -e '.[plan]'" in str(e.value)


def test_messages_say_what_to_install(install):
    install({**JAX, "libtpu": "0.0.52"})
    with pytest.raises(UserError, match=r"pip install 'libtpu==0.0.42.\*'"):
        chips.devices("v5e:4x4")
    install({**JAX, "jax-cuda12-plugin": "0.9.2"})
    with pytest.raises(UserError, match="jax-cuda12-plugin 0.9.2 is installed"):
        chips.devices("h100:8")
    install({**JAX, "jax-cuda12-plugin": "0.10.2"})
    assert compilers.gpu() == CUDA12
    compilers.check(CUDA12)
    install({**JAX, "jax-cuda12-plugin": "0.10.2", "jax-cuda13-plugin": "0.9.2"})
    with pytest.raises(UserError, match=r"jax-cuda13-plugin 0.9.2 is .*-e '.\[cuda13\]'"):
        chips.devices("h100:8")
    install(JAX, module=False)
    lines: list[str] = []
    with pytest.raises(UserError, match=r"needs libtpu.*no TPU is needed: pip install -e '\.\[pl"):
        compile_lib.plans(test_plan_search.config(), "v5e:4x4", 1, lines.append)
    assert not lines


def test_the_version_of_the_compiler_is_known(install):
    install({**JAX, "libtpu": "0.0.42.1"})
    assert compilers.version(TPU) == "libtpu 0.0.42.1"
    install(JAX)
    assert compilers.version(TPU) == "libtpu, version unknown"


def test_the_extra_installs_the_compiler_that_jax_requires():
    """As jax[tpu] does, so that pip cannot choose another version."""
    (named,) = [r for r in extras.requirements("jax", "tpu") if r.name == "libtpu"]
    assert len(list(named.specifier)) == 1 and "==" in str(named.specifier)


def unreadable():
    raise RuntimeError("INTERNAL: RET_CHECK failure\n  should have 1 operands but sees 3")


@pytest.mark.parametrize(
    "as_text, why",
    [
        (unreadable, "RuntimeError: INTERNAL: RET_CHECK .* 1 operands but sees 3"),
        (lambda: "", "Error"),
        (lambda: '"stablehlo.module"() ({\n}) : () -> ()\n', "Error"),
        (lambda: text("scanned").replace("ENTRY ", "MAIN "), "Error"),
        (lambda: text("scanned").replace(" while(", " loop("), "FLOPs were counted"),
        (lambda: text("scanned").replace(" convolution(", " multiplied("), "FLOPs were counted"),
    ],
)
def test_a_program_that_cannot_be_read(as_text, why):
    needed = 6 * test_plan.B * test_plan.T * (test_plan.WEIGHTS + test_plan.V * test_plan.D)
    plan = test_plan_search.made(
        mesh={"data": 1, "fsdp": 4}, model_flops=needed, peak_bytes=2.0**30, flops=None
    )
    read = lambda as_text: compile_lib._read(
        SimpleNamespace(as_text=as_text), chips.CHIPS["v5e"], plan, 1
    )
    with pytest.raises(RunError, match=f"needs 1.00 GiB of HBM.*cannot be read by jaxlib.*{why}"):
        read(as_text)
    assert read(lambda: text("scanned")).flops > 0


class Compiler:
    """Stands in for a traced, a lowered and a compiled step; compiling may fail."""

    def __init__(self, failure=None):
        self.failure = failure

    def lower(self):
        return self

    def compile(self):
        if self.failure:
            raise RuntimeError(self.failure)
        return self

    def memory_analysis(self):
        return SimpleNamespace(
            host_argument_size_in_bytes=3, host_temp_size_in_bytes=5, peak_memory_in_bytes=2**30
        )

    as_text = staticmethod(unreadable)


@pytest.mark.parametrize(
    "failure, message",
    [
        ("INTERNAL: Mosaic failed to compile", "could not compile this step for .*Mosaic failed"),
        (
            "RESOURCE_EXHAUSTED: Ran out of memory in memory space vmem. Used 20.14M of 16.00M",
            "could not compile this step for .*memory space vmem",  # not of HBM
        ),
        (None, "cannot be read by jaxlib"),
    ],
)
def test_a_failure_is_one_line_and_is_not_cached(monkeypatch, tmp_path, capsys, failure, message):
    monkeypatch.setattr(chips, "devices", lambda topology, slices: jax.devices()[:4])
    monkeypatch.setattr(compile_lib.program_lib, "trace", lambda *_: Compiler(failure))
    monkeypatch.setattr(chips, "before_jax", lambda: None)
    code = main.main(
        [
            "plan",
            "--config=configs/gpt/gpt3.py:tiny",
            "--topology=v5e:2x2",
            "--mesh=data=4",
            f"--config.data.cache_dir={tmp_path}",
        ]
    )
    err = capsys.readouterr().err
    assert code == 1 and re.search(message, err) and "Traceback" not in err, err
    assert err.count("\n") == 1 and not list(tmp_path.rglob("*.json"))


def test_a_search_skips_layouts_that_fail_to_compile(monkeypatch):
    """And reports the failure if no layout compiles."""
    config = test_plan_search.config()
    failing = lambda config, topology, slices: (_ for _ in ()).throw(RunError("Mosaic failed"))
    monkeypatch.setattr(compile_lib, "plans", failing)
    monkeypatch.setattr(
        search, "_candidates", lambda *a, real=search._candidates: (real(*a)[0][:3], 0)
    )
    lines = []
    with pytest.raises(RunError, match="Mosaic failed"):
        search.search(config, "v5e:4x4", 1, 1.0, lines.append, lambda plan: plan.step_seconds)
    assert len([line for line in lines if "Mosaic failed" in line]) == 3


def test_a_search_expects_gradients_to_be_summed_between_slices():
    """Of two slices each device sends its part of the gradients, in bfloat16, over the network; a
    quarter of that time is not hidden by work."""
    c, chip = test_plan_search.config(batch_size=4096), chips.figures("v5e:4x4")
    arithmetic = search._Arithmetic(c, tasks.build(c), chip, (4, 4), 32, 2)
    mesh = {"data": 2, "fsdp": 16, "sequence": 1, "tensor": 1}
    fast = arithmetic.seconds(mesh, "full", 2)
    arithmetic.chip = chip._replace(dcn=chip.dcn / 2)
    sent = 2 * (2 * arithmetic.weights / 16)  # for each of two micro-batches
    assert arithmetic.seconds(mesh, "full", 2) - fast == pytest.approx(
        (1 - predict.OVERLAP) * sent / (chip.dcn * 1e9)
    )


def test_a_step_that_the_compiler_refuses_does_not_fit(monkeypatch):
    """Temporaries are without parameters and the optimizer's state."""
    failing = Compiler()
    monkeypatch.setattr(compile_lib.program_lib, "trace", lambda *_: failing)
    c = helpers.filled(helpers.load_config("tests/tiny.py"))
    task, mesh = tasks.build(c), mesh_lib.make_mesh({}, jax.devices()[:1])
    made = program.make(c, task, mesh)
    for failure, gib, with_state in (
        ("Ran out of memory in memory space hbm. Used 20.50G of 15.75G hbm.", 20.5, False),
        ("Used 512.00M of 15.75G hbm.", 0.5, False),
        ("The size of HLO temporaries (3.00G) exceeds available HBM", 3.0, True),
        ("Out of memory", None, False),
    ):
        failing.failure = f"RESOURCE_EXHAUSTED: {failure}"
        plan = compile_lib._plan(made, 8, 1, chips.CHIPS["v5e"], "", 0)
        more = plan.parameter_bytes + plan.optimizer_bytes if with_state else 0
        assert not plan.fits and plan.parameter_bytes > 0 and not plan.host_bytes
        assert plan.peak_bytes == (gib and gib * chips.GIB + more)
    failing.failure = (
        "RESOURCE_EXHAUSTED: The size of HLO temporaries (3.00G) exceeds available HBM"
    )
    with c.unlocked():
        c.optim.offload = True
    plan = compile_lib._plan(program.make(c, task, mesh), 8, 1, chips.CHIPS["v5e"], "", 0)
    assert 0.9 < plan.host_bytes / plan.optimizer_bytes <= 1  # a counter stays on the device
    rest = plan.parameter_bytes + plan.optimizer_bytes - plan.host_bytes
    assert plan.peak_bytes == 3 * chips.GIB + rest


def test_memory_of_the_host_is_that_of_the_state_and_that_of_activations(monkeypatch):
    monkeypatch.setattr(compile_lib.program_lib, "trace", lambda *_: Compiler())
    monkeypatch.setattr(compile_lib, "_read", lambda *_: predict.Costs(1.0, 0.0, 1.0, 0.0, []))
    c = helpers.filled(helpers.load_config("tests/tiny.py"))
    task, mesh = tasks.build(c), mesh_lib.make_mesh({}, jax.devices()[:1])
    step = compile_lib._plan(program.make(c, task, mesh), 8, 1, chips.CHIPS["v5e"], "", 0)
    assert (step.host_bytes, step.host_activation_bytes, step.peak_bytes) == (3, 5, 2**30 - 3)


def test_a_plan_is_not_reused_after_a_change_of_ones_own_module_or_of_jax(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    c = helpers.filled(helpers.load_config("tests/tiny.py"))
    with c.unlocked():
        c.python_path = str(tmp_path)
    key = lambda: compile_lib._key(c, [], {"data": 1}, "v5e:2x2", 1, chips.CHIPS["v5e"])
    (tmp_path / "my_layers_of_a_test.py").write_text("WIDTH = 2\n")
    (tmp_path / "not_imported.py").write_text("WIDTH = 2\n")
    importlib.import_module("my_layers_of_a_test")
    keys = [key(), key()]
    (tmp_path / "not_imported.py").write_text("WIDTH = 8\n")
    keys.append(key())
    (tmp_path / "my_layers_of_a_test.py").write_text("WIDTH = 8\n")
    keys.append(key())
    with jax.default_matmul_precision("highest"):
        keys.append(key())
    sys.modules.pop("my_layers_of_a_test")
    assert keys[0] == keys[1] == keys[2] and len({*keys}) == 3
