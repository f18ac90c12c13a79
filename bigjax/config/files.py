"""Config files: finding and running them, and their variants."""

import ast
from collections.abc import Callable, Iterator
import contextlib
import difflib
import functools
import importlib.util
import os
import pathlib
import sys
import traceback
from typing import Any

from ml_collections import ConfigDict

from bigjax import paths
from bigjax.config.checks import check_keys, sorted_leaves
from bigjax.errors import UserError

_PACKAGE = pathlib.Path(__file__).resolve().parent.parent
# The folder of configs/: in an installed package (setup.py), beside the package in a checkout.
ROOT = _PACKAGE if (_PACKAGE / "configs").is_dir() else _PACKAGE.parent
DEFAULT_CONFIG = "configs/gpt/docstrings.py"
_MODULE = "bigjax_config_file"


def find_config(path: str) -> pathlib.Path:
    """The file at path: relative to the current folder, else one of the configs of bigjax."""
    path = paths.expand(path, "--config")
    for root in _roots():
        if _is_file(root / path):
            if not path.endswith(".py"):
                raise UserError(
                    f"The config file {path!r} is not a Python file: its name has to end in .py. "
                    "The config of a run is given by --workdir."
                )
            return root / path
    if any(os.path.isdir(root / path) for root in _roots()):  # False for an impossible name
        raise UserError(f"--config={path!r} is a folder. Name a file in it, such as config.py.")
    have = [str(p.relative_to(ROOT)) for p in config_files()]
    near = difflib.get_close_matches(path, have, n=1, cutoff=0.4)
    hint = f" Did you mean {near[0]}?" if near else ""
    raise UserError(f"The config file {path!r} does not exist.{hint} `bigjax configs` lists all.")


def _roots() -> tuple[pathlib.Path, ...]:
    return pathlib.Path.cwd(), ROOT


def _is_file(path: pathlib.Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that is too long, a folder without permission
        return False


def config_files() -> list[pathlib.Path]:
    """Every config in configs/."""
    return sorted(p for p in (ROOT / "configs").rglob("*.py") if p.name != "__init__.py")


def load_file(spec: str) -> ConfigDict:
    """The config of FILE or FILE:VARIANT, such as configs/gpt/docstrings.py:tiny.

    Raises UserError if the file does not exist or fails, naming the line.
    """
    return load(spec)[0]


def load(spec: str) -> tuple[ConfigDict, Callable[[ConfigDict, frozenset[str]], None]]:
    """(`load_file`, complete), which runs the file once.

    complete(config, given) calls `complete` of the file, if it defines that, in place: it sets
    values that follow from others, such as from the data that the command line names. given: the
    keys that the command line sets, which it leaves. Raises UserError likewise.
    """
    path, variant = _split(spec)
    file = find_config(path)
    folder, module = file.resolve().parent, _module_of(file)
    with _siblings(folder, module):
        try:
            module.__spec__.loader.exec_module(module)
        except UserError:
            raise
        except (Exception, SystemExit) as e:
            raise UserError(f"{path} fails to import, {_where(e, file)}: {_text(e)}") from e
        if not hasattr(module, "get_config"):
            raise UserError(f"{path} has no function get_config(variant='').")
        config = _call(module.get_config, path, variant)
    if not isinstance(config, ConfigDict):
        raise UserError(f"{path}: get_config returned {type(config).__name__}, not a ConfigDict.")
    check_keys(config)
    set_python_path(config, file.parent)

    def complete(config: ConfigDict, given: frozenset[str]) -> None:
        if hasattr(module, "complete"):
            with _siblings(folder, module), config.unlocked():
                _call(module.complete, path, config, given)
            check_keys(config)

    return config.lock(), complete


def _module_of(file: pathlib.Path) -> Any:
    """The module of a config file, before it runs."""
    spec = importlib.util.spec_from_file_location(_MODULE, file)
    assert spec  # true for every .py file
    return importlib.util.module_from_spec(spec)


def _call(function: Callable, path: str, *arguments):
    """The result of a function of the config file at `path`."""
    try:
        return function(*arguments)
    except UserError:
        raise
    except (Exception, SystemExit) as e:
        name = f"{function.__name__}({', '.join(repr(a) for a in arguments if isinstance(a, str))})"
        raise UserError(f"{path}: {name} fails, {_where(e, find_config(path))}: {_text(e)}") from e


def folder_of(spec: str) -> pathlib.Path:
    """The folder of the config file that FILE or FILE:VARIANT names."""
    return find_config(_split(spec)[0]).parent


@functools.cache
def projects() -> frozenset[str]:
    """The packages in bigjax/projects: with any other prefix a module is a user's own."""
    files = (_PACKAGE / "projects").glob("*/__init__.py")
    return frozenset(path.parent.name for path in files)


def set_python_path(config: ConfigDict, folder: pathlib.Path) -> None:
    """Sets config.python_path to this folder if it is '' and the config names a user's own modules,
    or functions in them (kind='function'). The path is made absolute, since a run may be opened
    from another folder."""
    names = [config[section].name for section in ("model", "task", "data")]
    names += [value for key, value in sorted_leaves(config) if key.endswith(".kind")]
    if config.python_path or "function" in names or any(map(_is_own_module, names)):
        with config.unlocked():
            config.python_path = str(pathlib.Path(config.python_path or folder).resolve())


def _is_own_module(name: object) -> bool:
    """Whether a value of a config can be the name of a user's module, such as 'my_lab.mixer'."""
    if not isinstance(name, str):  # modules.filled refuses it
        return False
    top, *rest = name.split(".")
    return bool(rest) and all(map(str.isidentifier, (top, *rest))) and top not in projects()


def _split(spec: str) -> tuple[str, str]:
    """(file, variant). The file's name may itself contain a colon."""
    if any(_is_file(root / spec) for root in _roots()):
        return spec, ""
    path, colon, variant = spec.rpartition(":")
    return (path, variant) if colon else (spec, "")


@contextlib.contextmanager
def _siblings(folder: pathlib.Path, module) -> Iterator[None]:
    """Lets a config file import the files beside it while it runs, like a script.

    They are removed from sys.modules afterwards: another config may have one of the same name.
    """
    before = {name.partition(".")[0] for name in list(sys.modules)}
    sys.modules[_MODULE] = module  # dataclasses look their module up
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()  # a file beside it may be newer than the import caches
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(str(folder))
        new = {name.partition(".")[0] for name in list(sys.modules)} - before - {_MODULE}
        siblings = {name for name in new if name in sys.modules and _lies_in(name, folder)}
        for name in [n for n in sys.modules if n.partition(".")[0] in siblings]:
            del sys.modules[name]
        sys.modules.pop(_MODULE, None)


def _lies_in(name: str, folder: pathlib.Path) -> bool:
    """Whether a module or package is directly in this folder."""
    module = sys.modules[name]
    file = getattr(module, "__file__", None)
    paths = [*getattr(module, "__path__", ()), *([file] if file else ())]
    return bool(paths) and pathlib.Path(paths[0]).resolve().parent == folder


def _where(error: BaseException, file: pathlib.Path) -> str:
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(file)]
    if isinstance(error, SyntaxError):
        lines = [error.lineno]
    return f"line {lines[-1]}" if lines else "before its first line"


def _text(error: BaseException) -> str:
    """An exception's type and message (str() of a KeyError would quote the message)."""
    text = str(error.args[0]) if error.args else ""
    return f"{type(error).__name__}: {text}"


def variants(variant: str, **choices):
    """choices[variant]; None for '' without an entry. Raises UserError for another variant."""
    if variant and variant not in choices:
        raise UserError(
            f"This config has no variant {variant!r}; it has: {', '.join(choices) or 'none'}."
        )
    return choices.get(variant)


def first_docstring_line(path: pathlib.Path) -> str:
    """The first line of a config file's docstring, without running the file."""
    doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return doc.split("\n")[0]
