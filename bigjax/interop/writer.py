"""Writing the folder of a Hugging Face model."""

from collections.abc import Callable, Mapping
import json
import math
import os
import pathlib
from typing import Any

import numpy as np

from bigjax.errors import UserError
from bigjax.interop import files, origin
from bigjax.interop.families import entries_of
from bigjax.interop.files import MAX_SHARD_BYTES, new_folder
from bigjax.interop.mapping import Entry, Family
from bigjax.interop.origin import Layout


def check_dtype(dtype: str) -> str:
    """The dtype. Raises UserError if tensors cannot be written in it."""
    if dtype not in files.DTYPES:
        raise UserError(f"dtype is {dtype!r}; allowed: {', '.join(files.DTYPES)}.")
    return dtype


def write(
    folder: str | os.PathLike,
    *,
    family: Family,
    architecture: str,
    model: Mapping[str, Any],
    params: Mapping[str, np.ndarray],
    task: Mapping[str, Any] | None = None,
    dtype: str = "float32",
    dtypes: Mapping[str, str] | None = None,
    extra_files: Mapping[str, bytes] | None = None,
    config: dict | None = None,
    extra_config: Mapping[str, Any] | None = None,
    max_shard_bytes: int | None = None,
    metadata: dict[str, str] | None = None,
    layout: Layout | None = None,
    raw: Callable[[str], np.ndarray] | None = None,
) -> list[str]:
    """Writes a folder that transformers opens, atomically; returns the names of its files.

    params: by our unrolled names; those of the architecture are written. May be a lazy mapping.
    task: config.task, whose labels a classifier has.
    dtype: of the tensors; dtypes: {our name: dtype} of exceptions.
    extra_files: {name: content}, written as they are.
    config: an original config.json, whose keys are kept where the model did not change (also its
        dtype: see with_dtype). Without it, extra_config has keys for the new one.
    layout, raw: of the original folder of these parameters: how its files were laid out, and the
        bytes of its other tensors. The same files are then written, with their dtypes. With
        max_shard_bytes new files are written, with today's names, without copies and buffers.

    Raises UserError if a parameter is missing or its shape is not that of model, if a number is
    too large for float16, or if the folder is not empty.
    """
    dtypes = dtypes or {}
    check_dtype(dtype)
    task = family.architectures[architecture].labelled(task or {}, params)
    entries = entries_of(family, architecture, model, len(task.get("labels", ())) or 2, layout)
    missing = [name for e in entries for name, _ in e.parts if name not in params]
    if missing:
        raise UserError(
            f"{architecture} needs {len(missing)} parameter(s) that this model does "
            f"not have: {', '.join(missing[:5])}."
        )
    out = _config(family, architecture, model, task, dtype, config, extra_config or {})
    with new_folder(folder) as temporary:
        if layout and max_shard_bytes is None:
            names = origin.replay(temporary, layout, entries, params, raw)
        else:
            planned = [
                _planned(family, architecture, e, params, dtypes, dtype)
                if e.parts
                else _unused(family, architecture, e, dtype, layout, raw)
                for e in entries
            ]
            if layout:
                planned += origin.as_they_are(layout, layout.unknown, raw)
            names = files.write_tensors(
                temporary,
                planned,
                MAX_SHARD_BYTES if max_shard_bytes is None else max_shard_bytes,
                {"format": "pt"} if metadata is None else metadata,
            )
        _write_config(temporary / files.CONFIG, out, layout)
        for name, content in (extra_files or {}).items():
            (temporary / name).parent.mkdir(exist_ok=True)
            (temporary / name).write_bytes(content)
    return [*names, files.CONFIG, *(extra_files or {})]


def _planned(
    table: Family,
    architecture: str,
    entry: Entry,
    params: Mapping[str, np.ndarray],
    dtypes: Mapping[str, str],
    dtype: str,
) -> files.Planned:
    return files.planned(
        table.written_name(architecture, entry.name),
        entry.shape,
        dtypes.get(entry.parts[0][0], dtype),
        lambda: entry.gather(params),
    )


def _unused(
    table: Family,
    architecture: str,
    entry: Entry,
    dtype: str,
    layout: Layout | None,
    raw: Callable[[str], np.ndarray] | None,
) -> files.Planned:
    """A tensor that no parameter corresponds to: that of the original files, else zeros."""
    name = table.written_name(architecture, entry.name)
    for original in layout.buffers if layout and raw else ():
        if table.canonical(original) == entry.name:
            (kept,) = origin.as_they_are(layout, [original], raw)
            return kept._replace(name=name)
    if entry.code == "F32":
        return files.planned(name, entry.shape, dtype, lambda: np.zeros(entry.shape, np.float32))
    n_bytes = math.prod(entry.shape) * 8
    return files.Planned(
        name, entry.shape, entry.code, n_bytes, lambda: np.zeros(n_bytes, np.uint8)
    )


def _write_config(path: pathlib.Path, config: dict, layout: Layout | None) -> None:
    """Writes config.json; byte for byte the original one if its content is the same."""
    if layout and json.loads(layout.texts[files.CONFIG].encode()) == config:
        path.write_bytes(layout.texts[files.CONFIG].encode("utf-8"))
    else:
        files.write_json(path, config)


def with_dtype(config: dict, dtype: str) -> dict:
    """config.json with this dtype, under the key that it has (torch_dtype in transformers 4)."""
    return {**config, "torch_dtype" if "torch_dtype" in config else "dtype": dtype}


def _config(
    family: Family,
    architecture: str,
    model: Mapping[str, Any],
    task: Mapping[str, Any],
    dtype: str,
    original: dict | None,
    extra: Mapping[str, Any],
) -> dict:
    """config.json: the original with the keys that changed, or a new one."""
    out = {**family.put_fields(dict(model), original), **({} if original else extra)}
    if out.get("architectures") != [architecture]:
        out["architectures"] = [architecture]
    labels = family.architectures[architecture].labels
    if labels and task.get("labels"):
        labels.put(out, task)
    return with_dtype(out, dtype) if original is None else out
