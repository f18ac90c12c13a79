"""How many processes a run has and how they find each other, by the environment."""

import contextlib
import os
from typing import Any
import warnings

import jax

from bigjax import cloud
from bigjax.errors import TransientError, UserError
from bigjax.private import jax as jax_private

VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


def from_environment() -> dict[str, Any] | None:
    """Arguments for jax.distributed.initialize; None for a run of one process.

    Raises UserError for an incomplete or invalid environment, and if the cluster's size cannot be
    determined; TransientError if the cluster does not answer.
    """
    values = {name: os.environ[name] for name in VARIABLES if os.environ.get(name)}
    missing = [name for name in VARIABLES if name not in values]
    if not values or missing:
        members = _size()
        if members == 1 or not values and members is None:
            return None
        if members is None:
            raise UserError(
                f"{', '.join(values)} is set, but not {', '.join(missing)}. Set all three for a "
                "run on many hosts (host:port of process 0, the number of processes, and the "
                "index of this one, from 0), or none for one host."
            )
        return {"num_processes": members}
    numbers = {}
    for key, name in (("num_processes", VARIABLES[1]), ("process_id", VARIABLES[2])):
        if not values[name].isdigit():
            raise UserError(f"{name} is {values[name]!r}; it must be a number.")
        numbers[key] = int(values[name])
    if not numbers["process_id"] < numbers["num_processes"]:
        raise UserError(
            f"JAX_PROCESS_ID is {numbers['process_id']}; with JAX_NUM_PROCESSES="
            f"{numbers['num_processes']} it must be from 0 to {numbers['num_processes'] - 1}."
        )
    address = values[VARIABLES[0]]
    if not address.rpartition(":")[2].isdigit() or ":" not in address:
        raise UserError(
            f"JAX_COORDINATOR_ADDRESS is {address!r}; it must be host:port of process 0."
        )
    return None if numbers["num_processes"] == 1 else {"coordinator_address": address, **numbers}


def _size() -> int | None:
    """The number of processes of the cluster that jax detects; None if it detects none.

    jax.distributed.initialize would do this itself, but on a single host it waits for itself, and
    on some (TPU_PROCESS_ADDRESSES=local) for a host name that does not exist.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about Kubernetes without its package, on one host too
        for kind in jax_private.clusters():
            if "tpu" in kind.name and jax.config.jax_platforms == "cpu":
                continue  # a small CPU job on a TPU host
            if kind.__name__ == "K8sCluster" and "JOB_COMPLETION_INDEX" not in os.environ:
                continue  # a single pod, not an indexed job, so it has no index
            with contextlib.suppress(Exception):  # a metadata server that is silent: no cluster
                if kind.is_env_present():
                    break
        else:
            return None
    try:
        return kind.get_process_count()
    except Exception as e:
        raise error_kind(e)(
            f"This is a cluster ({kind.name or kind.__name__}), but its number of hosts could not "
            f"be determined ({type(e).__name__}: {e}). Set {', '.join(VARIABLES)} (for one host: "
            "HOST:PORT, 1, 0)."
        ) from e


def error_kind(error: Exception) -> type[Exception]:
    """TransientError if a server did not answer while the processes tried to connect; UserError for
    bad input."""
    transient = isinstance(error, (ConnectionError, TimeoutError)) or cloud.is_transient(error)
    return TransientError if transient else UserError
