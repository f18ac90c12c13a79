"""Storage of leases: numbered files in a local work folder, one object on gs://.

If several processes try to replace the lease that they have read, both let exactly one succeed:
files by exclusive creation of the next number, objects by a condition on their version.
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
_DEFAULT_SECONDS = 60  # validity of a lease that cannot be read
# errno values: the file is no longer at its path, or this user may no longer read it.
_GONE = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ESTALE, errno.EACCES, errno.EPERM}
_open_locks: set[int] = set()  # file descriptors that a forked child must close


@dataclasses.dataclass
class Record:
    """The holder of a lease. boot (the running kernel) and file (device, inode) identify its lock;
    both are empty if it has none."""

    token: str = ""
    host: str = "an unknown host"
    process: int = 0
    since: str = "an unknown time"
    seconds: int = _DEFAULT_SECONDS
    boot: str = ""
    file: tuple = ()

    def __str__(self) -> str:
        return f"{self.process or 'unknown'} on {self.host}, which started on {self.since}"


class Seen(NamedTuple):
    """A lease when it was read. version: changes with each renewal and replacement."""

    version: Any
    record: Record
    age: float  # seconds since the last renewal; for files 0.0, see Files.age


def of(workdir: str, token: str) -> "Files | Object":
    """The storage of a work folder's lease. token: 16 hex digits that identify this process."""
    return (Object if workdir.startswith("gs://") else Files)(workdir, token)


class _Lock:
    """A kernel lock on a file, which is released when this process ends."""

    def __init__(self, fd: int | None):
        """fd: an open file, which `close` closes; None for no lock."""
        self.fd, self.boot, self.file = fd, "", ()
        if fd is None:
            return
        _open_locks.add(fd)
        with contextlib.suppress(ImportError, OSError):  # some file systems have no locks
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
    while _open_locks:  # a child that outlives this process must not keep its locks
        os.close(_open_locks.pop())


os.register_at_fork(after_in_child=_close_locks)


def _is_locked(path: pathlib.Path, record: Record) -> bool | None:
    """Whether the holder of a lease is alive, by its lock on `path`; None if it has no lock, or one
    of another kernel or on another file."""
    if not record.boot or record.boot != _boot():
        return None
    try:
        import fcntl

        with path.open("rb") as f:
            status = os.fstat(f.fileno())
            if tuple(record.file) != (status.st_dev, status.st_ino):
                return None
            fcntl.flock(f, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared: several processes may check
            return False
    except BlockingIOError:
        return True
    except (ImportError, OSError):
        return None


def _boot() -> str:
    """Identifies the running kernel: the same for all containers of a machine; different on another
    machine and after a reboot."""
    with contextlib.suppress(OSError):
        return pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{socket.gethostname()} {psutil.boot_time():.0f}"


def _parse(content: bytes) -> Record:
    """The record in a file's content; a default one if it is incomplete or not a record."""
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


def _to_json(record: Record) -> bytes:
    return json.dumps(dataclasses.asdict(record)).encode()


class Files:
    """WORKDIR/.lease-N, of which the highest number is valid.

    Works on NFS, where exclusive creation of a file is atomic, and opening a file asks the server
    for its state.
    """

    def __init__(self, workdir: str, token: str):
        self._folder, self._token = pathlib.Path(workdir), token
        self._number, self._lock = 0, None

    def _path(self, number: int) -> pathlib.Path:
        return self._folder / f"{_NAME}-{number}"

    def _numbers(self) -> list[int]:
        """The numbers of all leases in the folder; [] if the folder does not exist."""
        try:
            names = os.listdir(self._folder)
        except (FileNotFoundError, NotADirectoryError):
            return []
        matches = [re.fullmatch(rf"{re.escape(_NAME)}-(0|[1-9][0-9]*)", n) for n in names]
        return sorted(int(m[1]) for m in matches if m)

    def read(self) -> Seen | None:
        """The valid lease; None if there is none.

        Any path named like a lease is one, so that the next number is free: a folder, a dangling
        link or another user's file is the lease of an unknown process.
        """
        while numbers := self._numbers():
            content = b""
            with contextlib.suppress(OSError):
                content = self._read_file(numbers[-1])
            if version := self._version(numbers):
                return Seen(version, _parse(content), 0.0)
            time.sleep(0.02)  # just released; on NFS a listing may still show it for a while
        return None

    def _read_file(self, number: int) -> bytes:
        """The beginning of a lease file; b'' if the path is not a regular file. Does not follow
        links or block on pipes. Unlike a listing, opening the file asks the file server."""
        fd = os.open(self._path(number), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            return os.read(fd, 4096) if stat.S_ISREG(os.fstat(fd).st_mode) else b""
        finally:
            os.close(fd)

    def _version(self, numbers: list[int]) -> tuple | None:
        """A value that changes when the lease of the highest number is renewed or replaced."""
        with contextlib.suppress(FileNotFoundError):
            status = self._path(numbers[-1]).lstat() if numbers else None
            return status and (numbers, status.st_mtime_ns, status.st_ino)
        return None

    def age(self, seen: Seen) -> float:
        """Seconds since the last renewal, by the file server's clock."""
        path = self._folder / f"{_NAME}-{self._token}.tmp"
        path.touch()
        try:
            return path.stat().st_mtime - seen.version[1] / 1e9
        finally:
            path.unlink()

    def is_alive(self, seen: Seen) -> bool | None:
        """Whether its holder is alive; None if that cannot be determined on this machine."""
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
            os.write(fd, _to_json(lock.record(self._token, since, seconds)))
            # If this process hung after it had read the lease, the holder may have renewed it, or
            # another process may have taken it over and released it, and a third one taken it.
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
        """Whether this process still holds the lease, in the folder that now has this path."""
        try:
            mine = _parse(self._read_file(self._number)).token == self._token
            return mine and max(self._numbers(), default=0) <= self._number
        except OSError as e:
            if e.errno in _GONE:
                return False
            raise

    def renew(self) -> bool:
        """Renews the lease; False if this process no longer holds it."""
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
    """gs://WORKDIR/.lease. Its holder also has a lock on a temporary file of its machine."""

    def __init__(self, workdir: str, token: str):
        self._path, self._token = f"{workdir.rstrip('/')}/{_NAME}", token
        self._version, self._content, self._lock = "", b"", None
        self._mutex = threading.Lock()  # between the thread that renews and the one that releases

    def read(self) -> Seen | None:
        stored = cloud.read_version(self._path)
        return stored and Seen(stored.version, _parse(stored.content), stored.age)

    def age(self, seen: Seen) -> float:
        return seen.age

    def is_alive(self, seen: Seen) -> bool | None:
        return _is_locked(_lock_file(seen.record.token), seen.record)

    def take(self, seen: Seen | None, since: str, seconds: int) -> bool:
        fd = None
        with contextlib.suppress(OSError):  # without a lock file only expiry ends the lease
            fd = os.open(_lock_file(self._token), os.O_CREAT | os.O_RDWR, 0o644)
        lock = _Lock(fd)
        self._content = _to_json(lock.record(self._token, since, seconds))
        if not self._write(seen.version if seen else "0"):
            self._drop(lock)
            return False
        if seen and self.is_alive(seen) is False:
            with contextlib.suppress(OSError):  # another user's file
                _lock_file(seen.record.token).unlink()
        self._lock = lock
        return True

    def _write(self, version: str) -> bool:
        new = cloud.write_version(self._path, self._content, version)
        if new is None:  # another process's, or this one's if the first response was lost
            stored = cloud.read_version(self._path)
            new = stored.version if stored and stored.content == self._content else None
        self._version = new or self._version
        return new is not None

    def holds(self) -> bool:
        stored = cloud.read_version(self._path)
        return stored is not None and stored.content == self._content

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
