"""Which family, class, labels and parameters a model of transformers has."""

from collections.abc import Mapping
import json
import os
import pathlib
from typing import Any

from bigjax.errors import UserError
from bigjax.interop import bert, files, gpt2, llama
from bigjax.interop.mapping import Entry, Family
from bigjax.interop.origin import Layout

FAMILIES = {f.FAMILY.name: f.FAMILY for f in (bert, gpt2, llama)}


def is_huggingface(folder: str | os.PathLike) -> bool:
    """Whether folder has a config.json of transformers; that of a run has no model_type."""
    try:
        path = pathlib.Path(folder).expanduser() / files.CONFIG
        config = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and isinstance(config.get("model_type"), str)


def family_and_class(config: dict) -> tuple[Family, str]:
    """(family, class of transformers) of a config.json. UserError if it is not supported."""
    kind, names = config.get("model_type"), config.get("architectures") or []
    supported = "; ".join(f"{f.name}: {', '.join(f.architectures)}" for f in FAMILIES.values())
    if kind not in FAMILIES:
        raise UserError(f"config.json: model_type is {kind!r}; supported are {supported}.")
    if len(names) != 1 or names[0] not in FAMILIES[kind].architectures:
        classes = ", ".join(map(str, names)) or "empty"
        raise UserError(
            f"config.json: architectures is {classes}; supported are {supported}. It "
            "says which heads the model has: set it to the class that saved the tensors."
        )
    return FAMILIES[kind], names[0]


def labels_of(config: dict) -> tuple[str, ...]:
    """The names of a classifier's outputs, in order, from its config.json."""
    names = config.get("id2label")
    if names is None:
        n = config.get("num_labels", config.get("_num_labels", 2))
        if type(n) is not int or n < 1:
            raise UserError(f"config.json: num_labels is {n!r}; it must be a positive integer.")
        return tuple(f"LABEL_{i}" for i in range(n))
    try:
        names = {int(i): str(label) for i, label in names.items()}
        return tuple(names[i] for i in range(len(names)))
    except (AttributeError, ValueError, KeyError):
        raise UserError(
            f"config.json: id2label is {names!r}; it must map the integers "
            "from 0, without gaps, to names."
        ) from None


def kind_of(config: dict) -> str:
    """'classify' or 'regress': the kind of a sequence classifier, from its config.json."""
    problem = config.get("problem_type")
    if problem == "multi_label_classification":
        raise UserError(
            "config.json: problem_type is 'multi_label_classification', which is not supported: "
            "the task classify predicts one label or one number per example."
        )
    one_output = problem is None and len(labels_of(config)) == 1
    return "regress" if one_output or problem == "regression" else "classify"


def task_of(family: Family, architecture: str, config: dict) -> dict[str, Any]:
    """config.task from a config.json."""
    task = dict(family.architectures[architecture].task)
    if task["name"] == "classify":
        task.update(kind=kind_of(config), labels=labels_of(config))
    elif task["name"] == "tag":
        task.update(labels=labels_of(config))
    return task


def family_of(model: Mapping[str, Any]) -> str:
    """The family of a config.model (its name and all fields).

    Raises UserError, naming the keys, for a model for which transformers has no class.
    """
    mine = [f for f in FAMILIES.values() if f.model == model["name"]]
    misfits = {f.name: f.misfits(model) for f in mine}
    for name, wrong in misfits.items():
        if not wrong:
            return name
    if not mine:
        raise UserError(
            f"model.name={model['name']!r} has no counterpart in transformers; "
            f"supported: {', '.join(sorted({f.model for f in FAMILIES.values()}))}."
        )
    raise UserError(
        "transformers has no class for this model: "
        + "; ".join(f"for {name}, {', '.join(wrong)}" for name, wrong in misfits.items())
        + "."
    )


def architecture_of(family: str, names) -> str:
    """The class of transformers that has these parameters, decided by their heads."""
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
    """The parameters, by our names, that an architecture or a layout contains."""
    entries = entries_of(FAMILIES[family], architecture, model, n_labels, layout)
    return [name for e in entries for name, _ in e.parts]


def entries_of(
    family: Family,
    architecture: str,
    model: Mapping[str, Any],
    n_labels: int,
    layout: Layout | None,
) -> list[Entry]:
    """The tensors of an architecture; with a layout, those that its files contain."""
    own = family.entries(architecture, dict(model), n_labels)
    if layout is None:
        return own
    held = set(layout.entries.values())
    return [e for e in own + family.others(architecture, dict(model), n_labels) if e.name in held]
