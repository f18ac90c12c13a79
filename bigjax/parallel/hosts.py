"""Runs on many hosts, with one process each: how they start, agree, stop and fail together.

All processes run the same command. They find each other by JAX_COORDINATOR_ADDRESS,
JAX_NUM_PROCESSES and JAX_PROCESS_ID, or by jax's own detection on TPU pods, Slurm, Open MPI and
Kubernetes. On one host all functions of this module do nothing.

Behaviour of jax 0.10.2 that explains much of this module: a client that cannot connect, or learns
that another one is dead, prints a stack trace and calls abort(), and the callback that could
replace this cannot be written in Python (std::bad_cast). A process that exits with an error waits
in jax's exit handler for all others, which wait for it. On CPUs the neighbours of a process that
dies get an error from Gloo immediately, or hang until its heartbeats are missed.
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

from etils import epath
import jax
from jax.experimental import multihost_utils
import jaxlib

import bigjax
from bigjax import cloud, process
from bigjax import config as config_lib
from bigjax.errors import TransientError, UserError
from bigjax.parallel import cluster
from bigjax.private import jax as jax_private

MAY_DIFFER = ("data.cache_dir",)  # config keys that may differ between processes
_FOREVER = 10**9  # ms. Waiting needs no time-out: a process that dies ends all others.
LOST = (
    "another process of this run has died or cannot be reached; its own output may say why. "
    "Run the same command on all hosts again: training resumes from the latest checkpoint."
)
# Texts of jax's errors when another process no longer responds; the last ones are those of sockets
# of Gloo and NCCL.
_BROKEN = re.compile(
    "(UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED): |(UNKNOWN|INTERNAL): .*("
    "Connection (closed|reset|refused)|Broken pipe|[Tt]imed out|"
    "remote process exited)",
    re.DOTALL,
)
_LINGER = 20.0  # s that process 0, which stores the messages, waits for others to read the last one
_gather_calls = itertools.count()  # equal on all processes
_service_threads: set[int] = set()  # ids of the threads in which jax is notified of lost processes
_starting, _joined = threading.Event(), threading.Event()
_failing: list[int] = []  # the exit code, as soon as this process or another one has failed


def count() -> int:
    """The number of processes of the run. Unlike jax.process_count() it does not start jax."""
    return jax_private.state.num_processes if jax_private.state.client else 1


def index() -> int:
    """The index of this process, from 0."""
    return jax_private.state.process_id


def start(config, workdir: str) -> None:
    """Joins the other processes, if any, and checks that all were started in the same way.

    Call it before anything starts jax. Raises UserError if the environment is incomplete or if
    versions, configs or work folders differ between processes; TransientError if not all of them
    join within config.hosts.start_timeout seconds or the cluster does not answer.
    """
    if count() > 1:
        return
    given = cluster.from_environment()
    if given is None:
        return
    _connect(given, config.hosts)
    watcher = threading.Thread(target=_watch, daemon=True)
    watcher.start()
    # jax calls abort() in one of its threads, which holds no Python lock.
    ctypes.CDLL(None).signal(int(signal.SIGABRT), _ABORTED)
    atexit.register(_end, watcher)  # runs before jax's own handler
    _joined.set()
    if index():  # only process 0 prints; errors go to stderr
        sys.stdout = open(os.devnull, "w")
    _check_alike(config, workdir)


def _connect(given: dict[str, Any], options) -> None:
    """Calls jax.distributed.initialize in a separate thread, since it aborts at its time-out."""
    _starting.set()
    if given.get("process_id") == 0:  # jax may crash on an address in use without a message
        try:
            socket.create_server(("", int(given["coordinator_address"].rpartition(":")[2]))).close()
        except OSError as e:
            raise UserError(
                f"Process 0 cannot listen at JAX_COORDINATOR_ADDRESS="
                f"{given['coordinator_address']}: {e}. Set another port, the same on all hosts."
            ) from e
    # SIGTERM ends a process as usual until `watch_for_stop`, when training starts.
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
            _service_threads.update(threads)
        except Exception as e:  # such as an address in use or an unknown host name
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
        else _missing(address, given.get("process_id", index()))
    )
    raise (cluster.error_kind(error[0]) if error else TransientError)(
        f"This process cannot join its run on {n} hosts within config.hosts.start_timeout="
        f"{options.start_timeout} seconds: {what}. Run the same command on all {n} hosts at "
        f"the same time, each with JAX_COORDINATOR_ADDRESS={address}, JAX_NUM_PROCESSES={n} and "
        "its own JAX_PROCESS_ID unless the cluster provides them; this is process "
        f"{given.get('process_id', index())} (of 0 to {n - 1})."
    )


def _missing(address: str | None, process: int) -> str:
    if process == 0 or address is None:
        return "not all other processes have joined"
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except OSError as e:
        return f"process 0 does not answer at {address} ({e})"
    return f"{address} answers, but not all other processes have joined"


# --- Agreeing ---------------------------------------------------------------------------------


def gather(value: Any) -> list:
    """The `value` (JSON) of every process, by index. All must make the same sequence of calls."""
    if count() == 1:
        return [value]
    client, name = jax_private.state.client, f"gather/{next(_gather_calls)}"
    client.key_value_set(f"bigjax/{name}/{index()}", json.dumps(value))
    if index() == 0:
        values = [
            json.loads(client.blocking_key_value_get(f"bigjax/{name}/{i}", _FOREVER))
            for i in range(count())
        ]
        client.key_value_set(f"bigjax/{name}", json.dumps(values))
    return json.loads(client.blocking_key_value_get(f"bigjax/{name}", _FOREVER))


def _check_alike(config, workdir: str) -> None:
    """Raises UserError on all processes if versions, code, --workdir or configs differ."""
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
    """Raises `error` on all processes if `mine` (JSON) is not the same on all of them.

    remedy: the end of the message, which names the processes and keys that differ.
    """
    digest = hashlib.sha256(json.dumps(mine, sort_keys=True).encode()).hexdigest()
    if len(set(gather(digest))) == 1:
        return
    first = gather(mine if index() == 0 else None)[0]
    differences = gather(
        [
            f"{k} is {mine.get(k)!r} and not {first.get(k)!r}"
            for k in sorted({*mine, *first})
            if mine.get(k) != first.get(k)
        ]
    )
    text = "; ".join(
        f"on process {i} {', '.join(lines)}" for i, lines in enumerate(differences) if lines
    )
    raise error(f"The {count()} processes of this run differ from process 0: {text}. {remedy}")


def check_shared(workdir: str) -> None:
    """Raises UserError on all processes unless all of them see the same folder."""
    if count() == 1:
        return
    mark = gather(f".seen-by-all-{secrets.token_hex(8)}")[0]
    path = epath.Path(workdir) / mark
    if index() == 0:
        path.touch()
    gather("written")
    seen = gather(path.exists())
    if index() == 0:
        path.unlink()
    gather("removed")  # a process that refuses the folder ends process 0
    if not all(seen):
        raise UserError(
            f"--workdir={workdir} is not the same folder on all hosts: process "
            f"{', '.join(str(i) for i, ok in enumerate(seen) if not ok)} does not see the files "
            "that process 0 writes there. Use a shared one, such as gs://BUCKET/FOLDER."
        )


# --- Stopping together ------------------------------------------------------------------------


def watch_for_stop() -> None:
    """Makes SIGTERM on any process notify all of them instead of ending that one."""
    jax.config.update("jax_enable_preemption_service", True)
    jax_private.state.initialize_preemption_sync_manager()


def stop_agreed(calls: int) -> bool:
    """Whether all processes stop after this step, because one received SIGTERM.

    All processes must call it after every step; calls: 1, 2, ... It returns True for the first step
    that no process has passed. Takes 10 us. After SIGTERM jax returns True only for the number
    after the highest that any process has asked for, so no other code may ask (see
    checkpoint._Manager).
    """
    return multihost_utils.reached_preemption_sync_point(calls)


# --- Ending together --------------------------------------------------------------------------


def is_lost(error: BaseException | None) -> bool:
    """Whether an error was caused by another process that has ended or cannot be reached."""
    return count() > 1 and any(
        isinstance(e, jax.errors.JaxRuntimeError) and _BROKEN.match(str(e))
        for e in cloud.causes(error)
    )


def fail(text: str, code: int, unexpected: BaseException | None = None) -> None:
    """Prints why this process fails, tells the other processes, and ends all of them.

    Returns only on one host. unexpected: an exception not raised by bigjax; it may be caused by
    another process that has ended, so that process gets time to report first.
    """
    if not _starting.is_set():
        return
    if unexpected and _joined.is_set():
        time.sleep(3)  # the watching thread ends this process if another one reports a failure
        text += f"\nIf this is a broken connection: {LOST}"
        code = TransientError.exit_code if is_lost(unexpected) else code
    _failing.append(code)
    _print(text)
    if _joined.is_set():
        for i in range(count()):
            with contextlib.suppress(Exception):  # another process was first, or process 0 is lost
                jax_private.state.client.key_value_set(
                    f"bigjax/failed/{i}", json.dumps([index(), text, code])
                )
        with contextlib.suppress(Exception):
            _acknowledge()
    os._exit(code)  # jax's exit handler would wait for all other processes


def _watch() -> None:
    """Ends this process when another one reports that it failed."""
    try:
        by, text, code = json.loads(
            jax_private.state.client.blocking_key_value_get(f"bigjax/failed/{index()}", _FOREVER)
        )
    except Exception:  # process 0 is lost, and jax aborts
        return
    if _failing or by is None:
        return  # this process reports its own error, or is finished
    _failing.append(code)
    _print(f"ended, because process {by} failed: {text}")
    process.run_before_exit()
    _acknowledge()
    os._exit(code)


def _acknowledge() -> None:
    """Tells process 0, whose end deletes all messages, that this one has read them. Process 0 waits
    for the others."""
    client = jax_private.state.client
    if index():
        client.key_value_set(f"bigjax/seen/{index()}", "")
        return
    end = time.monotonic() + _LINGER
    for i in range(1, count()):
        left = max(0.0, end - time.monotonic())
        with contextlib.suppress(Exception):  # that process was killed
            client.blocking_key_value_get(f"bigjax/seen/{i}", int(1000 * left))


def _end(watcher: threading.Thread) -> None:
    """At exit: no thread may still wait in C++, and no signal handler may call into Python."""
    ctypes.CDLL(None).signal(int(signal.SIGABRT), None)
    with contextlib.suppress(Exception):
        jax_private.state.client.key_value_set(
            f"bigjax/failed/{index()}", json.dumps([None, "", 0])
        )
    watcher.join(_LINGER)


@ctypes.CFUNCTYPE(None, ctypes.c_int)
def _ABORTED(number: int) -> None:
    if _failing:  # process 0, which has reported the failure too, was the first to end
        os._exit(_failing[0])
    # In another thread it is a failed check or corrupt memory, which a restart may not fix.
    if lost := threading.get_native_id() in _service_threads:
        _print(f"ended by jax for the reason above: {LOST}")
    else:
        _print(
            "aborted for the reason above. This is a defect, which a restart may not fix. The "
            "other processes only see that this one is lost."
        )
    os._exit(TransientError.exit_code if lost else 1)


def _print(text: str) -> None:
    sys.stdout.flush()
    who = f"[process {index()} of 0 to {count() - 1}] " if _joined.is_set() else ""
    os.write(sys.stderr.fileno(), f"bigjax: {who}{text}\n".encode())
