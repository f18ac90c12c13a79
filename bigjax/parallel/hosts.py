"""Many hosts: one process on each, started together, stopped together, ended together.

Every process runs the same command. They find each other by JAX_COORDINATOR_ADDRESS,
JAX_NUM_PROCESSES and JAX_PROCESS_ID, or by what jax finds out itself on TPU pods, Slurm, Open MPI
and Kubernetes. On one host all functions here do nothing.

Found by running jax 0.10.2, and the reason for much of what follows: a client that cannot connect
or hears that another one is dead writes a stack trace and calls abort(), and the callback that
could be given instead cannot be written in Python (std::bad_cast). A process that exits with an
error waits in jax's exit handler for all others, which wait for it. On a CPU the neighbours of a
process that dies get an error from Gloo at once, or hang until its heartbeats are missed.
"""

import atexit
import contextlib
import ctypes
import hashlib
import itertools
import json
import os
import pathlib
import re
import secrets
import signal
import socket
import sys
import threading
import time
from typing import Any
import warnings

from etils import epath
import jax
from jax.experimental import multihost_utils
import jaxlib

import bigjax
from bigjax import cloud, process
from bigjax import config as config_lib
from bigjax.errors import TransientError, UserError
from bigjax.private import jax as jax_private

VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
MAY_DIFFER = ("data.cache_dir",)  # between the configs of the processes
_FOR_EVER = 10**9  # ms. Waiting needs no limit of its own: a process that dies ends all.
LOST = (
    "another process of this run has died or cannot be reached; its own output may say why. "
    "Run the same command on all hosts again: training goes on from the newest checkpoint."
)
# How an error of jax's reads where another process does not answer any more; the last is what Gloo
# and NCCL say of their sockets.
_BROKEN = re.compile(
    "(UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED): |(UNKNOWN|INTERNAL): .*("
    "Connection (closed|reset|refused)|Broken pipe|[Tt]imed out|"
    "remote process exited)",
    re.DOTALL,
)
_LINGER = 20.0  # s that process 0, which keeps the messages, waits for the others to read the last
_gathered = itertools.count()  # of calls: equal on all processes
_of_the_service: set[int] = set()  # ids of the threads in which jax hears of the others
_starting, _joined, _failing = threading.Event(), threading.Event(), threading.Event()


def count() -> int:
    """How many processes the run has. Unlike jax.process_count() it does not start jax."""
    return jax_private.state.num_processes if jax_private.state.client else 1


def index() -> int:
    """Which of them this one is, from 0."""
    return jax_private.state.process_id


def start(config, workdir: str) -> None:
    """Joins the other processes, if there are any, and checks that they were started alike.

    To be called before anything starts jax. config: a run's.
    Raises UserError if the environment is incomplete or if their versions, configs or work folders
    differ, TransientError if not all of them come within config.hosts.start_timeout seconds or the
    cluster does not answer.
    """
    if count() > 1:
        return
    given = _from_environment()
    if given is None:
        return
    _connect(given, config.hosts)
    watcher = threading.Thread(target=_watch, daemon=True)
    watcher.start()
    # abort() is called in a thread of jax's, which holds none of Python's locks.
    ctypes.CDLL(None).signal(int(signal.SIGABRT), _ABORTED)
    atexit.register(_end, watcher)  # so before jax's own
    _joined.set()
    if index():  # one speaks for all; errors go to stderr
        sys.stdout = open(os.devnull, "w")
    _check_alike(config, workdir)


def _from_environment() -> dict[str, Any] | None:
    """Arguments for jax.distributed.initialize; None where one process is all."""
    found = {name: os.environ[name] for name in VARIABLES if os.environ.get(name)}
    missing = [name for name in VARIABLES if name not in found]
    if not found or missing:
        members = _cluster()
        if members == 1 or not found and members is None:
            return None
        if members is None:
            raise UserError(
                f"{', '.join(found)} is set, but not {', '.join(missing)}. Set all "
                "three for a run on many hosts (host:port of process 0, how many "
                "processes, and which one this is, from 0), or none for one host."
            )
        return {"num_processes": members}
    numbers = {}
    for key, name in (("num_processes", VARIABLES[1]), ("process_id", VARIABLES[2])):
        if not found[name].isdigit():
            raise UserError(f"{name} is {found[name]!r}; it must be a number.")
        numbers[key] = int(found[name])
    if not numbers["process_id"] < numbers["num_processes"]:
        raise UserError(
            f"JAX_PROCESS_ID is {numbers['process_id']}; with JAX_NUM_PROCESSES="
            f"{numbers['num_processes']} it must be less, counting from 0."
        )
    address = found[VARIABLES[0]]
    if not address.rpartition(":")[2].isdigit() or ":" not in address:
        raise UserError(f"JAX_COORDINATOR_ADDRESS is {address!r}; write host:port of process 0.")
    return None if numbers["num_processes"] == 1 else {"coordinator_address": address, **numbers}


def _cluster() -> int | None:
    """How many processes the cluster that jax recognises here has; None if it recognises none.

    Not left to jax.distributed.initialize, which on a single host waits for itself, and on some
    (TPU_PROCESS_ADDRESSES=local) for a name that does not exist.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Kubernetes without its package, on a single host too
        for kind in jax_private.clusters():
            if "tpu" in kind.name and jax.config.jax_platforms == "cpu":
                continue  # something small beside the pod's work
            if kind.__name__ == "K8sCluster" and "JOB_COMPLETION_INDEX" not in os.environ:
                continue  # one pod, not an indexed job: it has no number to be told apart by
            with contextlib.suppress(Exception):  # metadata that do not answer: no cluster
                if kind.is_env_present():
                    break
        else:
            return None
    try:
        return kind.get_process_count()
    except Exception as e:
        raise _of_start(e)(
            f"This is a cluster ({kind.name or kind.__name__}), but how many hosts it has could "
            f"not be found out ({type(e).__name__}: {e}). Set {', '.join(VARIABLES)} (on one host "
            "HOST:PORT, 1, 0)."
        ) from e


def _of_start(error: Exception) -> type[Exception]:
    """What an error of finding the others is: a server that does not answer now, or bad input."""
    transient = isinstance(error, (ConnectionError, TimeoutError)) or cloud.is_transient(error)
    return TransientError if transient else UserError


def _connect(given: dict[str, Any], options) -> None:
    """jax.distributed.initialize in a thread of its own, as at its time-out it aborts."""
    _starting.set()
    if given.get("process_id") == 0:  # jax may crash on an address in use instead of saying so
        try:
            socket.create_server(("", int(given["coordinator_address"].rpartition(":")[2]))).close()
        except OSError as e:
            raise UserError(
                f"Process 0 cannot listen at JAX_COORDINATOR_ADDRESS="
                f"{given['coordinator_address']}: {e}. Choose another port, the same "
                "on all hosts."
            ) from e
    # Until training begins, where `watch_for_stop` turns it on, SIGTERM ends a process as usual.
    jax.config.update("jax_enable_preemption_service", False)
    error = []

    def initialize():
        try:
            threads = jax_private.initialize(
                given.get("coordinator_address"),
                given.get("num_processes"),
                given.get("process_id"),
                heartbeat_timeout_seconds=options.heartbeat_timeout,
                initialization_timeout=options.start_timeout + 60,
            )
            _of_the_service.update(threads)
        except Exception as e:  # an address in use, a name that is unknown
            error.append(e)

    thread = threading.Thread(target=initialize, daemon=True)
    thread.start()
    thread.join(options.start_timeout)
    if not thread.is_alive() and not error:
        return
    n = given["num_processes"]
    address = jax_private.state.coordinator_address or given.get("coordinator_address")
    what = (
        f"{type(error[0]).__name__}: {error[0]}"
        if error
        else _why_not(address, given.get("process_id", index()))
    )
    raise (_of_start(error[0]) if error else TransientError)(
        f"This process cannot join its run on {n} hosts within config.hosts.start_timeout="
        f"{options.start_timeout} seconds: {what}. The same command must run on all {n} hosts at "
        f"the same time, each with JAX_COORDINATOR_ADDRESS={address}, JAX_NUM_PROCESSES={n} and "
        "its own JAX_PROCESS_ID where the cluster does not tell; this one is process "
        f"{given.get('process_id', index())} (of 0 to {n - 1})."
    )


def _why_not(address: str | None, process: int) -> str:
    if process == 0 or address is None:
        return "not all of the others have come"
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except OSError as e:
        return f"process 0 does not answer at {address} ({e})"
    return f"{address} answers, but not all of the others have come"


# --- One run: agreeing ------------------------------------------------------------------------


def gather(value: Any) -> list:
    """The `value` (JSON) of every process, in order. All must call it, at the same places."""
    if count() == 1:
        return [value]
    client, name = jax_private.state.client, f"gather/{next(_gathered)}"
    client.key_value_set(f"bigjax/{name}/{index()}", json.dumps(value))
    if index() == 0:
        values = [
            json.loads(client.blocking_key_value_get(f"bigjax/{name}/{i}", _FOR_EVER))
            for i in range(count())
        ]
        client.key_value_set(f"bigjax/{name}", json.dumps(values))
    return json.loads(client.blocking_key_value_get(f"bigjax/{name}", _FOR_EVER))


def _check_alike(config, workdir: str) -> None:
    """Raises UserError, on all processes, naming those that differ from process 0, and in what."""
    code = hashlib.sha256()
    folder = pathlib.Path(bigjax.__file__).parent
    for path in sorted(folder.rglob("*.py")):
        code.update(f"{path.relative_to(folder)}\n".encode() + path.read_bytes())
    mine = {
        "bigjax": bigjax.__version__,
        "jax": jax.__version__,
        "jaxlib": jaxlib.__version__,
        "the code of bigjax": code.hexdigest()[:12],
        "--workdir": str(workdir),
    }
    mine.update(
        {f"config.{k}": v for k, v in config_lib.sorted_leaves(config) if k not in MAY_DIFFER}
    )
    mine = json.loads(json.dumps(mine, default=str))
    check_equal(mine, "Run the same command, with the same installation, on all hosts.")


def check_equal(mine: dict[str, Any], remedy: str, error: type[Exception] = UserError) -> None:
    """Raises error, on all processes, naming those where `mine` (JSON) differs, and in what."""
    digest = hashlib.sha256(json.dumps(mine, sort_keys=True).encode()).hexdigest()
    if len(set(gather(digest))) == 1:
        return
    first = gather(mine if index() == 0 else None)[0]
    found = gather(
        [
            f"{k} is {mine.get(k)!r} and not {first.get(k)!r}"
            for k in sorted({*mine, *first})
            if mine.get(k) != first.get(k)
        ]
    )
    text = "; ".join(f"on process {i} {', '.join(lines)}" for i, lines in enumerate(found) if lines)
    raise error(f"The {count()} processes of this run differ from process 0: {text}. {remedy}")


def check_shared(workdir: str) -> None:
    """Raises UserError, on all processes, unless they see the same folder."""
    if count() == 1:
        return
    mark = gather(f".seen-by-all-{secrets.token_hex(8)}")[0]
    path = epath.Path(workdir) / mark
    if index() == 0:
        path.touch()
    gather("it is there")
    seen = gather(path.exists())
    if index() == 0:
        path.unlink()
    if not all(seen):
        raise UserError(
            f"--workdir={workdir} is not the same folder on all hosts: process "
            f"{', '.join(str(i) for i, yes in enumerate(seen) if not yes)} does not see what "
            "process 0 writes there. Use one that all share, such as gs://BUCKET/FOLDER."
        )


# --- Stopping together ------------------------------------------------------------------------


def watch_for_stop() -> None:
    """From here on SIGTERM on any process does not end it, but is told to all."""
    jax.config.update("jax_enable_preemption_service", True)
    jax_private.state.initialize_preemption_sync_manager()


def stop_agreed(calls: int) -> bool:
    """Whether all processes stop after this step, as one has got SIGTERM: the first step that none
    has passed. To be asked after every step; calls: from 1, how often it was. Takes 10 us.

    After SIGTERM jax answers yes to one number alone, that after the highest of any process so far.
    So no one else may ask, under other numbers: see checkpoint._Manager.
    """
    return multihost_utils.reached_preemption_sync_point(calls)


# --- Ending together --------------------------------------------------------------------------


def is_lost(error: BaseException | None) -> bool:
    """Whether an error comes from another process that has ended or cannot be reached."""
    return count() > 1 and any(
        isinstance(e, jax.errors.JaxRuntimeError) and _BROKEN.match(str(e))
        for e in cloud.causes(error)
    )


def fail(text: str, code: int, unexpected: BaseException | None = None) -> None:
    """Says why this process cannot go on, to people and to the others, and ends all of them.

    Returns only on one host. unexpected: an error that is not ours; perhaps it comes from another
    process that has ended, so that one may speak first.
    """
    if not _starting.is_set():
        return
    if unexpected and _joined.is_set():
        time.sleep(3)  # the watching thread ends this process if another one says why
        text += f"\nIf that is a connection that broke: {LOST}"
        code = TransientError.exit_code if is_lost(unexpected) else code
    _failing.set()
    _say(text)
    if _joined.is_set():
        for i in range(count()):
            with contextlib.suppress(Exception):  # another was first, or process 0 is gone
                jax_private.state.client.key_value_set(
                    f"bigjax/failed/{i}", json.dumps([index(), text, code])
                )
        with contextlib.suppress(Exception):
            _seen()
    os._exit(code)  # jax's exit handler would wait for all others


def _watch() -> None:
    """Ends this process when another one says that it failed."""
    try:
        by, text, code = json.loads(
            jax_private.state.client.blocking_key_value_get(f"bigjax/failed/{index()}", _FOR_EVER)
        )
    except Exception:  # process 0 is gone, and jax aborts
        return
    if _failing.is_set() or by is None:
        return  # this one has its own error to tell, or is done
    _say(f"ended, because process {by} failed: {text}")
    process.run_before_exit()
    _seen()
    os._exit(code)


def _seen() -> None:
    """Tells process 0, with which all messages go, that it may end; it waits for all."""
    client = jax_private.state.client
    if index():
        client.key_value_set(f"bigjax/seen/{index()}", "")
        return
    end = time.monotonic() + _LINGER
    for i in range(1, count()):
        left = max(0.0, end - time.monotonic())
        with contextlib.suppress(Exception):  # it was killed
            client.blocking_key_value_get(f"bigjax/seen/{i}", int(1000 * left))


def _end(watcher: threading.Thread) -> None:
    """At the end of Python no thread may wait in C++, nor a handler wait for Python."""
    ctypes.CDLL(None).signal(int(signal.SIGABRT), None)
    with contextlib.suppress(Exception):
        jax_private.state.client.key_value_set(
            f"bigjax/failed/{index()}", json.dumps([None, "", 0])
        )
    watcher.join(_LINGER)


@ctypes.CFUNCTYPE(None, ctypes.c_int)
def _ABORTED(number: int) -> None:
    # A check that failed in another thread, or memory that is broken, may well come again.
    if lost := threading.get_native_id() in _of_the_service:
        _say(f"ended by jax, which says above why: {LOST}")
    else:
        _say(
            "aborted, for the reason above: a defect, which may well come again. The other "
            "processes only hear that this one is gone."
        )
    os._exit(TransientError.exit_code if lost else 1)


def _say(text: str) -> None:
    sys.stdout.flush()
    who = f"[process {index()} of 0 to {count() - 1}] " if _joined.is_set() else ""
    os.write(sys.stderr.fileno(), f"bigjax: {who}{text}\n".encode())
