"""Helpers that several tests share."""

from collections.abc import Sequence
import contextlib
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

import jax.extend

from bigjax import config as config_lib
from bigjax import main, modules, tasks
from bigjax.data import sources
from bigjax.data.kinds import TextKind
from bigjax.tasks import answer, classify, tag

ROOT = pathlib.Path(__file__).parent.parent
TINY = str(ROOT / "tests" / "tiny.py")
TINY_BERT = str(ROOT / "tests" / "tiny_bert.py")
TINY_SEQ2SEQ = str(ROOT / "tests" / "tiny_seq2seq.py")
# Metrics that differ between two equal runs
TIMES = {"data_wait_fraction", "host_memory_gib", "mfu"}


def timed(metric: str) -> bool:
    """Whether a metric depends on the clock or the process."""
    return metric in TIMES or metric.endswith("_per_sec")


def task(init, loss, axes, **more) -> tasks.Task:
    """A task with these functions, which reads no data. axes: of its parameters."""
    nothing = lambda *arguments, **named: None
    given = dict(load_data=nothing, batch_shapes=nothing)
    return tasks.Task(init=init, axes={"params": axes}, loss=loss, **{**given, **more})


def filled(c):
    """The config, with all fields of its modules filled in."""
    modules.fill(c)
    return c


def data_section(name: str, task: str = "causal_lm", **values):
    """A filled config.data of this name, for this task."""
    c = config_lib.new_config()
    c.task = dict(name=task)
    c.data = dict(name=name, **values)
    return filled(c).data


def text_source(kind: str, path: str = "", **fields) -> sources.Source:
    """An entry of data.sources."""
    return sources.from_config("mine", dict(kind=kind, path=path, **fields))


def load_config(spec: str):
    """The filled config of a file, such as 'tests/tiny_bert.py:labelled'; its sections may be
    changed."""
    return filled(config_lib.load_file(str(ROOT / spec)))


def read_metrics(workdir, times: bool = False) -> list[dict]:
    """The lines of metrics.jsonl; without `times` those metrics that depend on the clock are
    removed."""
    lines = (pathlib.Path(workdir) / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if times or not timed(k)} for line in lines]


def saved_checksums(workdir, step: int) -> dict:
    """Checksums of every array of a saved step."""
    meta = pathlib.Path(workdir) / "checkpoints" / str(step) / "meta" / "metadata"
    return json.loads(meta.read_text())["checksums"]


@contextlib.contextmanager
def another_user():
    """Runs the block as a user who owns no files if the tests run as root, who ignores permissions;
    else as the current user."""
    if os.getuid():
        yield
        return
    nobody = 65534
    groups, before = os.getgroups(), os.getresuid()
    os.setgroups([])
    os.setresgid(nobody, nobody, 0)
    os.setresuid(nobody, nobody, 0)
    try:
        yield
    finally:
        os.setresuid(*before)
        os.setresgid(0, 0, 0)
        os.setgroups(groups)


@contextlib.contextmanager
def open_folder():
    """A temporary folder that other users can enter, unlike those of pytest."""
    folder = pathlib.Path(tempfile.mkdtemp(prefix="bigjax-test-"))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        for path in folder.rglob("*"):
            if path.is_dir() and not path.is_symlink():
                path.chmod(0o755)
        shutil.rmtree(folder)


@contextlib.contextmanager
def read_only(*folders):
    """Makes the folders and everything in them read-only, and runs the block as `another_user`."""
    paths = [p for f in folders for p in (pathlib.Path(f), *pathlib.Path(f).rglob("*"))]
    modes = [p.stat().st_mode for p in paths]
    for path, mode in zip(paths, modes):
        path.chmod(mode & ~0o222 | (0o555 if path.is_dir() else 0o444))
    try:
        with another_user():
            yield
    finally:
        for path, mode in zip(paths, modes):
            if path.exists():
                path.chmod(mode)


def bigjax(capsys, *arguments) -> tuple[int, str, str]:
    """Runs `bigjax ...` in this process: exit code, standard output, standard error."""
    code = main.main([str(a) for a in arguments])
    out, err = capsys.readouterr()
    return code, out, err


def command(*arguments: str, devices: int | None = 2) -> subprocess.Popen:
    """Starts `bigjax ...` in a new process with this many devices; None: bigjax decides."""
    flag = "--xla_force_host_platform_device_count="
    flags = os.environ["XLA_FLAGS"].replace(f"{flag}8", f"{flag}{devices}" if devices else "")
    return subprocess.Popen(
        [sys.executable, "-m", "bigjax.main", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "XLA_FLAGS": flags},
    )


def run(*arguments: str, devices: int | None = 2, timeout: float = 240) -> tuple[int, str, str]:
    """Runs `bigjax ...` in a new process: exit code, standard output, standard error."""
    process = command(*arguments, devices=devices)
    out, err = process.communicate(timeout=timeout)
    return process.returncode, out, err


def equations(jaxpr):
    """The equations of a jaxpr and of all jaxprs within it."""
    for e in jaxpr.eqns:
        yield e
        for inner in jax.extend.core.jaxprs_in_params(e.params):
            yield from equations(inner)


def kind(name: str, labels: Sequence[str] = ()) -> TextKind:
    """The kind of labelled data of this name."""
    if name == "answer":
        return answer.Answer()
    if name == "regress":
        return classify.Regress()
    return {"classify": classify.Classify, "tag": tag.Tag}[name](labels)
