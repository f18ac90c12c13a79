"""A virtual environment that holds MaxText, beside the one that runs a benchmark.

MaxText needs Python 3.12 and many packages that bigjax does not; jax, the TPU compiler and the
libraries on top of jax are installed in the versions that bigjax runs with, so that two programs
differ by their own code only. An environment is made once for a set of requirements and then kept.
"""

import hashlib
from importlib import metadata
import os
from pathlib import Path
import shutil
import subprocess
import sys

from bigjax.data.files import LOCAL_CACHE, cache_folder

PYTHON = "3.12"
MAXTEXT = "maxtext==0.2.5"
SAME = ("jax", "jaxlib", "libtpu", "flax", "optax", "orbax-checkpoint", "numpy")
# What MaxText's ahead-of-time compilation imports and uses. Its own extras bring much more
# (TensorFlow, clients of a cloud) and another jax; see STAND_INS of maxtext_compile.py.
OTHERS = (
    "aqtp==0.9.0",
    "drjax==0.2.1",
    "jaxtyping==0.3.11",
    "Jinja2==3.1.6",
    "omegaconf==2.4.0",
    "packaging==26.4",
    "psutil==7.2.2",
    "pydantic==2.14.4",
    "qwix==0.1.8",
    "requests==2.34.2",
    "tokamax==0.0.15",
)
PIP = ("--disable-pip-version-check", "--quiet", "--retries=1", "--timeout=20")
COMPLETE = "installed.txt"  # in an environment: its packages, written when all are installed


class Unavailable(Exception):
    """MaxText cannot run here; the message says what is missing."""


def requirements() -> list[str]:
    """What pip installs, with exact versions.

    Raises Unavailable if a package of ours whose version both sides share is not installed.
    """
    try:
        same = [f"{name}=={metadata.version(name)}" for name in SAME]
    except metadata.PackageNotFoundError as e:
        raise Unavailable(f"{e.name} is not installed on our side: pip install -e '.[plan]'") from e
    return [MAXTEXT, *same, *OTHERS]


def python(run=subprocess.run) -> Path:
    """A Python 3.12: this one, one on PATH, or one that pyenv installed.

    Raises Unavailable if there is none. A shim of pyenv on PATH may be of a version that is not
    activated, so each candidate has to answer.
    """
    candidates = [sys.executable, shutil.which(f"python{PYTHON}")]
    root = os.environ.get("PYENV_ROOT") or "~/.pyenv"
    candidates += sorted(
        Path(root).expanduser().glob(f"versions/{PYTHON}*/bin/python{PYTHON}"), reverse=True
    )
    ask = "import sys, venv, ensurepip; print('%d.%d' % sys.version_info[:2])"
    for path in filter(None, candidates):
        try:
            answer = run([str(path), "-c", ask], capture_output=True, text=True, timeout=60)
        except (OSError, subprocess.TimeoutExpired):
            continue
        if answer.returncode == 0 and answer.stdout.strip() == PYTHON:
            return Path(path)
    raise Unavailable(
        f"no Python {PYTHON}, which {MAXTEXT} needs: no python{PYTHON} on PATH runs, and there is "
        f"none in {root}/versions. Install one, such as with 'pyenv install {PYTHON}'"
    )


def variables() -> dict[str, str]:
    """Those of this process, without what would bring its packages into another Python."""
    return {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}


def prepare(log=print, run=subprocess.run) -> tuple[Path, str]:
    """(the Python of an environment with MaxText, a list of its packages).

    Raises Unavailable if there is no suitable Python, or the packages cannot be installed.
    """
    wanted = requirements()
    name = "maxtext-" + hashlib.sha256(repr((PYTHON, wanted)).encode()).hexdigest()[:16]
    folder = cache_folder(LOCAL_CACHE, "environments") / name
    inside, complete = folder / "bin" / "python", folder / COMPLETE
    if inside.exists() and complete.exists():
        return inside, complete.read_text(encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)  # not completed, or its Python has been removed
    base = python(run)
    log(f"Installing {MAXTEXT} for Python {PYTHON} in {folder}", flush=True)
    for what, command in (
        (f"make an environment with {base}", [str(base), "-m", "venv", str(folder)]),
        (f"install {MAXTEXT} from PyPI", [str(inside), "-m", "pip", "install", *PIP, *wanted]),
    ):
        done = run(command, capture_output=True, text=True, env=variables())
        if done.returncode:
            raise Unavailable(f"could not {what}: {_reason(done.stderr)}")
    packages = run(
        [str(inside), "-m", "pip", "freeze", "--disable-pip-version-check"],
        capture_output=True,
        text=True,
        env=variables(),
        check=True,
    ).stdout
    complete.write_text(packages, encoding="utf-8")
    return inside, packages


def _reason(stderr: str) -> str:
    """The first error that pip names, which is the cause; what follows is advice."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:")]
    return (errors or lines or ["no message"])[0].removeprefix("ERROR: ")[:300]
