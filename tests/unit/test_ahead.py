"""Programs that a thread compiles."""

import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigjax.config import new_config
from bigjax.parallel import mesh as mesh_lib
from bigjax.train import ahead
from tests.helpers import bigjax

COMPILED = "/jax/core/compile/backend_compile_duration"


@pytest.fixture
def mesh():
    return mesh_lib.make_mesh(new_config().mesh)


@pytest.fixture
def compilations():
    """The names of the threads that compiled, in order."""
    threads = []

    def listener(event, seconds, **_):
        if event == COMPILED:
            threads.append(threading.current_thread().name)

    jax.monitoring.register_event_duration_secs_listener(listener)
    yield threads
    jax.monitoring.unregister_event_duration_listener(listener)


def test_a_call_uses_what_the_thread_compiled(mesh, compilations):
    sharded = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    function = ahead.Ahead(jax.jit(lambda x: jnp.sin(x) * 3, out_shardings=sharded))
    x = jax.device_put(np.arange(16.0, dtype=np.float32), sharded)
    with jax.set_mesh(mesh):
        traced = function.trace(jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharded))
    compilations.clear()
    function.start(traced, mesh)
    with jax.set_mesh(mesh):
        y = function(x)
        function(x)
    assert compilations == ["compile"]
    np.testing.assert_allclose(y, np.sin(np.arange(16)) * 3, rtol=1e-6)


def test_a_call_without_a_start_or_with_other_shapes_compiles(mesh, compilations):
    function = ahead.Ahead(jax.jit(lambda x: x + 2))
    function.start(function.trace(jnp.zeros(3)), mesh)
    assert function(jnp.zeros(4)).shape == (4,)
    assert ahead.Ahead(jax.jit(lambda x: x - 2))(jnp.zeros(3)).shape == (3,)
    assert {"MainThread", "compile"} <= {*compilations}


def test_the_call_raises_what_stopped_the_thread(mesh):
    options = {"xla_backend_optimization_level": "none"}
    function = ahead.Ahead(jax.jit(lambda x: x + 3, compiler_options=options))
    function.start(function.trace(jnp.zeros(3)), mesh)
    with pytest.raises(jax.errors.JaxRuntimeError, match="xla_backend_optimization_level"):
        function(jnp.zeros(3))


def test_no_thread_on_several_hosts(mesh, compilations, monkeypatch):
    function = ahead.Ahead(jax.jit(lambda x: x + 4))
    traced = function.trace(jnp.zeros(3))
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    function.start(traced, mesh)
    function(jnp.zeros(3))
    assert "compile" not in compilations


def test_a_run_compiles_its_step_in_a_thread_and_only_once(
    tiny_flags, tmp_path, capsys, monkeypatch, compilations
):
    called = []
    call = ahead.Ahead.__call__

    def count(self, *arguments):
        before = len(compilations)
        result = call(self, *arguments)
        called.append(compilations[before:].count("MainThread"))
        return result

    monkeypatch.setattr(ahead.Ahead, "__call__", count)
    flags = (*tiny_flags, f"--workdir={tmp_path}/run", "--config.train.steps=3")
    assert bigjax(capsys, "train", *flags)[0] == 0
    assert compilations.count("compile") == 1
    assert called == [0, 0, 0]
