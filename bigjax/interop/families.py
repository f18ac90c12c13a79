"""Which family, class and parameters a model of transformers has."""

from collections.abc import Iterable, Mapping
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


def architecture_of(family: str, names: Iterable[str]) -> str:
    """The class of transformers that has these parameters, decided by their heads."""
    return FAMILIES[family].architecture_of(names)


def requires(
    family: str,
    architecture: str,
    model: Mapping[str, Any],
    layout: Layout | None = None,
) -> list[str]:
    """The parameters, by our names, that an architecture or a layout contains."""
    entries = entries_of(FAMILIES[family], architecture, model, 2, layout)  # any number of labels
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
