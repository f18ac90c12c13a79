"""Modules that a config names: of one of bigjax's rooms, of a project, or of a user's own.

A class may stand for a module, so that one file holds several: 'table.Model' and 'table.Task'. Each
may define `Config`, a dataclass whose fields are the other keys of its section, with
  PRESETS (of the module): {name: values}, for a section with the key `preset`;
  RANGES: {field: bounds.Range};
  MAY_CHANGE: patterns of keys that a resumed run may have changed, the others are fixed;
  PATHS: patterns of keys that are files or folders, DATA_PATHS: of those that are only read.
"""

import dataclasses
import difflib
import functools
import importlib
import importlib.machinery
import importlib.util
import pathlib
import re
import sys
import traceback
from types import ModuleType
import typing
from typing import Any

from bigjax import config as config_lib
from bigjax import paths
from bigjax.errors import UserError

# What a module of a room defines.
_HAS = {"models": "Config", "tasks": "build", "evals": "build", "data": "Config"}
SECTIONS = {"model": "models", "task": "tasks", "data": "data"}


@dataclasses.dataclass(frozen=True)
class NoFields:
    """The Config of a module without one."""


def of(config, section: str) -> ModuleType:
    """The module that a section of a config names: 'model', 'task', 'data' or 'evals.NAME'."""
    if section in SECTIONS:
        room, key = SECTIONS[section], f"{section}.name"
        return find(room, config[section].name, key, config.python_path)
    entry = config.evals[section.partition(".")[2]]
    return find("evals", entry.kind, f"{section}.kind", config.python_path)


def sections(config) -> list[str]:
    """The sections that name a module."""
    return [*SECTIONS, *(f"evals.{name}" for name in config.evals)]


def options(config, section: str):
    """The Config of a section: its module's preset, if it names one, then its own keys on top."""
    module, values = of(config, section), config_lib.get(config, section)
    return config_lib.build(_class(module), values, section, preset=_preset(module, values))


def fields(config, section: str) -> dict:
    """Every key of a section with its value."""
    values = config_lib.get(config, section)
    own = {key: values[key] for key in ("name", "preset", "kind", "every") if key in values}
    if section == "model":
        own.setdefault("preset", "")
    return {**own, **dataclasses.asdict(options(config, section))}


def fill(config, *skip: str) -> None:
    """Writes every field of the modules into their sections, but for those to skip."""
    with config.unlocked():
        for section in sections(config):
            if section not in skip:
                config_lib.get(config, section).update(fields(config, section))


def types(config) -> dict[str, Any]:
    """{key: type} of all fields of modules."""

    def walk(cls, prefix: str):
        for name, kind in typing.get_type_hints(cls).items():
            if dataclasses.is_dataclass(kind):
                yield from walk(kind, f"{prefix}.{name}")
            else:
                yield f"{prefix}.{name}", kind

    return {key: kind for s in sections(config) for key, kind in walk(_class(of(config, s)), s)}


def declared(config, name: str) -> list[str]:
    """Patterns of keys that the modules of a config declare under this name, such as PATHS."""
    return [
        f"{section}.{pattern}"
        for section in sections(config)
        for pattern in getattr(_class(of(config, section)), name, ())
    ]


def path_schemes(config) -> dict[str, tuple[str, ...]]:
    """{pattern of keys: schemes that the paths under them may have}, for config.expand_paths."""
    return {
        **dict.fromkeys(declared(config, "PATHS"), paths.SCHEMES),
        **dict.fromkeys(declared(config, "DATA_PATHS"), paths.DATA_SCHEMES),
    }


def _class(module: ModuleType):
    return getattr(module, "Config", NoFields)


def _preset(module: ModuleType, values) -> dict:
    """The published values that a section's preset names; {} without one.

    'init_from' gives {} too: train/init_from.py puts in what it found.
    """
    name = values.get("preset", "")
    if name in ("", "init_from"):
        return {}
    presets = getattr(module, "PRESETS", {})
    if name not in presets:
        near = difflib.get_close_matches(name, presets, n=1)
        raise UserError(
            f"{values.name} has no preset {name!r}."
            + (f" Did you mean {near[0]!r}?" if near else "")
            + f" It has: {', '.join(presets) or 'none'}."
        )
    return presets[name]


def find(room: str, name: str, key: str, folder: str = "") -> ModuleType:
    """The module bigjax.ROOM.NAME; of a name with a dot bigjax.projects.NAME, or a user's own.

    key: the config key that names it, for messages. folder: config.python_path, where a user's own
    modules are. Raises UserError for a module that does not exist or cannot be imported.
    """
    if "." in name:
        if name.partition(".")[0] in config_lib.projects():
            name, folder = f"bigjax.projects.{name}", ""
        module = _import(name, key, folder)
        if not hasattr(module, _HAS[room]):
            raise UserError(
                f"config.{key}={name!r}: {getattr(module, '__file__', name)} does not define "
                f"{_HAS[room]!r}, as a module of bigjax.{room} has to."
            )
        return module
    have = _of_room(room)
    if name not in have:
        raise UserError(
            f"config.{key}={name!r} is not a module of bigjax.{room}. "
            f"{config_lib.nearest(name, have)} A module of your own is named with its package, "
            "such as 'my_lab.mixer'."
        )
    return importlib.import_module(f"bigjax.{room}.{name}")


@functools.cache
def _of_room(room: str) -> list[str]:
    """The modules that a config may name: not the helpers that stand beside them."""
    defines = re.compile(rf"^(def|class) {_HAS[room]}\b", re.M)
    return sorted(
        path.stem
        for path in (pathlib.Path(__file__).parent / room).glob("*.py")
        if not path.stem.startswith("_") and defines.search(path.read_text(encoding="utf-8"))
    )


def _import(name: str, key: str, folder: str) -> ModuleType:
    top = name.partition(".")[0]
    if folder:
        if not pathlib.Path(folder).is_dir():
            raise UserError(
                f"config.python_path={folder!r} is not a folder. Set it to the folder in which "
                f"config.{key}={name!r} is found."
            )
        if folder not in sys.path:
            sys.path.append(folder)  # last: a file there must not hide a package of others
        importlib.invalidate_caches()
    try:
        if folder:
            _take_from(folder, top)
        return _resolve(name)
    except UserError:
        raise
    except ModuleNotFoundError as e:
        if e.name != name and not name.startswith(f"{e.name}."):
            raise _failure(name, key, e) from e
        where = f"config.python_path={folder!r}" if folder else "what is installed"
        raise UserError(
            f"config.{key}={name!r}: there is no module {e.name!r} in {where}. Set "
            "--config.python_path to the folder that holds it."
        ) from e
    except Exception as e:
        raise _failure(name, key, e) from e


def _resolve(name: str) -> Any:
    """A module, or what is called so in one: 'table.Model' is a class of table.py."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as e:
        parent, _, last = name.rpartition(".")
        if e.name != name or not parent or not hasattr(_resolve(parent), last):
            raise
        return getattr(_resolve(parent), last)


def _take_from(folder: str, top: str) -> None:
    """Imports a package or module of the folder, if it has it, whatever else is called so, such as
    one of the folder of another config."""
    spec = importlib.machinery.PathFinder.find_spec(top, [folder])
    loaded = sys.modules.get(top)
    if spec is None or top == "bigjax" or loaded and _places(loaded.__spec__) == _places(spec):
        return
    for name in [n for n in sys.modules if n == top or n.startswith(f"{top}.")]:
        del sys.modules[name]
    if spec.loader is None:  # a folder without __init__.py: of all of its name, this one
        spec.submodule_search_locations = _places(spec)
    module = importlib.util.module_from_spec(spec)
    sys.modules[top] = module
    try:
        if spec.loader:
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[top]
        raise


def _places(spec) -> list[str]:
    """Where a module's files are."""
    return [*(spec.submodule_search_locations or ()), *([spec.origin] if spec.origin else ())]


def _failure(name: str, key: str, error: Exception) -> UserError:
    """What to say where a user's module raises while it is imported."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{last.filename}, line {last.lineno}"
    if isinstance(error, SyntaxError):
        place = f"{error.filename}, line {error.lineno}"
    return UserError(
        f"config.{key}={name!r} cannot be imported: {type(error).__name__}: {error} ({place})."
    )
