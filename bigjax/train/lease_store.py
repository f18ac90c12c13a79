"""Where leases of work folders lie: numbered files in a folder, an object on gs://.

Both let one process alone replace a lease that it has read, whoever else tries at the same time:
files by the exclusive creation of the next number, objects by a condition on their version.
"""

import contextlib
import dataclasses
import errno
import json
import os
import pathlib
import re
import socket
import stat
import tempfile
import threading
import time
from typing import Any, NamedTuple

import psutil

from bigjax import cloud

_NAME = ".lease"
_DEFAULT_SECONDS = 60  # of a lease that cannot be read
# Of an OSError: the file is no longer at its path, or this user may no longer read it.
_GONE = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ESTALE, errno.EACCES, errno.EPERM}
_open_locks: set[int] = set()  # file descriptors that a forked child has to close


@dataclasses.dataclass
class Record:
    """Who holds a lease. boot and file say where its lock is: which running kernel, and which file
    of it (device, inode); empty where it has none."""

    token: str = ""
    host: str = "an unknown host"
    process: int = 0
    since: str = "an unknown time"
    seconds: int = _DEFAULT_SECONDS
    boot: str = ""
    file: tuple = ()

    def __str__(self) -> str:
        return f"{self.process or 'unknown'} on {self.host}, which trains there since {self.since}"


class Seen(NamedTuple):
    """A lease as it was read. version changes whenever it is renewed or replaced."""

    version: Any
    record: Record
    age: float  # seconds; of files `age` tells it


def of(workdir: str, token: str) -> "Files | Object":
    """The place of workdir's lease. token: 16 hex digits, of the process that asks."""
    return (Object if workdir.startswith("gs://") else Files)(workdir, token)


class _Lock:
    """A lock of the kernel's on a file, which ends with this process."""

    def __init__(self, fd: int | None):
        """fd: of the file, which `close` closes; None: there is none, so no lock either."""
        self.fd, self.boot, self.file = fd, "", ()
        if fd is None:
            return
        _open_locks.add(fd)
        with contextlib.suppress(ImportError, OSError):  # some file systems have none
            import fcntl

            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            status = os.fstat(fd)
            self.boot, self.file = _boot(), (status.st_dev, status.st_ino)

    def record(self, token: str, since: str, seconds: int) -> Record:
        host = socket.gethostname()
        return Record(token, host, os.getpid(), since, seconds, self.boot, self.file)

    def close(self) -> None:
        if self.fd is not None:
            _open_locks.discard(self.fd)
            os.close(self.fd)


def _close_locks() -> None:
    while _open_locks:  # else a child that outlives this process would keep its locks
        os.close(_open_locks.pop())


os.register_at_fork(after_in_child=_close_locks)


def _is_locked(path: pathlib.Path, record: Record) -> bool | None:
    """Whether the holder of a lease lives, by the lock that it has on `path`; None if its lock is
    not of this kernel or not on this file, or it has none."""
    if not record.boot or record.boot != _boot():
        return None
    try:
        import fcntl

        with path.open("rb") as f:
            status = os.fstat(f.fileno())
            if tuple(record.file) != (status.st_dev, status.st_ino):
                return None
            fcntl.flock(f, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared: several may look
            return False
    except BlockingIOError:
        return True
    except (ImportError, OSError):
        return None


def _boot() -> str:
    """Names the running kernel: containers on one machine have the same, another machine has not,
    nor has this one when it was started again."""
    with contextlib.suppress(OSError):
        return pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{socket.gethostname()} {psutil.boot_time():.0f}"


def _parse(content: bytes) -> Record:
    """A record, whatever a file holds: it may be half written, or another program's."""
    try:
        record = Record(**json.loads(content))
        known = all(
            isinstance(getattr(record, f.name), (list, f.type)) for f in dataclasses.fields(Record)
        )
        valid = (
            known
            and 0 < record.seconds <= 3600
            and 0 <= record.process < 2**32
            and re.fullmatch("[0-9a-f]{16}", record.token)
        )
    except (ValueError, TypeError, RecursionError):
        return Record()
    if not valid:
        return Record()
    record.host, record.since = (
        "".join(c for c in text[:100] if c.isprintable()) for text in (record.host, record.since)
    )
    return record


def _content(record: Record) -> bytes:
    return json.dumps(dataclasses.asdict(record)).encode()


class Files:
    """WORKDIR/.lease-N. The highest number counts.

    Works on NFS, where creating a file that may not be there yet is atomic, and opening one asks
    the server for its state.
    """

    def __init__(self, workdir: str, token: str):
        self._folder, self._token = pathlib.Path(workdir), token
        self._number, self._lock = 0, None

    def _path(self, number: int) -> pathlib.Path:
        return self._folder / f"{_NAME}-{number}"

    def _numbers(self) -> list[int]:
        """Those of all leases in the folder; none where it is gone."""
        try:
            names = os.listdir(self._folder)
        except (FileNotFoundError, NotADirectoryError):
            return []
        found = [re.fullmatch(rf"{re.escape(_NAME)}-(0|[1-9][0-9]*)", n) for n in names]
        return sorted(int(m[1]) for m in found if m)

    def read(self) -> Seen | None:
        """The lease that counts; None if there is none.

        Whatever has the name of a lease is one, so that the next number is free: a folder, a link
        to nothing or another user's file is a lease of an unknown process.
        """
        while numbers := self._numbers():
            content = b""
            with contextlib.suppress(OSError):
                content = self._content(numbers[-1])
            if version := self._version(numbers):
                return Seen(version, _parse(content), 0.0)
            time.sleep(0.02)  # given back just now; a listing of NFS may show it for a while
        return None

    def _content(self, number: int) -> bytes:
        """The beginning of a lease's file; b'' of what is no file. Follows no link and waits for no
        writer of a pipe. Opening it asks a file server, unlike a listing."""
        fd = os.open(self._path(number), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            return os.read(fd, 4096) if stat.S_ISREG(os.fstat(fd).st_mode) else b""
        finally:
            os.close(fd)

    def _version(self, numbers: list[int]) -> tuple | None:
        """What tells apart whether the lease of the highest number was renewed or replaced."""
        with contextlib.suppress(FileNotFoundError):
            status = self._path(numbers[-1]).lstat() if numbers else None
            return status and (numbers, status.st_mtime_ns, status.st_ino)
        return None

    def age(self, seen: Seen) -> float:
        """Seconds since it was renewed, by the clock of whoever keeps the files."""
        path = self._folder / f"{_NAME}-{self._token}.tmp"
        path.touch()
        try:
            return path.stat().st_mtime - seen.version[1] / 1e9
        finally:
            path.unlink()

    def lives(self, seen: Seen) -> bool | None:
        """Whether its holder lives; None if that cannot be known from here."""
        return _is_locked(self._path(seen.version[0][-1]), seen.record)

    def take(self, seen: Seen | None, since: str, seconds: int) -> bool:
        """Takes the lease in place of the one seen; False if another process was first."""
        before = seen.version[0] if seen else []
        number = before[-1] + 1 if before else 1
        path = self._path(number)
        try:
            fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o644)
        except FileExistsError:
            return False
        lock, taken = _Lock(fd), False
        try:
            os.write(fd, _content(lock.record(self._token, since, seconds)))
            # While this process hung after it had looked, the holder may have given a sign of life,
            # or another may have taken over and given back, and a third begun.
            now = self._version(before)
            taken = not set(self._numbers()) - {number, *before} and now in (None, seen and seen[0])
        finally:
            if not taken:
                path.unlink()
                lock.close()
        if not taken:
            return False
        for old in before:
            with contextlib.suppress(OSError):
                self._path(old).unlink()
        self._number, self._lock = number, lock
        return True

    def holds(self) -> bool:
        """Whether the lease is still this process's, in the folder that has its name now."""
        try:
            mine = _parse(self._content(self._number)).token == self._token
            return mine and max(self._numbers(), default=0) <= self._number
        except OSError as e:
            if e.errno in _GONE:
                return False
            raise

    def renew(self) -> bool:
        """Gives a sign of life; False if the lease is no more this process's."""
        if not self.holds():
            return False
        os.utime(self._path(self._number))
        return True

    def release(self) -> None:
        if self._lock:
            if self.holds():
                self._path(self._number).unlink()
            self._lock.close()
            self._lock = None


class Object:
    """gs://WORKDIR/.lease. Its holder has a lock on a file of its machine besides."""

    def __init__(self, workdir: str, token: str):
        self._path, self._token = f"{workdir.rstrip('/')}/{_NAME}", token
        self._version, self._content, self._lock = "", b"", None
        self._mutex = threading.Lock()  # between the thread that renews and the one that releases

    def read(self) -> Seen | None:
        found = cloud.read_version(self._path)
        return found and Seen(found.version, _parse(found.content), found.age)

    def age(self, seen: Seen) -> float:
        return seen.age

    def lives(self, seen: Seen) -> bool | None:
        return _is_locked(_lock_file(seen.record.token), seen.record)

    def take(self, seen: Seen | None, since: str, seconds: int) -> bool:
        fd = None
        with contextlib.suppress(OSError):  # without a folder for it the lease has to run out
            fd = os.open(_lock_file(self._token), os.O_CREAT | os.O_RDWR, 0o644)
        lock = _Lock(fd)
        self._content = _content(lock.record(self._token, since, seconds))
        if not self._write(seen.version if seen else "0"):
            self._drop(lock)
            return False
        if seen and self.lives(seen) is False:
            with contextlib.suppress(OSError):  # of another user
                _lock_file(seen.record.token).unlink()
        self._lock = lock
        return True

    def _write(self, version: str) -> bool:
        new = cloud.write_version(self._path, self._content, version)
        if new is None:  # of another process; or of this one, whose first answer was lost
            found = cloud.read_version(self._path)
            new = found.version if found and found.content == self._content else None
        self._version = new or self._version
        return new is not None

    def holds(self) -> bool:
        found = cloud.read_version(self._path)
        return found is not None and found.content == self._content

    def renew(self) -> bool:
        with self._mutex:
            return self._lock is None or self._write(self._version)

    def release(self) -> None:
        with self._mutex:
            if not self._lock:
                return
            lock, self._lock = self._lock, None
            try:
                cloud.delete_version(self._path, self._version)
            finally:
                self._drop(lock)

    def _drop(self, lock: _Lock) -> None:
        lock.close()
        with contextlib.suppress(OSError):
            _lock_file(self._token).unlink()


def _lock_file(token: str) -> pathlib.Path:
    return pathlib.Path(tempfile.gettempdir()) / f"bigjax-lease-{token or 'none'}"
