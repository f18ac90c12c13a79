"""One holder of a work folder, here and on gs://: who is refused, who takes over, who has lost."""

import concurrent.futures
import dataclasses
import errno
import fcntl
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

from etils import epath
import pytest

from bigjax import cloud, main, process
from bigjax.errors import TransientError, UserError
from bigjax.train import lease as lease_lib
from bigjax.train import lease_store, metrics
from bigjax.train import run as run_lib
from bigjax.train.lease import Held, Lease, Lost
from tests import bucket, helpers
from tests.unit.test_checkpoint import on_two_hosts, saved, state


@pytest.fixture(scope="module")
def emulator():
    with bucket.emulator() as url:
        yield url


@pytest.fixture(params=["local", "gs"])
def place(request, tmp_path, monkeypatch):
    """A work folder that is not there yet, local and in a bucket."""
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


def acquired(place) -> Lease:
    lease = Lease(place)
    lease.acquire()
    return lease


def elsewhere(monkeypatch, place) -> Lease:
    """A lease that a process on another machine has acquired."""
    with monkeypatch.context() as patch:
        patch.setattr(lease_store, "_boot", lambda: "another kernel")
        return acquired(place)


def die(lease: Lease) -> None:
    """What is left when its process is killed: the kernel has closed its lock."""
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
    """All but leases, below a folder."""
    paths = [p for p in epath.Path(folder).iterdir() if ".lease" not in p.name]
    return sorted(
        x for p in paths for x in (files(p) if p.is_dir() else [f"{p} {p.stat().length}"])
    )


def leases(place) -> list[str]:
    if place.startswith("gs://"):
        return [".lease"] if cloud.read_version(f"{place}/.lease") else []
    folder = pathlib.Path(place)
    return [p.name for p in folder.glob(".lease*")] if folder.exists() else []


def test_a_second_start_is_refused_until_the_first_has_ended(place):
    first = acquired(place)
    for _ in range(2):
        with pytest.raises(Held) as e:
            acquired(place)
        assert e.value.exit_code == 75 and lease_lib.HELD_BY in str(e.value)
        for text in (place, f"process {os.getpid()} on {os.uname().nodename}", "60 seconds"):
            assert text in str(e.value)
        assert str(e.value).count("started on 20") == 1
    first.check()
    first.release()
    first.release()
    assert not leases(place)
    second = acquired(place)  # the same process may train there again
    second.check()
    second.release()


def test_a_process_that_was_killed_is_replaced_at_once(place, monkeypatch):
    """Whatever its number is: in containers all have the same."""
    never_waits(monkeypatch)
    for _ in range(3):
        die(acquired(place))
    last = acquired(place)
    last.check()
    assert len(leases(place)) == 1
    last.release()
    assert not leases(place)


@pytest.mark.parametrize("known", [True, False], ids=["another machine", "no locks"])
def test_a_process_elsewhere_is_heard_of_or_its_lease_runs_out(place, monkeypatch, quick, known):
    if not known:

        def none(fd, how):
            raise OSError(38, "Function not implemented")

        monkeypatch.setattr(fcntl, "flock", none)
        other = acquired(place)
    else:
        other = elsewhere(monkeypatch, place)
    begun = time.monotonic()
    with pytest.raises(Held, match="its lease expires 1 seconds after"):
        acquired(place)
    assert time.monotonic() - begun < 3
    die(other)
    mine = acquired(place)
    mine.check()
    with pytest.raises(Lost, match=f"it is held by process {os.getpid()} on .* suspended"):
        other.check()
    other.release()  # which is not its to give
    mine.check()
    mine.release()


def test_a_lease_that_ran_out_long_ago_is_not_waited_for(tmp_path, monkeypatch):
    never_waits(monkeypatch)
    other = elsewhere(monkeypatch, str(tmp_path))
    die(other)
    os.utime(tmp_path / ".lease-1", (0, time.time() - 61))
    acquired(str(tmp_path)).release()


def test_one_wins_the_race_for_a_lease(place, monkeypatch, quick):
    """At the start, and after a lease has expired."""
    for before in (None, elsewhere(monkeypatch, place)):
        if before:
            die(before)
        racers = [Lease(place) for _ in range(4)]
        seen, all_ready = racers[0]._store.read(), threading.Barrier(4)

        def race(lease):
            all_ready.wait()
            return lease._store.take(seen, "now", 1)

        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            assert sorted(pool.map(race, racers)) == [False, False, False, True]
        assert sum(r._store.holds() for r in racers) == 1
        for racer in racers:
            racer._store.release()
        assert not leases(place)


def test_one_that_hung_before_it_took_a_lease_gives_way(tmp_path, monkeypatch):
    die(elsewhere(monkeypatch, str(tmp_path)))
    slow = Lease(str(tmp_path))
    seen = slow._store.read()
    os.utime(tmp_path / ".lease-1", (0, 0))
    acquired(str(tmp_path)).release()
    third = acquired(str(tmp_path))
    assert not slow._store.take(seen, "now", 60)
    third.check()
    third.release()


def test_who_was_suspended_writes_and_deletes_nothing_more(place, monkeypatch, quick):
    first = elsewhere(monkeypatch, place)
    if place.startswith("gs://"):
        cloud.check_writable(place)
    checkpoints = saved(place, [1, 2], keep=2, check_held=first.check)
    writer = metrics.Writer(place, 0, False, first.check)
    writer.write(2, {"loss": 1.0})
    writer.flush()
    die(first)  # as if the whole machine was paused
    second = acquired(place)
    before = files(place)
    with pytest.raises(Lost):
        checkpoints.save(3, state(3), {}, {})
    with pytest.raises(Lost):
        checkpoints._set_aside(2)
    with pytest.raises(Lost):
        writer.write(3, {"loss": 1.0})
        writer.flush()
    checkpoints.close()
    assert files(place) == before and len(before) > 10
    second.check()
    second.release()


def test_a_save_that_fails_since_the_folder_is_lost_says_that(tmp_path, monkeypatch):
    held = [True]

    def check():
        if not held[0]:
            raise Lost("this one has lost it")

    checkpoints = saved(tmp_path, [1], keep=1, check_held=check)
    unfinished = tmp_path / "checkpoints" / "2.orbax-checkpoint-tmp"

    def fail(step, **options):
        held[0] = False
        unfinished.mkdir()  # by the other one
        raise FileNotFoundError("its own was removed")

    monkeypatch.setattr(checkpoints._manager, "save", fail)
    with pytest.raises(Lost, match="^this one has lost it$"):
        checkpoints.save(2, state(2), {}, {})
    assert unfinished.exists()


def test_the_thread_finds_that_a_lease_was_lost(place, monkeypatch, quick):
    first = elsewhere(monkeypatch, place)
    found = first._store.read()
    taker = Lease(place)
    assert taker._store.take(found, "now", 60)
    end = time.monotonic() + 10
    while not first.is_lost:
        assert time.monotonic() < end
        time.sleep(0.02)
    with pytest.raises(Lost):
        first.check()
    first.release()
    assert taker._store.holds()
    taker._store.release()


def test_a_lease_that_somebody_deleted(place):
    lease = acquired(place)
    for name in leases(place):
        (epath.Path(place) / name).unlink()
    with pytest.raises(Lost, match="its lease was deleted"):
        lease.check()
    lease.release()


GONE = {
    "moved": (lambda f: f.rename(f.with_name("elsewhere")), "it was moved, renamed or deleted"),
    "deleted": (shutil.rmtree, "it was moved, renamed or deleted"),
    "another folder": (
        lambda f: (f.rename(f.with_name("elsewhere")), f.mkdir()),
        "its lease was deleted",
    ),
    "a file": (lambda f: (shutil.rmtree(f), f.touch()), "it was moved, renamed or deleted"),
    "a link to nothing": (
        lambda f: (shutil.rmtree(f), f.symlink_to("nothing")),
        "it was moved, renamed or deleted",
    ),
    "a folder for a lease": (
        lambda f: ((f / ".lease-1").unlink(), (f / ".lease-1").mkdir()),
        "it is held by process unknown",
    ),
}


@pytest.mark.parametrize("how", GONE)
def test_a_folder_that_is_gone_while_a_run_writes_to_it(tmp_path, how):
    change, words = GONE[how]
    folder = tmp_path / "run"
    lease = acquired(str(folder))
    writer = metrics.Writer(str(folder), 0, False, lease.check)
    writer.write(1, {"loss": 1.0})
    change(folder)
    before = sorted(tmp_path.rglob("*"))
    for _ in range(2):
        with pytest.raises(Lost, match=words):
            writer.write(2, {"loss": 1.0})
    assert not lease._store.renew()
    lease.release()
    writer.close()
    assert sorted(tmp_path.rglob("*")) == before


def test_a_folder_that_may_no_longer_be_read():
    with helpers.open_folder() as place:  # in which another user may work
        (place / "mine").mkdir(mode=0o777)
        (place / "mine").chmod(0o777)
        with helpers.another_user():
            lease = acquired(str(place / "mine" / "run"))
            (place / "mine" / "run").chmod(0)
            with pytest.raises(Lost, match="it cannot be read .Permission denied"):
                lease.check()
            assert not lease._store.renew()
            lease.release()


def test_an_error_of_files_after_the_folder_is_gone_is_told_by_that(tmp_path, monkeypatch):
    """What does not ask for the lease first, such as an evaluation that writes its files."""

    def stages(config, workdir, progress, lease):
        lease.acquire()
        (tmp_path / "run").rename(tmp_path / "other")
        (tmp_path / "run" / "evals").mkdir()

    monkeypatch.setattr(run_lib, "_train", stages)
    c = SimpleNamespace(train=SimpleNamespace(steps=1))
    with pytest.raises(Lost, match="moved, renamed or deleted"):
        run_lib.train(c, str(tmp_path / "run"))


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
def test_a_lease_that_cannot_be_read_is_one(place, monkeypatch, content):
    """Until it expires."""
    monkeypatch.setattr(lease_store, "_DEFAULT_SECONDS", 1)
    monkeypatch.setattr(lease_store.Record, "__init__", _short_record)
    epath.Path(place).mkdir(parents=True, exist_ok=True)
    name = ".lease" if place.startswith("gs://") else ".lease-7"
    (epath.Path(place) / name).write_bytes(content)
    begun = time.monotonic()
    lease = acquired(place)
    assert time.monotonic() - begun > 0.4
    lease.check()
    lease.release()


@pytest.mark.parametrize("number, known", [(-1, False), (0, True), (7, True), (2**32, False)])
def test_a_number_that_no_process_has_is_of_no_lease(number, known):
    """Whoever is refused reads it."""
    record = lease_store.Record(token="0" * 16, process=number)
    content = json.dumps(dataclasses.asdict(record)).encode()
    assert (lease_store._parse(content).token == record.token) == known


def no_lease(path, kind: str) -> None:
    """What has the name of a lease and is none."""
    if kind == "file":
        path.write_bytes(b"")
    elif kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to({"link": "nothing", "loop": path.name, "endless": "/dev/zero"}[kind])
    os.utime(path, (0, time.time() - 61), follow_symlinks=False)


@pytest.mark.parametrize("name", [".lease-1", ".lease-0", ".lease-999999999", ".lease-" + "9" * 99])
@pytest.mark.parametrize("kind", ["link", "loop", "endless", "folder", "pipe", "file"])
def test_what_is_no_file_has_run_out_like_a_lease(tmp_path, monkeypatch, kind, name):
    never_waits(monkeypatch)
    no_lease(tmp_path / name, kind)
    lease = acquired(str(tmp_path))
    lease.check()
    with pytest.raises(Held):
        acquired(str(tmp_path))
    assert lease._store.renew()
    lease.release()
    assert leases(str(tmp_path)) == ([name] if kind == "folder" else [])
    acquired(str(tmp_path)).release()


@pytest.mark.parametrize("name", [".lease-007", ".lease-x", ".lease-\u0665", ".lease-"])
def test_other_names_are_no_leases(tmp_path, monkeypatch, name):
    never_waits(monkeypatch)
    (tmp_path / name).touch()
    acquired(str(tmp_path)).release()
    assert (tmp_path / name).exists()


def test_a_lease_whose_number_has_no_next_one(tmp_path):
    (tmp_path / (".lease-" + "9" * 248)).symlink_to("nothing")
    os.utime(tmp_path / (".lease-" + "9" * 248), (0, 0), follow_symlinks=False)
    with pytest.raises(UserError, match="File name too long"):
        acquired(str(tmp_path))


def test_a_link_to_nothing_is_waited_for_until_it_runs_out(tmp_path, monkeypatch):
    monkeypatch.setattr(lease_store, "_DEFAULT_SECONDS", 1)
    monkeypatch.setattr(lease_store.Record, "__init__", _short_record)
    (tmp_path / ".lease-3").symlink_to("nothing")
    begun = time.monotonic()
    lease = acquired(str(tmp_path))
    assert 0.4 < time.monotonic() - begun < 5
    lease.release()


def _short_record(self, token="", host="?", process=0, since="?", seconds=1, boot="", file=()):
    self.token, self.host, self.process, self.since = token, host, process, since
    self.seconds, self.boot, self.file = seconds, boot, file


@pytest.mark.filterwarnings("ignore:os.fork")
def test_a_child_does_not_keep_its_parents_lock(tmp_path):
    lease = acquired(str(tmp_path))
    child = os.fork()
    if not child:
        time.sleep(60)
        os._exit(0)
    try:
        time.sleep(0.1)
        os.kill(child, signal.SIGTERM)  # which is not for its parent
        time.sleep(0.3)
        lease.check()
        assert os.waitpid(child, 0)[1] == signal.SIGTERM
        child = os.fork()
        if not child:
            time.sleep(60)
            os._exit(0)
        time.sleep(0.1)
        die(lease)
        acquired(str(tmp_path)).release()
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_folder_that_was_made_for_nothing_is_removed(tmp_path):
    workdir = tmp_path / "a" / "b"
    acquired(str(workdir)).release()
    assert not (tmp_path / "a").exists() and tmp_path.exists()
    lease = acquired(str(workdir))
    (workdir / "config.json").touch()
    lease.release()
    assert [p.name for p in workdir.iterdir()] == ["config.json"]
    (tmp_path / "empty").mkdir()
    acquired(str(tmp_path / "empty")).release()
    assert (tmp_path / "empty").exists()


def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be created"):
        acquired(str(tmp_path / "file"))

    def refuse(*args):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(UserError, match=r"cannot be written: Permission denied for user \d+\. Use"):
        acquired(str(tmp_path / "new"))
    assert not (tmp_path / "new").exists()


def test_train_is_refused_before_anything_is_read_or_written(tmp_path, capsys):
    held = acquired(str(tmp_path / "run"))
    assert main.main(["train", f"--config={helpers.TINY}", f"--workdir={tmp_path}/run"]) == 75
    err = capsys.readouterr().err
    assert f"is held by process {os.getpid()} on " in err and err.count("\n") == 1
    held.check()
    held.release()
    # Its text does not exist. What was made for the run is gone.
    assert main.main(["train", f"--config={helpers.TINY}", f"--workdir={tmp_path}/run"]) == 2
    assert not (tmp_path / "run").exists()


def test_all_hosts_are_refused_alike(tmp_path, monkeypatch):
    first = acquired(str(tmp_path))
    one, other = on_two_hosts(monkeypatch, lambda i: Lease(str(tmp_path)).acquire())
    assert type(one) is type(other) is Held and str(one) == str(other)
    first.release()
    pair = [Lease(str(tmp_path)) for _ in range(2)]
    assert on_two_hosts(monkeypatch, lambda i: pair[i].acquire()) == [None, None]
    assert [p._held for p in pair] == [True, False]
    pair[1].check()
    pair[0].release()


def test_a_lease_is_given_back_where_another_host_ends_the_process(tmp_path, monkeypatch):
    monkeypatch.setattr(process, "before_exit", [])
    lease = acquired(str(tmp_path))
    process.run_before_exit()
    assert not leases(str(tmp_path))
    lease.release()
    assert not process.before_exit


def test_answers_that_are_lost(emulator, monkeypatch, quick):
    """The request is sent again, and finds that it was done, by this process."""
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


# SIGTERM while the main thread waits in C, before training listens to it. As bigjax/main.py does.
def test_a_listing_that_comes_late_loses_no_lease(tmp_path, monkeypatch):
    """NFS may list what was there a while ago."""
    lease = acquired(str(tmp_path / "run"))
    for late, holds in (([], True), ([1], True), ([1, 2], False)):
        monkeypatch.setattr(lease._store, "_numbers", lambda late=late: late)
        assert lease._store.holds() == holds
    monkeypatch.undo()
    lease.release()


def test_a_disk_that_fails_once_loses_no_lease(tmp_path, monkeypatch):
    lease = acquired(str(tmp_path / "run"))

    def fail(number):
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(lease._store, "_read_file", fail)
        with pytest.raises(OSError, match="Input/output error"):
            lease.check()
    lease.check()
    lease.release()


def test_one_that_cannot_take_a_lease_and_sees_none_waits_before_it_asks_again(
    tmp_path, monkeypatch
):
    lease, waits = Lease(str(tmp_path / "run")), []
    tries = iter([False, False, True])
    monkeypatch.setattr(lease._store, "read", lambda: None)
    monkeypatch.setattr(lease._store, "take", lambda *a: next(tries))
    clock = SimpleNamespace(monotonic=time.monotonic, sleep=waits.append)
    monkeypatch.setattr(lease_lib, "time", clock)
    lease._take()
    assert len(waits) == 2 and min(waits) > 0


@pytest.mark.parametrize("workdir", ["s3://bucket/run", "az://bucket/run"])
def test_storage_without_leases_is_refused(workdir):
    with pytest.raises(UserError, match="Use gs://"):
        acquired(workdir)


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


def test_sigterm_before_training_gives_the_lease_back(tmp_path):
    loading = subprocess.Popen(
        [sys.executable, "-c", LOADING, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True
    )
    assert loading.stdout.readline() == "acquired\n"
    assert leases(str(tmp_path / "run"))
    loading.terminate()
    assert loading.wait(60) == 143 and not leases(str(tmp_path / "run"))


def test_the_scripts_know_a_refusal():
    for script in ("on_worker.sh", "in_pod.sh"):
        path = pathlib.Path(__file__).parents[2] / "tpu_scripts" / script
        assert lease_lib.HELD_BY in path.read_text()
    assert issubclass(Held, TransientError) and issubclass(Lost, TransientError)
