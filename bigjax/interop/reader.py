"""Reading the folder of a Hugging Face model."""

import dataclasses
import os
import pathlib
import re
from typing import Any, NamedTuple

import numpy as np

from bigjax.errors import UserError
from bigjax.interop import files, images, labels, timm, tokenizers
from bigjax.interop.families import family_and_class
from bigjax.interop.mapping import Entry, Family
from bigjax.interop.origin import Layout


@dataclasses.dataclass
class Imported:
    """A model in a Hugging Face folder; `load` reads its tensors one at a time.

    family: its table; its name is the model_type. architecture: the class of transformers.
    config: the content of config.json. model, task, data: for those sections of the config.
    tokenizer_kind: that of data.tokenizer, such as 'bpe', or '' if the folder has no tokenizer that
        bigjax reads. tokenizer_files: {name: content}. derived_files: {name: content} of files
        that bigjax needs and that follow from tokenizer_files.
    dtype: of all tensors, or 'float32' if they differ; then dtypes has {our name: dtype}.
    names: the parameters in the folder, by our names; shapes: {our name: shape}; missing: the
        parameters of the architecture that the folder lacks.
    other_files: all other files of the folder. notes: settings that bigjax does not have.
    metadata: of the (first) file of tensors. layout: all tensors by their names in the files,
        unknown ones too.
    """

    folder: pathlib.Path
    family: Family
    architecture: str
    config: dict
    model: dict[str, Any]
    task: dict[str, Any]
    data: dict[str, Any]
    tokenizer_kind: str
    tokenizer_files: dict[str, bytes]
    derived_files: dict[str, bytes]
    dtype: str
    dtypes: dict[str, str]
    names: list[str]
    shapes: dict[str, tuple[int, ...]]
    missing: list[str]
    other_files: list[str]
    notes: list[str]
    metadata: dict[str, str]
    layout: Layout
    _tensors: files.Tensors
    _entry: dict[str, tuple[Entry, str]]  # by our name, with the tensor's name in the file
    _zeros: dict[str, tuple[int, ...]]
    _last: tuple[str, dict] = ("", {})

    def load(self, name: str) -> np.ndarray:
        """A parameter in our layout and the dtype of the file. UserError if the file is damaged."""
        if name in self._zeros:
            return np.zeros(self._zeros[name], np.float32)
        entry, theirs = self._entry[name]
        if self._last[0] != theirs:  # one tensor of a file may hold several parameters
            self._last = theirs, entry.to_ours(self._tensors.read(theirs))
        return self._last[1][name]

    def raw(self, name: str) -> np.ndarray:
        """The bytes of a tensor of any dtype, by its name in the files."""
        return self._tensors.raw(name)

    @property
    def unknown(self) -> list[str]:
        """Tensors that no parameter of the family corresponds to."""
        return self.layout.unknown


def read(folder: str | os.PathLike, model_name: str = "", python_path: str = "") -> Imported:
    """Opens a folder and checks every shape. Reads no tensors, except copies that must be equal.

    model_name, python_path: of the config, for a family of one's own.

    Raises UserError for a model that is not supported, naming the setting; for files that are
    missing, truncated or not safetensors; and for tensors whose shape or dtype does not match
    config.json.
    """
    folder = files.local(folder)
    config, contents = files.read_config(folder), tokenizers.read(folder)
    if timm.is_config(config):
        tensors = files.Tensors(folder)
        ours, family, architecture, config, fields, processor = timm.opened(config, tensors.shapes)
        processors, where = {images.FILE: processor}, "pretrained_cfg in config.json"
    else:
        ours, family, architecture = family_and_class(config, model_name, python_path)
        fields = family.model_fields(config)
        processors, where = contents, images.FILE
        tensors = files.Tensors(folder)
        fields |= family.by_tensors(config, tensors.shapes)
    seen = _images(family, processors, where) if family.pixels else _NO_IMAGES
    model = {"name": ours, **seen.model, **fields}
    if family.pixels:
        _check_channels(model, images.FILE in processors)
    n_labels = len(labels.names_of(config))
    own = family.entries(architecture, model, n_labels)
    entries = {e.name: e for e in own + family.others(architecture, model, n_labels)}
    layout = _layout(family, tensors, entries, family.tied(model), _texts(folder, tensors))
    tensor_of = {entry: name for name, entry in layout.entries.items()}
    _check_shapes(entries, tensor_of, tensors)
    dtypes = {
        name: tensors.dtypes[tensor_of[e.name]]
        for e in entries.values()
        if e.name in tensor_of
        for name, _ in e.parts
    }
    _check_forms(entries, tensor_of)
    kinds, zeros = set(dtypes.values()), family.zeros(model)
    return Imported(
        folder,
        family,
        architecture,
        config,
        model,
        family.architectures[architecture].task_fields(config),
        seen.data,
        tokenizers.kind(contents),
        contents,
        tokenizers.derived(contents, config),
        kinds.pop() if len(kinds) == 1 else "float32",
        dtypes if len(kinds) > 1 else {},
        [*dtypes, *zeros],
        {n: s for e in entries.values() if e.name in tensor_of for n, s in e.parts} | zeros,
        [n for e in own for n, _ in e.parts if n not in dtypes],
        sorted(
            {p.name for p in folder.iterdir()}
            - {*layout.texts, *layout.headers, *(name.split("/")[0] for name in contents)}
        ),
        [*family.notes(config), *seen.notes_for(model)],
        tensors.metadata,
        layout,
        tensors,
        {
            n: (e, tensor_of[e.name])
            for e in entries.values()
            if e.name in tensor_of
            for n, _ in e.parts
        },
        zeros,
    )


class _Images(NamedTuple):
    """What preprocessor_config.json says: fields of config.model and config.data."""

    model: dict[str, Any]
    data: dict[str, Any]
    notes: list[str]

    def notes_for(self, model: dict[str, Any]) -> list[str]:
        size, own = self.model.get("image_size"), model.get("image_size")
        if size == own:
            return self.notes
        text = f"{images.FILE}: images of {size} pixels are shown to a model of {own}"
        how = "train with init_from, model.image_size and data.size to change its positions"
        return [*self.notes, f"{text}; {how}"] if size else self.notes


_NO_IMAGES = _Images({}, {}, [])


def _images(family: Family, contents: dict[str, bytes], where: str) -> _Images:
    mean, std = family.pixels
    if images.FILE not in contents:
        note = f"no {images.FILE}: model.mean and model.std are those usual for {family.name}"
        return _Images({"mean": mean, "std": std}, {}, [note])
    processor = images.read(contents[images.FILE], where)
    model: dict[str, Any] = {"mean": processor.mean or mean, "std": processor.std or std}
    view, notes = processor.view, processor.notes
    if view is None:
        return _Images(model, {}, notes)
    data = {"crop": view.crop, "keep_ratio": view.keep_ratio}
    return _Images({**model, "image_size": view.size}, data, notes)


def _check_channels(model: dict[str, Any], given: bool) -> None:
    """One mean for each channel, or one for all. given: by the folder."""
    if len(model["mean"]) in (1, model["channels"]):
        return
    if given:
        raise UserError(
            f"{images.FILE}: image_mean has {len(model['mean'])} numbers, but num_channels in "
            f"config.json is {model['channels']}. They are from different models."
        )
    model.update(mean=(0.5,), std=(0.5,))


def _texts(folder: pathlib.Path, tensors: files.Tensors) -> dict[str, str]:
    index = {files.INDEX: tensors.index} if tensors.index else {}
    return {files.CONFIG: (folder / files.CONFIG).read_bytes().decode("utf-8"), **index}


def _layout(
    family: Family,
    tensors: files.Tensors,
    entries: dict[str, Entry],
    tied: dict[str, str],
    texts: dict[str, str],
) -> Layout:
    """Which tensors are parameters, copies of tied ones, buffers, or unknown."""
    tensor_of, copies, buffers, unknown = {}, {}, [], []
    for name in tensors.shapes:
        canonical = family.canonical(name)
        if canonical in tied:
            copies[canonical] = name
        elif canonical not in entries:
            (buffers if re.match(family.redundant, canonical) else unknown).append(name)
        elif not entries[canonical].parts:
            buffers.append(name)
        elif canonical in tensor_of:
            raise UserError(
                f"{tensor_of[canonical]} and {name} are the same tensor under an old and a "
                "new name. Remove one of them."
            )
        else:
            tensor_of[canonical] = name
    same = {}
    for copy, name in copies.items():
        original = tied[copy]
        if original not in entries:  # of a head that the architecture does not have
            unknown.append(name)
        elif original not in tensor_of:
            tensor_of[original] = name
        elif _same_bytes(tensors, name, tensor_of[original]):
            same[name] = tensor_of[original]
        else:
            buffers.append(name)
    return Layout(
        texts,
        tensors.headers,
        {name: entry for entry, name in tensor_of.items()},
        same,
        buffers,
        unknown,
    )


def _same_bytes(tensors: files.Tensors, name: str, original: str) -> bool:
    """Whether a tied copy has the same bytes as its original: another dtype has other bytes.

    Raises UserError if the numbers differ.
    """
    kind = lambda n: (tensors.dtypes[n], tensors.shapes[n])
    if kind(name) == kind(original) and np.array_equal(tensors.raw(name), tensors.raw(original)):
        return True
    if not np.array_equal(tensors.read(name), tensors.read(original)):
        raise UserError(
            f"{name} differs from {original}, but config.json ties them, so "
            "bigjax's model has one array for both. Set tie_word_embeddings to false in "
            "config.json if the family has it, or save the model again."
        )
    return False


def _check_forms(entries: dict[str, Entry], tensor_of: dict[str, str]) -> None:
    """Raises UserError for a parameter in tensors of two versions."""
    seen: dict[str, str] = {}
    for entry, name in tensor_of.items():
        for ours, _ in entries[entry].parts:
            if ours in seen:
                raise UserError(
                    f"{seen[ours]} and {name} hold the same weights in an old and a new form. "
                    "Remove one of them."
                )
            seen[ours] = name


def _check_shapes(
    entries: dict[str, Entry], tensor_of: dict[str, str], tensors: files.Tensors
) -> None:
    for canonical, name in tensor_of.items():
        expected, shape = entries[canonical].shape, tensors.shapes[name]
        if shape != expected:
            raise UserError(
                f"tensor {name} has shape {shape}, but by config.json it must be {expected}. "
                "They are from different models: copy both from the same one."
            )
        if tensors.dtypes[name] not in files.DTYPES:
            tensors.read(name)  # raises the error that explains it
