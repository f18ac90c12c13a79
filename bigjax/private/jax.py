"""jax's distributed service, which connects the processes of a run, and its cluster detection.

jax.distributed has public functions to start and shut down that service, but none to send messages
through it; jax.process_count() starts jax, and the only public way to detect a cluster is to join.
"""

import pathlib
from typing import Any

import jax

from bigjax import private

# {name: what needs it in parallel/}.
USES = {
    "jax._src.distributed:global_state.num_processes": "hosts.count",
    "jax._src.distributed:global_state.process_id": "hosts.index",
    "jax._src.distributed:global_state.coordinator_address": "hosts._connect: its message",
    "jax._src.distributed:global_state.client": "hosts.gather, fail and _watch: messages to all",
    "jax._src.distributed:global_state.initialize_preemption_sync_manager": "hosts.watch_for_stop",
    "jax._src.clusters:ClusterEnv._cluster_types": "cluster.from_environment",
    "jax._src.clusters:ClusterEnv.name": "cluster.from_environment",
    "jax._src.clusters:ClusterEnv.opt_in_only_method": "cluster.from_environment",
    "jax._src.clusters:ClusterEnv.is_env_present": "cluster.from_environment",
    "jax._src.clusters:ClusterEnv.get_process_count": "cluster.from_environment",
}
private.check("jax", USES)

from jax._src.clusters import ClusterEnv  # noqa: E402
from jax._src.distributed import global_state as state  # noqa: E402, F401


def clusters() -> list[type]:
    """The kinds of cluster that jax detects automatically, in its order."""
    return [kind for kind in ClusterEnv._cluster_types if not kind.opt_in_only_method]


def initialize(*arguments: Any, **options: Any) -> set[int]:
    """jax.distributed.initialize. Returns the ids of the threads that it has started.

    When another process is lost, jax calls abort() in one of them. Only the thread distinguishes
    such an abort from one caused by a defect; the threads have no names.
    """
    before = _threads()
    jax.distributed.initialize(*arguments, **options)
    return _threads() - before


def _threads() -> set[int]:
    """Ids of this process's threads, including those not started by Python."""
    return {int(path.name) for path in pathlib.Path("/proc/self/task").glob("*")}
