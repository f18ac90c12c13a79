"""Devices that are not available and settings of jax that are refused."""

import os
import subprocess

import jax
import pytest

from bigjax import cli, main
from bigjax.errors import UserError
from bigjax.parallel import mesh as mesh_lib
from bigjax.plan import compile as compile_lib
from bigjax.train import import_model
from tests import helpers
from tests.unit.test_process import PYTHON, prints

IN_USE = (
    "Unable to initialize backend 'tpu': ABORTED: The TPU is already in use by process with pid "
    "1234. Not attempting to load libtpu.so in this process. (set JAX_PLATFORMS='' to choose)"
)


def test_a_tpu_that_is_in_use(monkeypatch, capsys):
    def run(argv):
        raise RuntimeError(IN_USE)

    monkeypatch.setattr(cli, "run", run)
    monkeypatch.setenv("JAX_PLATFORMS", "tpu")
    assert main.main(["train"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "JAX_PLATFORMS='tpu'" in err and "pid 1234" in err


@pytest.mark.parametrize(
    "platform", ["cuda", pytest.param("nonsense", marks=pytest.mark.slow)]
)  # 'tpu' without libtpu gives the same message
def test_unavailable_devices(platform):
    body = "import jax; jax.devices()"
    done = prints(body, JAX_PLATFORMS=platform)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert f"JAX_PLATFORMS='{platform}'" in done.stderr and "JAX_PLATFORMS=cpu" in done.stderr


@pytest.mark.parametrize(
    "name, value",
    [
        ("JAX_NUM_CPU_DEVICES", "abc"),
        pytest.param("JAX_ENABLE_X64", "abc", marks=pytest.mark.slow),
        pytest.param("JAX_TRANSFER_GUARD", "nonsense", marks=pytest.mark.slow),
        pytest.param("JAX_DEFAULT_MATMUL_PRECISION", "nonsense", marks=pytest.mark.slow),
        pytest.param("JAX_COMPILATION_CACHE_MAX_SIZE", "1.5", marks=pytest.mark.slow),
    ],
)
def test_a_setting_that_jax_rejects(name, value):
    done = prints("import jax", **{name: value})
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert f"unset {name}." in done.stderr and done.stdout == ""


@pytest.mark.parametrize(
    "name, value",
    [
        ("JAX_ENABLE_X64", True),
        ("JAX_DISABLE_JIT", True),
        ("JAX_NO_EXECUTION", True),
        ("JAX_NUMPY_DTYPE_PROMOTION", "strict"),
        ("JAX_NUMPY_RANK_PROMOTION", "raise"),
        ("JAX_CHECK_TRACER_LEAKS", True),
        ("JAX_TRANSFER_GUARD", "disallow"),
        ("JAX_TRANSFER_GUARD_HOST_TO_DEVICE", "disallow_explicit"),
    ],
)
def test_an_unsupported_setting_of_jax_is_refused(name, value, monkeypatch, tmp_path):
    """From any source: jax.config does not show transfer guards set in the environment."""
    mesh_lib.check_settings()
    before = getattr(jax.config, name.lower())
    if "GUARD" in name:
        monkeypatch.setenv(name, value)
    else:
        jax.config.update(name.lower(), value)
    try:
        for start in (
            lambda: mesh_lib.start({}, 8),
            lambda: compile_lib.plans(None, "v5e:1x1"),
            lambda: import_model.import_run(tmp_path / "none", tmp_path / "run", print),
        ):
            with pytest.raises(UserError, match=f"{name} is {value!r}, which .*`unset {name}`"):
                start()
    finally:
        if "GUARD" not in name:
            jax.config.update(name.lower(), before)


def test_supported_settings_of_jax_are_accepted(monkeypatch):
    monkeypatch.setenv("JAX_TRANSFER_GUARD", "log")
    for name, value in (("jax_numpy_rank_promotion", "warn"), ("jax_debug_nans", True)):
        before = getattr(jax.config, name)
        jax.config.update(name, value)
        try:
            mesh_lib.check_settings()
        finally:
            jax.config.update(name, before)


@pytest.mark.slow
def test_an_environment_setting_is_refused_before_the_folder_is_created(tmp_path):
    flags = [f"--config={helpers.TINY}", f"--workdir={tmp_path}/run"]
    done = subprocess.run(
        [PYTHON, "-m", "bigjax.main", "train", *flags],
        capture_output=True,
        text=True,
        env={**os.environ, "JAX_ENABLE_X64": "1"},
        timeout=120,
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert "JAX_ENABLE_X64 is True" in done.stderr and not (tmp_path / "run").exists()


def test_a_setting_made_by_code_is_not_reported_as_the_environments():
    with pytest.raises(ValueError, match="nonsense") as e:
        jax.config.update("jax_numpy_rank_promotion", "nonsense")
    assert main._setting_failure(e.value) is None
