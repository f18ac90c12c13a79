"""Leases of local and gs:// work folders: who is refused, who takes over, who has lost."""

import concurrent.futures
import fcntl
import json
import os
import pathlib
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

from etils import epath
import pytest

from bigjax import cloud, main, process
from bigjax.errors import TransientError
from bigjax.train import lease as lease_lib
from bigjax.train import lease_store, metrics
from bigjax.train.lease import Held, Lease, Lost
from tests import bucket, helpers
from tests.unit.test_checkpoint import on_two_hosts, saved, state


@pytest.fixture(scope="module")
def emulator():
    with bucket.emulator() as url:
        yield url


@pytest.fixture(params=["local", "gs"])
def workdir(request, tmp_path, monkeypatch):
    """A work folder that does not exist yet, local and in a bucket."""
    if request.param == "local":
        yield str(tmp_path / "runs" / "mine")
        return
    with bucket.Proxy(request.getfixturevalue("emulator")) as proxy:
        bucket.use(monkeypatch, proxy.url)
        yield f"gs://bucket/{request.node.name.replace('[', '-').replace(']', '')}"


@pytest.fixture
def quick(monkeypatch):
    """Leases that expire after a second."""
    monkeypatch.setattr(lease_lib, "SECONDS", 1)
    monkeypatch.setattr(lease_lib, "RENEW", 0.1)


def acquired(workdir) -> Lease:
    lease = Lease(workdir)
    lease.acquire()
    return lease


def elsewhere(monkeypatch, workdir) -> Lease:
    """A lease that a process on another machine has acquired."""
    with monkeypatch.context() as patch:
        patch.setattr(lease_store, "_boot", lambda: "another kernel")
        return acquired(workdir)


def die(lease: Lease) -> None:
    """Simulates that its process is killed: the kernel has closed its lock."""
    lease._stop.set()
    process.before_exit.remove(lease._release_store)
    lease._store._lock.close()


def never_waits(monkeypatch) -> None:
    monkeypatch.setattr(
        lease_lib,
        "time",
        SimpleNamespace(monotonic=time.monotonic, sleep=lambda s: pytest.fail("it waited")),
    )


def files(folder) -> list[str]:
    """All files below a folder except leases."""
    paths = [p for p in epath.Path(folder).iterdir() if ".lease" not in p.name]
    return sorted(
        x for p in paths for x in (files(p) if p.is_dir() else [f"{p} {p.stat().length}"])
    )


def leases(workdir) -> list[str]:
    if workdir.startswith("gs://"):
        return [".lease"] if cloud.read_version(f"{workdir}/.lease") else []
    folder = pathlib.Path(workdir)
    return [p.name for p in folder.glob(".lease*")] if folder.exists() else []


def test_a_second_start_is_refused_until_the_first_has_ended(workdir):
    first = acquired(workdir)
    for _ in range(2):
        with pytest.raises(Held) as e:
            acquired(workdir)
        assert e.value.exit_code == 75 and lease_lib.HELD_BY in str(e.value)
        for text in (workdir, f"process {os.getpid()} on {os.uname().nodename}", "60 seconds"):
            assert text in str(e.value)
        assert str(e.value).count("started on 20") == 1
    first.check()
    first.release()
    first.release()
    assert not leases(workdir)
    second = acquired(workdir)  # the same process may train there again
    second.check()
    second.release()


def test_a_killed_process_is_replaced_immediately(workdir, monkeypatch):
    """Process ids do not matter: in containers all are the same."""
    never_waits(monkeypatch)
    for _ in range(3):
        die(acquired(workdir))
    last = acquired(workdir)
    last.check()
    assert len(leases(workdir)) == 1
    last.release()
    assert not leases(workdir)


@pytest.mark.parametrize("known", [True, False], ids=["another machine", "no locks"])
def test_a_process_elsewhere_renews_its_lease_or_the_lease_expires(
    workdir, monkeypatch, quick, known
):
    if not known:

        def none(fd, how):
            raise OSError(38, "Function not implemented")

        monkeypatch.setattr(fcntl, "flock", none)
        other = acquired(workdir)
    else:
        other = elsewhere(monkeypatch, workdir)
    started = time.monotonic()
    with pytest.raises(Held, match="its lease expires 1 seconds after"):
        acquired(workdir)
    assert time.monotonic() - started < 3
    die(other)
    mine = acquired(workdir)
    mine.check()
    with pytest.raises(Lost, match=f"it is held by process {os.getpid()} on .* suspended"):
        other.check()
    other.release()  # has no effect: it lost the lease
    mine.check()
    mine.release()


def test_a_lease_that_expired_long_ago_is_taken_immediately(tmp_path, monkeypatch):
    never_waits(monkeypatch)
    other = elsewhere(monkeypatch, str(tmp_path))
    die(other)
    os.utime(tmp_path / ".lease-1", (0, time.time() - 61))
    acquired(str(tmp_path)).release()


def test_exactly_one_process_wins_the_race_for_a_lease(workdir, monkeypatch, quick):
    """At the start, and after a lease has expired."""
    for before in (None, elsewhere(monkeypatch, workdir)):
        if before:
            die(before)
        racers = [Lease(workdir) for _ in range(4)]
        seen, all_ready = racers[0]._store.read(), threading.Barrier(4)

        def race(lease):
            all_ready.wait()
            return lease._store.take(seen, "now", 1)

        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            assert sorted(pool.map(race, racers)) == [False, False, False, True]
        assert sum(r._store.holds() for r in racers) == 1
        for racer in racers:
            racer._store.release()
        assert not leases(workdir)


def test_a_process_that_hung_before_it_took_a_lease_gives_way(tmp_path, monkeypatch):
    die(elsewhere(monkeypatch, str(tmp_path)))
    slow = Lease(str(tmp_path))
    seen = slow._store.read()
    os.utime(tmp_path / ".lease-1", (0, 0))
    acquired(str(tmp_path)).release()
    third = acquired(str(tmp_path))
    assert not slow._store.take(seen, "now", 60)
    third.check()
    third.release()


def test_a_suspended_process_that_lost_its_lease_writes_and_deletes_nothing(
    workdir, monkeypatch, quick
):
    first = elsewhere(monkeypatch, workdir)
    if workdir.startswith("gs://"):
        cloud.check_writable(workdir)
    checkpoints = saved(workdir, [1, 2], keep=2, check_held=first.check)
    writer = metrics.Writer(workdir, 0, False, first.check)
    writer.write(2, {"loss": 1.0})
    writer.flush()
    die(first)  # as if the whole machine was paused
    second = acquired(workdir)
    before = files(workdir)
    with pytest.raises(Lost):
        checkpoints.save(3, state(3), {}, {})
    with pytest.raises(Lost):
        checkpoints._set_aside(2)
    with pytest.raises(Lost):
        writer.write(3, {"loss": 1.0})
        writer.flush()
    checkpoints.close()
    assert files(workdir) == before and len(before) > 10
    second.check()
    second.release()


def test_the_renewing_thread_notices_a_lost_lease(workdir, monkeypatch, quick):
    first = elsewhere(monkeypatch, workdir)
    record = first._store.read()
    taker = Lease(workdir)
    assert taker._store.take(record, "now", 60)
    end = time.monotonic() + 10
    while not first.is_lost:
        assert time.monotonic() < end
        time.sleep(0.02)
    with pytest.raises(Lost):
        first.check()
    first.release()
    assert taker._store.holds()
    taker._store.release()


def test_a_lease_deleted_by_somebody(workdir):
    lease = acquired(workdir)
    for name in leases(workdir):
        (epath.Path(workdir) / name).unlink()
    with pytest.raises(Lost, match="its lease was deleted"):
        lease.check()
    lease.release()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[" * 4000,
        b'{"seconds": ' + b"9" * 400 + b"}",
        b"\xff\x00",
        b"[1]",
        b'{"token": "../../etc/passwd", "boot": "x"}',
        b'{"seconds": 1e99}',
        json.dumps({"token": "0" * 16, "host": "\x1b[2Ja\n" * 99, "process": True}).encode(),
    ],
    ids=range(8),
)
def test_an_unreadable_lease_is_valid_until_it_expires(workdir, monkeypatch, content):
    """Until it expires."""
    monkeypatch.setattr(lease_store, "_DEFAULT_SECONDS", 1)
    monkeypatch.setattr(lease_store.Record, "__init__", _short_record)
    epath.Path(workdir).mkdir(parents=True, exist_ok=True)
    name = ".lease" if workdir.startswith("gs://") else ".lease-7"
    (epath.Path(workdir) / name).write_bytes(content)
    started = time.monotonic()
    lease = acquired(workdir)
    assert time.monotonic() - started > 0.4
    lease.check()
    lease.release()


def _short_record(self, token="", host="?", process=0, since="?", seconds=1, boot="", file=()):
    self.token, self.host, self.process, self.since = token, host, process, since
    self.seconds, self.boot, self.file = seconds, boot, file


def test_train_is_refused_before_anything_is_read_or_written(tmp_path, capsys):
    held = acquired(str(tmp_path / "run"))
    assert main.main(["train", f"--config={helpers.TINY}", f"--workdir={tmp_path}/run"]) == 75
    err = capsys.readouterr().err
    assert f"is held by process {os.getpid()} on " in err and err.count("\n") == 1
    held.check()
    held.release()
    # The config's text does not exist. The folder created for the run is removed.
    assert main.main(["train", f"--config={helpers.TINY}", f"--workdir={tmp_path}/run"]) == 2
    assert not (tmp_path / "run").exists()


def test_all_hosts_raise_the_same_refusal(tmp_path, monkeypatch):
    first = acquired(str(tmp_path))
    one, other = on_two_hosts(monkeypatch, lambda i: Lease(str(tmp_path)).acquire())
    assert type(one) is type(other) is Held and str(one) == str(other)
    first.release()
    pair = [Lease(str(tmp_path)) for _ in range(2)]
    assert on_two_hosts(monkeypatch, lambda i: pair[i].acquire()) == [None, None]
    assert [p._held for p in pair] == [True, False]
    pair[1].check()
    pair[0].release()


def test_a_lease_is_released_when_another_host_ends_the_process(tmp_path, monkeypatch):
    monkeypatch.setattr(process, "before_exit", [])
    lease = acquired(str(tmp_path))
    process.run_before_exit()
    assert not leases(str(tmp_path))
    lease.release()
    assert not process.before_exit


def test_lost_responses(emulator, monkeypatch, quick):
    """A retried request finds that the first one had succeeded."""
    with bucket.Proxy(emulator) as proxy:
        bucket.use(monkeypatch, proxy.url)
        lease = Lease("gs://bucket/lost-answers")
        proxy.fault_next("lose", after=2)  # after the one that finds none
        lease.acquire()
        lease._stop.set()
        time.sleep(0.3)
        proxy.fault_next("lose")
        assert lease._store.renew()
        lease.check()
        proxy.fault_next("lose")
        lease.release()
        assert bucket.get(emulator, "lost-answers/.lease") is None
        assert "lose" in proxy.faults


# SIGTERM while the main thread waits in C, before training handles it, as in bigjax/main.py.
LOADING = """
import sys, ctypes
from bigjax import process
process.GRACE_SECONDS = 0.5
process.handle_signals()
process.watch_signals()
from bigjax.train.lease import Lease
lease = Lease(sys.argv[1])
lease.acquire()
mutex = ctypes.create_string_buffer(64)
lock = ctypes.CDLL(None).pthread_mutex_lock
lock(mutex)
try:
    print("acquired", flush=True)
    lock(mutex)
except process.Interrupted:  # it came just before: a library may swallow it, too
    lock(mutex)
"""


def test_sigterm_before_training_releases_the_lease(tmp_path):
    loading = subprocess.Popen(
        [sys.executable, "-c", LOADING, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True
    )
    assert loading.stdout.readline() == "acquired\n"
    assert leases(str(tmp_path / "run"))
    loading.terminate()
    assert loading.wait(60) == 143 and not leases(str(tmp_path / "run"))


def test_the_scripts_recognise_a_refusal():
    for script in ("on_worker.sh", "in_pod.sh"):
        path = pathlib.Path(__file__).parents[2] / "tpu_scripts" / script
        assert lease_lib.HELD_BY in path.read_text()
    assert issubclass(Held, TransientError) and issubclass(Lost, TransientError)
