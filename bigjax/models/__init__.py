"""Model families, one file each: `Config`, `Model`, `PRESETS`. A config names the module."""

from collections.abc import Collection
import dataclasses
import difflib
import importlib
import pathlib
import typing

from bigjax import config as config_lib
from bigjax.errors import UserError
from bigjax.layers.kernels import KERNELS
from bigjax.layers.stack import REMAT

_CHOICES = {
    "remat": REMAT,
    "attention": ("auto", *KERNELS),
    "dtype": ("float32", "bfloat16"),
    "param_dtype": ("float32", "bfloat16"),
}


def module(name: str):
    """bigjax.models.NAME, or a UserError that names what there is."""
    have = sorted(p.stem for p in pathlib.Path(__file__).parent.glob("*.py") if p.stem[0] != "_")
    if name not in have:
        raise UserError(f"There is no model {name!r}. {config_lib.nearest(name, have)}")
    return importlib.import_module(f"bigjax.models.{name}")


def preset(section) -> dict:
    """The published values that config.model.preset names; {} without one.

    'init_from' gives {} too: train/init_from.py puts in what it found.
    """
    presets = module(section.name).PRESETS
    name = section.get("preset", "")
    if name == "init_from":
        return {}
    if name and name not in presets:
        near = difflib.get_close_matches(name, presets, n=1)
        raise UserError(
            f"{section.name} has no preset {name!r}."
            + (f" Did you mean {near[0]!r}?" if near else "")
            + f" It has: {', '.join(presets)}."
        )
    return presets[name] if name else {}


def build_config(section):
    """The model's Config from config.model: its preset, then its own keys on top."""
    cls = module(section.name).Config
    return config_lib.build(cls, section, "model", preset=preset(section))


def check_fields(c, choices: dict[str, Collection[str]]) -> None:
    """Refuses names that no Config can have. choices: {field: values}, besides those of the fields
    that every family has."""
    for field, allowed in {**_CHOICES, **choices}.items():
        if getattr(c, field) not in allowed:
            raise UserError(
                f"model.{field} is {getattr(c, field)!r}; allowed: {', '.join(allowed)}."
            )


def all_fields(section) -> dict:
    """Every key of config.model with its value: name, preset and all fields of the Config."""
    values = dataclasses.asdict(build_config(section))
    return {"name": section.name, "preset": section.get("preset", ""), **values}


def field_types(section) -> dict:
    """{key: type} of the fields of the model's Config."""
    return typing.get_type_hints(module(section.name).Config)
