"""Token stores on gs://, for many machines: built once, copied to the local disk of each.

A store lies in `data.cache_dir/stores/KEY`, with the files it has locally and `sums.json`, the
CRC-32 of each. That is written last: a store without it does not exist. The key is a hash of what
the store is made from, so machines that build it at once would write the same: each writes what no
other one has.
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
_LAST = "store.json"  # whose presence makes the local store one


def fetch(folder: Path, cache_dir: str, log: Callable[[str], None]) -> bool:
    """Copies the store that is in cache_dir to `folder`; False if none is there.

    Files that are in `folder` already, of a copy that was killed, are not read again. Raises
    UserError if a file is not what was written.
    """
    place = _place(folder, cache_dir)
    if place is None or not _try(cache_dir, (place / _SUMS).exists):
        return False
    log(f"data: copying the token store {place} to {folder}")
    sums = json.loads(_try(cache_dir, (place / _SUMS).read_bytes))
    for name, crc in sorted(sums.items(), key=lambda item: item[0] == _LAST):
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
    """Copies the finished store in `folder` to cache_dir, unless it is there or cache_dir is
    local."""
    place = _place(folder, cache_dir)
    if place is None or _try(cache_dir, (place / _SUMS).exists):
        return
    log(f"data: copying the token store {folder} to {place}")
    contents = [path for path in folder.iterdir() if path.name != "lock" and path.suffix != ".tmp"]
    sums = {}
    # An object takes about one write a second, so the hosts of a run begin at unlike ones.
    for path in random.sample(contents, len(contents)):
        content = path.read_bytes()
        sums[path.name] = zlib.crc32(content)
        _write_new(cache_dir, place / path.name, content)
    _write_new(cache_dir, place / _SUMS, json.dumps(sums, sort_keys=True).encode())


def _write_new(cache_dir: str, target: Any, content: bytes) -> None:
    """Writes what is the same whoever writes it, unless it is there, also by another meanwhile."""
    if _try(cache_dir, target.exists):
        return
    try:
        _try(cache_dir, lambda: target.write_bytes(content))
    except Exception:  # of many kinds; refused, since too many write it
        if not _try(cache_dir, target.exists):
            raise


def _place(folder: Path, cache_dir: str) -> Any:
    """Where in cache_dir this store is shared; None for a local cache_dir."""
    if "://" not in cache_dir:
        return None
    from etils import epath

    return epath.Path(cache_dir) / "stores" / folder.name


def _try(cache_dir: str, act: Callable[[], Any]) -> Any:
    try:
        return act()
    except OSError as e:
        if type(e) not in (OSError, FileNotFoundError, PermissionError):
            raise  # a time-out or the like, which is not about this folder
        raise UserError(
            f"data.cache_dir={cache_dir!r} cannot be used: {e}. Check your permission "
            "to read and write there, or set it to a local folder."
        ) from None
