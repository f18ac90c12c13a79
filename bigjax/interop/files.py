"""Folders of Hugging Face models: config.json, and tensors in safetensors files.

The format: https://github.com/huggingface/safetensors. Names and layout of files are those of
transformers' save_pretrained.
"""

from collections.abc import Callable, Iterator
import contextlib
import json
import math
import os
import pathlib
import secrets
import shutil
from typing import NamedTuple

import ml_dtypes
import numpy as np
import safetensors

from bigjax import paths
from bigjax.errors import NO_SPACE, UserError, cannot_write
from bigjax.interop import storage

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
MAX_SHARD_BYTES = 5 * 10**9
DTYPES = {
    "float32": np.dtype(np.float32),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float16": np.dtype(np.float16),
}
CODES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
_PYTORCH = (
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "tf_model.h5",
    "flax_model.msgpack",
)


def local(folder: str | os.PathLike) -> pathlib.Path:
    """The folder as a path. UserError for gs:// and other remote folders."""
    if "://" in str(folder):
        raise UserError(
            f"{folder} is not on this machine; models are read from and written to "
            "local folders. Copy it here first."
        )
    return pathlib.Path(folder).expanduser()


def read_json(path: pathlib.Path, what: str) -> dict:
    """A JSON object. Raises UserError, naming the file, for anything else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as e:
        raise UserError(
            f"{path} cannot be read ({e}). It must be {what}: copy it again from "
            "where the model came from."
        ) from None
    if not isinstance(value, dict):
        raise UserError(f"{path} holds a {type(value).__name__}; it must be {what}.")
    return value


def read_config(folder: pathlib.Path) -> dict:
    """The content of config.json in a model's folder. Raises UserError if it is missing."""
    if not folder.is_dir():
        raise UserError(
            f"The folder {folder} does not exist. Give one that transformers' "
            "save_pretrained wrote, or a downloaded model."
        )
    if not (folder / CONFIG).is_file():
        raise UserError(
            f"{folder} has no {CONFIG}, so it is not the folder of a model. It contains: "
            f"{', '.join(sorted(p.name for p in folder.iterdir())[:10]) or 'nothing'}."
        )
    return read_json(folder / CONFIG, "a model's config, a JSON object")


# --- Reading ---------------------------------------------------------------------------------


class Tensors:
    """The tensors of a folder; only headers are read before `read` is called.

    shapes: {name: shape}; dtypes: {name: 'float32', 'bfloat16', 'float16', or the file's code for
    any other}; headers: {file: header}; index: the text of the index, '' without one. Raises
    UserError, naming the file, if one is missing, truncated, or not a safetensors file.
    """

    def __init__(self, folder: pathlib.Path):
        self._folder = folder
        places, self.index = _places(folder)
        files = [WEIGHTS] if places is None else sorted(set(places.values()))
        self.headers = {file: _checked_header(folder / file) for file in files}
        self._parts: dict[str, tuple[str, storage.Part]] = {}
        for file, header in self.headers.items():
            for name, part in storage.parts(header).items():
                if name in self._parts:
                    raise UserError(
                        f"{folder}: tensor {name} is in {self._parts[name][0]} and in "
                        f"{file}. The shards belong to different copies: copy all of them again."
                    )
                self._parts[name] = file, part
        for name, file in (places or {}).items():
            if self._parts.get(name, ("",))[0] != file:
                raise UserError(
                    f"{folder / INDEX} says that {name} is in {file}, which does not "
                    "contain it. The shards belong to another model or another copy: "
                    "copy all of them again."
                )
        self.shapes = {name: part.shape for name, (_, part) in self._parts.items()}
        self.dtypes = {
            name: CODES.get(part.code, part.code) for name, (_, part) in self._parts.items()
        }

    @property
    def metadata(self) -> dict[str, str]:
        """The metadata of the first file."""
        return storage.metadata(next(iter(self.headers.values())))

    def read(self, name: str) -> np.ndarray:
        """One tensor, copied to memory. UserError if its dtype is not in DTYPES."""
        dtype = self.dtypes[name]
        if dtype not in DTYPES:
            raise UserError(
                f"{self._folder / self._parts[name][0]}: tensor {name} has dtype "
                f"{dtype}; allowed: {', '.join(DTYPES)}. Save the model in one of them "
                "(dequantise quantised weights first)."
            )
        return self.raw(name).view(DTYPES[dtype]).reshape(self.shapes[name])

    def raw(self, name: str) -> np.ndarray:
        """The bytes of a tensor of any dtype."""
        file, part = self._parts[name]
        try:
            return storage.read(self._folder / file, self.headers[file], part)
        except (OSError, ValueError) as e:
            raise damaged(self._folder / file, e) from None


def _checked_header(path: pathlib.Path) -> str:
    """The header of a file, after the library has checked every offset."""
    try:
        with safetensors.safe_open(str(path), framework="numpy"):
            return storage.read_header(path)
    except Exception as e:  # the library raises several kinds
        raise damaged(path, e) from None


def damaged(path, error: Exception) -> UserError:
    size = f" of {path.stat().st_size:,} bytes" if path.exists() else ""
    return UserError(
        f"{path}{size} is not a complete safetensors file ({error}): it was truncated or "
        "damaged. Copy or download it again."
    )


def _places(folder: pathlib.Path) -> tuple[dict[str, str] | None, str]:
    """({tensor: its file} of the index, or None for a single file; the index's text)."""
    if (folder / WEIGHTS).is_file():
        return None, ""
    if not (folder / INDEX).is_file():
        other = [name for name in _PYTORCH if (folder / name).exists()]
        raise UserError(
            f"{folder} has neither {WEIGHTS} nor {INDEX}"
            + (
                f", only {other[0]}, which is not read because opening it can run code. If you "
                "trust it, convert it: transformers' from_pretrained(FOLDER).save_pretrained(NEW) "
                "writes safetensors."
                if other
                else ": it has no weights."
            )
        )
    index = folder / INDEX
    names = read_json(index, "an index of tensors").get("weight_map")
    if (
        not isinstance(names, dict)
        or not names
        or not all(isinstance(f, str) for f in names.values())
    ):
        raise UserError(f"{index} has no weight_map from tensors to files. Copy it again.")
    shards = sorted(set(names.values()))
    paths.check_file_names(shards, f"a name in {index}")
    absent = [f for f in shards if not (folder / f).is_file()]
    if absent:
        raise UserError(
            f"{index} names {len(absent)} file(s) that are not in {folder}: "
            f"{', '.join(absent[:5])}. Copy all {len(shards)} shards there."
        )
    return names, index.read_bytes().decode("utf-8")


# --- Writing ---------------------------------------------------------------------------------


@contextlib.contextmanager
def new_folder(target: str | os.PathLike) -> Iterator[pathlib.Path]:
    """A temporary folder that becomes `target` when the block ends; removed if it raises.

    Raises UserError if target exists and is not an empty folder, or cannot be written.
    """
    target = local(target)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(
            f"{target} exists and is not an empty folder; nothing is overwritten. "
            "Give another folder, or remove it."
        )
    absolute = target.absolute()
    temporary = absolute.with_name(f".{absolute.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        temporary.replace(absolute)
    except OSError as e:
        remedy = "Free some space there, or give" if e.errno in NO_SPACE else "Give"
        raise cannot_write(str(target), e, f"{remedy} another folder") from e
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


class Planned(NamedTuple):
    """A tensor to be written: load() returns its bytes; code: of its dtype in the file."""

    name: str
    shape: tuple[int, ...]
    code: str
    nbytes: int
    load: Callable[[], np.ndarray]


def planned(
    name: str, shape: tuple[int, ...], dtype: str, load: Callable[[], np.ndarray]
) -> Planned:
    """A tensor to be written in dtype, a name of DTYPES; load() returns it as an array."""
    code = next(c for c, known in CODES.items() if known == dtype)
    return Planned(
        name,
        shape,
        code,
        math.prod(shape) * DTYPES[dtype].itemsize,
        lambda: storage.as_bytes(cast(name, load(), dtype)),
    )


def write_tensors(
    folder: pathlib.Path, tensors: list[Planned], max_shard_bytes: int, metadata: dict[str, str]
) -> list[str]:
    """Writes model.safetensors, or shards of at most max_shard_bytes and their index.

    Returns the names of the files. Tensors are put into shards in order, as transformers does. Only
    one at a time is in memory.
    """
    if max_shard_bytes < 1:
        raise UserError(f"max_shard_bytes is {max_shard_bytes}; it must be positive.")
    shards = _shards(tensors, max_shard_bytes)
    if len(shards) == 1:
        save(folder / WEIGHTS, shards[0], metadata)
        return [WEIGHTS]
    files = [f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    for file, shard in zip(files, shards):
        save(folder / file, shard, metadata)
    index = {
        "metadata": {
            "total_parameters": sum(math.prod(t.shape) for t in tensors),
            "total_size": sum(t.nbytes for t in tensors),
        },
        "weight_map": {t.name: file for file, shard in zip(files, shards) for t in shard},
    }
    write_json(folder / INDEX, index)
    return [*files, INDEX]


def write_json(path: pathlib.Path, value: dict) -> None:
    """Writes JSON exactly as transformers formats it."""
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def save(path: pathlib.Path, tensors: list[Planned], metadata: dict[str, str]) -> None:
    """Writes one safetensors file."""
    by_name = {t.name: t for t in tensors}
    header = storage.new_header([(t.name, t.code, t.shape, t.nbytes) for t in tensors], metadata)
    storage.write(path, header, lambda name: by_name[name].load())


def cast(name: str, array: np.ndarray, dtype: str) -> np.ndarray:
    """The array in a dtype of DTYPES. UserError if a finite number would become infinite."""
    array = np.asarray(array)
    with np.errstate(over="ignore"):
        out = array.astype(DTYPES[dtype], copy=False)
    narrower = out.dtype != array.dtype and not np.isfinite(out).all()
    if narrower and np.isfinite(array).all():
        largest, limit = np.abs(array.astype(np.float64)).max(), ml_dtypes.finfo(out.dtype).max
        raise UserError(
            f"{name} has numbers up to {largest:.6g}, beyond the {float(limit):.6g} of {dtype}. "
            f"Write {'bfloat16 or ' if dtype == 'float16' else ''}float32."
        )
    return out


def _shards(tensors: list[Planned], limit: int) -> list[list[Planned]]:
    """Shards filled in order; a tensor larger than the limit has its own shard."""
    shards, current = [], []
    for tensor in tensors:
        if tensor.nbytes > limit:
            shards.append([tensor])
            continue
        if sum(t.nbytes for t in current) + tensor.nbytes > limit:
            shards.append(current)
            current = []
        current.append(tensor)
    return [shard for shard in [*shards, current] if shard]
