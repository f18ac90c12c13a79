"""The lease of a work folder: one process trains in it, and a second start is refused.

The lease is a small file in the folder (an object on gs://) that names its holder, which renews it
from a thread. Another process that starts reads it and decides:

- The holder is on the same machine. It holds a kernel lock, which is released when the process
  ends, so whether it is alive is known immediately. Process ids are not compared, because they
  repeat across containers.
- The holder is on another machine. Its lease is watched: if it is renewed, the start is refused; if
  it is not renewed for as long as it is valid, it has expired, and one of the waiting processes
  takes it over. The clocks of two machines are never compared, only times from one file server.

A holder that was suspended may have lost its lease. It checks before it writes or deletes anything,
and ends if so.
"""

import contextlib
import datetime
import os
import pathlib
import secrets
import socket
import threading
import time

from bigjax import paths, process
from bigjax.errors import NO_SPACE, TransientError, UserError, cannot_write
from bigjax.parallel import hosts
from bigjax.train import lease_store
from bigjax.train import workdir as workdir_lib

SECONDS = 60  # validity of a lease after each renewal
RENEW = 15  # seconds between renewals
# tpu_scripts/ recognise a refusal by this text.
HELD_BY = "is held by process"


class Held(TransientError):
    """Another process trains in the work folder."""


class Lost(TransientError):
    """Another process has taken this one's work folder, or the lease was deleted."""


class Lease:
    """One process's right to write to a work folder. In a run on many hosts process 0 holds it."""

    def __init__(self, workdir: str):
        self._workdir, self._store = workdir, lease_store.of(workdir, secrets.token_hex(8))
        self._held, self._is_lost, self._stop = False, False, threading.Event()
        self._created: list[pathlib.Path] = []  # folders that did not exist before

    def acquire(self) -> None:
        """Takes the lease. All processes of a run call it, and all raise the same error.

        Raises Held if another process holds it, UserError if the folder cannot be written.
        """
        problem = None
        if hosts.index() == 0:
            try:
                self._acquire()
            except (TransientError, UserError) as e:
                if hosts.count() == 1:
                    raise
                problem = isinstance(e, UserError), str(e)
        if problem := hosts.gather(problem)[0]:
            raise (UserError if problem[0] else Held)(problem[1])

    def _acquire(self) -> None:
        paths.check_run_folder(self._workdir, "the work folder")
        if "://" not in self._workdir:
            folder = pathlib.Path(self._workdir)
            self._created = [p for p in (folder, *folder.parents) if not p.exists()]
        workdir_lib.make_workdir(self._workdir)
        try:
            self._take()
        except OSError as e:
            self._remove_empty()
            if e.errno in NO_SPACE:
                raise
            raise cannot_write(f"The work folder {self._workdir}", e) from e
        self._held = True
        threading.Thread(target=self._renew, daemon=True).start()
        process.before_exit.append(self._release_store)

    def _take(self) -> None:
        first, until = None, 0.0
        while True:
            seen = self._store.read()
            alive = seen and self._store.is_alive(seen)
            if alive or seen and first and seen.version != first.version:
                raise Held(self._refusal(seen.record))
            if seen and alive is None:  # unknown on this machine
                if first is None:
                    left = seen.record.seconds - max(0.0, self._store.age(seen))
                    first, until = seen, time.monotonic() + left
                    if left > 0:
                        print(
                            f"The lease of {self._workdir} belongs to process {seen.record}. That "
                            f"process may have ended: waiting up to {left:.0f} seconds for it to "
                            "renew the lease.",
                            flush=True,
                        )
                if (left := until - time.monotonic()) > 0:
                    time.sleep(min(1.0, left))
                    continue
            if self._store.take(seen, _now(), SECONDS):
                return
            time.sleep(0.2)  # another process was first; a listing may not show its lease yet

    def _refusal(self, record) -> str:
        return (
            f"{self._workdir} {HELD_BY} {record}; two processes would destroy each other's "
            "checkpoints. Wait until it ends, or stop it, then run the same command; or train in "
            f"another --workdir. If it was killed, its lease expires {record.seconds} seconds "
            "after the last renewal, and the next start takes the folder over."
        )

    def check(self) -> None:
        """Raises Lost if this process no longer holds the folder. Call before writing there."""
        if not self._held or not self._is_lost and self._store.holds():
            return
        self._is_lost = True
        self._created = []  # folders with these names now belong to another process
        raise Lost(
            f"This process (process {os.getpid()} on {socket.gethostname()}) has lost the work "
            f"folder {self._workdir}: {self._how_lost()} It ends now and leaves the folder "
            "unchanged."
        )

    def _how_lost(self) -> str:
        try:
            if seen := self._store.read():
                return (
                    f"it {HELD_BY} {seen.record}. This process may have been suspended for more "
                    f"than {SECONDS} seconds."
                )
            if "://" not in self._workdir and not pathlib.Path(self._workdir).is_dir():
                return (
                    "it was moved, renamed or deleted. To resume, move it back and run the same "
                    "command, or set --workdir to its new path."
                )
        except OSError as e:
            return f"it cannot be read ({e.strerror or e})."
        return "its lease was deleted, or the folder was moved while a checkpoint was written."

    @property
    def is_lost(self) -> bool:
        """Whether the renewing thread has noticed that the lease is lost. Does no I/O."""
        return self._is_lost

    def release(self) -> None:
        """Releases the lease, and removes the folder if this process created it and it is empty."""
        if self._release_store not in process.before_exit:  # not acquired, or already released
            return
        process.before_exit.remove(self._release_store)
        self._stop.set()
        self._release_store()
        self._remove_empty()

    def _release_store(self) -> None:
        self._held = False
        with contextlib.suppress(Exception):  # if storage fails, the lease expires
            self._store.release()

    def _remove_empty(self) -> None:
        with contextlib.suppress(OSError):
            for folder in self._created:
                folder.rmdir()

    def _renew(self) -> None:
        while not self._stop.wait(RENEW):
            with contextlib.suppress(Exception):  # if storage fails, the next renewal tries again
                if not self._store.renew():
                    self._is_lost = True
                    return


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
