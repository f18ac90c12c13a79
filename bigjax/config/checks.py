"""Refusing configs that no run can use, and dataclasses from their sections."""

from collections.abc import Callable
import dataclasses
import difflib
import fnmatch
import re
import typing

from ml_collections import ConfigDict

from bigjax import paths
from bigjax.config.bounds import check_number, range_of
from bigjax.config.keys import ELEMENTS, OPEN_SECTIONS, evaluation, new_config, text_source
from bigjax.errors import UserError

_TYPES = {bool: "True or False", int: "a whole number", float: "a number", str: "a text"}


def nearest(key: str, allowed) -> str:
    """'Did you mean X?' or the list of what is allowed."""
    near = difflib.get_close_matches(key, list(allowed), n=1, cutoff=0.5)
    return f"Did you mean {near[0]!r}?" if near else f"Allowed: {', '.join(sorted(allowed))}."


def check_keys(config: ConfigDict) -> None:
    """Refuses keys and types that are not those of new_config(), outside model and task, and names
    of evaluations and sources that cannot be those of folders.

    An int where a float is wanted becomes one, in place.
    """

    def walk(have, want, prefix):
        for key in have:
            if key not in want:
                raise UserError(f"Unknown config key {prefix + key!r}. {nearest(key, want)}")
        for key, value in want.items():
            name = prefix + key
            if key not in have:
                raise UserError(
                    f"The config lacks the key {name!r}: start from bigjax.config.new_config()."
                )
            _check_type(have, key, value, name)
            if isinstance(value, ConfigDict) and name not in OPEN_SECTIONS:
                walk(have[key], value, name + ".")

    walk(config, new_config(), "")
    for section, template in (
        ("evals", evaluation(every=1)),
        ("data.sources", text_source("text")),
    ):
        entries = config.evals if section == "evals" else config.data.sources
        for name, entry in entries.items():
            paths.check_file_name(name, f"a name in config.{section}")
            if not isinstance(entry, ConfigDict):
                raise UserError(f"config.{section}.{name} is a section, but was set to {entry!r}.")
            for key in set(entry) ^ set(template):
                raise UserError(
                    f"config.{section}.{name}: key {key!r} is "
                    + (f"unknown. {nearest(key, template)}" if key in entry else "missing.")
                )
            for key, value in template.items():
                _check_type(entry, key, value, f"{section}.{name}.{key}")
    for section in ("model", "task"):
        if not isinstance(config[section].get("name"), str):
            raise UserError(f"config.{section}.name is missing: the module, such as 'gpt'.")


def _check_type(node: ConfigDict, key: str, like, name: str) -> None:
    """Refuses a value of another type than `like` has."""
    value = node[key]
    if isinstance(like, ConfigDict):
        if not isinstance(value, ConfigDict):
            raise UserError(f"config.{name} is a section, but was set to {value!r}.")
    elif isinstance(like, list):
        if not isinstance(value, (list, tuple)):
            raise UserError(f"config.{name} must be a list, but is {value!r}.")
        element = type_of(name, like)
        with node.unlocked(), node.ignore_type():
            node[key] = [
                _converted(entry, element, f"config.{name}, entry {i}")
                for i, entry in enumerate(value)
            ]
    else:
        value = _converted(value, type(like), f"config.{name}")
        if value is not node[key]:
            with node.unlocked(), node.ignore_type():
                node[key] = value


def type_of(key: str, value):
    """The type of a key's value; of the entries where it is a list (config.keys.ELEMENTS)."""
    if not isinstance(value, (list, tuple)):
        return type(value)
    return next(t for pattern, t in ELEMENTS.items() if fnmatch.fnmatchcase(key, pattern))


def _converted(value, want: type, where: str):
    """The value, if it is of this type, or an int where a float is wanted."""
    if want is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            raise UserError(f"{where} is {value}; it must be a finite number.") from None
    if type(value) is not want:
        hint = f": write {str(value)!r}" if want is str and value is not None else ""
        raise UserError(
            f"{where} must be {_TYPES.get(want, want.__name__)}, but is {type(value).__name__} "
            f"{value!r}{hint}."
        )
    return value


def check_numbers(config: ConfigDict, used: Callable[[str], bool]) -> None:
    """Refuses numbers that no run can use, under the keys that are used."""
    for key, value in sorted_leaves(config):
        # Those of a model and a task are seen to by their Config dataclasses.
        if not key.startswith(("model.", "task.")) and used(key):
            check_number(key, value, range_of(key))


def check_values(config: ConfigDict) -> None:
    """Refuses numbers and names that no run can use."""
    check_numbers(config, lambda key: True)
    if config.train.batch_size % config.train.accumulate:
        raise UserError(
            f"train.batch_size={config.train.batch_size} does not divide into "
            f"train.accumulate={config.train.accumulate} micro-batches."
        )
    span = config.train.profile
    if span:
        found = re.fullmatch(r"(\d+):(\d+)", span)
        if not found or not 1 <= int(found[1]) <= int(found[2]) <= config.train.steps:
            raise UserError(
                f"train.profile is {span!r}; it must be FIRST:LAST, two steps from 1 "
                f"to train.steps={config.train.steps}, such as '10:12', or ''."
            )
    for name, entry in config.evals.items():
        if config.checkpoint.best.startswith(f"eval/{name}/") and (
            entry.every % config.checkpoint.every
        ):
            raise UserError(
                f"checkpoint.best={config.checkpoint.best!r} can only keep what is saved: "
                f"evals.{name}.every={entry.every} must be a multiple of "
                f"checkpoint.every={config.checkpoint.every}."
            )
    for key in ("train.early_stop.metric", "checkpoint.best"):
        metric = get(config, key)
        known = [f"eval/{n}/" for n, e in config.evals.items() if e.kind != "sample"]
        if metric and not metric.startswith(tuple(known)):
            raise UserError(
                f"config.{key}={metric!r} is no metric of an evaluation: it must "
                f"begin with one of {known}."
            )
    for key in ("train.early_stop.mode", "checkpoint.best_mode"):
        if get(config, key) not in ("min", "max"):
            raise UserError(f"config.{key} is {get(config, key)!r}; allowed: min, max.")


def sorted_leaves(config: ConfigDict, prefix: str = "") -> list[tuple[str, object]]:
    """(dotted key, value) of every leaf, in the order of the file."""
    out = []
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            out += sorted_leaves(value, f"{prefix}{key}.")
        else:
            out.append((prefix + key, value))
    return out


def get(config: ConfigDict, key: str):
    """The value at a dotted key."""
    for part in key.split("."):
        config = config[part]
    return config


def build(cls, section: ConfigDict, where: str, *, preset: dict | None = None):
    """A dataclass from a config section, checked key by key.

    section's values win over preset's, preset's over cls's defaults. The keys `name` and
    `preset` choose the module and the preset and are not fields.
    Raises UserError for an unknown key (naming the nearest) and for a wrong type.
    """
    types = typing.get_type_hints(cls)
    fields = [f.name for f in dataclasses.fields(cls)]
    values = dict(preset or {})
    for key, value in section.items():
        if key in ("name", "preset"):
            continue
        if key not in fields:
            raise UserError(f"Unknown config key '{where}.{key}'. {nearest(key, fields)}")
        values[key] = _field(value, types[key], f"config.{where}.{key}")
        check_number(f"{where}.{key}", values[key], None)
    return cls(**values)


def _field(value, want, where: str):
    """The value of a field of this type: a bool, int, float, str, or a tuple of one of them."""
    if typing.get_origin(want) is not tuple:
        return _converted(value, want, where)
    if not isinstance(value, (tuple, list)):
        raise UserError(
            f"{where} must be a tuple, but is {type(value).__name__} {value!r}. One entry is "
            f"written ({value!r},)."
        )
    element = typing.get_args(want)[0]
    return tuple(_converted(x, element, f"{where}, entry {i}") for i, x in enumerate(value))
