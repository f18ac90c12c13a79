"""Which family, class and parameters a model of transformers has."""

from collections.abc import Mapping
import json
import os
import pathlib
from typing import Any

from bigjax import modules
from bigjax.errors import UserError
from bigjax.interop import files, timm
from bigjax.interop.mapping import Entry, Family
from bigjax.interop.origin import Layout


def of_model(name: str, python_path: str = "") -> dict[str, Family]:
    """{model_type: Family} that a module of config.model declares as HUGGING_FACE."""
    module = modules.find("models", name, "model.name", python_path)
    return {f.name: f for f in getattr(module, "HUGGING_FACE", ())}


def supported(model: str = "", python_path: str = "") -> dict[str, tuple[str, Family]]:
    """{model_type: (config.model.name, Family)} of bigjax's models, and of `model` if it is a
    project's or a user's."""
    names = [*modules.names("models"), *([model] if "." in model else [])]
    return {t: (name, f) for name in names for t, f in of_model(name, python_path).items()}


def is_huggingface(folder: str | os.PathLike) -> bool:
    """Whether folder has a config.json of transformers, or of timm; that of a run has no
    model_type."""
    try:
        path = pathlib.Path(folder).expanduser() / files.CONFIG
        config = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError):
        return False
    known = isinstance(config, dict) and isinstance(config.get("model_type"), str)
    return known or timm.is_config(config)


def family_and_class(
    config: dict, model: str = "", python_path: str = ""
) -> tuple[str, Family, str]:
    """(config.model.name, family, class of transformers) of a config.json.

    model, python_path: of the config, for a family of one's own. Raises UserError if it is not
    supported.
    """
    kind, names = config.get("model_type"), config.get("architectures") or []
    known = supported(model, python_path)
    text = "; ".join(f"{t}: {', '.join(f.architectures)}" for t, (_, f) in known.items())
    if kind not in known:
        raise UserError(
            f"config.json: model_type is {kind!r}; supported are {text}. Name a model of your own "
            "that declares it (HUGGING_FACE) by --config.model.name, and that of a task's frozen "
            "part by the field `model` of tasks.Frozen."
        )
    ours, family = known[kind]
    if len(names) != 1 or names[0] not in family.architectures:
        classes = ", ".join(map(str, names)) or "empty"
        raise UserError(
            f"config.json: architectures is {classes}; supported are {text}. It "
            "says which heads the model has: set it to the class that saved the tensors."
        )
    return ours, family, names[0]


def family_of(model: Mapping[str, Any], python_path: str = "", first: str = "") -> Family:
    """The family of a config.model (its name and all fields).

    python_path: of the config, for a family of one's own. first: the family that is preferred.
    Raises UserError, naming the keys, for a model for which transformers has no class.
    """
    families = of_model(model["name"], python_path)
    misfits = {name: f.misfits(model) for name, f in families.items()}
    for name in sorted(misfits, key=lambda name: name != first):
        if not misfits[name]:
            return families[name]
    if not misfits:
        names = sorted({name for name, _ in supported().values()})
        raise UserError(
            f"model.name={model['name']!r} has no counterpart in transformers; supported: "
            f"{', '.join(names)}. The module of a family of your own declares it by HUGGING_FACE."
        )
    fewest = min(map(len, misfits.values()))
    nearest = {name: wrong for name, wrong in misfits.items() if len(wrong) == fewest}
    raise UserError(
        "transformers has no class for this model: "
        + "; ".join(f"for {name}, {', '.join(wrong)}" for name, wrong in nearest.items())
        + "."
    )


def requires(
    family: Family,
    architecture: str,
    model: Mapping[str, Any],
    layout: Layout | None = None,
) -> list[str]:
    """The parameters, by our names, that an architecture or a layout contains."""
    n_labels = 2  # any number gives the same names
    entries = entries_of(family, architecture, model, n_labels, layout)
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
    held = set(layout.entries.values()) | {family.canonical(n) for n in layout.buffers}
    return [e for e in own + family.others(architecture, dict(model), n_labels) if e.name in held]
