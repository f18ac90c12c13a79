"""The lease of a work folder: one process trains in it, and a second start is refused.

The lease is a small file in the folder (an object on gs://) that names its holder, who renews it
from a thread. Another start reads it and decides:

- The holder is on the same machine. It holds a lock of the kernel's, which ends with the process,
  so whether it lives is known at once, and no process ids are compared: containers share them.
- The holder is elsewhere. Its lease is watched: if it is renewed the start is refused; if it is
  not renewed for as long as it is valid it has run out, and one of those that wait takes it over.
  No two machines' clocks are compared, only times that the same file server has given.

A holder that was suspended may find that its lease was taken over. It looks before it writes or
deletes anything, and ends.
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

SECONDS = 60  # for which a lease is valid after it was renewed
RENEW = 15  # seconds between two renewals
# tpu_scripts/ know a refusal by this.
HELD_BY = "is held by process"


class Held(TransientError):
    """Another process trains in the work folder."""


class Lost(TransientError):
    """This process has lost its work folder to another one, or its lease was deleted."""


class Lease:
    """The right to write to a work folder, of one process; of many hosts, process 0 holds it."""

    def __init__(self, workdir: str):
        self._workdir, self._store = workdir, lease_store.of(workdir, secrets.token_hex(8))
        self._held, self._is_lost, self._stop = False, False, threading.Event()
        self._made: list[pathlib.Path] = []  # folders that were not there before

    def acquire(self) -> None:
        """Takes the lease. All processes of a run call it, and all raise the same.

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
            self._made = [p for p in (folder, *folder.parents) if not p.exists()]
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
        process.before_exit.append(self._give_back)

    def _take(self) -> None:
        first, until = None, 0.0
        while True:
            seen = self._store.read()
            lives = seen and self._store.lives(seen)
            if lives or seen and first and seen.version != first.version:
                raise Held(self._refusal(seen.record))
            if seen and lives is None:  # not known from here
                if first is None:
                    left = seen.record.seconds - max(0.0, self._store.age(seen))
                    first, until = seen, time.monotonic() + left
                    if left > 0:
                        print(
                            f"The lease of {self._workdir} belongs to process {seen.record}. "
                            f"It may be dead: waiting up to {left:.0f} seconds for a sign of life.",
                            flush=True,
                        )
                if (left := until - time.monotonic()) > 0:
                    time.sleep(min(1.0, left))
                    continue
            if self._store.take(seen, _now(), SECONDS):
                return
            time.sleep(0.2)  # another was first, whom a listing may not show yet

    def _refusal(self, record) -> str:
        return (
            f"{self._workdir} {HELD_BY} {record}; two at once would destroy each other's "
            "checkpoints. Wait until it ends, or stop it, then run the same command; or train in "
            f"another --workdir. If it was killed, its lease runs out {record.seconds} seconds "
            "after its last sign of life, and the next start takes the folder over."
        )

    def check(self) -> None:
        """Raises Lost if this process holds its folder no more: before it writes or deletes."""
        if not self._held or not self._is_lost and self._store.holds():
            return
        self._is_lost = True
        self._made = []  # what has these names now is another's
        raise Lost(
            f"This process (process {os.getpid()} on {socket.gethostname()}) has lost the work "
            f"folder {self._workdir}: {self._how_lost()} It ends here and leaves the folder as it "
            "is."
        )

    def _how_lost(self) -> str:
        try:
            if seen := self._store.read():
                return (
                    f"it {HELD_BY} {seen.record}. Perhaps this one was suspended for more than "
                    f"{SECONDS} seconds."
                )
            if "://" not in self._workdir and not pathlib.Path(self._workdir).is_dir():
                return (
                    "it was moved, renamed or deleted. To go on, move it back and run the same "
                    "command, or give the --workdir where it is now."
                )
        except OSError as e:
            return f"it cannot be read ({e.strerror or e})."
        return "its lease was deleted, or the folder was moved while a checkpoint was written."

    @property
    def is_lost(self) -> bool:
        """Whether the thread has found that the lease is lost; costs nothing."""
        return self._is_lost

    def release(self) -> None:
        """Gives the lease back, and removes the folder if this made it and nothing is in it."""
        if self._give_back not in process.before_exit:  # not acquired, or released already
            return
        process.before_exit.remove(self._give_back)
        self._stop.set()
        self._give_back()
        self._remove_empty()

    def _give_back(self) -> None:
        self._held = False
        with contextlib.suppress(Exception):  # storage fails: the lease will run out
            self._store.release()

    def _remove_empty(self) -> None:
        with contextlib.suppress(OSError):
            for folder in self._made:
                folder.rmdir()

    def _renew(self) -> None:
        while not self._stop.wait(RENEW):
            with contextlib.suppress(Exception):  # storage fails now, and is asked again
                if not self._store.renew():
                    self._is_lost = True
                    return


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
