"""What an installed bigjax brings along."""

import os
import pathlib
import subprocess
import sys

import pytest

from bigjax import config, extras

REPOSITORY = pathlib.Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The package as a wheel would hold it, in a folder without the repository."""
    pytest.importorskip("setuptools", reason="building a package needs setuptools")
    build = tmp_path_factory.mktemp("build")
    subprocess.run(
        [
            sys.executable,
            "setup.py",
            "-q",
            "build",
            f"--build-base={build}",
            f"--build-lib={build}",
        ],
        cwd=REPOSITORY,
        check=True,
        capture_output=True,
    )
    return build


def bigjax(installed, folder, *arguments) -> str:
    code = "import bigjax, sys; print(bigjax.__file__); from bigjax import main; main.cli()"
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    where, _, out = done.stdout.partition("\n")
    assert where.startswith(str(installed))  # and not the checkout
    return out


def test_the_configs_are_found_in_any_folder(installed, tmp_path):
    listed = bigjax(installed, tmp_path, "configs")
    assert [line.split()[0] for line in listed.splitlines()] == [
        str(path.relative_to(config.ROOT)) for path in config.config_files()
    ]
    shown = bigjax(installed, tmp_path, "config", "--config=configs/gpt/gpt2.py:355m")
    assert "model.preset = 'gpt2-355m'" in shown


def test_a_file_beside_the_user_goes_before_the_package(installed, tmp_path):
    mine = tmp_path / "configs" / "gpt"
    mine.mkdir(parents=True)
    text = (config.ROOT / config.DEFAULT_CONFIG).read_text()
    (mine / "docstrings.py").write_text(text.replace("c.train.steps = 600", "c.train.steps = 7"))
    assert "train.steps = 7" in bigjax(installed, tmp_path, "config")


def test_the_citation_has_the_version():
    import bigjax as package

    text = (REPOSITORY / "CITATION.cff").read_text()
    assert f"version: {package.__version__}" in text


def test_how_an_extra_is_installed(monkeypatch):
    """What is advised in a checkout has no meaning in the folder of somebody who has none."""
    assert extras.how_to_install("plan") == "pip install -e '.[plan]'"
    monkeypatch.setattr(extras, "__file__", "/usr/lib/site-packages/bigjax/extras.py")
    lines = [
        "numpy<3,>=2.0",
        "tomli>=2; python_version < '3.0'",
        "typing_extensions>=4; python_version >= '3.0'",
        'jax[tpu]<0.13,>=0.10; extra == "plan"',
        'gcsfs>=2024.6; extra == "test"',
        'pytest>=8.0; extra == "test"',
    ]
    monkeypatch.setattr(extras.metadata, "requires", {"bigjax": lines}.get)
    assert extras.how_to_install("plan") == "pip install 'jax[tpu]<0.13,>=0.10'"
    assert extras.how_to_install("test") == "pip install 'gcsfs>=2024.6' 'pytest>=8.0'"
