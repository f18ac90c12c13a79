"""The scripts of tpu_scripts/ against a fake gcloud: what they call, and what happens there."""

import os
import re
import shlex
import shutil
import subprocess
import sys
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
    raise AssertionError("this has not happened in 30 seconds")


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
def test_a_creation_or_deletion_that_hangs_is_ended(cloud, script, verb):
    (cloud.folder / "soon").touch()
    cloud.on(verb, "exec /bin/sleep 60")
    said = refused(cloud.run(script, *["--yes"][: verb == "delete"]), 1)
    assert "no answer in 30m: gcloud" in said and f"has not {verb}d pod" in said


def test_create_ends_when_its_request_is_gone(cloud):
    cloud.states("PROVISIONING", "!NOT_FOUND", "PROVISIONING", "!NOT_FOUND", "!NOT_FOUND", "ACTIVE")
    assert "somebody has deleted" in refused(cloud.run("create.sh"), 1)
    assert len(cloud.calls()) == 6


def test_create_ends_when_there_is_no_room(cloud):
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
    said = (cloud.folder / "uv.txt").read_text()
    assert said.count("uv venv ") == said.count("[tpu,gcs]") == said.count("constraints.txt") == 4
    ok(cloud.run("setup.sh"))
    assert (cloud.folder / "uv.txt").read_text() == said, "installed again"
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
    assert again.returncode == 1 and again.stdout.count("a run is going on here") == 4
    assert cloud.trained()["pod-0-0"] == TRAIN + ODD

    log = cloud.folder / "homes/pod-1/0/bigjax-run/log.txt"
    until(lambda: "training" in log.read_text())
    assert ok(cloud.run("stop.sh")).count("stopped.") == 4
    assert "Stopped by SIGTERM" in log.read_text()
    assert ok(cloud.run("stop.sh")).count("no run is going on.") == 4
    ok(cloud.run("run.sh"))
    until(lambda: cloud.trained()["pod-0-0"] == TRAIN)


def test_a_run_needs_a_setup_of_its_commit(cloud):
    for _ in range(2):  # before a setup, and after that of another commit
        out = cloud.run("run.sh")
        assert out.returncode == 1 and "stop.sh stops it on the others" in out.stderr
        assert out.stdout.count(f"{cloud.commit[:12]} is not installed here. setup.sh does") == 2
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
        "".join(  # those that are whole
            f"gs://bucket/runs/pod/checkpoints/{s}/commit_success.txt\n"
            for s in ("900", "1000", "x")
        )
    )
    for asked, step in (("newest", "checkpoints/1000"), ("900", "checkpoints/900")):
        ok(cloud.run("fetch.sh", "--to=here", f"--checkpoint={asked}"))
        assert cloud.calls() == [
            f"{small} here",
            listing,
            f"storage rsync --recursive gs://bucket/runs/pod/{step} here/{step}",
        ]
        assert (cloud.folder / "here" / step).is_dir()
    said = refused(cloud.run("fetch.sh", "--checkpoint=1100"), 1)
    assert "no whole checkpoint of step 1100. Those that are whole: 900 1000." in said
    cloud.on("ls", "echo 'ERROR: One or more URLs matched no objects.' >&2; exit 1")
    cloud.calls()
    assert "no whole checkpoint" in refused(cloud.run("fetch.sh", "--checkpoint=newest"), 1)
    assert cloud.calls() == [f"{small} REPO/runs/pod", listing]
    cloud.on("ls", "echo 'HTTPError 403: no storage.objects.list access' >&2; exit 1")
    said = refused(cloud.run("fetch.sh", "--checkpoint=newest"), 1)
    assert "HTTPError 403" in said and "no whole checkpoint" not in said


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
def test_a_dry_run_shows_what_is_called_and_calls_nothing(cloud, slices):
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


# --- Refused --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings, complaint",
    [
        (dict(CAPACITY="spot,reserved"), "Spot and reserved exclude each other"),
        (dict(SLICES="0"), "SLICES is '0'"),
        (dict(SLICES="2", QUEUED="false"), "several slices can only be had by a queued resource"),
        (dict(QUEUED="yes"), "QUEUED is 'yes'"),
        (dict(ACCELERATOR_TYPE="v5e-16"), "ACCELERATOR_TYPE is 'v5e-16'"),
        (dict(ACCELERATOR_TYPE="v4-9"), "must be even"),
        (dict(ACCELERATOR_TYPE="v6e-18"), "multiple of 4"),
        (dict(ACCELERATOR_TYPE="tpu7x-128"), "jobset.sh"),
        (dict(PROJECT=""), "PROJECT is empty"),
        (dict(ZONE=""), "ZONE is empty"),
        (dict(NAME=""), "NAME is empty"),
        (dict(NAME="My_run"), "NAME is 'My_run'"),
        (dict(WORKDIR="runs/pod"), "4 hosts, which share no disk"),
        (dict(WORKDIR="gs://bucket"), "gs://BUCKET/FOLDER"),
        (dict(INTERVAL="0.5"), "INTERVAL is '0.5'"),
        (dict(MAX_RESTARTS=""), "MAX_RESTARTS is ''"),
        (dict(SLICE="2"), "sets SLICE, which no script reads"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_called(cloud, settings, complaint):
    cloud.settings(**settings)
    assert complaint in refused(cloud.run("create.sh"))
    assert not cloud.argv()


def test_bad_arguments_are_refused(cloud):
    for script, argument in [
        ("create.sh", "--spot"),
        ("create.sh", "now"),
        ("stop.sh", "--"),
        ("run.sh", "--follow=yes"),
        ("logs.sh", "--worker"),
        ("fetch.sh", "--to="),
        ("fetch.sh", "--checkpoint=last"),
    ]:
        assert refused(cloud.run(script, argument)).startswith(script), argument
    assert "settings.example.sh" in refused(cloud.run("stop.sh", "--settings=none.sh"))
    cloud.settings(COMMIT="no-such-commit")
    assert "'no-such-commit' is no commit" in refused(cloud.run("setup.sh"))
    cloud.settings(CONFIG="configs/other.py")
    assert "has no such file" in refused(cloud.run("setup.sh"))
    cloud.settings(ACCELERATOR_TYPE="v5litepod-8", WORKDIR="runs/pod")  # one host may
    assert "on the pod's disk" in refused(cloud.run("fetch.sh"))
    assert not cloud.argv()


def test_without_gcloud(cloud):
    for name in ("git", "bash", "sed", "sort", "comm", "grep", "tr", "dirname", "env"):
        (cloud.folder / "bin" / name).symlink_to(
            subprocess.run(["which", name], capture_output=True, text=True).stdout.strip()
        )
    (cloud.folder / "bin" / "gcloud").unlink()
    path = str(cloud.folder / "bin")
    assert "gcloud is not installed" in refused(cloud.run("stop.sh", path=path), 1)
    assert "gcloud" in ok(cloud.run("stop.sh", "--dry-run", path=path))


# --- The scripts themselves -----------------------------------------------------------------------


def test_help(cloud):
    for script in SCRIPTS:
        text = script.read_text()
        if 'common.sh"' not in text:  # not for people
            continue
        said = ok(cloud.run(script.name, "--help"))
        assert f"  {script.name} " in said and "#" not in said
        known = re.search(r'^begin "(.*?)"', text, re.M)[1].split()
        assert all(f"--{k}" in said for k in known if k != "--"), script
    assert not cloud.argv()


def test_shellcheck():
    here = f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"  # not every shell activates
    found = shutil.which("shellcheck", path=here)
    subprocess.run([found, "-x", *map(str, SCRIPTS)], check=True, timeout=120)


def test_the_guide_s_commands_are_understood(cloud):
    cloud.settings(SLICES="2")
    text = (fake_cloud.REPO / "docs" / "pods.md").read_text().replace("\\\n", "")
    commands = re.findall(r"^tpu_scripts/(\S+\.sh)([^|\n]*)", text, re.M)
    assert {script for script, _ in commands} == {
        p.name for p in SCRIPTS if 'common.sh"' in p.read_text()
    }
    for script, arguments in commands:
        ok(cloud.run(script, "--dry-run", *shlex.split(arguments, comments=True)))
    assert not cloud.argv()


def test_the_image_holds_what_it_needs_and_nothing_else():
    """Later lines of .dockerignore win; ** is any number of folders, * a part of one name."""
    lines = (fake_cloud.REPO / ".dockerignore").read_text().split()

    def held(path):
        ignored = False
        for line in lines:
            pattern = (
                re.escape(line.lstrip("!")).replace(r"\*\*/", "(.*/)?").replace(r"\*", "[^/]*")
            )
            if re.match(f"{pattern}(/|$)", path):
                ignored = not line.startswith("!")
        return not ignored

    for path in (
        "setup.py",
        "constraints.txt",
        "README.md",
        "bigjax/main.py",
        "bigjax/data/a.txt",
        "configs/gpt/gpt3.py",
        "tpu_scripts/in_pod.sh",
    ):
        assert held(path), path
    for path in (
        ".git/config",
        ".venv/bin/python",
        "build/bigjax-1.tar.gz",
        "notes.txt",
        "tests/a",
        "runs/a/checkpoints/1/d",
        "tpu_scripts/settings.sh",
        "tpu_scripts/settings-b.sh",
        "bigjax/data/__pycache__/a.pyc",
        "bigjax.egg-info/PKG-INFO",
    ):
        assert not held(path), path


def test_the_guide_gives_the_roles_without_which_a_run_refuses_to_start():
    roles = set(
        re.findall(r"roles/storage\.\w+", (fake_cloud.REPO / "bigjax" / "cloud.py").read_text())
    )
    text = (fake_cloud.REPO / "docs" / "pods.md").read_text()
    commands, troubles = text.split("## 2. Plan")[0], text.split("## When it does not work")[1]
    assert len(roles) == 2
    for where in (commands, troubles):
        assert set(re.findall(r"roles/storage\.\w+", where)) == roles
    assert {r for r in roles if f"--role={r}" in commands.replace("\\\n", "")} == roles


def test_every_setting_is_explained_and_known():
    example, common = (
        (fake_cloud.REPO / "tpu_scripts" / n).read_text()
        for n in ("settings.example.sh", "common.sh")
    )
    explained = set(re.findall(r"^([A-Z_]+)=[^#\n]*#", example, re.M))
    start = common.index("read_settings()")
    known = set(
        re.findall(r"([A-Z_]+)=(?:''|\(\))", common[start : common.index("compgen", start)])
    )
    assert explained == known
