"""Token stores on gs://, for many machines: built once, copied to the local disk of each.

A store is in `data.cache_dir/stores/KEY`, with the same files as locally and `sums.json`, the
CRC-32 of each, which is written last: a store without it is incomplete. The key is a hash of what
the store is made from, so machines that build it at the same time write the same files; each writes
those that are still missing.
"""

from collections.abc import Callable
import json
from pathlib import Path
import random
from typing import Any
import zlib

from bigjax.data.files import write_cached
from bigjax.errors import UserError

_SUMS = "sums.json"
_LAST_FILE = "store.json"  # written last: a local store without it is incomplete


def fetch(folder: Path, cache_dir: str, log: Callable[[str], None]) -> bool:
    """Copies the store in cache_dir to `folder`; returns False if there is none.

    Files that an interrupted copy left in `folder` are kept. Raises UserError if a file does not
    have its checksum.
    """
    place = _place(folder, cache_dir)
    if place is None or not _try(cache_dir, (place / _SUMS).exists):
        return False
    log(f"data: copying the token store {place} to {folder}")
    sums = json.loads(_try(cache_dir, (place / _SUMS).read_bytes))
    for name, crc in sorted(sums.items(), key=lambda item: item[0] == _LAST_FILE):
        if (folder / name).exists() and zlib.crc32((folder / name).read_bytes()) == crc:
            continue
        content = _try(cache_dir, (place / name).read_bytes)
        if zlib.crc32(content) != crc:
            raise UserError(
                f"the token store {place} is damaged: {name} differs from its "
                "checksum. Delete that folder; it is built again from its source at "
                "the next start."
            )
        write_cached(folder / name, content)
    return True


def publish(folder: Path, cache_dir: str, log: Callable[[str], None]) -> None:
    """Copies the finished store in `folder` to cache_dir, unless it exists or cache_dir is
    local."""
    place = _place(folder, cache_dir)
    if place is None or _try(cache_dir, (place / _SUMS).exists):
        return
    log(f"data: copying the token store {folder} to {place}")
    contents = [path for path in folder.iterdir() if path.name != "lock" and path.suffix != ".tmp"]
    sums = {}
    # An object can be written about once per second, so hosts write in different orders.
    for path in random.sample(contents, len(contents)):
        content = path.read_bytes()
        sums[path.name] = zlib.crc32(content)
        _write_new(cache_dir, place / path.name, content)
    _write_new(cache_dir, place / _SUMS, json.dumps(sums, sort_keys=True).encode())


def _write_new(cache_dir: str, target: Any, content: bytes) -> None:
    """Writes a file unless it exists. Another machine may write the same content meanwhile."""
    if _try(cache_dir, target.exists):
        return
    try:
        _try(cache_dir, lambda: target.write_bytes(content))
    except Exception:  # of many types: storage refuses a write, as others write the same object
        if not _try(cache_dir, target.exists):
            raise


def _place(folder: Path, cache_dir: str) -> Any:
    """The folder of this store in cache_dir; None for a local cache_dir."""
    if "://" not in cache_dir:
        return None
    from etils import epath

    return epath.Path(cache_dir) / "stores" / folder.name


def _try(cache_dir: str, act: Callable[[], Any]) -> Any:
    try:
        return act()
    except OSError as e:
        if type(e) not in (OSError, FileNotFoundError, PermissionError):
            raise  # such as a time-out, which is not about this folder
        raise UserError(
            f"data.cache_dir={cache_dir!r} cannot be used: {e}. Check your permission "
            "to read and write there, or set it to a local folder."
        ) from None
