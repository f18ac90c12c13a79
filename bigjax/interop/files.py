"""Folders of Hugging Face models: config.json, and tensors in safetensors files.

The format: https://github.com/huggingface/safetensors. Names and layout of files are those of
transformers' save_pretrained.
"""

import contextlib
import json
import math
import os
import pathlib
import secrets
import shutil
from typing import Any, Callable, Iterator, NamedTuple

import ml_dtypes
import numpy as np
import safetensors
from safetensors.numpy import save_file

from bigjax.errors import UserError

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
MAX_SHARD_BYTES = 5 * 10 ** 9
DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16),
          "float16": np.dtype(np.float16)}
_CODES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
_PYTORCH = ("pytorch_model.bin", "pytorch_model.bin.index.json", "tf_model.h5",
            "flax_model.msgpack")


def local(folder: str | os.PathLike) -> pathlib.Path:
    """The folder as a path; UserError for gs:// and its like, which cannot be memory-mapped."""
    if "://" in str(folder):
        raise UserError(f"{folder} is not on this machine; models are read from and written to "
                        "local folders. Copy it here first.")
    return pathlib.Path(folder).expanduser()


def read_json(path: pathlib.Path, what: str) -> dict:
    """A JSON object. Raises UserError, naming the file, for anything else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise UserError(f"{path} cannot be read ({e}). It has to be {what}: copy it again from "
                        "where the model came from.") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} holds a {type(value).__name__}; it has to be {what}.")
    return value


def read_config(folder: pathlib.Path) -> dict:
    """config.json of a model's folder. Raises UserError if there is none."""
    if not folder.is_dir():
        raise UserError(f"There is no folder {folder}. Give one that transformers' "
                        "save_pretrained wrote, or a downloaded model.")
    if not (folder / CONFIG).is_file():
        raise UserError(f"{folder} has no {CONFIG}, so it is no model's folder. It has: "
                        f"{', '.join(sorted(p.name for p in folder.iterdir())[:10]) or 'nothing'}.")
    return read_json(folder / CONFIG, "a model's config, a JSON object")


# --- Reading ---------------------------------------------------------------------------------

class Tensors:
    """The tensors of a folder; nothing but headers is read before `read`.

    shapes: {name: shape}; dtypes: {name: 'float32', 'bfloat16', 'float16', or the file's own code
    for others}; metadata: of the first file.
    Raises UserError, naming the file, if one is missing, cut short, or no safetensors file.
    """

    def __init__(self, folder: pathlib.Path):
        self._files: dict[pathlib.Path, Any] = {}
        self._where = _places(folder, self._open)
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, str] = {}
        for name, path in self._where.items():
            part = self._open(path).get_slice(name)
            self.shapes[name] = tuple(part.get_shape())
            self.dtypes[name] = _CODES.get(part.get_dtype(), part.get_dtype())
        first = next(iter(self._files.values()), None)
        self.metadata = (first.metadata() or {}) if first else {}

    def read(self, name: str) -> np.ndarray:
        """One tensor, a copy in memory. UserError if it is not of a float type that we know."""
        path, dtype = self._where[name], self.dtypes[name]
        if dtype not in DTYPES:
            raise UserError(f"{path}: tensor {name} is of type {dtype}; allowed: "
                            f"{', '.join(DTYPES)}. Save the model in one of them (quantised "
                            "weights have to be dequantised first).")
        try:
            return self._open(path).get_tensor(name)
        except Exception as e:  # the library raises several kinds
            raise _damaged(path, e) from None

    def _open(self, path: pathlib.Path):
        if path not in self._files:
            try:
                self._files[path] = safetensors.safe_open(str(path), framework="numpy")
            except Exception as e:  # the library raises several kinds
                raise _damaged(path, e) from None
        return self._files[path]


def _damaged(path: pathlib.Path, error: Exception) -> UserError:
    size = f" of {path.stat().st_size:,} bytes" if path.exists() else ""
    return UserError(f"{path}{size} is no whole safetensors file ({error}): it was cut short or "
                     "damaged. Copy or download it again.")


def _places(folder: pathlib.Path, opened: Callable) -> dict[str, pathlib.Path]:
    """{tensor: its file}, from the one file or from the index."""
    if (folder / WEIGHTS).is_file():
        return {name: folder / WEIGHTS for name in opened(folder / WEIGHTS).keys()}
    if not (folder / INDEX).is_file():
        other = [name for name in _PYTORCH if (folder / name).exists()]
        raise UserError(
            f"{folder} has neither {WEIGHTS} nor {INDEX}" + (
                f", only {other[0]}, which can run code when it is opened and is not read. Convert "
                "it where you trust it: transformers' from_pretrained(FOLDER).save_pretrained(NEW) "
                "writes safetensors." if other else ": there are no weights in it."))
    index = folder / INDEX
    names = read_json(index, "an index of tensors").get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(f, str) for f in names.values()):
        raise UserError(f"{index} has no weight_map of tensor: file. Copy it again.")
    found = sorted(set(names.values()))
    absent = [f for f in found if pathlib.PurePath(f).name != f or not (folder / f).is_file()]
    if absent:
        raise UserError(f"{index} names {len(absent)} file(s) that are not in {folder}: "
                        f"{', '.join(absent[:5])}. Copy all {len(found)} shards there.")
    have = {f: set(opened(folder / f).keys()) for f in found}
    for name, f in names.items():
        if name not in have[f]:
            raise UserError(f"{index} says that {name} is in {f}, which does not have it. The "
                            "shards are of another model or of another copy: copy all again.")
    return {name: folder / f for name, f in names.items()}


# --- Writing ---------------------------------------------------------------------------------

@contextlib.contextmanager
def new_folder(target: str | os.PathLike) -> Iterator[pathlib.Path]:
    """A temporary folder that becomes `target` when the block ends, or goes if it raises.

    Raises UserError if target exists and is not an empty folder, or cannot be written.
    """
    target = local(target)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{target} exists and is not an empty folder; nothing is overwritten. "
                        "Give another, or remove it.")
    absolute = target.absolute()
    temporary = absolute.with_name(f".{absolute.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        temporary.replace(absolute)
    except OSError as e:
        raise UserError(f"{target} cannot be written: {e.strerror or e}. Make room there, or give "
                        "another folder.") from e
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


class Planned(NamedTuple):
    """A tensor to be written; load() gives it when its file is written."""
    name: str
    shape: tuple[int, ...]
    dtype: str
    load: Callable[[], np.ndarray]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize


def write_tensors(folder: pathlib.Path, tensors: list[Planned], max_shard_bytes: int,
                  metadata: dict[str, str]) -> list[str]:
    """model.safetensors, or shards of at most max_shard_bytes and their index; the files' names.

    Tensors are put into shards in their order, as transformers does. One shard at a time is in
    memory.
    """
    if max_shard_bytes < 1:
        raise UserError(f"max_shard_bytes is {max_shard_bytes}; it must be positive.")
    shards = _shards(tensors, max_shard_bytes)
    if len(shards) == 1:
        save(folder / WEIGHTS, {t.name: cast(t) for t in shards[0]}, metadata)
        return [WEIGHTS]
    files = [f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    for file, shard in zip(files, shards):
        save(folder / file, {t.name: cast(t) for t in shard}, metadata)
    index = {"metadata": {"total_parameters": sum(math.prod(t.shape) for t in tensors),
                          "total_size": sum(t.nbytes for t in tensors)},
             "weight_map": {t.name: file for file, shard in zip(files, shards) for t in shard}}
    write_json(folder / INDEX, index)
    return [*files, INDEX]


def write_json(path: pathlib.Path, value: dict) -> None:
    """As transformers writes its JSON files, byte for byte."""
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def save(path: pathlib.Path, arrays: dict[str, np.ndarray], metadata: dict[str, str]) -> None:
    """One safetensors file. Raises OSError if it cannot be written."""
    try:
        save_file({name: np.ascontiguousarray(x) for name, x in arrays.items()}, str(path),
                  metadata=metadata or None)
    except safetensors.SafetensorError as e:
        raise OSError(str(e)) from e


def read_file(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """All arrays of one file that `save` wrote. Raises UserError if it is damaged."""
    try:
        with safetensors.safe_open(os.fspath(path), framework="numpy") as f:
            return {name: f.get_tensor(name) for name in f.keys()}
    except Exception as e:  # the library raises several kinds
        raise _damaged(pathlib.Path(path), e) from None


def cast(tensor: Planned) -> np.ndarray:
    """The tensor in its type. UserError if a number does not fit into float16."""
    array = np.asarray(tensor.load())
    with np.errstate(over="ignore"):
        out = array.astype(DTYPES[tensor.dtype])
    if tensor.dtype == "float16" and np.isfinite(array).all() and not np.isfinite(out).all():
        largest = np.abs(array.astype(np.float32)).max()
        raise UserError(f"{tensor.name} has numbers up to {largest:.3g}, beyond the 65504 of "
                        "float16. Write bfloat16 or float32.")
    return out


def _shards(tensors: list[Planned], limit: int) -> list[list[Planned]]:
    """In order, each full before the next; one that is larger than the limit is alone."""
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
