"""What a work folder stores about the Hugging Face folder that it was imported from.

`huggingface.json` has the original config and the layout of the files; `huggingface.safetensors`
has the tensors that are not among the run's parameters. With both, an export of the unchanged
import writes the same files again.
"""

from collections.abc import Callable, Iterable, Mapping
import dataclasses
import json
import os
import pathlib
from typing import Any

from etils import epath
import numpy as np

from bigjax import paths
from bigjax.errors import UserError
from bigjax.interop import files, storage
from bigjax.interop.mapping import Entry

ORIGIN, KEPT = "huggingface.json", "huggingface.safetensors"
_THEIRS = "original/"  # prefix of their names in KEPT; no name of ours starts with it


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a folder's files were laid out; tensors by their names in the files.

    texts: {file: content} of config.json and of the index, if there is one. headers: {file: header}
    of the files of tensors. entries: {tensor: its row in the family's table}. copies: {tied tensor:
    the tensor whose bytes it has}. buffers: tensors that hold no weights. unknown: tensors that are
    not in the table.
    """

    texts: dict[str, str]
    headers: dict[str, str]
    entries: dict[str, str]
    copies: dict[str, str]
    buffers: list[str]
    unknown: list[str]

    @property
    def redundant(self) -> list[str]:
        return [*self.copies, *self.buffers]

    def parts(self) -> dict[str, storage.Part]:
        return {
            name: part
            for header in self.headers.values()
            for name, part in storage.parts(header).items()
        }


@dataclasses.dataclass(frozen=True)
class Origin:
    """The folder that was imported; fields as in Imported. files: of the tokenizer. kept: the
    parameters, by our names, that the run does not have. layout: None in work folders of older
    versions."""

    folder: epath.Path
    family: str
    architecture: str
    config: dict
    dtype: str
    dtypes: dict[str, str]
    metadata: dict[str, str]
    files: list[str]
    kept: list[str]
    layout: Layout | None = None

    def raw(self, name: str) -> np.ndarray:
        """The bytes of a buffer or of an unknown tensor."""
        return _read(self.folder / KEPT, {_THEIRS + name})[_THEIRS + name][1]


def save(folder: pathlib.Path, imported: Any, kept: list[str]) -> None:
    """Writes both files. imported: an Imported. kept: its parameters that the run does not have."""
    layout = imported.layout
    tensors = [
        files.planned(
            n,
            imported.shapes[n],
            imported.dtypes.get(n, imported.dtype),
            lambda n=n: imported.load(n),
        )
        for n in kept
    ]
    tensors += as_they_are(layout, [*layout.buffers, *layout.unknown], imported.raw, _THEIRS)
    if tensors:
        files.save(folder / KEPT, tensors, {})
    out = {
        "family": imported.family.name,
        "architecture": imported.architecture,
        "config": imported.config,
        "dtype": imported.dtype,
        "dtypes": imported.dtypes,
        "metadata": imported.metadata,
        "files": sorted(imported.tokenizer_files),
        "kept": kept,
        "layout": dataclasses.asdict(layout),
    }
    (folder / ORIGIN).write_text(json.dumps(out, indent=1) + "\n", encoding="utf-8")


def load(workdir: str | os.PathLike) -> Origin | None:
    """The Origin of a work folder; None if it was not imported."""
    folder = epath.Path(workdir)
    if not paths.exists(folder / ORIGIN):
        return None
    try:
        stored = json.loads((folder / ORIGIN).read_text(encoding="utf-8"))
        layout = stored.pop("layout", None)
        origin = Origin(folder, **stored, layout=Layout(**layout) if layout else None)
        names = [
            *(part for name in origin.files for part in name.split("/")),
            *(origin.layout and (*origin.layout.headers, *origin.layout.texts) or ()),
        ]
    except (ValueError, TypeError, AttributeError, RecursionError) as e:
        raise UserError(
            f"{folder / ORIGIN} is not as the import wrote it ({e}). Import the model again."
        ) from None
    paths.check_file_names(names, f"a name in {folder / ORIGIN}")
    return origin


def kept_parameters(workdir: str | os.PathLike, step: int) -> dict[str, np.ndarray]:
    """{our name: array} of the imported parameters that the run does not have.

    {} at any step but 0: once the others are trained, these no longer match them. Raises UserError
    if their file is damaged.
    """
    origin = load(workdir) if step == 0 else None
    if not origin or not origin.kept:
        return {}
    tensors = _read(origin.folder / KEPT, set(origin.kept))
    return {
        name: data.view(files.DTYPES[files.CODES[part.code]]).reshape(part.shape)
        for name, (part, data) in tensors.items()
    }


def _read(path: epath.Path, names: set[str]) -> dict[str, tuple[storage.Part, np.ndarray]]:
    try:
        header = storage.read_header(path)
        parts = storage.parts(header)
        return {name: (parts[name], storage.read(path, header, parts[name])) for name in names}
    except (OSError, ValueError, KeyError) as e:
        raise UserError(
            f"{path} is not as the import wrote it ({e!r}): it was truncated, damaged "
            "or removed. Import the model again."
        ) from None


def as_they_are(
    layout: Layout, names: Iterable[str], raw: Callable[[str], np.ndarray], prefix: str = ""
) -> list[files.Planned]:
    """Tensors of any dtype, to be written from the bytes that raw(name) returns."""
    parts = layout.parts()
    return [
        files.Planned(
            prefix + n,
            parts[n].shape,
            parts[n].code,
            parts[n].end - parts[n].start,
            lambda n=n: raw(n),
        )
        for n in names
    ]


def replay(
    folder: pathlib.Path,
    layout: Layout,
    entries: list[Entry],
    params: Mapping[str, np.ndarray],
    raw: Callable[[str], np.ndarray],
) -> list[str]:
    """Writes these parameters into files laid out as the original's; returns the files' names."""
    rows = {e.name: e for e in entries}

    def content(name: str, code: str) -> np.ndarray:
        name = layout.copies.get(name, name)
        if name not in layout.entries:
            return raw(name)
        row = rows[layout.entries[name]]
        return files.planned(name, row.shape, files.CODES[code], lambda: row.gather(params)).load()

    for file, header in layout.headers.items():
        parts = storage.parts(header)
        storage.write(folder / file, header, lambda name: content(name, parts[name].code))
    more = [file for file in layout.texts if file != files.CONFIG]
    for file in more:
        (folder / file).write_bytes(layout.texts[file].encode("utf-8"))
    return [*layout.headers, *more]
