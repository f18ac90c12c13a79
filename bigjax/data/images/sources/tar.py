"""Tar shards in the form of WebDataset: members of one name are an image and its label.

`a/1.jpg` belongs with `a/1.cls` (a number or a name) or `a/1.json` (its key data.columns.label). A
name ends at its first dot, as in WebDataset (`1.left.jpg` belongs with `1.cls`), unless there is a
label of that up to the last dot (`0.5.jpg` belongs with `0.5.cls`). Each shard is indexed once, so
that any image can be read alone; the index is cached.
"""

from collections.abc import Container
import concurrent.futures
import hashlib
import json
import tarfile

from etils import epath

from bigjax.data.files import cache_folder, write_cached
from bigjax.data.images.sources.folder import EXTENSIONS
from bigjax.data.images.sources.labels import numbered
from bigjax.data.sources.paths import matching_files
from bigjax.errors import UserError

_FORMAT = 3  # raise it when the same shard would give another index
_AT_ONCE = 8  # shards that are indexed; on gs:// each waits for many small reads


def matches(spec: str) -> bool:
    return spec.endswith(".tar")


class Tar:
    def __init__(self, shards: list[dict], label: str, spec: str, reading) -> None:
        rows = [(s["path"], *row) for s in shards for row in s["rows"]]
        self._rows = [(path, name, start, size) for path, name, start, size, _ in rows]
        texts = [text for *_, text in rows]
        missing = [f"{path}:{name}" for path, name, *_, text in rows if text is None]
        if reading.labelled and missing:
            keys = _keys_beside(*next(row[:2] for row in rows if row[-1] is None))
            raise UserError(
                f"{reading.key}={spec!r} has no labels, which this task needs: members need a "
                f".cls, or a .json with the key {label!r} (data.columns.label){keys}."
                if len(missing) == len(rows)
                else f"{reading.key}: {len(missing):,} of {len(rows):,} images have no .cls and no "
                f".json with the key {label!r} (data.columns.label) beside them, such as "
                f"{missing[0]}{keys}."
            )
        self.labels, self.classes = (None, ()) if missing else numbered(texts)
        digest = hashlib.sha256(repr([s["fingerprint"] for s in shards]).encode())
        self.fingerprint = f"tar-{digest.hexdigest()[:16]}"

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, i: int) -> bytes:
        path, _, start, size = self._rows[i]
        with epath.Path(path).open("rb") as f:
            f.seek(start)
            return f.read(size)

    def name(self, i: int) -> str:
        path, name, *_ = self._rows[i]
        return f"{path}:{name}"


def opened(spec: str, reading) -> Tar:
    label = reading.columns.label
    paths = matching_files(spec, "tar")
    with concurrent.futures.ThreadPoolExecutor(_AT_ONCE) as pool:
        shards = list(pool.map(lambda path: _index(path, label, reading), paths))
    return Tar(shards, label, spec, reading)


def _index(path, label: str, reading) -> dict:
    """{"path", "fingerprint", "rows": [[name, first byte, size, label or None]]} of a shard."""
    stat = path.stat()
    about = [_FORMAT, str(path), int(stat.length), str(stat.mtime), label]
    fingerprint = hashlib.sha256(repr(about).encode()).hexdigest()[:16]
    cached = cache_folder(reading.cache_dir, "images") / f"tar-{fingerprint}.json"
    try:
        return json.loads(cached.read_bytes())
    except (OSError, ValueError):  # absent or damaged: index again
        pass
    reading.log(f"data: indexing {path}")
    try:
        with path.open("rb") as f, tarfile.open(fileobj=f, mode="r:") as tar:
            rows = _rows(tar, label)
    except UserError as e:
        raise UserError(f"{reading.key}: {path}: {e}") from None
    except (tarfile.TarError, OSError, EOFError) as e:
        raise UserError(
            f"{reading.key}: cannot read {path}: {e}. It has to be a complete tar archive that is "
            "not compressed."
        ) from None
    index = {"path": str(path), "fingerprint": fingerprint, "rows": rows}
    write_cached(cached, json.dumps(index).encode())
    return index


def _rows(tar: tarfile.TarFile, label: str) -> list[list]:
    """Raises UserError for a label that cannot be read, and for two images of one name."""
    images: list[list] = []
    labels: dict[str, str] = {}  # by their names up to the last dot
    for member in tar:
        name = member.name.rpartition("/")[2]
        if not member.isfile() or name.startswith("."):  # such as those of macOS
            continue
        extension = name.rpartition(".")[2].lower()
        if f".{extension}".endswith(EXTENSIONS):
            images.append([member.name, member.offset_data, member.size])
        elif extension in ("cls", "json"):
            stem = member.name[: -len(extension) - 1]
            try:
                text = tar.extractfile(member).read().decode()
                value = text.strip() if extension == "cls" else json.loads(text).get(label)
            except (ValueError, AttributeError):  # not UTF-8, not JSON, or not an object
                if name.count(".") > 1:  # such as boxes, which are no label
                    continue
                what = "text in UTF-8" if extension == "cls" else "a JSON object"
                raise UserError(f"{member.name} is not {what}.") from None
            if extension == "cls" or (value is not None and stem not in labels):
                labels[stem] = str(value)
    of_name: dict[str, str] = {}
    for row in images:
        stem = _stem(row[0], labels)
        if stem in of_name:
            raise UserError(
                f"{of_name[stem]} and {row[0]} have one name before the first dot, which joins an "
                "image with its label. Give each image a name of its own."
            )
        of_name[stem] = row[0]
        row.append(labels.get(stem))
    return images


def _keys_beside(path: str, name: str) -> str:
    """The keys of the JSON beside an image, for a message; '' if there is none."""
    stems = {name.rpartition(".")[0], _stem(name, ())}
    with epath.Path(path).open("rb") as f, tarfile.open(fileobj=f, mode="r:") as tar:
        for member in tar:
            stem, _, extension = member.name.rpartition(".")
            if member.isfile() and extension.lower() == "json" and stem in stems:
                try:
                    content = json.loads(tar.extractfile(member).read().decode())
                except ValueError:
                    continue
                if isinstance(content, dict):
                    return f"; {member.name} has the keys {', '.join(content) or '(none)'}"
    return ""


def _stem(name: str, labels: Container[str]) -> str:
    """What an image has in common with its label."""
    stem = name.rpartition(".")[0]
    if stem in labels:
        return stem
    folder, slash, last = name.rpartition("/")
    return folder + slash + last.partition(".")[0]
