"""Models of Hugging Face transformers, both ways. A leaf: no model, no trainer, no torch.

Folders are those of `save_pretrained`: config.json, safetensors files, and a tokenizer's files.
Parameters have the names and shapes of bigjax's unrolled form, such as
'stack/layer_0/attention/query/kernel'.
"""

from collections.abc import Callable, Mapping
import dataclasses
import json
import os
import pathlib
import re
from typing import Any

import numpy as np

from bigjax.errors import UserError
from bigjax.interop import bert, files, gpt2, llama, origin, tokenizers
from bigjax.interop.files import MAX_SHARD_BYTES, local, new_folder
from bigjax.interop.mapping import Entry, Family
from bigjax.interop.origin import Layout, kept_parameters

__all__ = [
    "FAMILIES",
    "MAX_SHARD_BYTES",
    "Imported",
    "Layout",
    "architecture_of",
    "check_dtype",
    "family_of",
    "is_huggingface",
    "kept_parameters",
    "new_folder",
    "read",
    "requires",
    "with_dtype",
    "write",
]

FAMILIES = {f.FAMILY.name: f.FAMILY for f in (bert, gpt2, llama)}
_ARCHITECTURES = {name: f for f in FAMILIES.values() for name in f.architectures}


def is_huggingface(folder: str | os.PathLike) -> bool:
    """Whether folder has a config.json of transformers (a run's own has no model_type)."""
    try:
        path = pathlib.Path(folder).expanduser() / files.CONFIG
        config = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and isinstance(config.get("model_type"), str)


@dataclasses.dataclass
class Imported:
    """A model in a Hugging Face folder; its tensors are read one at a time, by `load`.

    family: 'bert', 'gpt2' or 'llama'; architecture: the class of transformers. config: its
    config.json. model, task: for config.model and config.task. tokenizer_kind: 'wordpiece', 'bpe',
    'sentencepiece', or '' if there is none that we read. tokenizer_files: {name: content}, and
    derived_files what we need and the folder lacks. dtype: of all tensors, or 'float32' if they
    differ; dtypes: {our name: its own} then. names: the parameters that are there; shapes: theirs;
    missing: those that the architecture has and the folder lacks. other_files: what the folder has
    besides. notes: settings that have no place. metadata: of the (first) file of tensors. layout:
    all tensors by their names in the files, unknown ones too.
    """

    folder: pathlib.Path
    family: str
    architecture: str
    config: dict
    model: dict[str, Any]
    task: dict[str, Any]
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
    _entry: dict[str, tuple[Entry, str]]  # by our name, with the name in the file
    _last: tuple[str, dict] = ("", {})

    def load(self, name: str) -> np.ndarray:
        """A parameter in our layout and its own type. UserError if the file is damaged."""
        entry, theirs = self._entry[name]
        if self._last[0] != theirs:  # one tensor of theirs may hold several
            self._last = theirs, entry.to_ours(self._tensors.read(theirs))
        return self._last[1][name]

    def raw(self, name: str) -> np.ndarray:
        """The bytes of a tensor of any type, by its name in the files."""
        return self._tensors.raw(name)

    @property
    def unknown(self) -> list[str]:
        """Tensors that have no place."""
        return self.layout.unknown


def read(folder: str | os.PathLike) -> Imported:
    """Opens a folder and checks every shape; no tensor is read but copies that should be equal.

    Raises UserError for a model that we do not have, naming the setting; for files that are
    missing, cut short or not safetensors; and for tensors whose shape or type is not that of
    config.json.
    """
    folder = local(folder)
    config = files.read_config(folder)
    family, architecture = _which(config)
    model = family.model_fields(config)
    labels = _labels(config)
    tensors = files.Tensors(folder)
    own = family.entries(architecture, model, len(labels))
    entries = {e.name: e for e in own + family.others(architecture, model, len(labels))}
    layout = _place(family, tensors, entries, family.tied(model), _texts(folder, tensors))
    found = {row: name for name, row in layout.entries.items()}
    _check_shapes(entries, found, tensors)
    dtypes = {
        name: tensors.dtypes[found[e.name]]
        for e in entries.values()
        if e.name in found
        for name, _ in e.parts
    }
    kinds = set(dtypes.values())
    contents = tokenizers.read(folder)
    return Imported(
        folder,
        family.name,
        architecture,
        config,
        model,
        _task(family, architecture, config),
        tokenizers.kind(contents),
        contents,
        tokenizers.derived(contents),
        kinds.pop() if len(kinds) == 1 else "float32",
        dtypes if len(kinds) > 1 else {},
        list(dtypes),
        {n: s for e in entries.values() if e.name in found for n, s in e.parts},
        [n for e in own if e.name not in found for n, _ in e.parts],
        sorted({p.name for p in folder.iterdir()} - {*layout.texts, *layout.headers, *contents}),
        family.notes(config),
        tensors.metadata,
        layout,
        tensors,
        {n: (e, found[e.name]) for e in entries.values() if e.name in found for n, _ in e.parts},
    )


def _which(config: dict) -> tuple[Family, str]:
    kind, names = config.get("model_type"), config.get("architectures") or []
    supported = "; ".join(f"{f.name}: {', '.join(f.architectures)}" for f in FAMILIES.values())
    if kind not in FAMILIES:
        raise UserError(f"config.json: model_type is {kind!r}; supported are {supported}.")
    if len(names) != 1 or names[0] not in FAMILIES[kind].architectures:
        found = ", ".join(map(str, names)) or "empty"
        raise UserError(
            f"config.json: architectures is {found}; supported are {supported}. It "
            "says which heads the tensors have: set it to the class that saved them."
        )
    return FAMILIES[kind], names[0]


def _labels(config: dict) -> tuple[str, ...]:
    """The names of a classifier's outputs, in their order."""
    names = config.get("id2label")
    if names is None:
        n = config.get("num_labels", config.get("_num_labels", 2))
        if type(n) is not int or n < 1:
            raise UserError(
                f"config.json: num_labels is {n!r}; it has to be a positive whole number."
            )
        return tuple(f"LABEL_{i}" for i in range(n))
    try:
        names = {int(i): str(label) for i, label in names.items()}
        return tuple(names[i] for i in range(len(names)))
    except (AttributeError, ValueError, KeyError):
        raise UserError(
            f"config.json: id2label is {names!r}; it has to be an object of numbers "
            "from 0, without gaps, and names."
        ) from None


def _task(family: Family, architecture: str, config: dict) -> dict[str, Any]:
    task = dict(family.architectures[architecture].task)
    if task["name"] == "classify":
        task.update(kind=_kind(config), labels=_labels(config))
    elif task["name"] == "tag":
        task.update(labels=_labels(config))
    return task


def _kind(config: dict) -> str:
    """'classify' or 'regress'."""
    problem = config.get("problem_type")
    if problem == "multi_label_classification":
        raise UserError(
            "config.json: problem_type is 'multi_label_classification'; the task "
            "classify has one label an example, or a number."
        )
    alone = problem is None and len(_labels(config)) == 1
    return "regress" if alone or problem == "regression" else "classify"


def _texts(folder: pathlib.Path, tensors: files.Tensors) -> dict[str, str]:
    index = {files.INDEX: tensors.index} if tensors.index else {}
    return {files.CONFIG: (folder / files.CONFIG).read_bytes().decode("utf-8"), **index}


def _place(
    family: Family,
    tensors: files.Tensors,
    entries: dict[str, Entry],
    tied: dict[str, str],
    texts: dict[str, str],
) -> Layout:
    """What each tensor is."""
    found, copies, buffers, unknown = {}, {}, [], []
    for name in tensors.shapes:
        canonical = family.canonical(name)
        if canonical in tied:
            copies[canonical] = name
        elif canonical not in entries:
            (buffers if re.match(family.redundant, canonical) else unknown).append(name)
        elif canonical in found:
            raise UserError(
                f"{found[canonical]} and {name} are the same tensor under an old and a "
                "new name. Remove one."
            )
        else:
            found[canonical] = name
    same = {}
    for copy, name in copies.items():
        original = tied[copy]
        if original not in entries:  # of a head that is not here either
            unknown.append(name)
        elif original not in found:
            found[original] = name
        elif _same_bytes(tensors, name, found[original]):
            same[name] = found[original]
        else:
            buffers.append(name)
    return Layout(
        texts, tensors.headers, {name: row for row, name in found.items()}, same, buffers, unknown
    )


def _same_bytes(tensors: files.Tensors, name: str, original: str) -> bool:
    """Whether a tied copy has the original's bytes, not only its numbers (of another type, say)."""
    kind = lambda n: (tensors.dtypes[n], tensors.shapes[n])
    if kind(name) == kind(original) and np.array_equal(tensors.raw(name), tensors.raw(original)):
        return True
    if not np.array_equal(tensors.read(name), tensors.read(original)):
        raise UserError(
            f"{name} differs from {original}, but config.json ties them: in bigjax's "
            "model they are one array. Set tie_word_embeddings to false in config.json "
            "if the family has it, or save the model again."
        )
    return False


def _check_shapes(entries: dict[str, Entry], found: dict[str, str], tensors: files.Tensors) -> None:
    for canonical, name in found.items():
        want, have = entries[canonical].shape, tensors.shapes[name]
        if have != want:
            raise UserError(
                f"tensor {name} has the shape {have}; config.json makes it {want}. "
                "They are of different models: copy both from the same place."
            )
        if tensors.dtypes[name] not in files.DTYPES:
            tensors.read(name)  # says why not


# --- Writing ---------------------------------------------------------------------------------


def family_of(model: Mapping[str, Any]) -> str:
    """The family that a config.model (name and all fields) belongs to.

    Raises UserError, naming the keys, for a model that transformers has no class for.
    """
    mine = [f for f in FAMILIES.values() if f.model == model["name"]]
    misfits = {f.name: f.misfits(model) for f in mine}
    for name, wrong in misfits.items():
        if not wrong:
            return name
    if not mine:
        raise UserError(
            f"model.name={model['name']!r} has no counterpart in transformers; "
            f"{', '.join(sorted({f.model for f in FAMILIES.values()}))} have."
        )
    raise UserError(
        "transformers has no class for this model: "
        + "; ".join(f"for {name}, {', '.join(wrong)}" for name, wrong in misfits.items())
        + "."
    )


def architecture_of(family: str, names) -> str:
    """The class of transformers that has these parameters, the heads deciding."""
    heads = {name.split("/")[0] for name in names}
    by_head = {
        "classifier": "BertForSequenceClassification",
        "span": "BertForQuestionAnswering",
        "tagger": "BertForTokenClassification",
        "nsp": "BertForPreTraining",
        "mlm": "BertForMaskedLM",
    }
    if family == "bert":
        return next((a for head, a in by_head.items() if head in heads), "BertModel")
    return {"gpt2": "GPT2LMHeadModel", "llama": "LlamaForCausalLM"}[family]


def requires(
    family: str,
    architecture: str,
    model: Mapping[str, Any],
    n_labels: int,
    layout: Layout | None = None,
) -> list[str]:
    """Our names of the parameters that an architecture has, or that a layout has."""
    entries = _entries(FAMILIES[family], architecture, model, n_labels, layout)
    return [name for e in entries for name, _ in e.parts]


def _entries(
    family: Family,
    architecture: str,
    model: Mapping[str, Any],
    n_labels: int,
    layout: Layout | None,
) -> list[Entry]:
    own = family.entries(architecture, dict(model), n_labels)
    if layout is None:
        return own
    held = set(layout.entries.values())
    return [e for e in own + family.others(architecture, dict(model), n_labels) if e.name in held]


def check_dtype(dtype: str) -> str:
    if dtype not in files.DTYPES:
        raise UserError(f"dtype is {dtype!r}; allowed: {', '.join(files.DTYPES)}.")
    return dtype


def write(
    folder: str | os.PathLike,
    *,
    family: str,
    architecture: str,
    model: Mapping[str, Any],
    params: Mapping[str, np.ndarray],
    labels: tuple[str, ...] = (),
    kind: str = "",
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
    """Writes a folder that transformers opens, whole or not at all; returns its files.

    params: by our unrolled names, of which those of the architecture are taken; may be lazy.
    labels: of a classifier's outputs. kind: 'classify' or 'regress', of a sequence classifier.
    dtype: of the tensors; dtypes: {our name: another}. extra_files: written as they are.
    config: an original config.json, whose keys are kept where the model did not change (dtype too:
    see with_dtype); without one, extra_config holds keys for the new one, such as token ids.
    layout, raw: of an original whose parameters these are, and its other tensors' bytes: the same
    files are written, in the types that they had. With max_shard_bytes they are new ones, under
    today's names, of all that the original has but copies and buffers.
    Raises UserError if a parameter is missing or of another shape than model says, if a number
    is too large for float16, or if folder has something in it.
    """
    table, dtypes = FAMILIES[family], dtypes or {}
    check_dtype(dtype)
    entries = _entries(table, architecture, model, len(labels) or 2, layout)
    missing = [name for e in entries for name, _ in e.parts if name not in params]
    if missing:
        raise UserError(
            f"{architecture} needs {len(missing)} parameter(s) that this model does "
            f"not have: {', '.join(missing[:5])}."
        )
    out = _config(table, architecture, model, labels, kind, dtype, config, extra_config or {})
    with new_folder(folder) as temporary:
        if layout and max_shard_bytes is None:
            names = origin.replay(temporary, layout, entries, params, raw)
        else:
            planned = [_planned(table, architecture, e, params, dtypes, dtype) for e in entries]
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


def _write_config(path: pathlib.Path, config: dict, layout: Layout | None) -> None:
    """The original's text where it says the same."""
    if layout and json.loads(layout.texts[files.CONFIG].encode()) == config:
        path.write_bytes(layout.texts[files.CONFIG].encode("utf-8"))
    else:
        files.write_json(path, config)


def with_dtype(config: dict, dtype: str) -> dict:
    """A config.json that says this type (transformers 4 wrote it as torch_dtype)."""
    return {**config, "torch_dtype" if "torch_dtype" in config else "dtype": dtype}


def _config(
    family: Family,
    architecture: str,
    model: Mapping[str, Any],
    labels: tuple[str, ...],
    kind: str,
    dtype: str,
    original: dict | None,
    extra: Mapping[str, Any],
) -> dict:
    """config.json: every key of the original that still says what is so."""
    out = {**family.put_fields(dict(model), original), **({} if original else extra)}
    if out.get("architectures") != [architecture]:
        out["architectures"] = [architecture]
    if labels and labels != _labels(out):
        out.update(
            id2label={str(i): label for i, label in enumerate(labels)},
            label2id={label: i for i, label in enumerate(labels)},
        )
        out.pop("num_labels", None)
    if kind and kind != _kind(out):
        out["problem_type"] = "regression" if kind == "regress" else "single_label_classification"
    return with_dtype(out, dtype) if original is None else out
