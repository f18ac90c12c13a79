""".ci/run: which Pythons it takes, what it installs for each, and when it fails."""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest
import yaml

from tests import newest

ROOT = pathlib.Path(__file__).parents[2]
TOOLS = ("bash", "cat", "dirname", "grep", "head", "mkdir", "mktemp", "rm", "sort", "tail")

# A Python that says its version, makes environments, and logs what is installed and run in them.
PYTHON = """#!/bin/sh
if [ "$1" = - ]; then cat > /dev/null; echo "{version} $0"
elif [ "$2" = venv ]; then
  mkdir -p "$3/bin"
  printf '#!/bin/sh\\necho "{version} pip $* ${{PIP_CONSTRAINT##*/}}" >> "$LOG"' > "$3/bin/pip"
  printf '#!/bin/sh\\n[ "$1" = - ] && exit
    echo "{version} $*" >> "$LOG"; [ "$FAIL" != {version} ]' > "$3/bin/python"
  chmod +x "$3/bin/pip" "$3/bin/python"
fi
"""
OF_THE_OLDEST = [
    "3.11 pip install -q -e .[test,dev,docs] constraints.txt",
    "3.11 -m ruff check .",
    "3.11 -m ruff format --check .",
    "3.11 -m mypy",
    "3.11 -m mkdocs build --strict",
    "3.11 -m pytest -m slow tests/e2e/test_notebook.py",
    "3.11 -m pytest",
]


@pytest.fixture
def ci(tmp_path):
    """ci(versions, fail='') -> the finished .ci/run on a machine with these, and what it did."""

    def of(*versions, fail="", script="run", broken=()):
        bin_ = tmp_path / "bin"
        bin_.mkdir()
        for tool in TOOLS:
            (bin_ / tool).symlink_to(shutil.which(tool))
        (bin_ / "chmod").symlink_to(shutil.which("chmod"))
        for version in versions:
            (bin_ / f"python{version}").write_text(PYTHON.format(version=version))
        for version in broken:  # a shim for what is not chosen
            (bin_ / f"python{version}").write_text("#!/bin/sh\nexit 127\n")
        (bin_ / "python3.12-config").write_text(PYTHON.format(version="4.0"))
        for path in bin_.glob("python*"):
            path.chmod(0o755)
        if versions:
            (bin_ / "python3").symlink_to(f"python{versions[0]}")
        shutil.copytree(ROOT / ".ci", tmp_path / ".ci")
        log = tmp_path / "log"
        done = subprocess.run(
            ["bash", tmp_path / ".ci" / script],
            capture_output=True,
            text=True,
            env=dict(PATH=str(bin_), LOG=str(log), FAIL=fail, PIP_CONSTRAINT="/their/own.txt"),
            timeout=60,
        )
        return done, log.read_text().splitlines() if log.exists() else []

    return of


def test_the_oldest_python_uses_the_constraints_and_the_newest_does_not(ci):
    done, did = ci("3.12", "3.11", "3.13", broken=["3.14"])
    assert done.returncode == 0, done.stderr
    assert did == [
        *OF_THE_OLDEST,
        "3.13 pip install -q -e .[test] ",
        "3.13 -m pytest -m newest",
    ]


def test_one_python_is_enough(ci):
    done, did = ci("3.11")
    assert done.returncode == 0 and "No Python newer than 3.11 is installed" in done.stdout
    assert did == OF_THE_OLDEST


@pytest.mark.parametrize("fail", ["3.11", "3.13"])
def test_it_runs_both_parts_and_fails_if_either_fails(ci, fail):
    done, did = ci("3.11", "3.13", fail=fail)
    assert done.returncode == 1
    assert {"3.11 -m pytest", "3.13 -m pytest -m newest"} <= set(did)
    assert "Failed: " in done.stderr and f"Python {fail}" in done.stderr


def test_without_python(ci):
    done, did = ci()
    assert done.returncode == 1 and "No Python 3.11 or newer" in done.stderr and not did


def test_the_python_of_this_test():
    """Asked itself, not a stand-in for it."""
    folders = [str(pathlib.Path(sys.executable).parent), "/usr/bin", "/bin"]
    done = subprocess.run(
        [ROOT / ".ci" / "pythons"],
        capture_output=True,
        text=True,
        env=dict(PATH=os.pathsep.join(folders)),
        timeout=120,
    )
    version = ".".join(map(str, sys.version_info[:2]))
    assert version in [line.split()[0] for line in done.stdout.splitlines()], done.stderr


def test_scripts_pass_shellcheck():
    done = subprocess.run(
        ["shellcheck", ROOT / ".ci" / "run", ROOT / ".ci" / "pythons"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout


def test_the_tests_for_the_newest_releases_exist():
    """A test that was renamed is not silently left out."""
    for entry in newest.NEWEST:
        file, _, name = entry.partition("::")
        text = (ROOT / "tests" / file).read_text()
        assert f"def {name.partition('[')[0]}(" in text or not name, entry
    assert newest.is_newest("tests/unit/test_hosts.py::test_x[1]")
    assert newest.is_newest(
        "tests/parity/test_recurrent.py::test_outputs_states_and_gradients[lstm-1]"
    )
    assert not newest.is_newest("tests/parity/test_gpt.py::test_logits_loss_and_gradients_too")
    assert not newest.is_newest("tests/unit/test_hosts_too.py::test_x")


def test_the_workflow_calls_it_with_both_pythons():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    steps = workflow["jobs"]["tests"]["steps"]
    assert steps[-1] == {"run": "bash .ci/run"}
    (python,) = (step["with"] for step in steps if "setup-python" in step.get("uses", ""))
    versions = python["python-version"].split()
    assert "3.11" in versions and len(versions) == 2
    assert set(workflow[True]) == {"push", "pull_request"}  # YAML 1.1 reads `on` so
