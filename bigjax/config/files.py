"""Config files: finding them, running them, their variants."""

import ast
import difflib
import importlib.util
import pathlib
import traceback

from ml_collections import ConfigDict

from bigjax.config.checks import check_keys
from bigjax.errors import UserError

_PACKAGE = pathlib.Path(__file__).resolve().parent.parent
# What holds configs/: an installed package brings it along (setup.py), a checkout has it beside it.
ROOT = _PACKAGE if (_PACKAGE / "configs").is_dir() else _PACKAGE.parent
DEFAULT_CONFIG = "configs/gpt/docstrings.py"


def find_config(path: str) -> pathlib.Path:
    """The file named by path: from here, else of the configs that bigjax brings along."""
    for root in (pathlib.Path.cwd(), ROOT):
        if (root / path).is_file():
            return root / path
    have = [str(p.relative_to(ROOT)) for p in config_files()]
    near = difflib.get_close_matches(path, have, n=1, cutoff=0.4)
    hint = f" Did you mean {near[0]}?" if near else ""
    raise UserError(f"There is no config file {path!r}.{hint} `bigjax configs` lists them all.")


def config_files() -> list[pathlib.Path]:
    """Every config in configs/."""
    return sorted(p for p in (ROOT / "configs").rglob("*.py") if p.name != "__init__.py")


def load_file(spec: str) -> ConfigDict:
    """Runs a config file. spec is FILE or FILE:VARIANT, such as configs/gpt/docstrings.py:tiny."""
    path, _, variant = spec.partition(":")
    file = find_config(path)
    module_spec = importlib.util.spec_from_file_location("bigjax_config_file", file)
    module = importlib.util.module_from_spec(module_spec)
    try:
        module_spec.loader.exec_module(module)
    except Exception as e:
        raise UserError(f"{path} fails to import, {_where(e, file)}: {_text(e)}") from e
    if not hasattr(module, "get_config"):
        raise UserError(f"{path} has no function get_config(variant='').")
    try:
        config = module.get_config(variant)
    except UserError:
        raise
    except Exception as e:
        raise UserError(
            f"{path}: get_config({variant!r}) fails, {_where(e, file)}: {_text(e)}"
        ) from e
    if not isinstance(config, ConfigDict):
        raise UserError(f"{path}: get_config returned {type(config).__name__}, not a ConfigDict.")
    check_keys(config)
    return config.lock()


def _where(error: BaseException, file: pathlib.Path) -> str:
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(file)]
    if isinstance(error, SyntaxError):
        lines = [error.lineno]
    return f"line {lines[-1]}" if lines else "before its first line"


def _text(error: BaseException) -> str:
    """An exception's text; a KeyError or AttributeError of ml_collections quotes its message."""
    text = str(error.args[0]) if error.args else ""
    return f"{type(error).__name__}: {text}"


def variants(variant: str, **choices):
    """choices[variant], or a UserError that names what there is. '' needs no choice."""
    if variant and variant not in choices:
        raise UserError(
            f"This config has no variant {variant!r}; it has: {', '.join(choices) or 'none'}."
        )
    return choices.get(variant)


def first_docstring_line(path: pathlib.Path) -> str:
    """What a config file says of itself, without running it."""
    doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return doc.split("\n")[0]
