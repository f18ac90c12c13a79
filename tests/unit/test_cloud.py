"""gs:// paths: which are refused, and operations that survive transient failures."""

import gc
import importlib.util
import json
import time
from types import SimpleNamespace

import aiohttp
from etils import epath
import fsspec.exceptions
from gcsfs.retry import HttpError
import google.auth.exceptions
import numpy as np
import pytest
import requests

from bigjax import cli, cloud, main
from bigjax.data import shared, sources, store, tables
from bigjax.data.tokenizers.bytes import Bytes
from bigjax.errors import TransientError, UserError
from bigjax.train import metrics, workdir
from bigjax.train.checkpoint import Checkpoints
from tests import bucket
from tests.unit import test_checkpoint


@pytest.fixture(scope="module")
def emulator():
    with bucket.emulator() as url:
        yield url


@pytest.fixture
def proxy(emulator, monkeypatch):
    """A proxy to which the test can give faults; gs:// is redirected to it."""
    with bucket.Proxy(emulator) as proxy:
        monkeypatch.setenv("TENSORSTORE_CURL_LOW_SPEED_TIME_SECONDS", "1")
        bucket.use(monkeypatch, proxy.url)
        yield proxy


@pytest.fixture
def impatient(monkeypatch):
    """Makes gcsfs's six attempts follow each other without waiting."""
    import gcsfs.retry

    async def sleep(seconds):
        pass

    monkeypatch.setattr(gcsfs.retry, "asyncio", SimpleNamespace(sleep=sleep))


def answers(proxy, monkeypatch, status, to=b""):
    """Makes the proxy answer all requests whose first line contains `to` with this status."""
    full_answer = type(proxy)._answer_to.__get__(proxy)
    monkeypatch.setattr(
        proxy,
        "_answer_to",
        lambda request: (
            bucket._answer(status) if to in request.split(b"\r\n")[0] else full_answer(request)
        ),
    )


def test_other_paths_are_not_checked(monkeypatch):
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
    answers(proxy, monkeypatch, "403 Forbidden", to=b"POST")
    with pytest.raises(UserError, match="gs://bucket/runs/x cannot be written: Forbidden.*roles"):
        cloud.check_writable("gs://bucket/runs/x")
    with pytest.raises(OSError, match="Forbidden") as e:
        epath.Path("gs://bucket/x").write_text("text")
    assert isinstance(cloud.failure(e.value), UserError)
    answers(proxy, monkeypatch, "403 Forbidden")
    with pytest.raises(UserError, match="gs://bucket: Forbidden.*permission"):
        cloud.check(["gs://bucket/runs/x"])
    with pytest.raises(OSError, match="Forbidden"):  # not False
        epath.Path("gs://bucket/x").is_dir()


def test_storage_that_does_not_answer_is_not_reported_as_bad_input(
    proxy, monkeypatch, impatient, tmp_path
):
    answers(proxy, monkeypatch, "503 Service Unavailable")
    path = epath.Path("gs://bucket/cache/stores/key")
    for ask in (
        lambda: cloud.check(["gs://bucket/x"]),
        path.is_dir,
        path.exists,
        path.read_bytes,
        lambda: cloud.check_writable.__wrapped__("gs://bucket/x"),
        lambda: shared.fetch(tmp_path / "key", "gs://bucket/cache", print),
        lambda: list(tables.read_table("gs://bucket/table.tsv", ["text"])),
        lambda: sources.fingerprint(
            sources.from_config("a", dict(kind="text", path="gs://bucket/*.txt"))
        ),
    ):
        with pytest.raises(TransientError, match="Cloud storage failed, also after retries"):
            ask()


@pytest.mark.parametrize(
    "error, code",
    [
        (lambda: HttpError({"code": 503, "message": "Service Unavailable"}), 75),
        (lambda: HttpError({"code": 401, "message": "Service Unavailable"}), 2),
        (lambda: fsspec.exceptions.FSTimeoutError("Service Unavailable"), 75),
        (lambda: OSError("Forbidden: Service Unavailable"), 2),
        (lambda: TransientError("Service Unavailable"), 75),
        (lambda: HttpError({"code": "429", "message": "Service Unavailable"}), 75),
        (lambda: requests.exceptions.ConnectionError("Service Unavailable"), 75),
        (lambda: aiohttp.ServerDisconnectedError("Service Unavailable"), 75),
        (lambda: aiohttp.ClientPayloadError("Service Unavailable"), 75),
        (lambda: google.auth.exceptions.TransportError("Service Unavailable"), 75),
    ],
    ids=["503", "401", "time-out", "403", "ours", "429", "requests", "aiohttp", "cut", "auth"],
)
def test_a_storage_failure_is_reported_without_a_traceback(monkeypatch, capsys, error, code):
    def fail(argv):
        raise error()

    monkeypatch.setattr(cli, "run", fail)
    assert main.main(["train"]) == code
    assert "Service Unavailable" in capsys.readouterr().err


def test_a_permanent_failure_is_not_reported_as_transient():
    for error in (
        aiohttp.InvalidURL("localhost:1"),
        requests.exceptions.MissingSchema("localhost"),
        HttpError({"code": 412, "message": "Precondition Failed"}),
    ):
        assert cloud.failure(error) is None


def test_a_broken_connection_is_not_an_error_about_a_file(proxy, monkeypatch):
    import gcsfs

    async def broken(*args, **options):
        raise ConnectionResetError("reset")

    monkeypatch.setattr(gcsfs.GCSFileSystem, "_request", broken)
    with pytest.raises(TransientError, match="reset"):
        epath.Path("gs://bucket/x").is_dir()
    assert cloud.failure(BrokenPipeError()) is None  # `bigjax config | head`


def test_errors_of_tensorstore():
    from_it = ValueError('UNAVAILABLE: Error reading "gs://bucket/x"')
    outer = Exception("Encountered error while reading")
    outer.__cause__ = from_it
    assert isinstance(cloud.failure(outer, "gs://bucket/x"), TransientError)
    assert isinstance(cloud.failure(ValueError("PERMISSION_DENIED: x"), "gs://b"), UserError)
    for other in (ValueError("DATA_LOSS: x"), ValueError("another"), OSError(28, "No space left")):
        assert cloud.failure(other, "gs://bucket/x") is None
    assert cloud.failure(from_it, "runs/x") is None


def test_hosts_that_check_concurrently_do_not_interfere(proxy, emulator, monkeypatch):
    """Another host writes, reads and deletes between this host's write and read."""
    ask, fs, others = cloud.check_writable.__wrapped__, cloud._file_system(), []
    write = fs.pipe_file

    def write_and_let_another_ask(path, content):
        write(path, content)
        if not others:
            others.append(path)
            assert ask("gs://bucket/runs/x")

    monkeypatch.setattr(fs, "pipe_file", write_and_let_another_ask)
    assert ask("gs://bucket/runs/x")
    assert bucket.get(emulator, others[0].removeprefix("bucket/")) is None  # nothing is left


def test_checking_write_access_survives_lost_responses(proxy):
    for n in range(1, 7):
        proxy.fault_next("lose", after=n)
        assert cloud.check_writable.__wrapped__("gs://bucket/runs/x")
    assert proxy.faults == ["lose"] * 5  # of the five requests


def test_an_interrupted_write_leaves_the_file_unchanged(proxy, emulator):
    bucket.put(emulator, "kept", b"old")
    path = epath.Path("gs://bucket/kept")
    for mode in ("wb", "w"):
        with pytest.raises(KeyboardInterrupt):
            with path.open(mode) as f:
                f.write(b"half" if mode == "wb" else "half")
                raise KeyboardInterrupt
    with pytest.raises(UnicodeEncodeError):
        path.write_text("half \udc00")
    for mode, half in ("wb", b"half"), ("w", "half"):
        f = path.open(mode)
        f.write(half)
        f.flush()
        del f
        gc.collect(1)  # the oldest objects are those of other tests
    assert bucket.get(emulator, "kept") == b"old"
    path.write_text("new \u00fc")
    assert bucket.get(emulator, "kept") == "new \u00fc".encode()


def test_whether_versions_are_numbered(proxy, monkeypatch):
    assert cloud.check_writable("gs://bucket/runs/x")
    monkeypatch.setattr(proxy, "_answer_to", proxy._pass_on)
    assert not cloud.check_writable("gs://bucket/runs/y")


@pytest.mark.parametrize("fault", ["refuse", "cut", "lose", "stall"])
def test_a_file_is_written_and_read_despite_a_fault(proxy, emulator, fault):
    content, started = np.random.default_rng(0).bytes(70_000), time.monotonic()
    path = epath.Path(f"gs://bucket/files/{fault}")
    proxy.fault_next(fault)
    path.write_bytes(content)
    assert bucket.get(emulator, f"files/{fault}") == content
    proxy.fault_next(fault)
    assert path.read_bytes() == content
    assert proxy.faults == [fault, fault]
    assert time.monotonic() - started < bucket.STALL_SECONDS  # the client gave up, not the server


def test_a_folder_is_moved_although_the_response_to_a_deletion_is_lost(proxy, impatient):
    for after in range(8, 18):  # its copies and deletions are among these requests
        folder = epath.Path(f"gs://bucket/move/{after}")
        (folder / "a").write_text("one")
        (folder / "b" / "c").write_text("two")
        target = folder.with_name(f"{after}-there")
        proxy.fault_next("lose", after)
        cloud.move_folder(folder, target)
        proxy.fault_next("", 0)
        assert (target / "a").read_text() + (target / "b" / "c").read_text() == "onetwo"
        assert not folder.exists()


def test_a_file_is_sent_in_one_request_and_listed_immediately(proxy, emulator):
    """One request can be retried. A cached listing would lack files written by others."""
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
    steps = lambda: [
        json.loads(line)["step"]
        for line in bucket.get(emulator, "run/metrics.jsonl").decode().splitlines()
    ]
    assert steps() == [5, 6]
    writer.write(7, {"loss": 1.0})
    assert steps() == [5, 6]  # a bucket takes one write a second
    writer.close()
    assert steps() == [5, 6, 7]
    (board,) = epath.Path("gs://bucket/run/tensorboard").iterdir()
    assert b"loss" in board.read_bytes()


def test_checkpoints_that_cannot_be_read_now_are_left_unchanged(
    proxy, emulator, monkeypatch, impatient
):
    checkpoints = test_checkpoint.saved("gs://bucket/runs/y", [3, 5], keep=2)
    for status, to, kind in (
        ("503 Service Unavailable", b"checkpoints%2F5%2Fmeta", TransientError),
        ("403 Forbidden", b"checkpoints%2F5%2Fparams%2F_METADATA", UserError),
        ("403 Forbidden", b"%2F5%2Fparams%2Fd%2F", UserError),
    ):  # TensorStore
        answers(proxy, monkeypatch, status, to)
        with pytest.raises(kind, match="Cloud storage"):
            Checkpoints("gs://bucket/runs/y", read_only=True).restore_latest(
                test_checkpoint.ABSTRACT, print
            )
    answers(proxy, monkeypatch, "503 Service Unavailable", b"checkpoints%2F7")
    with pytest.raises(TransientError, match="could not be written.*Cloud storage failed"):
        checkpoints.save(7, test_checkpoint.state(7), {}, {})
        checkpoints.wait()
    answers(proxy, monkeypatch, "none", to=b"no request")
    bucket.put(emulator, "runs/y/checkpoints/9/params/d/half", b"of it")  # it was killed
    assert workdir.saved_steps("gs://bucket/runs/y") == {3, 5}
    restored = Checkpoints("gs://bucket/runs/y").restore_latest(test_checkpoint.ABSTRACT, print)
    assert restored[1]["step"] == 5


def test_a_token_store_is_built_by_one_machine_and_copied_by_others(
    proxy, emulator, tmp_path, monkeypatch
):
    built = []

    def build(machine):
        monkeypatch.setenv("HOME", str(tmp_path / machine))

        def documents(counts):
            built.append(machine)
            yield from (f"document {i} " * 50 for i in range(20))

        return store.build_store(
            documents, "content", Bytes(), 0.1, 0.1, "gs://bucket/cache", log=lambda text: None
        )

    first, second = build("first"), build("second")
    assert built == ["first"] and first.folder != second.folder
    for split in store.SPLITS:
        a, b = first.split(split), second.split(split)
        np.testing.assert_array_equal(a.window(0, a.n_tokens), b.window(0, b.n_tokens))
    publish_while_others_do(first, proxy, emulator, monkeypatch)
    name = f"cache/stores/{first.key}/00000-train.tokens"
    content = bytearray(bucket.get(emulator, name))
    content[7] ^= 1
    bucket.put(emulator, name, bytes(content))
    with pytest.raises(UserError, match="00000-train.tokens differs from its checksum"):
        build("third")
    assert not shared.fetch(first.folder, str(tmp_path), print)  # nothing is shared in a local one


def publish_while_others_do(built, proxy, emulator, monkeypatch):
    """Existing objects are not written again. An object that another host writes meanwhile is used:
    a bucket accepts one write per second and object, and refuses others."""

    def object_name(request):
        return next(
            (
                name
                for name in ("sums.json", "store.json", "00000.json")
                if b"/" + name.encode() + b'"' in request
            ),
            None,
        )

    folder, written = f"cache/stores/{built.key}", []
    store_json = bucket.get(emulator, f"{folder}/store.json")
    for name in ("sums.json", "store.json"):
        bucket.delete(emulator, f"{folder}/{name}")
    answer_to = proxy._answer_to

    def answer(request):
        if not request.startswith(b"POST"):
            return answer_to(request)
        written.append(object_name(request))
        if written[-1] != "store.json":
            return answer_to(request)
        bucket.put(emulator, f"{folder}/store.json", store_json)
        return bucket._answer("412 Precondition Failed")

    with monkeypatch.context() as patch:
        patch.setattr(proxy, "_answer_to", answer)
        shared.publish(built.folder, "gs://bucket/cache", lambda text: None)
    assert written == ["store.json", "sums.json"]
    assert json.loads(bucket.get(emulator, f"{folder}/sums.json")).keys() >= {"store.json"}
