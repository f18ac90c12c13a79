"""Detection of runs on many hosts from the environment, and errors of lost processes."""

import threading
from types import SimpleNamespace

import jax
import pytest
import requests

from bigjax import config
from bigjax.errors import TransientError, UserError
from bigjax.parallel import cluster, hosts, mesh

SLURM = {
    "SLURM_JOB_ID": "5",
    "SLURM_STEP_NODELIST": "node[1-2]",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "0",
}
GKE = {
    "TPU_WORKER_HOSTNAMES": "a,b,c",
    "TPU_WORKER_ID": "0",
    "TPU_SKIP_MDS_QUERY": "1",
    "MEGASCALE_NUM_SLICES": "1",
}


def address(address="10.0.0.1:1234", n="2", i="1"):
    return dict(zip(cluster.VARIABLES, (address, n, i)))


@pytest.fixture
def asked(monkeypatch):
    """asked(environment, tpu=False) -> arguments for jax.distributed, None for one host."""

    def of(environment, tpu=False):
        calls = []
        for name in cluster.VARIABLES:
            monkeypatch.delenv(name, raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        if tpu:
            from jax._src.clusters import cloud_tpu_cluster

            monkeypatch.setattr(cloud_tpu_cluster, "running_in_cloud_tpu_vm", True)
            monkeypatch.setattr(
                cluster, "jax", SimpleNamespace(config=SimpleNamespace(jax_platforms="tpu,cpu"))
            )

        class Stop(Exception):
            pass

        def connect(given, options):
            calls.append(given)
            raise Stop

        monkeypatch.setattr(hosts, "_connect", connect)
        try:
            hosts.start(config.new_config(), "w")
        except Stop:
            return calls[0]

    return of


def test_arguments_for_jax_distributed(asked):
    assert asked({}) is None
    assert asked(address()) == {
        "coordinator_address": "10.0.0.1:1234",
        "num_processes": 2,
        "process_id": 1,
    }
    assert asked(address(n="1", i="0")) is None
    assert asked({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}) is None  # one pod by itself


def test_clusters_that_jax_detects(asked):
    assert asked({**SLURM, "SLURM_NTASKS": "1"}) is None
    assert asked({**SLURM, "SLURM_NTASKS": "2"}) == {"num_processes": 2}


def test_tpu_pods(asked):
    assert asked(GKE) is None  # without a TPU
    assert asked({**GKE, "TPU_WORKER_HOSTNAMES": "localhost"}, tpu=True) is None
    assert asked(GKE, tpu=True) == {"num_processes": 3}
    with pytest.raises(UserError, match="number of hosts could not be determined"):
        asked({**GKE, "MEGASCALE_NUM_SLICES": "two"}, tpu=True)


def test_a_cluster_that_does_not_answer_may_answer_later(asked, monkeypatch):
    from jax._src.clusters import cloud_tpu_cluster

    def count():
        raise error

    monkeypatch.setattr(cloud_tpu_cluster.GkeTpuCluster, "get_process_count", count)
    for error in requests.exceptions.ConnectTimeout("metadata"), ConnectionResetError():
        with pytest.raises(TransientError, match="could not be determined"):
            asked(GKE, tpu=True)
    error = ValueError("unsupported format")
    with pytest.raises(UserError, match="could not be determined"):
        asked(GKE, tpu=True)


@pytest.mark.parametrize(
    "error, kind",
    [
        (requests.exceptions.ReadTimeout("metadata timed out"), TransientError),
        (ConnectionRefusedError(), TransientError),
        (ValueError("an unknown name"), UserError),
    ],
)
def test_a_failed_start(monkeypatch, error, kind):
    def fail(*args, **options):
        raise error

    monkeypatch.setattr(jax.distributed, "initialize", fail)
    monkeypatch.setattr(hosts, "_starting", threading.Event())
    with pytest.raises((UserError, TransientError), match="cannot join its run on 2 hosts") as e:
        hosts._connect({"num_processes": 2}, config.new_config().hosts)
    assert type(e.value) is kind


@pytest.mark.parametrize(
    "environment, words",
    [
        ({"JAX_NUM_PROCESSES": "2"}, ["not JAX_COORDINATOR_ADDRESS, JAX_PROCESS_ID"]),
        (address(n="two"), ["JAX_NUM_PROCESSES", "'two'", "number"]),
        (address(i="2"), ["JAX_PROCESS_ID is 2", "JAX_NUM_PROCESSES=2", "from 0"]),
        (address("10.0.0.1"), ["JAX_COORDINATOR_ADDRESS", "'10.0.0.1'", "host:port"]),
    ],
)
def test_an_invalid_environment_is_refused(asked, environment, words):
    with pytest.raises(UserError) as e:
        asked(environment)
    assert all(word in str(e.value) for word in words), e.value


def test_errors_that_come_from_a_lost_process(monkeypatch):
    error = jax.errors.JaxRuntimeError
    broken = error("UNKNOWN: Gloo all-reduce failed: Connection closed by peer [::]:1")
    outer = RuntimeError("outer")
    outer.__cause__ = broken
    assert not hosts.is_lost(broken)  # on one host
    monkeypatch.setattr(hosts, "count", lambda: 2)
    assert hosts.is_lost(broken) and hosts.is_lost(outer)
    for text in (
        "UNKNOWN: Gloo AllGather failed: Read error [::]:1: Connection reset by peer",
        "UNAVAILABLE: Failed to send RPC",
        "DEADLINE_EXCEEDED: Barrier timed out",
        "ABORTED: task 1 has left",
    ):
        assert hosts.is_lost(error(text))
    for other in (
        error("RESOURCE_EXHAUSTED: Out of memory. Operator: optimization_barrier"),
        error("INTERNAL: Mosaic failed to compile: unsupported barrier semaphore"),
        error("INVALID_ARGUMENT: nccl: unsupported dtype, Connection reset by peer"),
        error("INTERNAL: Gloo: unsupported type"),
        ValueError("connection"),
        None,
    ):
        assert not hosts.is_lost(other), other


@pytest.mark.parametrize(
    "text, code", [("UNKNOWN: Gloo: Connection closed by peer", 75), ("INTERNAL: a bug", 1)]
)
def test_losing_another_process_exits_with_75(monkeypatch, capfd, text, code):
    """Gloo may raise an error before jax misses heartbeats."""
    ended = []
    monkeypatch.setattr("os._exit", ended.append)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    monkeypatch.setattr(hosts, "count", lambda: 2)
    monkeypatch.setattr(hosts, "_failing", [])
    for event in ("_starting", "_joined"):
        monkeypatch.setattr(hosts, event, threading.Event())
    hosts._starting.set(), hosts._joined.set()
    monkeypatch.setattr(hosts, "_acknowledge", lambda: None)
    hosts.fail(text, 1, jax.errors.JaxRuntimeError(text))
    assert ended == [code] and hosts.LOST in capfd.readouterr().err


def test_virtual_devices_are_divided_between_processes(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(6))
    sizes = lambda data, fsdp: dict(data=data, fsdp=fsdp, tensor=1)
    assert mesh.cpu_devices(sizes(-1, 1), 24, processes=2) == 6
    assert mesh.cpu_devices(sizes(-1, 1), 8, processes=2) == 4
    assert mesh.cpu_devices(sizes(-1, 4), 8, processes=2) == 4
    assert mesh.cpu_devices(sizes(2, 4), 8, processes=4) == 2
    assert mesh.cpu_devices(sizes(-1, 1), 7, processes=2) == 1  # and check_batch says why not
