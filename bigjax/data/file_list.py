"""Lists of files that are examples, such as images and recordings: of folders, patterns and tables,
local or on gs:// or s3://."""

from collections.abc import Callable, Mapping, Sequence
import concurrent.futures
import os
from typing import Any

from etils import epath

from bigjax.data.sources.paths import files_below, find
from bigjax.errors import UserError

# The names that a folder of a split may have.
SPLIT_FOLDERS = {"train": ("train",), "valid": ("valid", "val", "validation"), "test": ("test",)}
_REQUESTS = 64  # to storage at a time
_AT_ONCE = 4096


class NoFiles(UserError):
    """A path, folder or pattern that names no files."""


def read_file(path: str, error: type[UserError]) -> bytes:
    """The content of a file. Raises `error` for a local file that is not there, such as a link to
    nothing."""
    if "://" in path:
        return epath.Path(path).read_bytes()
    try:
        with open(path, "rb") as f:
            return f.read()
    except (FileNotFoundError, PermissionError) as e:
        raise error(f"{path}: {e.strerror}.") from None


def all_files(folder: str) -> list[tuple[str, int]]:
    """(path, size) of all files in a folder and those below it, sorted, without hidden ones."""
    if "://" in folder:
        return files_below(folder)
    files = []
    for at, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if not name.startswith("."):
                path = os.path.join(at, name)
                files.append((path, os.path.getsize(path) if os.path.exists(path) else 0))
    return sorted(files)


def named_files(
    folder: str, extensions: tuple[str, ...], unit: str, log: Callable[[str], None]
) -> list[tuple[str, int]]:
    """(path, size) of the files with these extensions in a folder and those below it, sorted; a
    line for people counts the others. unit: what they are, such as 'images'."""
    files = all_files(folder)
    chosen = [(p, n) for p, n in files if p.lower().endswith(extensions)]
    if others := [p for p, _ in files if not p.lower().endswith(extensions)]:
        log(
            f"data: {len(others):,} files in {folder} are no {unit} by their names, such as "
            f"{others[0]}: left out"
        )
    return chosen


def matching_inputs(
    spec: str,
    key: str,
    extensions: tuple[str, ...],
    unit: str,
    example: str,
    log: Callable[[str], None],
) -> dict[str, int]:
    """{path: size}, sorted, of a file, of a folder with those below it, or of a pattern of such
    paths.

    key: where `spec` was given. unit: what the files are, such as 'images', and one of them with
    its article and a pattern in `example`. Raises NoFiles if there is none.
    """
    paths = find(spec, key)
    files = [path for path in paths if not path.is_dir()]
    chosen = [p for p in files if p.name.lower().endswith(extensions)]
    if len(paths) == 1:  # whatever its name, somebody says that it is one
        chosen = files
    elif len(chosen) < len(files):
        log(f"data: {len(files) - len(chosen):,} files of {spec} are no {unit} by their names")
    names = [*map(str, chosen)]
    # A link to nothing is named where it is read, as in folders.
    sizes = {name: size or 0 for name, size in zip(names, sizes_of(names))}
    for folder in (path for path in paths if path.is_dir()):
        sizes |= dict(named_files(str(folder), extensions, unit, log))
    if not sizes:
        what = f"names {len(paths):,} file(s) and folder(s) without {unit}" if paths else "no file"
        raise NoFiles(
            f"{key}={spec!r}: {what} (looked from {os.getcwd()!r}). Give {example}, or a table "
            "of files."
        )
    return dict(sorted(sizes.items()))


def files_of_table(
    spec: str, rows: Sequence[Mapping[str, Any]], column: str, key: str, unit: str
) -> tuple[list[str], list[int]]:
    """(paths, sizes) of the files that a column of a table names, absolute or beside the table.

    rows: of data.tables.read_table(spec). Raises UserError if some do not exist.
    """
    paths = paths_of_table(spec, rows, column)
    sizes = sizes_of(paths)
    if missing := [
        f"{row['where']}: {path}" for row, path, n in zip(rows, paths, sizes) if n is None
    ]:
        raise UserError(
            f"{key}: {len(missing):,} of {len(rows):,} {unit} of {spec} do not exist, such as "
            f"{missing[0]}. Paths are relative to the table's folder."
        )
    return paths, [n for n in sizes if n is not None]


def paths_of_table(spec: str, rows: Sequence[Mapping[str, Any]], column: str) -> list[str]:
    """The paths of files_of_table, which may not exist."""
    folder = spec.rpartition("/")[0]
    return [beside(folder, row[column]) for row in rows]


def beside(folder: str, name: str) -> str:
    """A path that is absolute, or relative to `folder`."""
    if "://" in name or os.path.isabs(name) or not folder:
        return name
    return f"{folder}/{name}"


def sizes_of(paths: Sequence[str]) -> list[int | None]:
    """In bytes; None for a file that does not exist."""

    def size(i: int) -> int | None:
        try:
            return int(epath.Path(paths[i]).stat().length)
        except (FileNotFoundError, NotADirectoryError):
            return None

    remote = any("://" in path for path in paths)
    return in_threads(size, len(paths), _REQUESTS if remote else 0)


def in_threads(act: Callable[[int], Any], n: int, threads: int) -> list[Any]:
    """[act(0), ..., act(n - 1)]; threads: 0 = as many as the machine has processors."""
    results: list[Any] = []
    with concurrent.futures.ThreadPoolExecutor(threads or os.cpu_count()) as pool:
        for start in range(0, n, _AT_ONCE):  # `map` makes an object for each at once
            results += pool.map(act, range(start, min(n, start + _AT_ONCE)))
    return results
