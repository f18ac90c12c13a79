"""The service by which the processes of a run find each other, and the clusters that jax knows.

jax.distributed has public functions to start and to end that service, but none to talk through it;
jax.process_count() starts jax, and a cluster can only be asked for by joining it.
"""

import pathlib
from typing import Any

import jax

from bigjax import private

# Each name, and what needs it in parallel/hosts.py.
USES = {
    "jax._src.distributed:global_state.num_processes": "hosts.count",
    "jax._src.distributed:global_state.process_id": "hosts.index",
    "jax._src.distributed:global_state.coordinator_address": "hosts._connect: its message",
    "jax._src.distributed:global_state.client": "hosts.gather, fail and _watch: messages to all",
    "jax._src.distributed:global_state.initialize_preemption_sync_manager": "hosts.watch_for_stop",
    "jax._src.clusters:ClusterEnv._cluster_types": "hosts._cluster",
    "jax._src.clusters:ClusterEnv.name": "hosts._cluster",
    "jax._src.clusters:ClusterEnv.opt_in_only_method": "hosts._cluster",
    "jax._src.clusters:ClusterEnv.is_env_present": "hosts._cluster",
    "jax._src.clusters:ClusterEnv.get_process_count": "hosts._cluster",
}
private.check("jax", USES)

from jax._src.clusters import ClusterEnv  # noqa: E402
from jax._src.distributed import global_state as state  # noqa: E402, F401


def clusters() -> list[type]:
    """The kinds of cluster that jax recognises by its own, in the order in which it asks."""
    return [kind for kind in ClusterEnv._cluster_types if not kind.opt_in_only_method]


def initialize(*arguments: Any, **options: Any) -> set[int]:
    """jax.distributed.initialize. Returns the ids of the threads that it has started.

    When another process is lost, jax calls abort() in one of them. Nothing but that tells such an
    abort from one for a defect; the threads have no names of their own.
    """
    before = _threads()
    jax.distributed.initialize(*arguments, **options)
    return _threads() - before


def _threads() -> set[int]:
    """Ids of this process's threads, also of those that are not Python's."""
    return {int(path.name) for path in pathlib.Path("/proc/self/task").glob("*")}
