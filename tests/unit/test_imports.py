"""Imports point one way."""

import ast
import functools
import pathlib
import re

import bigjax

ROOT = pathlib.Path(bigjax.__file__).parent
# A room may import the rooms before it in this list, and itself.
ORDER = [
    "errors",
    "bounds",
    "extras",
    "trees",
    "private",
    "process",
    "paths",
    "json_text",
    "plural",
    "cpu",
    "cloud",
    "config",
    "modules",
    "linear",
    "losses",
    "data",
    "optim",
    "interop",
    "report",
    "parallel",
    "layers",
    "peft",
    "models",
    "tasks",
    "infer",
    "evals",
    "train",
    "plan",
    "arguments",
    "projects",
    "cli",
    "main",
]
# These import no room but themselves and SHARED.
LEAVES = {"config", "data", "interop", "linear", "losses", "optim", "report"}
SHARED = {"errors", "bounds", "trees", "paths", "json_text", "plural", "modules", "linear"}
FLAX = {"layers", "models", "peft", "projects"}


def room(path: pathlib.Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


@functools.cache
def nodes(path: pathlib.Path) -> list[ast.AST]:
    return list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))


def imports(path: pathlib.Path):
    for node in nodes(path):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f"{node.module}.{a.name}" for a in node.names)


def arrows():
    for path in ROOT.rglob("*.py"):
        if path == ROOT / "__init__.py":
            continue
        for name in imports(path):
            parts = name.split(".")
            if parts[0] == "bigjax" and len(parts) > 1:
                yield path, room(path), parts[1]


def test_every_room_has_a_place():
    assert {room(p) for p in ROOT.rglob("*.py")} - {"__init__"} == set(ORDER)


def test_no_arrow_points_back():
    wrong = [f"{path} imports {b}" for path, a, b in arrows() if ORDER.index(b) > ORDER.index(a)]
    assert not wrong


def test_leaves_import_no_model_and_no_trainer():
    wrong = [
        f"{path} imports {b}" for path, a, b in arrows() if a in LEAVES and b not in {a, *SHARED}
    ]
    assert not wrong


def test_only_layers_and_models_import_flax():
    wrong = [
        str(p)
        for p in ROOT.rglob("*.py")
        if room(p) not in FLAX and any(name.split(".")[0] == "flax" for name in imports(p))
    ]
    assert not wrong


def test_data_does_not_import_jax():
    wrong = [
        str(p)
        for p in (ROOT / "data").rglob("*.py")
        if any(name.split(".")[0] == "jax" for name in imports(p))
    ]
    assert not wrong


def test_insides_of_other_packages_are_used_in_private_alone():
    """Each stands there in a table, with what needs it, and has its test in test_contracts.py."""
    wrong = []
    for path in ROOT.rglob("*.py"):
        if room(path) == "private":
            continue
        for name in imports(path):
            first, *rest = name.split(".")
            if first not in ("bigjax", "__future__") and any(part.startswith("_") for part in rest):
                wrong.append(f"{path} imports {name}")
        for node in nodes(path):
            if isinstance(node, ast.Attribute) and node.attr in ("_src", "_core", "_impl"):
                wrong.append(f"{path}, line {node.lineno}: {ast.unparse(node)}")
    assert not wrong


def test_no_room_names_a_project():
    """They are found by their place (modules.find, cli.commands), so that a new one needs no line
    outside of its folder."""
    names = {path.parent.name for path in (ROOT / "projects").glob("*/__init__.py")}
    words = {*names, "headline", "oracle", "adversarial", "discriminator"}
    assert names and len(words) == len(names) + 4
    wrong = [
        f"{path}, line {number}: {line.strip()}"
        for path in ROOT.rglob("*.py")
        if room(path) != "projects"
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if words & {word.removesuffix("s") for word in re.findall("[a-z]+", line.lower())}
    ]
    assert not wrong, "\n".join(wrong)
