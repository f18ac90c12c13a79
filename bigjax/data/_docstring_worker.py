"""Reads docstrings out of Python files: a script of the standard library alone.

`docstrings.py` starts a few of these by path. A script, and not `multiprocessing`, because a
spawned worker imports the caller's `__main__` again: this way no program that asks for text
is ever run twice, whatever its main file looks like. Standard input holds one JSON list of
[library, module, path]; standard output gets one JSON list of [library, name, docstring].
"""

import ast
from collections.abc import Iterator
import gc
import inspect
import json
import sys
import warnings

_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
_BLOCKS = (ast.If, ast.Try, ast.With, ast.For, ast.While)


def read_files(jobs: list[list[str]]) -> list[list[str]]:
    """[library, name, docstring] of every documented module, class and function, in order.

    A file that is not Python of this version is passed over: installed packages carry
    templates and code for other versions.
    """
    records: list[list[str]] = []
    for library, module, path in jobs:
        try:
            with open(path, "rb") as f:
                tree = ast.parse(f.read())
        except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
            continue
        records += [[library, name, doc] for name, doc in _walk(tree, module)]
    return records


def _walk(node: ast.AST, name: str) -> Iterator[tuple[str, str]]:
    body = node.body
    if isinstance(node, (ast.Module, *_DEFINITIONS)) and body:
        first = body[0]
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
            if isinstance(first.value.value, str):
                yield name, inspect.cleandoc(first.value.value)
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        return  # what is inside a function has no dotted name
    for child in body:
        if isinstance(child, _DEFINITIONS):
            yield from _walk(child, f"{name}.{child.name}")
        elif isinstance(child, _BLOCKS):
            yield from _walk(child, name)


def main() -> None:
    """Standard input to standard output, as the module's docstring says."""
    gc.disable()  # syntax trees are millions of live objects: collecting costs a third of the time
    warnings.simplefilter("ignore")  # invalid escapes in other people's files
    jobs = json.load(sys.stdin)
    json.dump(read_files(jobs), sys.stdout)


if __name__ == "__main__":
    main()
