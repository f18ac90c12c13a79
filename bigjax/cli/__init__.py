"""The commands of `bigjax`, one file each: `COMMAND` declares flags and config keys, `run` runs it,
and the docstring is its help.

Slow imports are inside `run`.
"""

import ast
import importlib
import pathlib

from absl import logging

import bigjax
from bigjax import config as config_lib
from bigjax.arguments import Arguments
from bigjax.errors import UserError

_HERE = pathlib.Path(__file__).parent


def commands() -> dict[str, str]:
    """{command: its module}, from bigjax/cli/NAME.py and projects/PROJECT/cli/NAME.py."""
    files = [*sorted(_HERE.glob("*.py")), *sorted(_HERE.parent.glob("projects/*/cli/*.py"))]
    return {
        path.stem.rstrip("_").replace("_", "-"): ".".join(
            ["bigjax", *path.relative_to(_HERE.parent).with_suffix("").parts]
        )
        for path in files
        if path.stem != "__init__"
    }


def run(argv: list[str]) -> int:
    """Runs one command line (without the program's name) and returns its exit code.

    Raises UserError for an unknown command and for bad arguments.
    """
    if not argv or argv[0] in ("help", "--help", "-h"):
        print(_usage())
        return 0
    if argv[0] == "--version":
        print(f"bigjax {bigjax.__version__}")
        return 0
    known = commands()
    if argv[0] not in known:
        raise UserError(f"Unknown command {argv[0]!r}. {config_lib.nearest(argv[0], known)}")
    module = importlib.import_module(known[argv[0]])
    if {"--help", "-h"} & {*argv}:
        print(f"{module.__doc__}\n{module.COMMAND.usage()}")
        return 0
    logging.set_verbosity(logging.FATAL)  # Orbax logs the errors that it raises
    module.run(Arguments(argv[1:], module.COMMAND))
    return 0


def _usage() -> str:
    lines = [
        "usage: bigjax COMMAND [--config=FILE[:VARIANT]] [--config.KEY=VALUE ...] "
        "[--workdir=FOLDER] ...",
        "",
    ]
    for name, module in commands().items():
        path = _HERE.parent.joinpath(*module.split(".")[1:]).with_suffix(".py")
        doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        lines.append(f"  {name:<13} {doc.splitlines()[0]}")
    return "\n".join([*lines, "", "`bigjax COMMAND --help` shows the flags of a command."])
