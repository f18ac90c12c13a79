"""What the pages say exists: commands, flags, config keys, files, names, messages, links."""

import ast
import dataclasses
import functools
import importlib
import importlib.util
import json
import pathlib
import re
import shlex

import jax
import pytest

from bigjax import cli, modules, tasks
from bigjax import config as config_lib
from bigjax.arguments import Arguments, Command
from bigjax.errors import UserError
from bigjax.layers import mask as mask_lib
from bigjax.parallel import mesh as mesh_lib
from bigjax.plan import command
from bigjax.train import program as program_lib
from bigjax.train import stages

ROOT = pathlib.Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXTS = {page.name: page.read_text(encoding="utf-8") for page in PAGES}
LAB = ROOT / "tests" / "extension"


@functools.cache
def hooks():
    spec = importlib.util.spec_from_file_location("hooks", ROOT / "docs" / "hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def each_page(test):
    return pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)(test)


def blocks(page: pathlib.Path, language: str = "") -> list[str]:
    """The code blocks of a page in one language; '' for those without one."""
    fenced = re.findall(r"^```(\w*)[^\n]*\n(.*?)^```$", TEXTS[page.name], re.M | re.S)
    return [text for name, text in fenced if name == language]


def commands(page: pathlib.Path) -> list[str]:
    """The command lines of bigjax in the code of a page."""
    lines = "\n".join(blocks(page)).replace("\\\n", " ").splitlines()
    arguments = [
        m[1] for line in lines if (m := re.match(r"(?:JAX_\w+=\S+ )*\s*bigjax (.+)", line))
    ]
    arguments = [
        re.sub(r"\$\(.*?\)(?=  |$)|\$v", "", line).replace("$seed", "0") for line in arguments
    ]
    return [line.replace("gs://", "/a-bucket/") for line in arguments]  # nothing is looked up there


def code(page: pathlib.Path) -> list[str]:
    """What stands in backticks in the text of a page."""
    text = re.sub(r"^```.*?^```$", "", TEXTS[page.name], flags=re.M | re.S)
    return re.findall(r"`([^`\n]+)`", text)


@functools.cache
def fields(section: str) -> dict[str, type]:
    """{name: type} of the fields that any module of a section has."""
    folder, files = modules.SECTIONS.get(section, "evals"), []
    files += (ROOT / "bigjax" / folder).glob("*.py")
    files += (ROOT / "bigjax" / folder).glob("*/__init__.py")
    files += (ROOT / "bigjax" / "projects").glob("*/*.py")
    types = {"name": str, "preset": str, "kind": str, "every": int}
    for path in files:
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        if "class Config" in path.read_text(encoding="utf-8"):
            module = importlib.import_module(name.removesuffix(".__init__"))
            if dataclasses.is_dataclass(getattr(module, "Config", None)):
                types |= {f.name: f.type for f in dataclasses.fields(module.Config)}
    return types


def has_key(key: str) -> bool:
    """Whether some config has this dotted key."""
    section, _, rest = key.partition(".")
    if section in modules.SECTIONS:
        return rest.partition(".")[0].partition("=")[0] in fields(section)
    if section == "evals":
        return rest.rpartition(".")[2] in fields("evals")
    try:
        config_lib.get(config_lib.new_config(), key)
    except (KeyError, AttributeError):
        return False
    return True


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_bytes()) <= 6000


@each_page
def test_commands_flags_and_keys_exist(page):
    known = cli.commands()
    for line in commands(page):
        name, *argv = shlex.split(line, comments=True)
        if not name.islower():  # `bigjax COMMAND --help`
            continue
        assert name in known, line
        if page.name == "add-your-own.md":  # whose reader is in a copy of tests/extension
            argv = [re.sub(r"^--config=(\w+\.py)$", rf"--config={LAB}/\1", a) for a in argv]
        if "--config=configs/bit/hyperrule.py" in argv:  # whose schedule follows from the data
            argv = [a.replace("data.train=flowers", "data.train=digits") for a in argv]
        command: Command = importlib.import_module(known[name]).COMMAND
        arguments = Arguments(argv, command)  # refuses flags and keys that it does not use
        if command.config and "--config.python_path=." not in argv:
            arguments.config()  # refuses unknown keys, variants and values
        for override in arguments.overrides if not command.config else ():
            assert has_key(override.removeprefix("--config.").partition("=")[0]), line


@each_page
def test_keys_in_the_text_exist(page):
    sections = (*modules.SECTIONS, "evals", "optim", "train", "mesh", "hosts", "checkpoint", "log")
    pattern = re.compile(rf"(?:config\.)?((?:{'|'.join(sections)})\.[a-z_][\w.]*)(?:=.*)?$")
    keys = [m[1] for text in code(page) if (m := pattern.match(text))]
    keys = [key for key in keys if not key.endswith(".gz")]
    assert [k for k in keys if not has_key(k)] == []


@each_page
def test_files_in_the_text_exist(page):
    paths = [re.split(r"[:\s]", text)[0] for text in code(page)]
    inside = re.compile(r"(bigjax|configs|benchmarks|tests|tpu_scripts|examples|docs)/[\w./-]*$")
    named = [p for p in paths if inside.match(p) and not p.endswith("settings.sh")]
    assert [p for p in named if not (ROOT / p).exists()] == []


@each_page
def test_python_in_the_pages_is_python(page):
    for block in blocks(page, "python"):
        ast.parse(block)


def imported(text: str):
    """(module, name) of each `from bigjax... import name` in Python code."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("bigjax"):
            yield from ((node.module, alias.name) for alias in node.names)


def test_what_pages_and_the_notebook_import_exists():
    cells = json.loads((ROOT / "examples" / "quickstart.ipynb").read_text(encoding="utf-8"))[
        "cells"
    ]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    code += [block for page in PAGES for block in blocks(page, "python")]
    names = {pair for text in code for pair in imported(text)}
    assert len(names) > 15
    for module, name in names:
        if not hasattr(importlib.import_module(module), name):
            importlib.import_module(f"{module}.{name}")


def test_every_name_of_the_table_of_places_exists():
    rows = re.findall(r"^\| (.+?) \| (.+?) \| (.+?) \|$", TEXTS["where.md"], re.M)
    rows = [row for row in rows if "`" in row[2]]
    assert len(rows) > 40
    for what, files, names in rows:
        texts = [ROOT / f for f in re.findall(r"`(bigjax/\S+?\.py)`", files)]
        for name in re.findall(r"`([\w.]+)`", names):
            assert any(defines(path, name) for path in texts), (what, name)


def defines(path: pathlib.Path, name: str) -> bool:
    try:
        return bool(hooks().source(name, str(path.relative_to(ROOT))))
    except ValueError:  # no or several nodes of this name
        return False


def test_code_shown_from_files_is_there():
    page = hooks().with_sources(TEXTS["add-your-own.md"])
    assert "{ .source }" not in page and page.count("my_lab/table.py") >= 5
    assert "class FromTeacher:" in page and "def get_config(" in page


def test_quoted_messages_are_those_of_the_code():
    texts = set()
    for path in (ROOT / "bigjax").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.add(node.value)
    texts = "\n".join(texts)
    for name in ("errors.md", "add-your-own.md"):
        page = TEXTS[name]
        tables = re.findall(r"^\| message \|.*?\n\n", f"{page}\n\n", re.M | re.S)
        quoted = [m for t in tables for m in re.findall(r"^\| `(.+?)` \|", t, re.M)]
        assert len(quoted) >= 4
        assert [m for m in quoted if m not in texts] == [], name


def test_the_page_of_plans_quotes_what_a_plan_prints():
    assert command.TRUST in TEXTS["plan.md"]
    lines = re.findall(r"^  (?:  )?([A-Za-z]+(?: per device)?)  *[\d.]", TEXTS["plan.md"], re.M)
    printed = (ROOT / "bigjax" / "plan" / "command.py").read_text(encoding="utf-8")
    assert len(lines) > 10 and [x for x in lines if f"  {x}" not in printed] == []


def test_links_of_the_readme_lead_somewhere():
    links = re.findall(r"\]\(([^)#]+)", TEXTS["README.md"])
    assert links and [x for x in links if not (ROOT / x).exists()] == []


def test_every_page_is_in_the_navigation():
    nav = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("nav:")[2]
    missing = [p.name for p in (ROOT / "docs").glob("*.md") if f": {p.name}" not in nav]
    assert missing == []


def test_the_reference_has_every_public_module():
    named = [name for room in hooks().ROOMS for name in hooks().modules(room)]
    assert len(named) == len(set(named)) > 100
    assert {"bigjax.tasks", "bigjax.layers.mask", "bigjax.losses", "bigjax.errors"} <= set(named)


@pytest.mark.slow
def test_the_code_written_in_add_your_own_works(tmp_path):
    """`my_lab/sharpness.py` by shapes, `my_lab/masks.py` by its table."""
    page = TEXTS["add-your-own.md"]
    for title, text in re.findall(r'^```python title="(\S+)"\n(.*?)^```$', page, re.M | re.S):
        (tmp_path / title).parent.mkdir(exist_ok=True)
        (tmp_path / title).write_text(text)
    argv = ["--config=configs/gpt/text.py:tiny", "--config.task.name=my_lab.sharpness"]
    config, _ = Arguments([*argv, f"--config.python_path={tmp_path}"]).config()
    with config.unlocked():
        config.mesh.data = 1
    config, _ = stages.resolve(config)
    mesh = mesh_lib.make_mesh(config.mesh, jax.devices()[:1])
    made = program_lib.make(config, tasks.build(config), mesh)
    assert made.abstract.params["embed"]["embedding"].shape == (264, 64)
    masks = importlib.import_module("my_lab.masks")  # the config has put it on the path
    seen = mask_lib.table(masks.Strided(3), range(7), range(7))
    assert seen[6].tolist() == [True, False, False, True, False, False, True]


@pytest.mark.parametrize("argv", [["train", "--workdri=x"], ["trian"], ["train", "--config.x=1"]])
def test_a_wrong_command_would_be_found(argv):
    with pytest.raises((UserError, AssertionError)):
        known = cli.commands()
        assert argv[0] in known
        arguments = Arguments(argv[1:], importlib.import_module(known[argv[0]]).COMMAND)
        arguments.config()
