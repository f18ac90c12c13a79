"""Small file helpers for data: the cache folder, atomic writes, content fingerprints."""

from collections.abc import Iterable
import hashlib
import os
from pathlib import Path
from typing import Any

from bigjax import paths
from bigjax.errors import UserError

_HASH_WHOLE_BYTES = 256 << 20
_SAMPLE_BYTES = 64 << 10
LOCAL_CACHE = "~/.cache/bigjax"  # of a data.cache_dir that is not local


def cache_dir(config) -> str:
    """The data.cache_dir of a config; the default if its data have none."""
    return config.data.get("cache_dir", LOCAL_CACHE)


def cache_folder(cache_dir: str, *parts: str) -> Path:
    """`cache_dir/parts...` as a local folder that exists. Raises UserError if it cannot.

    Cached files are mapped into memory, or quickly recomputed, so for a cache_dir on gs:// they
    are kept in LOCAL_CACHE; token stores are also shared over gs://, see shared.py.
    """
    if "://" in cache_dir:
        cache_dir = LOCAL_CACHE
    folder = Path(paths.expand(cache_dir, "data.cache_dir")).joinpath(*parts)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise UserError(
            f"cannot create the folder {folder} of data.cache_dir={cache_dir!r}: "
            f"{e.strerror or e}. Set data.cache_dir to a folder you can write to."
        ) from None
    if not os.access(folder, os.R_OK | os.X_OK):
        raise UserError(
            f"cannot read the folder {folder} of data.cache_dir={cache_dir!r}: it is another "
            "user's. Set data.cache_dir to a folder of your own."
        )
    return folder


def write_cached(path: Path, content: bytes) -> None:
    """paths.write_atomically for a file in the cache folder.

    Raises UserError if the disk is full or the folder cannot be written.
    """
    try:
        paths.write_atomically(path, content)
    except OSError as e:
        raise UserError(
            f"cannot write {path}: {e.strerror or e}. Free some space there, or set data.cache_dir "
            "to a folder on another disk."
        ) from None


def fingerprint_files(paths: Iterable[Any]) -> str:
    """16 hex digits of the files' contents, in order; `paths` are strings or paths.

    Up to a total of 256 MiB all bytes are hashed, so that copies on two machines agree. Above that
    sizes, modification times, and the first, middle and last 64 KiB of each file are hashed: a
    change that keeps all of these is not noticed.
    """
    from etils import epath

    files = [epath.Path(path) for path in paths]
    stats = [file.stat() for file in files]
    sizes = [_size(stat) for stat in stats]
    whole = sum(sizes) <= _HASH_WHOLE_BYTES
    digest = hashlib.sha256()
    for file, stat, size in zip(files, stats, sizes):
        digest.update(f"{size}\n".encode())
        if not whole:
            digest.update(f"{_modified(stat)}\n".encode())
        with file.open("rb") as f:
            if whole:
                digest.update(f.read())
                continue
            for start in sorted({0, size // 2, max(0, size - _SAMPLE_BYTES)}):
                f.seek(start)
                digest.update(f.read(_SAMPLE_BYTES))
    return digest.hexdigest()[:16]


def _modified(stat: Any) -> Any:
    return stat.mtime if hasattr(stat, "mtime") else stat.st_mtime


def _size(stat: Any) -> int:
    """epath's own stat result has `length`, that of os.stat has `st_size`."""
    return int(stat.length if hasattr(stat, "length") else stat.st_size)
