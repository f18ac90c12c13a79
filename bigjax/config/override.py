"""--config.KEY=VALUE: from strings to values of the keys' types."""

import fnmatch
import re
import typing

from ml_collections import ConfigDict

from bigjax import paths
from bigjax.config.checks import get, nearest
from bigjax.config.keys import PATHS, TYPES
from bigjax.errors import UserError

_ENTRY = re.compile(r"""\s*(?:'((?:[^'\\]|\\.)*)'|"((?:[^"\\]|\\.)*)"|([^,]*?))\s*(,|$)""", re.S)
_BOOLS = {"true": True, "t": True, "1": True, "false": False, "f": False, "0": False}


def override(
    config: ConfigDict,
    arguments: list[str],
    complete: ConfigDict | None = None,
    types: dict[str, type] | None = None,
) -> list[str]:
    """Applies --config.KEY=VALUE arguments in place and returns the keys they set.

    complete: the config with every field of its modules, where `config` leaves some at their
    defaults: these may be set too. types: {key: type}, where a value does not show its type.
    """
    complete, types, keys = config if complete is None else complete, {**TYPES, **(types or {})}, []
    for argument in arguments:
        key, equals, text = argument.removeprefix("--config.").partition("=")
        if not equals:
            raise UserError(f"{argument}: write it as {argument}=VALUE.")
        keys.append(key)
        path, last = key.split("."), key.rpartition(".")[2]
        if key.startswith("train.compiler_options."):  # any name: only the compiler knows them
            path, value = path[:2], text
            last = key.split(".", 2)[2]
        else:
            path, kind = path[:-1], _entry_type(types, key)
            if kind is None:
                default = _value(complete, key)
                kind = types.get(key) or type(default)
            value = parse(text, kind, argument)
        with config.unlocked():
            node = config
            for i, part in enumerate(path, start=1):
                if part not in node:
                    prefix = ".".join(path[:i])
                    entries = typing.get_origin(types.get(prefix)) is dict
                    node[part] = get(complete, prefix) if entries else ConfigDict()
                node = node[part]
            with node.ignore_type(), node.unlocked():
                node[last] = value
    return keys


def _entry_type(types: dict[str, type], key: str) -> type | None:
    """The type of a key in a dict of numbers or strings, which may be a new one; else None."""
    kind = types.get(key.rpartition(".")[0])
    if typing.get_origin(kind) is not dict:
        return None
    entry = typing.get_args(kind)[1]
    return entry if entry in (bool, int, float, str) else None


def _value(config: ConfigDict, key: str):
    """The value at a dotted key. Raises UserError for an unknown key, and for a section."""
    node = config
    for part in key.split("."):
        if not isinstance(node, ConfigDict) or part not in node:
            allowed = list(node) if isinstance(node, ConfigDict) else []
            raise UserError(f"Unknown config key {key!r}. {nearest(part, allowed)}")
        node = node[part]
    if isinstance(node, ConfigDict):
        raise UserError(
            f"config.{key} is a section: set its keys, such as --config.{key}."
            f"{next(iter(node), 'NAME')}=VALUE."
        )
    return node


def parse(text: str, kind, where: str):
    """The text as a value of this type: bool, int, float, str, or a tuple or list of one of them.

    Entries of a tuple are separated by commas, with or without brackets around them; strings with
    commas, or with spaces at their ends, are quoted: 0,1 and ('a', 'b, c'). Raises UserError.
    """
    container = typing.get_origin(kind) or kind
    if container in (tuple, list):
        element = next(iter(typing.get_args(kind)), str)
        return container(parse(entry, element, where) for entry in _entries(text, where))
    try:
        if kind is bool:
            return _BOOLS[text.lower()]
        return kind(text)
    except (ValueError, KeyError, OverflowError) as e:
        names = {bool: "True or False", int: "an integer", float: "a number"}
        raise UserError(
            f"{where}: this key needs {names.get(kind, f'a value of type {kind.__name__}')}, not "
            f"{text!r}."
        ) from e


def _entries(text: str, where: str) -> list[str]:
    text = text.strip()
    if text[:1] + text[-1:] in ("()", "[]") and _closes_last(text):
        text = text[1:-1].strip()
    entries, at = [], 0
    while at < len(text):
        entry = _ENTRY.match(text, at)
        if not entry or entry[3] == "":
            raise UserError(
                f"{where}: {text[at : at + 20]!r} is not a list of values separated by commas, "
                "such as 0,1 or 'a','b, c'. An empty string is written ''."
            )
        quoted = entry[1] if entry[1] is not None else entry[2]
        entries.append(entry[3] if quoted is None else re.sub(r"\\(.)", r"\1", quoted))
        at = entry.end()
    return entries


def _closes_last(text: str) -> bool:
    """Whether the bracket at the start of the text is closed by its last character."""
    depth = 0
    for i, c in enumerate(text):
        depth += {text[0]: 1, text[-1]: -1}.get(c, 0)
        if depth == 0:
            return i == len(text) - 1
    return False


def expand_paths(config: ConfigDict, of_modules: dict[str, tuple[str, ...]] | None = None) -> None:
    """Replaces `~` in the paths of a config, in place. Raises UserError as paths.expand does.

    of_modules: {pattern of keys: allowed schemes of paths}, in addition to keys.PATHS.
    """
    patterns = {**dict.fromkeys(PATHS, paths.SCHEMES), **(of_modules or {})}

    def walk(node: ConfigDict, prefix: str) -> None:
        for name, value in node.items():
            key = prefix + name
            if isinstance(value, ConfigDict):
                walk(value, f"{key}.")
            elif isinstance(value, str):
                schemes = [s for p, s in patterns.items() if fnmatch.fnmatchcase(key, p)]
                if schemes:
                    node[name] = paths.expand(value, f"config.{key}", schemes[0])

    with config.unlocked():
        walk(config, "")
