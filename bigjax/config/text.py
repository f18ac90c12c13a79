"""Configs as text: printed, and as JSON in a work folder."""

import json

from ml_collections import ConfigDict

from bigjax import json_text
from bigjax.config.checks import check_keys, sorted_leaves
from bigjax.config.keys import OPEN_SECTIONS, new_config
from bigjax.errors import UserError


def describe(config: ConfigDict, overridden: dict[str, object], color: bool = False) -> str:
    """The config as text, one key per line; overridden: {key: its value in the file}."""
    lines = []
    for key, value in sorted_leaves(config, empty=True):
        line = f"{key} = {value!r}"
        if key in overridden:
            line += f"   # overridden, was {overridden[key]!r}"
            line = f"\033[1m{line}\033[0m" if color else line
        lines.append(line)
    return "\n".join(lines)


def to_json(config: ConfigDict) -> str:
    """The config as the JSON of a work folder."""
    return json_text.dumps(config.to_dict(), indent=2)


def from_json(text: str | bytes, where: str) -> ConfigDict:
    """The config of a run. where: the name of the file. Raises UserError if it is not valid."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as e:
        raise UserError(
            f"{where} is not valid JSON ({e}). It is written when a run starts: "
            "restore it, or start the run in a new work folder."
        ) from e
    if not isinstance(value, dict):
        raise UserError(
            f"{where} holds a JSON {type(value).__name__}; the config of a run is an object. "
            "Restore it, or start the run in a new work folder."
        )
    try:
        return _checked(ConfigDict(value))
    except (UserError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as e:
        raise UserError(f"{where} is not the config of a run: {e}") from e


def _checked(config: ConfigDict) -> ConfigDict:
    if isinstance(config.get("data"), ConfigDict) and "name" not in config.data:
        raise UserError(
            "it was written by bigjax 0.1, which had other names of keys, modules and parameters. "
            "Open it with that version; CHANGELOG.md lists the renames."
        )
    _add_missing(config, new_config())
    check_keys(config)
    return config.lock()


def _add_missing(config: ConfigDict, defaults: ConfigDict, prefix: str = "") -> None:
    """Adds keys that are newer than the version that saved the config."""
    for key, value in defaults.items():
        if key not in config:
            config[key] = value
        elif (
            isinstance(value, ConfigDict)
            and prefix + key not in OPEN_SECTIONS
            and isinstance(config[key], ConfigDict)
        ):
            _add_missing(config[key], value, f"{prefix}{key}.")
