"""The service by which the processes of a run find each other, and the clusters that jax knows.

jax.distributed has public functions to start and to end that service, but none to talk through it;
jax.process_count() starts jax, and a cluster can only be asked for by joining it.
"""

import pathlib
from typing import Any

import jax

from bigjax import private

# Each name, and what in parallel/hosts.py uses it.
USES = {
    "jax._src.distributed:global_state.num_processes": "count",
    "jax._src.distributed:global_state.process_id": "index",
    "jax._src.distributed:global_state.coordinator_address": "_connect, to say who did not answer",
    "jax._src.distributed:global_state.client": "gather, fail and _watch: messages to all",
    "jax._src.distributed:global_state.initialize_preemption_sync_manager": "watch_for_stop",
    "jax._src.clusters:ClusterEnv._cluster_types": "_cluster",
    "jax._src.clusters:ClusterEnv.name": "_cluster",
    "jax._src.clusters:ClusterEnv.opt_in_only_method": "_cluster",
    "jax._src.clusters:ClusterEnv.is_env_present": "_cluster",
    "jax._src.clusters:ClusterEnv.get_process_count": "_cluster",
}
private.check("jax", USES)
state = private.find("jax", "jax._src.distributed:global_state")
_ClusterEnv = private.find("jax", "jax._src.clusters:ClusterEnv")


def clusters() -> list[type]:
    """The kinds of cluster that jax recognises by its own, in the order in which it asks."""
    return [kind for kind in _ClusterEnv._cluster_types if not kind.opt_in_only_method]


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
