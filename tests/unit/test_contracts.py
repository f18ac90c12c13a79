"""Assumptions of bigjax about the internals of other packages.

A failure, after one of them was updated, says what has changed and which code relies on it.
"""

import contextlib
import importlib
import inspect
import json
import pathlib
import socket
import subprocess
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigjax import cloud, private
from bigjax.errors import TransientError, UserError
from bigjax.layers.kernels import splash
from bigjax.layers.mask import Causal
from bigjax.parallel import mesh
from bigjax.train import checkpoint
from tests import bucket

ROOT = pathlib.Path(__file__).parents[2]
PACKAGES = ("jax", "gcsfs", "orbax-checkpoint")


def keeps(package: str, what: str, where: str, does: bool) -> None:
    """Asserts one assumption: the package does what `where` relies on."""
    assert does, f"{package} {private.installed(package)} has changed: not {what}. See {where}."


def uses(package: str) -> dict[str, str]:
    return importlib.import_module(f"bigjax.private.{package.partition('-')[0]}").USES


@pytest.mark.parametrize("package", PACKAGES)
def test_the_names_that_are_used_exist(package):
    private.check(package, uses(package))


@pytest.mark.parametrize("package", PACKAGES)
def test_a_missing_name_is_reported_with_the_version_to_install(package):
    version, range_ = private.installed(package), private.VERSIONS[package]
    for name, use in uses(package).items():
        for gone in (name.replace(":", ":gone."), name.replace(":", "_gone:"), name + "_gone"):
            with pytest.raises(UserError) as e:
                private.check(package, {gone: use})
            assert str(e.value) == (
                f"{package} {version} has no {gone.replace(':', '.')}, which bigjax needs ({use}). "
                f"Install a version that is known to work: pip install '{package}{range_}'."
            )
    assert private.installed("no-such-package") == "of unknown version"


def test_messages_name_the_versions_of_setup():
    setup = (ROOT / "setup.py").read_text()
    assert f'JAX = "{private.VERSIONS["jax"]}"' in setup
    for package in ("gcsfs", "orbax-checkpoint"):
        assert f'"{package}{private.VERSIONS[package]}"' in setup


# --- jax ----------------------------------------------------------------------------------------

# One of two processes. It prints its results; one exits early, the other is aborted.
PROCESS = """
import ctypes, json, os, sys, threading, time
import jax
from jax.experimental import multihost_utils
from bigjax.private import jax as private

def raises(function, *arguments):
    start = time.monotonic()
    try:
        function(*arguments)
    except Exception:
        return time.monotonic() - start < 5

@ctypes.CFUNCTYPE(None, ctypes.c_int)
def aborted(number):
    os.write(1, b"its own" if threading.get_native_id() in threads else b"another")
    os._exit(0)

address, me = sys.argv[1], int(sys.argv[2])
jax.config.update("jax_enable_preemption_service", False)
threads = private.initialize(
    address, 2, me, heartbeat_timeout_seconds=10, initialization_timeout=60
)
state = private.state
client = state.client
client.key_value_set(f"from/{me}", json.dumps("yes"))
found = {
    "the threads of initialize are new": threading.get_native_id() not in threads and bool(threads),
    "state says who this is": (state.num_processes, state.process_id) == (2, me),
    "state says where process 0 is": state.coordinator_address == address,
    "messages arrive": client.blocking_key_value_get(f"from/{1 - me}", 60_000) == '"yes"',
    "a key is set once": raises(client.key_value_set, f"from/{me}", "again") is True,
    "waiting ends after milliseconds": raises(client.blocking_key_value_get, "none", 50) is True,
    "the preemption service is off": state.preemption_sync_manager is None,
}
jax.config.update("jax_enable_preemption_service", True)
state.initialize_preemption_sync_manager()
found["the preemption service is on"] = not multihost_utils.reached_preemption_sync_point(1)
ctypes.CDLL(None).signal(6, aborted)
print(json.dumps(found), flush=True)
client.key_value_set(f"ready/{me}", "")
client.blocking_key_value_get(f"ready/{1 - me}", 60_000)
if me == 0:
    os._exit(0)
time.sleep(60)
"""


def test_the_service_of_jax():
    with socket.create_server(("", 0)) as s:
        address = f"127.0.0.1:{s.getsockname()[1]}"
    two = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, address, str(i)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    try:
        ends = [p.communicate(timeout=120) for p in two]
    finally:
        for p in two:
            p.kill()
    for out, err in ends:
        keeps("jax", "two processes join", "bigjax/private/jax.py", out.startswith("{"))
        for what, does in json.loads(out.splitlines()[0]).items():
            keeps("jax", what, "bigjax/parallel/hosts.py", does)
    keeps(
        "jax",
        "a lost process 0 makes it abort in a thread of its own",
        "hosts._ABORTED, which tells that from a defect",
        ends[1][0].splitlines()[1:] == ["its own"],
    )


def test_the_clusters_of_jax():
    from bigjax.private import jax as jax_private

    where = "cluster.from_environment"
    kinds = jax_private.clusters()
    names = {kind.__name__ for kind in kinds}
    keeps("jax", "K8sCluster is the class's name", where, "K8sCluster" in names)
    keeps("jax", "names of TPU pods have tpu in them", where, any("tpu" in k.name for k in kinds))
    keeps(
        "jax", "MPI for Python has to be asked for", where, all("mpi4py" != k.name for k in kinds)
    )
    for kind in kinds:
        for method in kind.is_env_present, kind.get_process_count:
            takes = list(inspect.signature(method).parameters)
            keeps("jax", f"{method.__qualname__}() takes nothing", where, takes == [])


def test_the_platform_of_a_mesh(monkeypatch):
    with jax.set_mesh(
        mesh.make_mesh(dict(data=2, fsdp=1, sequence=1, tensor=1), jax.devices()[:2])
    ):
        device = jax.sharding.get_abstract_mesh().abstract_device
        known = device is not None and device.device_kind == "cpu" == mesh.platform()
        keeps("jax", "an abstract mesh knows its devices", "mesh.platform", known)
    for kind, platform in {
        "cpu": "cpu",
        "TPU v5 lite": "tpu",
        "TPU7x": "tpu",
        "NVIDIA H100 80GB HBM3": "gpu",
    }.items():  # of jax 0.10.0
        one = SimpleNamespace(abstract_device=SimpleNamespace(device_kind=kind))
        monkeypatch.setattr(jax.sharding, "get_abstract_mesh", lambda one=one: one)
        assert mesh.platform() == platform


def test_the_kernels_of_splash_attention():
    """Not in private/: they are in jax.experimental, and only kernels/splash.py uses them."""
    given = (Causal(), None, None, None, 0.1)
    loss = lambda q, k, v: splash.attention(q, k, v, *given).astype(jnp.float32).sum()

    def kernels(T: int) -> str:
        x = jax.ShapeDtypeStruct((1, T, 2, 128), jnp.bfloat16)
        return str(jax.make_jaxpr(jax.grad(loss, (0, 1, 2)))(x, x, x))

    one, text = kernels(128), kernels(128 * 11)  # with one backward kernel and with two
    assert "splash_mha_dq" not in one
    keeps("jax", "one kernel has all gradients", "splash.PRODUCTS", "splash_mha_dkv" in one)
    for name in splash.PRODUCTS:
        keeps("jax", f"a kernel is called {name}", "splash.PRODUCTS", name in text)


# --- gcsfs --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "status, content, kind",
    [
        (400, b'{"error": {"code": 400, "message": "invalid name"}}', UserError),
        (401, b'{"error": {"code": 401, "message": "Invalid Credentials"}}', UserError),
        (403, b'{"error": {"code": 403, "message": "no access"}}', UserError),
        (404, b"", None),
        (408, b"", TransientError),
        (412, b"", None),
        (429, b'{"error": {"code": 429, "message": "slow down"}}', TransientError),
        (500, b"", TransientError),
        (502, b"", TransientError),
        (503, b'{"error": {"code": 503, "message": "busy"}}', TransientError),
    ],
)
def test_the_errors_of_gcsfs(status, content, kind):
    from gcsfs.retry import validate_response

    with pytest.raises(Exception) as e:
        validate_response(status, content, "b/bucket/o/x")
    keeps(
        "gcsfs",
        f"{status} raises what means {kind and kind.__name__} ({e.value!r})",
        "cloud.failure",
        type(cloud.failure(e.value)) is (kind or type(None)),
    )


@pytest.fixture
def emulated(monkeypatch):
    """gs:// is an address where nothing answers, so that no credentials are looked for."""
    for key, value in bucket.environment("http://127.0.0.1:1").items():
        monkeypatch.setenv(key, value)


def test_the_file_system_of_gcsfs(emulated):
    import fsspec
    import gcsfs

    from bigjax.private import gcsfs as gcsfs_private

    where, base = "bigjax/private/gcsfs.py", gcsfs.GCSFileSystem
    for name in ("_request", "_info", "_isdir"):
        asynchronous = inspect.iscoroutinefunction(getattr(base, name))
        keeps("gcsfs", f"{name} is a coroutine", where, asynchronous)
    keeps("gcsfs", "gs and gcs are its protocols", where, {"gs", "gcs"} <= {*base.protocol})
    opens = list(inspect.signature(base._open).parameters)[:3]
    keeps("gcsfs", "_open takes path and mode", where, opens == ["self", "path", "mode"])
    before = {name: fsspec.get_filesystem_class(name) for name in base.protocol}
    try:
        fs = gcsfs_private.file_system(5, lambda error: None)
        for name in base.protocol:
            ours = isinstance(fs, fsspec.get_filesystem_class(name))
            keeps("fsspec", f"{name}:// is read by the class that was registered last", where, ours)
        keeps("gcsfs", "the time-out is kept", where, fs.requests_timeout.sock_read == 5)
        keeps("gcsfs", "listings are not kept", where, fs.dircache.use_listings_cache is False)
        sent = []
        fs.pipe_file = lambda path, content: sent.append(content)
        with fs.open("gs://bucket/x", "w") as f:
            f.write("text")
        keeps("fsspec", "a file that is written is closed once", where, sent == [b"text"])
    finally:
        for name, kind in before.items():
            fsspec.register_implementation(name, kind, clobber=True)


def test_gcsfs_sends_all_requests_by_one_method(emulated, monkeypatch):
    """Errors of all requests can be translated there."""
    from gcsfs.core import GCSFileSystem  # what gcsfs adds to it needs Google's own servers

    class Broken(Exception):
        pass

    async def broken(self, *args, **options):
        raise Broken

    monkeypatch.setattr(GCSFileSystem, "_request", broken)
    fs = GCSFileSystem(skip_instance_cache=True)
    for what, call in {
        "call": lambda: fs.call("GET", "b/{}", "bucket"),
        "info": lambda: fs.info("bucket/x"),
        "ls": lambda: fs.ls("bucket/x"),
        "cat_file": lambda: fs.cat_file("bucket/x"),
        "pipe_file": lambda: fs.pipe_file("bucket/x", b"x"),
        "rm_file": lambda: fs.rm_file("bucket/x"),
    }.items():
        with contextlib.suppress(Broken):
            call()
            keeps("gcsfs", f"{what} makes its requests by _request", "private.gcsfs", False)


# --- orbax-checkpoint, whose manager checkpoint.py changes by public methods --------------------


def test_the_manager_of_orbax(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(
        checkpoint._Manager, "reached_preemption", lambda self, step: asked.append(step)
    )
    names = []
    handler = checkpoint.ocp.JsonCheckpointHandler
    save = handler.async_save

    async def recorded(self, directory, *args, **options):
        names.append(str(directory))
        return await save(self, directory, *args, **options)

    monkeypatch.setattr(handler, "async_save", recorded)
    one = checkpoint.Checkpoints(tmp_path)
    zero = jnp.int32(0)
    state = checkpoint.State(zero, {"w": jnp.ones(4)}, {}, {}, None, jnp.bool_(False))
    one.save(3, state, {}, {})
    one.wait()
    one.close()
    keeps(
        "orbax-checkpoint",
        "it asks its own reached_preemption",
        "checkpoint._Manager",
        asked and set(asked) == {3},
    )
    keeps(
        "orbax-checkpoint",
        "what is unfinished has .orbax-checkpoint-tmp in its name",
        "Checkpoints._failed, which makes room",
        ".orbax-checkpoint-tmp" in " ".join(names),
    )
    assert np.array_equal(one.steps(), [3])


def test_only_large_arrays_are_saved_in_parts(tmp_path, monkeypatch):
    sliced, slice_in_dim = [], jax.lax.slice_in_dim

    def recorded(x, *args, **options):
        sliced.append(x.size)
        return slice_in_dim(x, *args, **options)

    monkeypatch.setattr(jax.lax, "slice_in_dim", recorded)
    small, large = jnp.ones((8, 16)), jnp.ones((8, 2**18))
    devices = jax.make_mesh((8,), "x")
    with jax.set_mesh(devices):
        everywhere = jax.NamedSharding(devices, jax.P())
        params = jax.device_put({"small": small, "large": large}, everywhere)
        one = checkpoint.Checkpoints(tmp_path)
        one.save(3, checkpoint.State(jnp.int32(0), params, {}, {}, None, jnp.bool_(False)), {}, {})
        one.wait()
        one.close()
    keeps(
        "orbax-checkpoint",
        "only arrays with at least the given bytes per part are saved in parts",
        "bigjax/private/orbax.py",
        sliced == [large.size] * 8,
    )
