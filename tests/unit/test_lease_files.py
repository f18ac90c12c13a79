"""Leases in local folders: unusual files, folders that are moved or deleted, failing disks."""

import dataclasses
import errno
import json
import os
import shutil
import signal
import time
from types import SimpleNamespace

import pytest

from bigjax.errors import UserError
from bigjax.train import lease as lease_lib
from bigjax.train import lease_store, metrics
from bigjax.train import run as run_lib
from bigjax.train.lease import Held, Lease, Lost
from tests import helpers
from tests.unit.test_checkpoint import saved, state
from tests.unit.test_lease import _short_record, acquired, die, leases, never_waits


def test_a_save_that_fails_because_the_folder_is_lost_raises_lost(tmp_path, monkeypatch):
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
def test_a_folder_that_is_moved_or_deleted_during_a_run(tmp_path, how):
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
    with helpers.open_folder() as folder:  # in which another user may work
        (folder / "mine").mkdir(mode=0o777)
        (folder / "mine").chmod(0o777)
        with helpers.another_user():
            lease = acquired(str(folder / "mine" / "run"))
            (folder / "mine" / "run").chmod(0)
            with pytest.raises(Lost, match="it cannot be read .Permission denied"):
                lease.check()
            assert not lease._store.renew()
            lease.release()


def test_a_file_error_after_the_folder_was_moved_raises_lost(tmp_path, monkeypatch):
    """For code that does not check the lease first, such as an evaluation that writes files."""

    def stages(config, workdir, progress, lease):
        lease.acquire()
        (tmp_path / "run").rename(tmp_path / "other")
        (tmp_path / "run" / "evals").mkdir()

    monkeypatch.setattr(run_lib, "_train", stages)
    c = SimpleNamespace(train=SimpleNamespace(steps=1))
    with pytest.raises(Lost, match="moved, renamed or deleted"):
        run_lib.train(c, str(tmp_path / "run"))


@pytest.mark.parametrize("number, known", [(-1, False), (0, True), (7, True), (2**32, False)])
def test_a_lease_with_an_invalid_process_number_is_unknown(number, known):
    """The number is in the message of a refusal."""
    record = lease_store.Record(token="0" * 16, process=number)
    content = json.dumps(dataclasses.asdict(record)).encode()
    assert (lease_store._parse(content).token == record.token) == known


def make_non_lease(path, kind: str) -> None:
    """Creates a path that has the name of a lease, but is not one."""
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
def test_paths_that_are_not_files_expire_like_leases(tmp_path, monkeypatch, kind, name):
    never_waits(monkeypatch)
    make_non_lease(tmp_path / name, kind)
    lease = acquired(str(tmp_path))
    lease.check()
    with pytest.raises(Held):
        acquired(str(tmp_path))
    assert lease._store.renew()
    lease.release()
    assert leases(str(tmp_path)) == ([name] if kind == "folder" else [])
    acquired(str(tmp_path)).release()


@pytest.mark.parametrize("name", [".lease-007", ".lease-x", ".lease-\u0665", ".lease-"])
def test_other_names_are_not_leases(tmp_path, monkeypatch, name):
    never_waits(monkeypatch)
    (tmp_path / name).touch()
    acquired(str(tmp_path)).release()
    assert (tmp_path / name).exists()


def test_the_highest_possible_lease_number(tmp_path):
    (tmp_path / (".lease-" + "9" * 248)).symlink_to("nothing")
    os.utime(tmp_path / (".lease-" + "9" * 248), (0, 0), follow_symlinks=False)
    with pytest.raises(UserError, match="File name too long"):
        acquired(str(tmp_path))


def test_a_dangling_link_is_a_lease_until_it_expires(tmp_path, monkeypatch):
    monkeypatch.setattr(lease_store, "_DEFAULT_SECONDS", 1)
    monkeypatch.setattr(lease_store.Record, "__init__", _short_record)
    (tmp_path / ".lease-3").symlink_to("nothing")
    started = time.monotonic()
    lease = acquired(str(tmp_path))
    assert 0.4 < time.monotonic() - started < 5
    lease.release()


@pytest.mark.filterwarnings("ignore:os.fork")
def test_a_child_does_not_keep_its_parents_lock(tmp_path):
    lease = acquired(str(tmp_path))
    child = os.fork()
    if not child:
        time.sleep(60)
        os._exit(0)
    try:
        time.sleep(0.1)
        os.kill(child, signal.SIGTERM)  # must not reach its parent
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


def test_an_empty_folder_created_by_the_lease_is_removed(tmp_path):
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


# SIGTERM while the main thread waits in C, before training listens to it. As bigjax/main.py does.
def test_a_stale_listing_does_not_lose_the_lease(tmp_path, monkeypatch):
    """NFS may return an old listing."""
    lease = acquired(str(tmp_path / "run"))
    for late, holds in (([], True), ([1], True), ([1, 2], False)):
        monkeypatch.setattr(lease._store, "_numbers", lambda late=late: late)
        assert lease._store.holds() == holds
    monkeypatch.undo()
    lease.release()


def test_a_disk_that_fails_once_does_not_lose_the_lease(tmp_path, monkeypatch):
    lease = acquired(str(tmp_path / "run"))

    def fail(number):
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(lease._store, "_read_file", fail)
        with pytest.raises(OSError, match="Input/output error"):
            lease.check()
    lease.check()
    lease.release()


def test_a_process_that_can_neither_take_nor_see_a_lease_waits_before_it_retries(
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
