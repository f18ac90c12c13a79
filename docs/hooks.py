"""Pages that mkdocs makes from the repository: the API reference, and code shown from its files.

In a page, a paragraph that is only `[Name](../FILE.py){ .source }` becomes the source of that class
or function of the file, and `[FILE](../FILE.py){ .source }` all of it: what a page shows is what
the tests run.
"""

import ast
import pathlib
import re

ROOT = pathlib.Path(__file__).parents[1]
# The rooms in the order in which data and imports flow, and the leaves.
ROOMS = {
    "config": "Configs",
    "data": "Data",
    "models": "Models",
    "layers": "Layers",
    "peft": "Parameter-efficient tuning",
    "tasks": "Tasks",
    "losses": "Losses",
    "optim": "Optimizers",
    "parallel": "Sharding and hosts",
    "train": "Training",
    "evals": "Evaluation",
    "infer": "Generation and prediction",
    "interop": "Hugging Face exchange",
    "plan": "Plans",
    "report": "Reports",
    "projects/seqgan": "SeqGAN",
    "": "Everything else",
}
SOURCE = re.compile(r"^\[`?([\w./-]+)`?\]\(\.\./(\S+?)\)\{ \.source \}$", re.M)


def modules(room: str) -> list[str]:
    """The public modules of a room, its package first; of '' those beside the rooms."""
    folder = ROOT / "bigjax" / room
    paths = [folder / "__init__.py"] if room else []
    paths += sorted(p for p in folder.glob("*.py") if not p.stem.startswith("_"))
    for sub in sorted(p for p in folder.iterdir() if room and (p / "__init__.py").exists()):
        if sub.name not in ("cli", "private"):
            paths += sorted(sub.rglob("*.py"))
    dotted = (".".join(p.relative_to(ROOT).with_suffix("").parts) for p in paths)
    return [name.removesuffix(".__init__") for name in dotted]


def source(name: str, file: str) -> str:
    """The lines of a class or function ('Class.method') of a file; all if `name` is the file's."""
    text = (ROOT / file).read_text(encoding="utf-8")
    if name == pathlib.Path(file).name:
        return text
    nodes: list[ast.stmt] = ast.parse(text).body
    for part in name.split("."):
        (node,) = (n for n in nodes if part in _names(n))
        nodes = getattr(node, "body", [])
    first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))])
    return "\n".join(text.splitlines()[first - 1 : node.end_lineno])


def _names(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.Assign):
        return [t.id for t in node.targets if isinstance(t, ast.Name)]
    if isinstance(node, ast.AnnAssign):
        return [node.target.id] if isinstance(node.target, ast.Name) else []
    return [getattr(node, "name", "")]


def with_sources(markdown: str) -> str:
    """The page with its code put in."""
    block = lambda m: f'```python title="{m[2]}"\n{source(m[1], m[2]).rstrip()}\n```'
    return SOURCE.sub(block, markdown)


def on_config(config):
    pages = [{title: f"reference/{_slug(room)}.md"} for room, title in ROOMS.items()]
    config.nav.append({"API reference": pages})


def on_files(files, config):
    from mkdocs.structure.files import File  # the tests read this file without mkdocs

    for room, title in ROOMS.items():
        text = "\n\n".join(f"::: {name}" for name in modules(room))
        path = f"reference/{_slug(room)}.md"
        files.append(File.generated(config, path, content=f"# {title}\n\n{text}\n"))
    for name in ("CONTRIBUTING", "CHANGELOG"):
        text = (ROOT / f"{name}.md").read_text(encoding="utf-8")
        files.append(File.generated(config, f"{name.lower()}.md", content=text))


def on_page_markdown(markdown, page, config, files):
    return with_sources(markdown)


def _slug(room: str) -> str:
    return room.rpartition("/")[2] or "other"
