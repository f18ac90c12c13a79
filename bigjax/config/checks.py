"""Checks of configs, and dataclasses from their sections."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import difflib
import re
import typing

from ml_collections import ConfigDict

from bigjax import paths
from bigjax.bounds import check_number, check_ranges
from bigjax.config.keys import OPEN_SECTIONS, new_config, range_of
from bigjax.errors import UserError

_SELECTING = ("name", "preset", "kind", "every")
_TYPES = {bool: "True or False", int: "an integer", float: "a number", str: "a string"}


def nearest(key: str, allowed) -> str:
    """'Did you mean X?', or the list of allowed keys."""
    near = difflib.get_close_matches(key, list(allowed), n=1, cutoff=0.5)
    return f"Did you mean {near[0]!r}?" if near else f"Allowed: {', '.join(sorted(allowed))}."


def check_keys(config: ConfigDict) -> None:
    """Raises UserError for keys and types that differ from new_config(), outside of the sections
    that modules own, and for names of evaluations that are not valid names of folders.

    An int is converted to float in place where a float is expected, a list to a tuple.
    """

    def walk(have, want, prefix):
        for key in have:
            if key not in want:
                raise UserError(f"Unknown config key {prefix + key!r}. {nearest(key, want)}")
        for key, value in want.items():
            name = prefix + key
            if key not in have:
                raise UserError(
                    f"The config key {name!r} is missing: start from bigjax.config.new_config()."
                )
            _check_type(have, key, value, name)
            if isinstance(value, ConfigDict) and name not in OPEN_SECTIONS:
                walk(have[key], value, name + ".")

    walk(config, new_config(), "")
    for name, entry in config.evals.items():
        paths.check_file_name(name, "a name in config.evals")
        if not isinstance(entry, ConfigDict):
            raise UserError(f"config.evals.{name} is a section, but was set to {entry!r}.")
        for key, value in (("kind", "loss"), ("every", 1)):
            if key not in entry:
                raise UserError(f"config.evals.{name}: key {key!r} is missing.")
            _check_type(entry, key, value, f"evals.{name}.{key}")
    for section in ("model", "task", "data"):
        if not isinstance(config[section].get("name"), str):
            raise UserError(f"config.{section}.name is missing: the module, such as 'gpt'.")


def _check_type(node: ConfigDict, key: str, like, name: str) -> None:
    """Raises UserError if the value does not have the type of `like`."""
    value = node[key]
    if isinstance(like, ConfigDict):
        if not isinstance(value, ConfigDict):
            raise UserError(f"config.{name} is a section, but was set to {value!r}.")
    else:
        value = _converted(value, type(like), f"config.{name}")
        if value is not node[key]:
            with node.unlocked():
                del node[key]  # else a ConfigDict converts a tuple back to the list that was there
                node[key] = value


def _converted(value, want: type, where: str):
    """The value, if it has this type; an int becomes a float where a float is expected."""
    if want is tuple and isinstance(value, list):  # of JSON
        return tuple(value)
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
    """Raises UserError for numbers out of range, under the keys for which used(key) is True."""
    for key, value in sorted_leaves(config):
        # Those of modules are checked by their Config dataclasses.
        if not key.startswith(("model.", "task.", "data.")) and used(key):
            check_number(key, value, range_of(key))


def check_values(config: ConfigDict) -> None:
    """Raises UserError for numbers out of range and for names that are not allowed."""
    check_numbers(config, lambda key: True)
    if config.train.batch_size % config.train.accumulate:
        raise UserError(
            f"train.batch_size={config.train.batch_size} does not divide into "
            f"train.accumulate={config.train.accumulate} micro-batches."
        )
    span = config.train.profile
    if span:
        steps = re.fullmatch(r"(\d+):(\d+)", span)
        if not steps or not 1 <= int(steps[1]) <= int(steps[2]) <= config.train.steps:
            raise UserError(
                f"train.profile is {span!r}; it must be FIRST:LAST, two steps between 1 "
                f"and train.steps={config.train.steps}, such as '10:12', or ''."
            )
    for name, entry in config.evals.items():
        if config.checkpoint.best.startswith(f"eval/{name}/") and (
            entry.every % config.checkpoint.every
        ):
            raise UserError(
                f"checkpoint.best={config.checkpoint.best!r} can only keep saved steps: "
                f"evals.{name}.every={entry.every} must be a multiple of "
                f"checkpoint.every={config.checkpoint.every}."
            )
    for key in ("train.early_stop.metric", "checkpoint.best"):
        metric = get(config, key)
        known = [f"eval/{name}/" for name in config.evals]
        if metric and not metric.startswith(tuple(known)):
            raise UserError(
                f"config.{key}={metric!r} is not a metric of an evaluation: it must "
                f"start with one of {known}."
            )
    for key in ("train.early_stop.mode", "checkpoint.best_mode"):
        if get(config, key) not in ("min", "max"):
            raise UserError(f"config.{key} is {get(config, key)!r}; allowed: min, max.")


def sorted_leaves(
    config: ConfigDict, prefix: str = "", empty: bool = False
) -> list[tuple[str, object]]:
    """(dotted key, value) of every leaf, in the order of the file. empty: sections without keys
    are leaves with the value {}."""
    out: list[tuple[str, object]] = []
    for key, value in config.items():
        if not isinstance(value, ConfigDict):
            out.append((prefix + key, value))
        elif empty and not value:
            out.append((prefix + key, {}))
        else:
            out += sorted_leaves(value, f"{prefix}{key}.", empty)
    return out


def get(config: ConfigDict, key: str):
    """The value at a dotted key."""
    for part in key.split("."):
        config = config[part]
    return config


def build(
    cls,
    section: Mapping,
    where: str,
    *,
    preset: dict | None = None,
    own: Sequence[str] = (),
    complete: bool = True,
):
    """A dataclass from a config section, checked key by key.

    section's values override preset's, which override cls's defaults. The keys that select a module
    and when it runs (name, preset, kind and every of an evaluation), and those in `own`, are not
    fields unless cls has them. A field may be a dataclass or a dict[str, X], a section of its own;
    the other keys of a dataclass with MODULES belong to the module that it names. complete=False:
    other values follow later, so that cls does not check yet whether they go together.
    Raises UserError for an unknown key (naming the nearest), for a missing one without a default,
    for a wrong type, and for numbers outside of cls.RANGES.
    """
    types = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}
    values = dict(preset or {})
    for key, value in section.items():
        if key not in fields and (key in (*_SELECTING, *own) or hasattr(cls, "MODULES")):
            continue
        if key not in fields:
            raise UserError(f"Unknown config key '{where}.{key}'. {nearest(key, [*fields, *own])}")
        values[key] = _field(value, types[key], f"{where}.{key}", fields[key].default)
        check_number(f"{where}.{key}", values[key], None)
    for key, f in fields.items():
        required = f.default is f.default_factory is dataclasses.MISSING
        if required and key not in values:
            raise UserError(f"config.{where}.{key} is missing.")
        complete = complete or required  # no instance without it
    instance = cls(**values) if complete else cls()
    for key, value in () if complete else values.items():
        object.__setattr__(instance, key, value)
    if hasattr(cls, "RANGES"):
        check_ranges(where, instance)
    return instance


def _field(value, want, where: str, default=None):
    """The value of a field of this type: a bool, int, float or string, a tuple of one of them, a
    dataclass, or a dict[str, X] of these. default: of the field; its values are those of the keys
    that a section does not set."""
    origin, arguments = typing.get_origin(want), typing.get_args(want)
    if dataclasses.is_dataclass(want) or origin is dict:
        if not isinstance(value, (Mapping, ConfigDict)):
            raise UserError(f"config.{where} is a section, but was set to {value!r}.")
        if origin is not dict:
            own = dataclasses.asdict(default) if isinstance(default, want) else None
            return build(want, value, where, preset=own)
        for name in value:
            paths.check_file_name(name, f"a name in config.{where}")
        return {
            name: _field(entry, arguments[1], f"{where}.{name}") for name, entry in value.items()
        }
    if origin is not tuple:
        return _converted(value, want, f"config.{where}")
    if not isinstance(value, (tuple, list)):
        raise UserError(
            f"config.{where} must be a tuple, but is {type(value).__name__} {value!r}. One entry "
            f"is written ({value!r},)."
        )
    return tuple(
        _converted(x, arguments[0], f"config.{where}, entry {i}") for i, x in enumerate(value)
    )
