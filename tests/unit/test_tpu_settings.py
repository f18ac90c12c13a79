"""tpu_scripts/: which settings and arguments are refused, help, and what the guide says."""

import os
import re
import shlex
import shutil
import subprocess
import sys

import pytest

from tests import fake_cloud
from tests.fake_cloud import ok, refused
from tests.unit.test_tpu_scripts import SCRIPTS


@pytest.mark.parametrize(
    "settings, complaint",
    [
        (dict(CAPACITY="spot,reserved"), "Spot and reserved exclude each other"),
        (dict(SLICES="0"), "SLICES is '0'"),
        (dict(SLICES="2", QUEUED="false"), "several slices need a queued resource"),
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
        (dict(SLICE="2"), "sets SLICE, which is not a setting"),
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
    assert "'no-such-commit' is not a commit" in refused(cloud.run("setup.sh"))
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


def test_help(cloud):
    for script in SCRIPTS:
        text = script.read_text()
        if 'common.sh"' not in text:  # not for users
            continue
        output = ok(cloud.run(script.name, "--help"))
        assert f"  {script.name} " in output and "#" not in output
        known = re.search(r'^begin "(.*?)"', text, re.M)[1].split()
        assert all(f"--{k}" in output for k in known if k != "--"), script
    assert not cloud.argv()


def test_shellcheck():
    here = f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"  # not every shell activates
    shellcheck = shutil.which("shellcheck", path=here)
    subprocess.run([shellcheck, "-x", *map(str, SCRIPTS)], check=True, timeout=120)


def test_the_commands_in_the_guide_are_valid(cloud):
    cloud.settings(SLICES="2")
    text = (fake_cloud.REPO / "docs" / "pods.md").read_text().replace("\\\n", "")
    commands = re.findall(r"^tpu_scripts/(\S+\.sh)([^|\n]*)", text, re.M)
    assert {script for script, _ in commands} == {
        p.name for p in SCRIPTS if 'common.sh"' in p.read_text()
    }
    for script, arguments in commands:
        ok(cloud.run(script, "--dry-run", *shlex.split(arguments, comments=True)))
    assert not cloud.argv()


def test_the_image_contains_only_what_it_needs():
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


def test_the_guide_names_the_roles_that_a_run_needs():
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
