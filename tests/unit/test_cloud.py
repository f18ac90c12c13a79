"""gs:// paths: what is refused, and what survives a server that fails now and then."""

import importlib.util
import json
import time

from etils import epath
import numpy as np
import pytest

from bigjax import cloud, main
from bigjax.data import shared, store
from bigjax.data.tokenizer import Bytes
from bigjax.errors import UserError
from bigjax.train import metrics
from tests import bucket


@pytest.fixture(scope="module")
def emulator():
    with bucket.emulator() as url:
        yield url


@pytest.fixture
def proxy(emulator, monkeypatch):
    """faults(n) of the test's own choice; gs:// is behind it."""
    with bucket.Proxy(emulator) as proxy:
        for key, value in bucket.environment(proxy.url).items():
            monkeypatch.setenv(key, value)
        monkeypatch.setenv("TENSORSTORE_CURL_LOW_SPEED_TIME_SECONDS", "1")
        cloud._file_system.cache_clear()
        cloud.check_writable.cache_clear()
        cloud.check(["gs://bucket/a"])
        yield proxy


def test_other_paths_need_nothing(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    cloud.check(["runs/x", "", "s3://bucket/x", "https://example.com"])
    assert cloud.check_writable("runs/x")


def test_without_gcsfs(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"gs://b needs the package gcsfs.*'\.\[gcs\]'"):
        cloud.check(["gs://b/x"])


def test_buckets_that_cannot_be_used(proxy, monkeypatch):
    with pytest.raises(UserError, match="gs://nobodys: there is no such bucket"):
        cloud.check(["gs://nobodys/runs"])
    with pytest.raises(UserError, match="names no bucket"):
        cloud.check(["gs:///runs"])
    whole = proxy._answer_to
    monkeypatch.setattr(proxy, "_answer_to", lambda request: bucket._answer(
        "403 Forbidden") if request.startswith(b"POST") else whole(request))
    with pytest.raises(UserError, match="gs://bucket/runs/x cannot be written: Forbidden.*roles"):
        cloud.check_writable("gs://bucket/runs/x")
    monkeypatch.setattr(proxy, "_answer_to", lambda request: bucket._answer("403 Forbidden"))
    with pytest.raises(UserError, match="gs://bucket: Forbidden.*permission"):
        cloud.check(["gs://bucket/runs/x"])


def test_a_failure_of_storage_is_told_without_a_traceback(monkeypatch, capsys):
    from gcsfs.retry import HttpError

    def fail(argv):
        raise HttpError({"code": 503, "message": "Service Unavailable"})
    monkeypatch.setattr(main.commands, "run", fail)
    assert main.main(["train"]) == 1
    assert "Cloud storage failed, also when asked again: Service Unav" in capsys.readouterr().err
    assert cloud.failure(ValueError("another")) is None


def test_whether_versions_are_numbered(proxy, monkeypatch):
    assert cloud.check_writable("gs://bucket/runs/x")
    monkeypatch.setattr(proxy, "_answer_to", proxy._pass_on)
    assert not cloud.check_writable("gs://bucket/runs/y")


@pytest.mark.parametrize("fault", ["refuse", "cut", "lose", "stall"])
def test_a_file_is_written_and_read_in_spite_of_a_fault(proxy, emulator, fault):
    content, begun = np.random.default_rng(0).bytes(70_000), time.monotonic()
    path = epath.Path(f"gs://bucket/files/{fault}")
    proxy.fault_next(fault)
    path.write_bytes(content)
    assert bucket.get(emulator, f"files/{fault}") == content
    proxy.fault_next(fault)
    assert path.read_bytes() == content
    assert proxy.faults == [fault, fault]
    assert time.monotonic() - begun < bucket.STALL_SECONDS  # we gave up, not the server


def test_a_file_is_sent_in_one_request_and_seen_at_once(proxy, emulator):
    """One request can be repeated. A listing that was kept would not have what others wrote."""
    folder = epath.Path("gs://bucket/listed")
    (folder / "ours").write_text("text")
    assert proxy.requests == 2  # and the one of `check`
    assert [path.name for path in folder.iterdir()] == ["ours"]
    bucket.put(emulator, "listed/theirs", b"text")
    assert sorted(path.name for path in folder.iterdir()) == ["ours", "theirs"]


def test_metrics_are_on_the_bucket_before_the_process_ends(proxy, emulator):
    bucket.put(emulator, "run/metrics.jsonl", b'{"step": 5}\n{"step": 9}\n{"st')
    writer = metrics.Writer("gs://bucket/run", 5, tensorboard=True)
    writer.write(6, {"loss": 1.0})
    writer.flush()  # a checkpoint of step 6
    steps = lambda: [json.loads(line)["step"] for line in
                     bucket.get(emulator, "run/metrics.jsonl").decode().splitlines()]
    assert steps() == [5, 6]
    writer.write(7, {"loss": 1.0})
    assert steps() == [5, 6]  # a bucket takes one write a second
    writer.close()
    assert steps() == [5, 6, 7]
    board, = epath.Path("gs://bucket/run/tensorboard").iterdir()
    assert b"loss" in board.read_bytes()


def test_a_token_store_is_built_by_one_machine_and_copied_by_others(proxy, emulator, tmp_path,
                                                                    monkeypatch):
    built = []

    def build(machine):
        monkeypatch.setenv("HOME", str(tmp_path / machine))

        def documents(counts):
            built.append(machine)
            yield from (f"document {i} " * 50 for i in range(20))
        return store.build_store(documents, "content", Bytes(), 0.1, 0.1, "gs://bucket/cache",
                                 log=lambda text: None)
    first, second = build("first"), build("second")
    assert built == ["first"] and first.folder != second.folder
    for split in store.SPLITS:
        a, b = first.split(split), second.split(split)
        np.testing.assert_array_equal(a.window(0, a.n_tokens), b.window(0, b.n_tokens))
    name = f"cache/stores/{first.key}/00000-train.tokens"
    content = bytearray(bucket.get(emulator, name))
    content[7] ^= 1
    bucket.put(emulator, name, bytes(content))
    with pytest.raises(UserError, match="00000-train.tokens differs from its checksum"):
        build("third")
    assert not shared.fetch(first.folder, str(tmp_path), print)  # nothing is shared in a local one
