"""The files of a source, from a path or glob, local or on gs:// or s3://."""

from collections.abc import Callable
import glob
import os
from typing import Any

from etils import epath

from bigjax import paths as paths_lib
from bigjax.errors import RunError, UserError

FORMAT = 2  # raise it when the same files would give other documents


def matching_files(path: str, kind: str) -> list[Any]:
    """The files that `path`, a file or glob, matches, sorted by name. kind: of the source.

    Raises UserError if there is none, or if they cannot be listed.
    """
    pattern = os.path.expanduser(path)
    if not pattern:
        raise UserError(
            f"a source of kind {kind!r} in data.sources has an empty path. Set "
            'it to a file or a glob such as "books/*.txt".'
        )
    paths = [file for file in find(pattern, "data.sources") if not file.is_dir()]
    if not paths:
        what = "a folder" if os.path.isdir(pattern) else "no file"
        raise UserError(
            f"data.sources: path {pattern!r} of kind {kind!r} is {what} (looked "
            f"from {os.getcwd()!r}). Set it to a file, or to a glob such as "
            '"folder/*.txt".'
        )
    return paths


def find(pattern: str, key: str) -> list[Any]:
    """The files and folders that a path or glob matches, sorted by name; [] if there is none.

    key: where it was given, for messages. Raises UserError if they cannot be listed.
    """
    if "://" in pattern:
        paths = _remote_files(pattern, key)
    elif os.path.exists(pattern):  # a name may have brackets
        paths = [epath.Path(pattern)]
    else:
        parts = pattern.split("/")
        plain = _plain_parts(parts, os.path.isdir)
        parts[:plain] = map(glob.escape, parts[:plain])
        paths = [*map(epath.Path, glob.glob("/".join(parts), recursive=True))]
    return sorted(paths, key=str)


def _plain_parts(parts: list[str], is_dir: Callable[[str], bool]) -> int:
    """How many leading parts of a glob are names of existing folders, which may have brackets in
    their names. The last part does not count."""
    for n, part in enumerate(parts[:-1]):
        if glob.has_magic(part) and not is_dir("/".join(parts[: n + 1])):
            return n
    return len(parts) - 1


def _remote_files(pattern: str, key: str) -> list[Any]:
    paths_lib.read_any_folder()
    parts = pattern.split("/")
    try:
        if "**" in parts:  # which epath does not support
            return [epath.Path(path) for path in _matching_addresses(pattern)]
        plain = _plain_parts(parts, lambda folder: epath.Path(folder).is_dir())
        return list(epath.Path("/".join(parts[:plain])).glob("/".join(parts[plain:])))
    except RunError:  # storage does not respond
        raise
    except Exception as e:  # each storage library has its own errors
        reason = "unknown kind of address" if isinstance(e, KeyError) else e
        raise UserError(
            f"{key}: cannot look up {pattern!r}: {reason}. Addresses begin with gs:// or "
            "s3://; check the bucket and your permission to read it, and that the package for "
            "this storage is installed (gcsfs, s3fs)."
        ) from None


def _matching_addresses(pattern: str) -> list[str]:
    import fsspec

    system, path = fsspec.core.url_to_fs(pattern)
    scheme = pattern.partition("://")[0]
    return [f"{scheme}://{name}" for name in system.glob(path)]


def files_below(folder: str) -> list[tuple[str, int]]:
    """(address, size) of all files in a folder on gs:// or s3:// and below it, sorted, without
    hidden ones; one request lists many."""
    import fsspec

    system, path = fsspec.core.url_to_fs(folder)
    scheme, start = folder.partition("://")[0], len(path.rstrip("/"))
    return sorted(
        (f"{scheme}://{name}", int(about["size"]))
        for name, about in system.find(path, detail=True).items()
        if not any(part.startswith(".") for part in name[start:].split("/"))
    )
