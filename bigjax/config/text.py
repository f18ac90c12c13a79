"""Configs as text: overrides from the command line, printing, the copy in a work folder."""

import json

from absl import flags
from ml_collections import ConfigDict, config_flags

from bigjax.config.checks import check_keys, get, nearest
from bigjax.config.keys import OPEN_SECTIONS, evaluation, new_config
from bigjax.errors import UserError


def override(config: ConfigDict, arguments: list[str], extra_fields: dict[str, dict]) -> list[str]:
    """Applies --config.KEY=VALUE arguments in place and returns the keys they set.

    extra_fields: {'model': {field: default}, ...}: fields that may be set though the file leaves
    them at their default.
    """
    keys = []
    for argument in arguments:
        key, equals, _ = argument.removeprefix("--config.").partition("=")
        if not equals:
            raise UserError(f"{argument}: write it as {argument}=VALUE.")
        keys.append(key)
        section, _, field = key.partition(".")
        if field in extra_fields.get(section, {}) and field not in config[section]:
            with config.unlocked():
                config[section][field] = extra_fields[section][field]
        if key.startswith("train.compiler_options."):  # any: the compiler knows which there are
            options, name = config.train.compiler_options, key.rpartition(".")[2]
            with config.unlocked():
                options[name] = options.get(name, "")
        _require(config, key, extra_fields)
    for key, argument in zip(keys, arguments):  # one at a time: the message names the wrong one
        values = flags.FlagValues()
        try:
            config_flags.DEFINE_config_dict(
                "config", config, flag_values=values, sys_argv=["bigjax", argument]
            )
            values(["bigjax", argument])
        except (flags.Error, ValueError, TypeError, SyntaxError) as e:
            raise UserError(
                f"{argument}: config.{key} takes a value of type "
                f"{type(get(config, key)).__name__}. {e}"
            ) from e
    return keys


def _require(config: ConfigDict, key: str, extra_fields: dict[str, dict]) -> None:
    node, parts = config, key.split(".")
    for i, part in enumerate(parts):
        if not isinstance(node, ConfigDict) or part not in node:
            allowed = list(node) if isinstance(node, ConfigDict) else []
            if i == 1:
                allowed += [f for f in extra_fields.get(parts[0], {}) if f not in allowed]
            raise UserError(f"Unknown config key {key!r}. {nearest(part, allowed)}")
        node = node[part]


def describe(config: ConfigDict, overridden: dict[str, object], color: bool = False) -> str:
    """The config as text, one key a line; overridden maps keys to what the file had."""
    lines = []
    for key, value in sorted_leaves(config):
        line = f"{key} = {value!r}"
        if key in overridden:
            line += f"   # overridden, was {overridden[key]!r}"
            line = f"\033[1m{line}\033[0m" if color else line
        lines.append(line)
    return "\n".join(lines)


def sorted_leaves(config: ConfigDict, prefix: str = "") -> list[tuple[str, object]]:
    """(dotted key, value) of every leaf, in the order of the file."""
    out = []
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            out += sorted_leaves(value, f"{prefix}{key}.")
        else:
            out.append((prefix + key, value))
    return out


def to_json(config: ConfigDict) -> str:
    return json.dumps(config.to_dict(), indent=2)


def from_json(text: str, where: str) -> ConfigDict:
    try:
        config = ConfigDict(json.loads(text))
    except json.JSONDecodeError as e:
        raise UserError(
            f"{where} is not readable JSON ({e}). It is written when a run starts; "
            "restore it, or start the run in a new work folder."
        ) from e
    _add_missing(config, new_config())
    for entry in config.get("evals", {}).values():
        _add_missing(entry, ConfigDict(evaluation(every=1)))
    check_keys(config)
    return config.lock()


def _add_missing(config: ConfigDict, defaults: ConfigDict, prefix: str = "") -> None:
    """Gives a config that an older version saved the keys that are new since."""
    for key, value in defaults.items():
        if key not in config:
            config[key] = value
        elif isinstance(value, ConfigDict) and prefix + key not in OPEN_SECTIONS:
            _add_missing(config[key], value, f"{prefix}{key}.")
