"""Runs on gs://: source, token store and work folder in a bucket of an emulator over HTTP."""

import json
import signal
import time

import pytest

from tests import bucket, helpers
from tests.e2e.test_hosts import ends, start

STEPS = 20


@pytest.fixture(scope="module")
def emulator():
    with bucket.emulator() as url:
        yield url


@pytest.fixture(scope="module")
def flags(emulator, corpus_file):
    with open(corpus_file, "rb") as f:
        bucket.put(emulator, "texts/corpus.txt", f.read())
    return [
        f"--config={helpers.TINY}",
        f"--config.train.steps={STEPS}",
        "--config.checkpoint.every=5",
        "--config.train.ema=0.9",
    ]


@pytest.fixture(scope="module")
def uninterrupted(flags, corpus_file, cache_dir, tmp_path_factory):
    """The same run in a local folder, uninterrupted."""
    workdir = tmp_path_factory.mktemp("local") / "run"
    code, _, err = helpers.run(
        "train",
        *flags,
        f"--config.data.sources.text.path={corpus_file}",
        f"--config.data.cache_dir={cache_dir}",
        f"--workdir={workdir}",
    )
    assert code == 0, err
    return workdir


def remote(flags, name):
    return [
        *flags,
        "--config.data.sources.text.path=gs://bucket/texts/*.txt",
        "--config.data.cache_dir=gs://bucket/cache",
        f"--workdir=gs://bucket/runs/{name}",
    ]


def use(monkeypatch, url, home):
    """Children find gs:// at url, give up on silence soon, and have no local token store."""
    for key, value in bucket.environment(url).items():
        monkeypatch.setenv(key, value)
    monkeypatch.setenv("TENSORSTORE_CURL_LOW_SPEED_TIME_SECONDS", "2")
    monkeypatch.setenv("HOME", str(home))


def kill_after_a_checkpoint(url, arguments, name) -> None:
    process = helpers.command("train", *arguments)
    end = time.monotonic() + 240
    while bucket.get(url, f"runs/{name}/checkpoints/5/commit_success.txt") is None:
        assert process.poll() is None and time.monotonic() < end, process.stderr.read()
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert bucket.get(url, f"runs/{name}/checkpoints/{STEPS}/commit_success.txt") is None
    lines = bucket.get(url, f"runs/{name}/metrics.jsonl").decode().splitlines()
    assert [m for m in map(json.loads, lines) if m["step"] == 5], "lost with the process"


def assert_equal_to(uninterrupted, url, name):
    lines = bucket.get(url, f"runs/{name}/metrics.jsonl").decode().splitlines()
    assert [
        {k: v for k, v in json.loads(line).items() if not helpers.timed(k)} for line in lines
    ] == helpers.read_metrics(uninterrupted)
    meta = json.loads(bucket.get(url, f"runs/{name}/checkpoints/{STEPS}/meta/metadata"))
    assert meta["checksums"] == helpers.saved_checksums(uninterrupted, STEPS)


@pytest.mark.slow
def test_killed_on_a_bucket_resumed_through_faults_and_evaluated(
    flags, uninterrupted, emulator, tmp_path, monkeypatch
):
    arguments = remote(flags, "one")
    with bucket.Proxy(emulator) as proxy:
        use(monkeypatch, proxy.url, tmp_path / "here")
        kill_after_a_checkpoint(emulator, arguments, "one")
    with bucket.Proxy(emulator, bucket.faults(refuse=61, cut=67, lose=71, stall=151)) as proxy:
        use(monkeypatch, proxy.url, tmp_path / "another machine")
        code, out, err = helpers.run("train", *arguments, timeout=400)
        assert code == 0, err
        assert "Resuming from step" in out and "copying the token store gs://" in out
        assert {*proxy.faults} == {"refuse", "cut", "lose", "stall"}
    assert_equal_to(uninterrupted, emulator, "one")
    with bucket.Proxy(emulator) as proxy:
        use(monkeypatch, proxy.url, tmp_path / "another machine")
        code, out, err = helpers.run("eval", "--workdir=gs://bucket/runs/one", "--json")
    assert code == 0, err
    metrics, last = json.loads(out.splitlines()[-1]), helpers.read_metrics(uninterrupted)[-2]
    assert last["step"] == STEPS and "eval/valid/loss" in last
    assert {k: metrics[k] for k in last} == pytest.approx(last, rel=1e-6)


# Two hosts save and restore; then one of them cannot read step 5 now, does not see a file of it,
# does not see it at all, and finds damage in it.
TWO_HOSTS = f"""
import sys
import jax, orbax.checkpoint as ocp
from bigjax import cloud, config
from bigjax.errors import RunError
from bigjax.parallel import hosts
from bigjax.train.checkpoint import Checkpoints, State
import jax.numpy as jnp
workdir = "gs://bucket/runs/two"
cloud.check_writable(workdir)
hosts.start(config.load_file({helpers.TINY!r}), workdir)
hosts.check_shared(workdir)
place = jax.NamedSharding(jax.make_mesh((4,), ("x",)), jax.P("x"))
state = State(jnp.int32(5), dict(w=jax.device_put(jnp.arange(4000.0), place)),
              dict(mu=jax.device_put(jnp.ones(8), place)), dict(), None, jnp.bool_(False))
abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
                        state)
checkpoints = Checkpoints(workdir, keep=2)
for step in (3, 5):
    checkpoints.save(step, state, dict(), dict())
checkpoints.wait()
real, error = ocp.StandardCheckpointHandler.restore, []
def restore(self, directory, *args, **options):
    if error and hosts.index() == 1 and "/5/" in str(directory):
        raise error[0]
    return real(self, directory, *args, **options)
ocp.StandardCheckpointHandler.restore = restore
found = []
steps = checkpoints.steps
for error[:] in [], [OSError(5, "Input/output error")], [FileNotFoundError("w")], [[3]], [
        ValueError("DATA_LOSS: of w")]:
    late = hosts.index() == 1 and error == [[3]]
    checkpoints.steps = (lambda: [3]) if late else steps
    try:
        found.append(checkpoints.restore_latest(abstract, lambda text: None)[1]["step"])
    except RunError as e:
        found.append(type(e).__name__)
print(found, checkpoints.steps(), file=sys.__stdout__, flush=True)
checkpoints.close()
"""


def test_two_hosts_on_a_bucket(emulator, tmp_path, monkeypatch):
    with bucket.Proxy(emulator) as proxy:
        use(monkeypatch, proxy.url, tmp_path)
        for code, out, err in ends(start(2, script=TWO_HOSTS), timeout=120):
            assert code == 0 and out.endswith(
                "[5, 'RunError', 'TransientError', 'TransientError', 3] [3]\n"
            ), out + err
    assert bucket.get(emulator, "runs/two/damaged/5/commit_success.txt") is not None


@pytest.mark.slow
@pytest.mark.parametrize("numbered", [True, False], ids=["as Google's", "plain emulator"])
def test_many_faults(flags, uninterrupted, emulator, tmp_path, monkeypatch, numbered):
    """One request in five. A plain emulator has no conditions on versions, so that Orbax's format
    of one file cannot be used."""
    name = f"numbered-{numbered}"
    arguments = [*remote(flags, name), "--config.checkpoint.every=10"]
    if not numbered:
        monkeypatch.setattr(bucket.Proxy, "_answer_to", bucket.Proxy._pass_on)
    with bucket.Proxy(emulator, bucket.faults(refuse=13, cut=17, lose=19, stall=97)) as proxy:
        use(monkeypatch, proxy.url, tmp_path)
        code, out, err = helpers.run("train", *arguments, timeout=900)
        assert code == 0, err
    saved = bucket.get(emulator, f"runs/{name}/checkpoints/{STEPS}/params/manifest.ocdbt")
    assert (saved is not None) == numbered
    assert_equal_to(uninterrupted, emulator, name)


@pytest.mark.slow
def test_commands_on_a_bucket(flags, emulator, tmp_path, monkeypatch):
    arguments = remote(flags, "commands")
    with bucket.Proxy(emulator) as proxy:
        use(monkeypatch, proxy.url, tmp_path)
        workdir = "gs://bucket/runs/commands"
        for command in (
            ["train", *arguments, "--config.log.tensorboard=True"],
            ["generate", f"--workdir={workdir}", "--max_tokens=4"],
            ["checkpoint", f"--workdir={workdir}"],
            ["report", f"--workdir={workdir}"],
            [
                "train",
                *arguments[:-1],
                "--workdir=gs://bucket/runs/branch",
                f"--config.resume_from={workdir}",
                "--config.train.steps=22",
            ],
            [
                "train",
                *arguments[:-1],
                "--workdir=gs://bucket/runs/fresh",
                f"--config.init_from={workdir}",
                "--config.train.steps=2",
            ],
        ):
            code, _, err = helpers.run(*command)
            assert code == 0, (command, err)
        # Damaged: set aside, and the one before it used.
        meta = json.loads(bucket.get(emulator, f"runs/commands/checkpoints/{STEPS}/meta/metadata"))
        meta["step"] += 1
        bucket.put(
            emulator, f"runs/commands/checkpoints/{STEPS}/meta/metadata", json.dumps(meta).encode()
        )
        code, out, err = helpers.run("train", *arguments)
        assert code == 0 and f"Checkpoint {STEPS} is damaged" in out, err
        assert "Resuming from step 15" in out
    assert bucket.get(emulator, "runs/commands/report.png")
    assert bucket.get(emulator, f"runs/commands/damaged/{STEPS}/commit_success.txt") is not None
