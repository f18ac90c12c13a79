"""The scripts of tpu_scripts/ against a fake gcloud: which commands they run, and what these do."""

import shlex
import shutil
import time

import pytest

from tests import fake_cloud
from tests.fake_cloud import ODD, QUEUED, TPU, TRAIN, ok, refused

SSH = (
    "--ssh-flag=-oServerAliveInterval=15 --ssh-flag=-oServerAliveCountMax=4 "
    "--ssh-flag=-oBatchMode=yes --quiet"
)
SCRIPTS = sorted((fake_cloud.REPO / "tpu_scripts").glob("*.sh"))


def until(condition):
    for _ in range(600):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("the condition was not met within 30 seconds")


# --- create ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings, expected",
    [
        (
            dict(QUEUED="false", CAPACITY="on-demand"),
            f"{TPU} create pod --version=v2-alpha-tpuv5-lite WHERE --accelerator-type=v5litepod-16",
        ),
        (
            dict(QUEUED="false"),
            f"{TPU} create pod --version=v2-alpha-tpuv5-lite WHERE --accelerator-type=v5litepod-16 "
            "--spot",
        ),
        (
            dict(CREATE_FLAGS="(--internal-ips --network=net)"),
            f"{QUEUED} create pod --runtime-version=v2-alpha-tpuv5-lite WHERE "
            "--accelerator-type=v5litepod-16 --node-id=pod --spot --internal-ips --network=net",
        ),
        (
            dict(
                CAPACITY="reserved",
                SLICES="3",
                ACCELERATOR_TYPE="v4-32",
                RUNTIME_VERSION="tpu-ubuntu2204-base",
            ),
            f"{QUEUED} create pod --runtime-version=tpu-ubuntu2204-base WHERE "
            "--accelerator-type=v4-32 "
            "--node-count=3 --node-prefix=pod --reserved",
        ),
    ],
)
def test_create(cloud, settings, expected):
    cloud.settings(**settings)
    cloud.states("WAITING_FOR_RESOURCES", "!connection reset", "ACTIVE")
    out = ok(cloud.run("create.sh"))
    queued = settings.get("QUEUED") != "false"
    assert ("WAITING_FOR_RESOURCES" in out) == queued and "READY" in out
    calls = cloud.calls()
    assert calls[0] == expected
    looks = [f"{QUEUED} describe pod WHERE --format=value(state.state)"] * 3 if queued else []
    names = ["pod-0", "pod-1", "pod-2"] if settings.get("SLICES") else ["pod"]
    assert calls[1:] == looks + [f"{TPU} describe {n} WHERE --format=value(state)" for n in names]


@pytest.mark.parametrize("script, verb", [("create.sh", "create"), ("delete.sh", "delete")])
def test_a_creation_or_deletion_that_hangs_is_aborted(cloud, script, verb):
    (cloud.folder / "soon").touch()
    cloud.on(verb, "exec /bin/sleep 60")
    output = refused(cloud.run(script, *["--yes"][: verb == "delete"]), 1)
    assert "no answer within 30m: gcloud" in output and f"has not {verb}d pod" in output


def test_create_ends_when_its_request_was_deleted(cloud):
    cloud.states("PROVISIONING", "!NOT_FOUND", "PROVISIONING", "!NOT_FOUND", "!NOT_FOUND", "ACTIVE")
    assert "somebody has deleted" in refused(cloud.run("create.sh"), 1)
    assert len(cloud.calls()) == 6


def test_create_ends_when_there_is_no_capacity(cloud):
    cloud.states("PROVISIONING", "FAILED")
    assert "FAILED" in refused(cloud.run("create.sh"), 1)


# --- setup, run, logs, stop -----------------------------------------------------------------------


def test_a_run_is_set_up_started_once_and_stopped(cloud):
    cloud.settings(SLICES="2", SSH_FLAGS="(--internal-ip)")
    out = ok(cloud.run("setup.sh"))
    assert out.count("bigjax-" + cloud.commit[:12] + " is installed.") == 4
    flags = f"WHERE --internal-ip {SSH} --worker=all"
    scp = flags.replace("--ssh-flag", "--scp-flag")
    calls = cloud.calls()
    assert sorted(calls[:2]) == [
        f"{TPU} scp REPO/build/bigjax-COMMIT.tar.gz pod-{i}:bigjax-COMMIT.tar.gz {scp}"
        for i in range(2)
    ]
    assert sorted(calls[2:]) == [
        f"{TPU} ssh pod-{i} {flags} --command=mkdir -p bigjax-COMMIT && tar -xzf "
        "bigjax-COMMIT.tar.gz -C bigjax-COMMIT && bash "
        "bigjax-COMMIT/tpu_scripts/on_worker.sh setup"
        for i in range(2)
    ]
    output = (cloud.folder / "uv.txt").read_text()
    assert (
        output.count("uv venv ")
        == output.count("[tpu,gcs]")
        == output.count("constraints.txt")
        == 4
    )
    ok(cloud.run("setup.sh"))
    assert (cloud.folder / "uv.txt").read_text() == output, "installed again"
    cloud.calls()

    out = ok(cloud.run("run.sh", "--", *ODD))
    assert out.count("started.") == 4
    assert {c.split(" --command=")[0] for c in cloud.calls()} == {
        f"{TPU} ssh pod-{i} {flags}" for i in range(2)
    }
    until(lambda: len(cloud.trained()) == 4)
    assert cloud.trained() == dict.fromkeys(
        ["pod-0-0", "pod-0-1", "pod-1-0", "pod-1-1"], TRAIN + ODD
    )
    again = cloud.run("run.sh")
    assert again.returncode == 1 and again.stdout.count("a run is in progress") == 4
    assert cloud.trained()["pod-0-0"] == TRAIN + ODD

    log = cloud.folder / "homes/pod-1/0/bigjax-run/log.txt"
    until(lambda: "training" in log.read_text())
    assert ok(cloud.run("stop.sh")).count("stopped.") == 4
    assert "Stopped by SIGTERM" in log.read_text()
    assert ok(cloud.run("stop.sh")).count("no run is in progress.") == 4
    ok(cloud.run("run.sh"))
    until(lambda: cloud.trained()["pod-0-0"] == TRAIN)


def test_a_run_requires_setup_of_its_commit(cloud):
    for _ in range(2):  # before a setup, and after that of another commit
        out = cloud.run("run.sh")
        assert out.returncode == 1 and "stop.sh stops it on the others" in out.stderr
        assert out.stdout.count(f"{cloud.commit[:12]} is not installed. Run setup.sh") == 2
        for worker in "01":
            home = cloud.folder / f"homes/pod/{worker}"
            shutil.copytree(
                cloud.repository / "tpu_scripts",
                home / "bigjax-0" / "tpu_scripts",
                dirs_exist_ok=True,
            )
            (home / "bigjax-0" / ".installed").touch()
            (home / "bigjax").unlink(missing_ok=True)
            (home / "bigjax").symlink_to("bigjax-0")
    ok(cloud.run("setup.sh"))
    ok(cloud.run("run.sh"))
    for worker in "01":  # another was set up for the next run: this one stays what it is
        (cloud.folder / f"homes/pod/{worker}/bigjax").unlink()
        (cloud.folder / f"homes/pod/{worker}/bigjax").symlink_to("bigjax-0")
    ok(cloud.run("stop.sh"))
    ok(cloud.run("run.sh"))


def test_logs(cloud):
    cloud.settings(SLICES="2")
    dry = ok(cloud.run("logs.sh", "--dry-run", "--worker=3", "--slice=1"))
    assert shlex.split(dry)[1:] == [
        *TPU.split(),
        "ssh",
        "pod-1",
        "--project=my-project",
        "--zone=us-west4-a",
        *SSH.split(),
        "--worker=3",
        "--command=tail -n 200 -F bigjax-run/log.txt",
    ]
    assert "workers 0 to 3" in refused(cloud.run("logs.sh", "--worker=4"))
    assert "slices 0 to 1" in refused(cloud.run("logs.sh", "--slice=2"))


def test_run_follows(cloud):
    out = ok(cloud.run("run.sh", "--dry-run", "--follow")).splitlines()
    assert len(out) == 2 and "start" in out[0] and "tail -n 200 -F" in out[1]


# --- fetch, delete --------------------------------------------------------------------------------


def test_fetch(cloud):
    ok(cloud.run("fetch.sh"))
    small = "storage rsync --recursive --exclude=^((checkpoints|damaged)/|[.]lease$) gs://bucket/runs/pod"
    assert cloud.calls() == [f"{small} REPO/runs/pod"]
    listing = "storage ls gs://bucket/runs/pod/checkpoints/*/commit_success.txt"
    (cloud.folder / "listing").write_text(
        "".join(  # complete checkpoints
            f"gs://bucket/runs/pod/checkpoints/{s}/commit_success.txt\n"
            for s in ("900", "1000", "x")
        )
    )
    for asked, step in (("latest", "checkpoints/1000"), ("900", "checkpoints/900")):
        ok(cloud.run("fetch.sh", "--to=here", f"--checkpoint={asked}"))
        assert cloud.calls() == [
            f"{small} here",
            listing,
            f"storage rsync --recursive gs://bucket/runs/pod/{step} here/{step}",
        ]
        assert (cloud.folder / "here" / step).is_dir()
    output = refused(cloud.run("fetch.sh", "--checkpoint=1100"), 1)
    assert "no complete checkpoint of step 1100. Complete checkpoints: 900 1000." in output
    cloud.on("ls", "echo 'ERROR: One or more URLs matched no objects.' >&2; exit 1")
    cloud.calls()
    assert "no complete checkpoint" in refused(cloud.run("fetch.sh", "--checkpoint=latest"), 1)
    assert cloud.calls() == [f"{small} REPO/runs/pod", listing]
    cloud.on("ls", "echo 'HTTPError 403: no storage.objects.list access' >&2; exit 1")
    output = refused(cloud.run("fetch.sh", "--checkpoint=latest"), 1)
    assert "HTTPError 403" in output and "no complete checkpoint" not in output


def test_delete_asks(cloud):
    for answer in ("", "y\n", "pod-0\n"):
        assert "Nothing was deleted" in refused(cloud.run("delete.sh", stdin=answer), 1)
    assert not cloud.calls()
    assert "type its name" in ok(cloud.run("delete.sh", stdin="pod\n"))
    assert cloud.calls() == [f"{QUEUED} delete pod WHERE --force --quiet"]
    cloud.settings(QUEUED="false")
    ok(cloud.run("delete.sh", "--yes"))
    assert cloud.calls() == [f"{TPU} delete pod WHERE --quiet"]


# --- --dry-run ------------------------------------------------------------------------------------


@pytest.mark.parametrize("slices", ["1", "2"])
def test_a_dry_run_shows_the_commands_and_runs_none(cloud, slices):
    cloud.settings(SLICES=slices, CREATE_FLAGS="('--description=two words')")
    (cloud.folder / "listing").write_text("gs://bucket/runs/pod/checkpoints/7/commit_success.txt")
    commands = [
        ["create.sh"],
        ["setup.sh"],
        ["run.sh", "--", *ODD],
        ["stop.sh"],
        ["fetch.sh", "--checkpoint=7"],
        ["delete.sh", "--yes"],
    ]
    for command in commands:
        out = ok(cloud.run(command[0], "--dry-run", *command[1:]))
        assert not cloud.argv(), command
        shown = [line for line in map(shlex.split, out.splitlines()) if line[0] == "gcloud"]
        ok(cloud.run(*command))
        assert sorted(shown) == sorted(cloud.argv()) and shown, command
        cloud.calls()
