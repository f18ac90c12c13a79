"""Real text that is part of every installation: the docstrings of its Python packages.

About 22,000 documents and 12 MB with the usual dependencies. The text depends on what is installed,
so it has a `fingerprint` of its content; compare losses only where it is equal.
"""

import functools
import hashlib
import importlib.util
import json
import os
from pathlib import Path
import platform
import subprocess
import sys
import sysconfig
import tempfile
from typing import NamedTuple

from bigjax.data import _docstring_worker
from bigjax.data.files import LOCAL_CACHE, cache_folder, write_cached
from bigjax.data.tokenizers.base import hash_of
from bigjax.errors import UserError

PACKAGES = ("jax", "numpy", "scipy", "flax", "optax", "orbax", "grain", "etils")
_CLUTTER = frozenset(
    {
        "test",
        "tests",
        "testing",
        "idlelib",
        "lib2to3",
        "turtledemo",
        "ensurepip",
        "pydoc_data",
        "site-packages",
        "dist-packages",
        "_vendor",
        "_vendored",
        "vendored",
        "third_party",
    }
)
_MIN_CHARS = 20  # 'Inherited.' and similar ones teach nothing
_FORMAT = 3  # raise it when the same files would give other records


class Record(NamedTuple):
    """One docstring: `library` is 'python' or a package, `name` its dotted name."""

    library: str
    name: str
    doc: str

    @property
    def text(self) -> str:
        """The document: the dotted name, an empty line, the docstring."""
        return f"{self.name}\n\n{self.doc}"


def fingerprint(cache_dir: str = LOCAL_CACHE) -> str:
    """16 hex digits that change with any of the `records`, and with nothing else."""
    return _fingerprint(cache_dir, files_key())


@functools.lru_cache(1)
def _fingerprint(cache_dir: str, key: str) -> str:
    del key  # of the files that the records are of
    return hash_of(json.dumps(records(cache_dir)))


def files_key() -> str:
    """16 hex digits that change with the Python version and with the place, size or modification
    time of any file that is read: an edit that keeps all of these is not seen."""
    digest = hashlib.sha256(f"format {_FORMAT} python {platform.python_version()}".encode())
    for library, module, path in python_files():
        digest.update(f"\n{library} {module} {path} {_stamp(path)}".encode(errors="replace"))
    return digest.hexdigest()[:16]


def records(cache_dir: str = LOCAL_CACHE, processes: int | None = None) -> list[Record]:
    """Every docstring, without exact repeats, in an order that depends only on the files.

    The first call takes about 6 s on two cores; the result is kept in
    `cache_dir/docstrings-KEY.json`, where KEY is `files_key`, computed in each call.
    `processes` defaults to the number of cores, at most 8. Raises UserError if `cache_dir` is not a
    writable local folder.
    """
    path = cache_folder(cache_dir) / f"docstrings-{files_key()}.json"
    cached = _read_cache(path)
    if cached is not None:
        return cached
    parsed = _topics() + _parse(python_files(), processes or min(8, os.cpu_count() or 1))
    seen: set[str] = set()
    kept = []
    for record in parsed:
        if len(record.doc) >= _MIN_CHARS and record.doc not in seen and _is_utf8(record.doc):
            seen.add(record.doc)
            kept.append(record)
    if not kept:
        raise UserError(
            'source kind "docstrings": found no docstring in the standard library nor in '
            f"{', '.join(PACKAGES)} (was Python installed without its .py files?). "
            'Set data.sources to text of your own: kind "text" and a path.'
        )
    write_cached(path, json.dumps(kept).encode())
    return kept


def _stamp(path: str) -> str:
    try:
        stat = os.stat(path)
    except OSError:  # deleted meanwhile, or a broken link
        return "none"
    return f"{stat.st_size} {stat.st_mtime_ns}"


def _read_cache(path: Path) -> list[Record] | None:
    """None when absent or damaged: reading the packages again costs seconds."""
    try:
        return [Record(*fields) for fields in json.loads(path.read_bytes())]
    except (OSError, ValueError, TypeError):
        return None


def _topics() -> list[Record]:
    """The chapters of Python's language reference that `help()` shows."""
    try:
        from pydoc_data.topics import topics
    except ImportError:  # some distributions package it separately
        return []
    return [Record("python", f"help.{name}", topics[name].strip()) for name in sorted(topics)]


def python_files() -> list[list[str]]:
    """[library, module, path] of each file to read, sorted."""
    roots = [("python", "", Path(sysconfig.get_paths()["stdlib"]))]
    for package in PACKAGES:
        folder = _package_folder(package)
        if folder:
            roots.append((package, package, folder))
    return [
        [library, module, str(path)]
        for library, prefix, root in roots
        for module, path in _modules(root, prefix)
    ]


def _modules(root: Path, prefix: str) -> list[tuple[str, Path]]:
    modules = []
    for folder, children, files in os.walk(root):
        children[:] = [name for name in children if _wanted(name)]
        parts = [part for part in (prefix, *Path(folder).relative_to(root).parts) if part]
        for file in files:
            name, extension = os.path.splitext(file)
            if extension == ".py" and _wanted(name) and not name.startswith("_sysconfigdata"):
                module = ".".join(parts if name == "__init__" else [*parts, name])
                modules.append((module, Path(folder, file)))
    return sorted(modules)


def _wanted(name: str) -> bool:
    is_test = name.endswith(("_test", "_tests")) or name.startswith("test_")
    return name not in _CLUTTER and not is_test and "-" not in name


def _package_folder(package: str) -> Path | None:
    try:
        spec = importlib.util.find_spec(package)  # finds without importing
    except (ImportError, ValueError):
        return None
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(next(iter(spec.submodule_search_locations)))


def _parse(jobs: list[list[str]], processes: int) -> list[Record]:
    """The records of `jobs` in their order, read by `processes` children of about equal work."""
    if processes > 1 and sys.executable:
        parts = _start_and_collect(_shares(jobs, processes))
    else:
        parts = [_docstring_worker.read_files(jobs)]
    parsed = [Record(*fields) for part in parts for fields in part]
    rank = {}  # restore the order of the list, which was dealt out to the children
    for library, _, _ in jobs:
        rank.setdefault(library, len(rank))
    return sorted(parsed, key=lambda record: (rank[record.library], record.name, record.doc))


def _shares(jobs: list[list[str]], processes: int) -> list[list[list[str]]]:
    """Distributes the files, largest first, each to the child with the least work."""
    shares: list[list[list[str]]] = [[] for _ in range(processes)]
    loads = [0] * processes
    for size, job in sorted(((os.path.getsize(job[2]), job) for job in jobs), reverse=True):
        least = loads.index(min(loads))
        loads[least] += size
        shares[least].append(job)
    return shares


def _start_and_collect(shares: list[list[list[str]]]) -> list[list[list[str]]]:
    # -I: neither the script's folder nor the environment changes what the child imports.
    command = [sys.executable, "-I", "-S", _docstring_worker.__file__]
    running = []
    try:
        for share in shares:
            stdin, stdout = tempfile.TemporaryFile(), tempfile.TemporaryFile()
            stdin.write(json.dumps(share).encode())
            stdin.seek(0)
            child = subprocess.Popen(command, stdin=stdin, stdout=stdout, stderr=subprocess.DEVNULL)
            running.append((share, child, stdout))
        return [_collect(*child) for child in running]
    finally:
        for _, child, _ in running:  # also on Ctrl-C
            if child.poll() is None:
                child.kill()
            child.wait()


def _collect(share: list, child: subprocess.Popen, stdout) -> list[list[str]]:
    if child.wait():  # a child could not start or was killed: read in this process, more slowly
        return _docstring_worker.read_files(share)
    stdout.seek(0)
    return json.load(stdout)


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # a lone surrogate from an escape in a docstring
        return False
    return True
