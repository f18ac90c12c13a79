"""Imports the modules that a config names: bigjax's own, a project's or a user's.

A class may be used as a module, so that one file holds several: 'table.Model' and 'table.Task'.
Each may define `Config`, a dataclass whose fields are the other keys of its section, with
  PRESETS (in the module): {name: values}, for a section with the key `preset`;
  RANGES: {field: bounds.Range};
  MAY_CHANGE: patterns of keys that a resumed run may change; all others are fixed;
  PATHS: patterns of keys that are files or folders; DATA_PATHS: of those that are only read;
  for_task(task): the class to use instead, if its fields depend on the task's module.
A field may be a dataclass with MODULES, the name of a package, and a field `kind`: a section that
names a module of that package, whose Config has the other keys of the section.
"""

from collections.abc import Mapping
import dataclasses
import difflib
import functools
import importlib
import importlib.machinery
import importlib.util
import inspect
import pathlib
import pkgutil
import re
import sys
import traceback
from types import ModuleType
import typing
from typing import Any

from bigjax import config as config_lib
from bigjax import paths
from bigjax.errors import UserError

# The name that every module of a package must define.
_HAS = {
    "models": "Config",
    "tasks": "build",
    "evals": "build",
    "data": "Config",
    "data.sources": "documents",
    "data.tokenizers": "build",
    "peft": "build",
}
SECTIONS = {"model": "models", "task": "tasks", "data": "data", "peft": "peft"}
OPTIONAL = ("peft",)  # sections whose name may be '', for none: then they have no other key


@dataclasses.dataclass(frozen=True)
class NoFields:
    """The Config of a module that defines none."""


_NONE = ModuleType("none", "Of a section whose name is ''.")


def of(config, section: str) -> ModuleType:
    """The module that a section of a config names: 'model', 'task', 'data', 'peft', 'evals.NAME',
    or one within these."""
    if section in OPTIONAL and not config[section].name:
        return _NONE
    if section in SECTIONS:
        room, key = SECTIONS[section], f"{section}.name"
        return find(room, config[section].name, key, config.python_path)
    inner = inner_sections(config).get(section) if section.partition(".")[0] in SECTIONS else None
    room, kind = inner.MODULES if inner else "evals", config_lib.get(config, section).kind
    return find(room, kind, f"{section}.kind", config.python_path)


def sections(config) -> list[str]:
    """The sections that name a module; outer ones first."""
    return [*_outer_sections(config), *inner_sections(config)]


def _outer_sections(config) -> list[str]:
    return [*SECTIONS, *(f"evals.{name}" for name in config.evals)]


def inner_sections(config) -> dict[str, type]:
    """{section: its dataclass} of the sections within SECTIONS that name a module, as far as the
    config has them."""
    inner = {}
    for outer in SECTIONS:
        values = config[outer]
        for name, want in typing.get_type_hints(_class(config, outer)).items():
            of_entries = typing.get_origin(want) is dict
            cls = typing.get_args(want)[1] if of_entries else want
            if not hasattr(cls, "MODULES") or name not in values:
                continue
            keys = [f"{name}.{entry}" for entry in values[name]] if of_entries else [name]
            inner |= {f"{outer}.{key}": cls for key in keys}
    return inner


def options(config, section: str):
    """The Config of a section: the preset that it names, if any, overridden by its own keys.

    With preset='init_from' the other keys are those of the source only after train.init_from.fill.
    """
    values = config_lib.get(config, section)
    if section in (inner := inner_sections(config)):
        return entry(inner[section], values, section, config.python_path)[1]
    preset = _preset(of(config, section), values)
    complete = values.get("preset", "") != "init_from"
    cls = _class(config, section)
    if section in OPTIONAL and not values.name and len(values) > 1:
        raise UserError(
            f"config.{section} has the keys {', '.join(k for k in values if k != 'name')}, but "
            f"config.{section}.name is '', which turns it off. Set it to one of "
            f"{', '.join(names(SECTIONS[section]))}, or leave the keys out."
        )
    return config_lib.build(cls, values, section, preset=preset, complete=complete)


def entry(cls: type, values: Mapping, where: str, folder: str = "") -> tuple[ModuleType, Any]:
    """(the module that `kind` of a section names, its Config from the section's other keys).

    cls: the section's dataclass, with MODULES. where: its key in the config. folder: as in `find`.
    """
    own = [f.name for f in dataclasses.fields(cls)]
    if not isinstance(values.get("kind"), str):
        raise UserError(
            f"config.{where}.kind is missing: it names a module of bigjax.{cls.MODULES}."
        )
    module = find(cls.MODULES, values["kind"], f"{where}.kind", folder)
    return module, config_lib.build(_config_class(module), values, where, own=own)


def change_kind(config, section: str, kind: str) -> None:
    """Sets `kind` of a section within another one, and removes the keys that the new kind lacks."""
    cls, values = inner_sections(config)[section], config_lib.get(config, section)
    module = find(cls.MODULES, kind, f"{section}.kind", config.python_path)
    known = {
        f.name for c in (cls, getattr(module, "Config", NoFields)) for f in dataclasses.fields(c)
    }
    with config.unlocked():
        for key in [key for key in values if key not in known]:
            del values[key]
        values.kind = kind


def set_evaluators(config, kinds: Mapping[str, str]) -> None:
    """Sets config.evals.NAME.kind for {NAME: kind}; adds the evaluators that the config lacks.

    An evaluator of another kind has the defaults of the new one, except for `every` and `split`,
    which mean the same for all kinds.
    """
    with config.unlocked():
        for name, kind in kinds.items():
            paths.check_file_name(name, "a name in config.evals")
            old = config.evals.get(name, {"every": config.train.steps})
            if kind != old.get("kind"):
                module = find("evals", kind, f"evals.{name}.kind", config.python_path)
                kept = {"every", "split"} & {"every", *typing.get_type_hints(_config_class(module))}
                config.evals[name] = {"kind": kind, **{k: old[k] for k in kept if k in old}}


def fields(config, section: str) -> dict:
    """{key: value} of all keys of a section."""
    values = config_lib.get(config, section)
    own = {key: values[key] for key in ("name", "preset", "kind", "every") if key in values}
    if section == "model":
        own.setdefault("preset", "")
    return {**own, **dataclasses.asdict(options(config, section))}


def fill(config, *skip: str) -> None:
    """Writes the fields of all modules into their sections, except the sections in `skip`."""
    with config.unlocked():
        for section in _outer_sections(config):
            if section not in skip:
                config_lib.get(config, section).update(fields(config, section))
        for section in inner_sections(config):
            config_lib.get(config, section).update(dataclasses.asdict(options(config, section)))


def filled(config):
    """A copy with every field of the modules in their sections."""
    copy = config.copy_and_resolve_references()
    fill(copy)
    return copy


def types(config) -> dict[str, Any]:
    """{key: type} of all fields of modules."""

    def walk(cls, prefix: str):
        for name, kind in typing.get_type_hints(cls).items():
            if dataclasses.is_dataclass(kind):
                yield from walk(kind, f"{prefix}.{name}")
            else:
                yield f"{prefix}.{name}", kind

    return {key: kind for s in sections(config) for key, kind in walk(_class(config, s), s)}


def declared(config, name: str) -> list[str]:
    """Patterns of keys that the modules of a config declare under this name, such as PATHS."""
    return [
        f"{section}.{pattern}"
        for section in sections(config)
        for pattern in getattr(_class(config, section), name, ())
    ]


def path_schemes(config) -> dict[str, tuple[str, ...]]:
    """{pattern of keys: schemes allowed in the paths under them}, for config.expand_paths."""
    return {
        **dict.fromkeys(declared(config, "PATHS"), paths.SCHEMES),
        **dict.fromkeys(declared(config, "DATA_PATHS"), paths.DATA_SCHEMES),
    }


def _class(config, section: str) -> type:
    cls = _config_class(of(config, section))
    return cls.for_task(of(config, "task")) if hasattr(cls, "for_task") else cls


def _config_class(module: ModuleType) -> type:
    cls = getattr(module, "Config", NoFields)
    if not (dataclasses.is_dataclass(cls) and cls.__dataclass_params__.frozen):  # type: ignore[attr-defined]
        raise UserError(
            f"{module.__name__}.Config is not a frozen dataclass. Put "
            "@dataclasses.dataclass(frozen=True) before it, and give each field a type and a "
            "default."
        )
    return cls


def _preset(module: ModuleType, values) -> dict:
    """The values of the preset that a section names; {} without one.

    Also {} for 'init_from', whose values train/init_from.py reads from the source.
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


def own_sources(folder: str) -> str:
    """The text of the imported modules that lie in a folder, config.python_path."""
    root = pathlib.Path(folder).resolve()
    files = {getattr(module, "__file__", None) for module in [*sys.modules.values()]}
    own = sorted(p for f in files if f and root in (p := pathlib.Path(f).resolve()).parents)
    return "".join(path.read_text(errors="replace") for path in own if path.suffix == ".py")


def find(room: str, name: str, key: str, folder: str = "") -> ModuleType:
    """The module bigjax.ROOM.NAME; for a name with a dot bigjax.projects.NAME or a user's module.

    room: a package of bigjax, such as 'models'. key: the config key that names the module, for
    messages. folder: config.python_path, which holds a user's modules. Raises UserError for a
    module that does not exist or cannot be imported.
    """
    if "." in name:
        if name.partition(".")[0] in config_lib.projects():
            name, folder = f"bigjax.projects.{name}", ""
        module = _import(name, key, folder)
        if not hasattr(module, _HAS[room]):
            raise UserError(
                f"config.{key}={name!r}: {getattr(module, '__file__', name)} does not define "
                f"{_HAS[room]!r}, which it must, as the modules of bigjax.{room} do."
            )
        return module
    have = names(room)
    if name not in have:
        raise UserError(
            f"config.{key}={name!r} is not a module of bigjax.{room}. "
            f"{config_lib.nearest(name, have)} Name a module of your own with its package, such as "
            "'my_lab.mixer'."
        )
    return importlib.import_module(f"bigjax.{room}.{name}")


def function(path: str, key: str, folder: str = "") -> Any:
    """The function that 'my_module:name' names. key, folder: as of `find`. Raises UserError for a
    module that cannot be imported, and if it has no such function."""
    name, _, last = path.partition(":")
    module = _import(name, key, folder)
    function = getattr(module, last, None)
    if not callable(function):
        have = [k for k, v in vars(module).items() if inspect.isfunction(v)]
        raise UserError(
            f"config.{key}={path!r}: {getattr(module, '__file__', name)} has no function {last!r}. "
            f"{config_lib.nearest(last, have)}"
        )
    return function


@functools.cache
def names(room: str) -> list[str]:
    """The modules and packages in a package of bigjax that a config may name, without its helper
    modules and without rooms of their own."""
    defines = re.compile(rf"^(def|class) {_HAS[room]}\b", re.M)
    folder = pathlib.Path(__file__).parent / room.replace(".", "/")
    files = {path.stem: path for path in folder.glob("*.py")}
    files |= {path.parent.name: path for path in folder.glob("*/__init__.py")}
    return sorted(
        name
        for name, path in files.items()
        if not name.startswith("_") and f"{room}.{name}" not in _HAS
        if defines.search(path.read_text(encoding="utf-8"))
    )


def _import(name: str, key: str, folder: str) -> ModuleType:
    top = name.partition(".")[0]
    if folder:
        if not pathlib.Path(folder).is_dir():
            raise UserError(
                f"config.python_path={folder!r} is not a folder. Set it to the folder that holds "
                f"config.{key}={name!r}."
            )
        if folder not in sys.path:
            sys.path.append(folder)  # last: its files must not hide installed packages
        importlib.invalidate_caches()
    try:
        if folder:
            _import_from(folder, top)
        return _resolve(name)
    except UserError:
        raise
    except ModuleNotFoundError as e:
        if e.name != name and not name.startswith(f"{e.name}."):
            raise _failure(name, key, e) from e
        if parent := sys.modules.get(e.name.rpartition(".")[0]):
            raise UserError(_not_in(parent, name, key, e.name.rpartition(".")[2])) from e
        where = f"config.python_path={folder!r}" if folder else "the installed packages"
        raise UserError(
            f"config.{key}={name!r}: there is no module {e.name!r} in {where}. Set "
            "--config.python_path to the folder that holds it."
        ) from e
    except Exception as e:
        raise _failure(name, key, e) from e


def _resolve(name: str) -> Any:
    """A module or an attribute of one: 'table.Model' is a class in table.py."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as e:
        parent, _, last = name.rpartition(".")
        if e.name != name or not parent or not hasattr(_resolve(parent), last):
            raise
        return getattr(_resolve(parent), last)


def _import_from(folder: str, top: str) -> None:
    """Imports a package or module from the folder if it is there, replacing another loaded module
    of that name, such as one from another config's folder."""
    spec = importlib.machinery.PathFinder.find_spec(top, [folder])
    loaded = sys.modules.get(top)
    if spec is None or top == "bigjax" or loaded and _files(loaded.__spec__) == _files(spec):
        return
    for name in [n for n in sys.modules if n == top or n.startswith(f"{top}.")]:
        del sys.modules[name]
    if spec.loader is None:  # a folder without __init__.py: restrict it to this one of its name
        spec.submodule_search_locations = _files(spec)
    module = importlib.util.module_from_spec(spec)
    sys.modules[top] = module
    try:
        if spec.loader:
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[top]
        raise


def _not_in(parent: ModuleType, name: str, key: str, last: str) -> str:
    """The message for a module that lacks what a config names, or a package without that module."""
    if hasattr(parent, "__path__"):
        kind, have = "module", [m.name for m in pkgutil.iter_modules(parent.__path__)]
        where = f"the package {parent.__name__!r} in {', '.join(parent.__path__)}"
    else:
        classes = [k for k, v in vars(parent).items() if isinstance(v, type)]
        kind, have = "class", [k for k in classes if vars(parent)[k].__module__ == parent.__name__]
        where = str(parent.__file__)
    hint = f" {config_lib.nearest(last, have)}" if have else ""
    return f"config.{key}={name!r}: there is no {kind} {last!r} in {where}.{hint}"


def _files(spec) -> list[str]:
    """The file of a module, or the folders of a package."""
    return [*(spec.submodule_search_locations or ()), *([spec.origin] if spec.origin else ())]


def _failure(name: str, key: str, error: Exception) -> UserError:
    """The error for a user's module that raises an exception during import."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    text, place = str(error), f"{last.filename}, line {last.lineno}"
    if isinstance(error, SyntaxError):
        text, place = error.msg, f"{error.filename}, line {error.lineno}"
    return UserError(
        f"config.{key}={name!r} cannot be imported: {type(error).__name__}: {text} ({place}). "
        "Correct that line, or install what it needs."
    )
