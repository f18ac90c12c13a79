"""Modules that a config names: bigjax's, a project's or a user's."""

import dataclasses
import importlib
import json
import pathlib
import sys

import pytest

from bigjax import config as config_lib
from bigjax import main, modules, tasks
from bigjax.arguments import Arguments
from bigjax.bounds import at_least
from bigjax.errors import UserError
from bigjax.models import gpt
from bigjax.projects.seqgan import model as seqgan


@pytest.fixture(autouse=True)
def imports(monkeypatch):
    """Removes the modules that a test has imported."""
    before = {*sys.modules}
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield
    for name in {*sys.modules} - before:
        if name.startswith("my_lab") or name.partition(".")[0] in ("alone", "test"):
            del sys.modules[name]


MODEL = """
import dataclasses

@dataclasses.dataclass(frozen=True)
class Config:
    size: int = {size}
"""


def write(folder, size=1, package="my_lab", name="mixer", text=None) -> str:
    """A package with a model; the folder that it is in."""
    (folder / package).mkdir(parents=True, exist_ok=True)
    (folder / package / "__init__.py").touch()
    (folder / package / f"{name}.py").write_text(text or MODEL.format(size=size))
    return str(folder)


def find(name, folder, room="models"):
    return modules.find(room, name, "model.name", folder)


def size(name, folder):
    return find(name, folder).Config().size


def test_modules_of_a_package_of_a_project_and_of_a_user(tmp_path):
    assert find("gpt", "") is gpt
    assert find("seqgan.model", "") is seqgan
    assert size("my_lab.mixer", write(tmp_path, 3)) == 3
    assert find("my_lab.mixer", str(tmp_path)) is find("my_lab.mixer", str(tmp_path))
    # A project takes precedence over other packages of that name.
    assert find("seqgan.model", write(tmp_path, package="seqgan", name="model")) is seqgan


@pytest.mark.parametrize("kind", ["package", "without __init__.py", "of the standard library"])
def test_packages_of_one_name_one_after_the_other(tmp_path, kind):
    package = "test" if kind == "of the standard library" else "my_lab"
    import test  # noqa: F401

    folders = []
    for i in (1, 2):
        folders.append(write(tmp_path / f"{i}", i, package))
        write(tmp_path / f"{i}", package=package, name="size", text=f"SIZE = {i}\n")
        write(tmp_path / f"{i}", package=package, name="late", text=f"LATE = {i}\n")
        text = MODEL.format(size="SIZE").replace(
            "import d", f"from {package}.size import SIZE\nimport d"
        )
        write(tmp_path / f"{i}", package=package, name="other", text=text)
        if kind == "without __init__.py":
            (tmp_path / f"{i}" / package / "__init__.py").unlink()
    for i in (1, 2, 1):
        assert size(f"{package}.mixer", folders[i - 1]) == i
        assert size(f"{package}.other", folders[i - 1]) == i
        sys.path.append(f"/nowhere/{len(sys.path)}")  # after which Python looks again
        assert importlib.import_module(f"{package}.late").LATE == i


def test_a_users_file_does_not_hide_an_installed_package(tmp_path):
    write(tmp_path)
    (tmp_path / "colorsys.py").write_text("raise ValueError('hidden')\n")
    sys.modules.pop("colorsys", None)
    text = "import colorsys\n" + MODEL.format(size=1)
    assert size("my_lab.mixer", write(tmp_path, text=text)) == 1


@pytest.mark.parametrize(
    "name, text, words",
    [
        ("my_lab.mixr", None, ["no module 'mixr' in the package 'my_lab' in", "mean 'mixer'?"]),
        ("their_lab.mixer", None, ["there is no module 'their_lab' in config.python_path="]),
        ("my_lab.mixer.Confg", None, ["no class 'Confg' in", "mixer.py. Did you mean 'Config'?"]),
        ("my_lab.mixer", "import nothing_of_this_name\n", ["nothing_of_this_name", "line 1"]),
        ("my_lab.mixer", "\nraise ValueError('odd')\n", ["ValueError: odd", "mixer.py, line 2"]),
        ("my_lab.mixer", "x = (\n", ["SyntaxError: '(' was never closed (", "mixer.py, line 1"]),
        ("my_lab.mixer", "x = 1\n", ["mixer.py does not define 'Config'", "bigjax.models"]),
        (
            "my_lab.mixer",
            "from bigjax.errors import UserError\nraise UserError('Install more.')\n",
            ["Install more."],
        ),
        ("my_lab.", None, ["my_lab."]),
        (".mixer", None, [".mixer"]),
    ],
)
def test_modules_that_cannot_be_imported(tmp_path, name, text, words):
    folder = write(tmp_path, text=text)
    for _ in range(2):  # nothing half imported is left
        with pytest.raises(UserError) as e:
            find(name, folder)
        assert all(w in str(e.value) for w in words), e.value
        assert ("Install more." in words) == (str(e.value) == "Install more.")


@pytest.mark.parametrize("room, has", [("models", "Config"), ("data", "Config")])
def test_modules_must_define_the_name_that_their_package_needs(tmp_path, room, has):
    folder = write(tmp_path, text="build = 1\n")
    with pytest.raises(UserError, match=f"does not define .{has}., .* bigjax.{room}"):
        find("my_lab.mixer", folder, room)
    assert find("my_lab.mixer", folder, "tasks").build == 1
    write(tmp_path, name="none", text="Config = 1\n")
    for room in ("tasks", "evals"):
        with pytest.raises(UserError, match=f"does not define .build., .* bigjax.{room}"):
            find("my_lab.none", folder, room)


def test_a_python_path_that_is_not_a_folder(tmp_path):
    with pytest.raises(UserError, match="config.python_path=.*none' is not a folder"):
        find("my_lab.mixer", str(tmp_path / "none"))


@pytest.mark.parametrize("room", ["models", "tasks", "data", "evals"])
def test_a_name_without_a_dot_is_a_module_of_bigjax(tmp_path, room):
    (tmp_path / "mixer.py").write_text("build = Config = 1\n")
    with pytest.raises(UserError, match=f"'mixer' is not a module of bigjax.{room}.*my_lab.mixer"):
        modules.find(room, "mixer", "x", str(tmp_path))


# --- python_path ------------------------------------------------------------------------------


def config_file(folder, model="my_lab.mixer", more="") -> str:
    folder.mkdir(exist_ok=True, parents=True)
    (folder / "c.py").write_text(
        "from bigjax import config\ndef get_config(variant=''):\n  c = config.new_config()\n"
        f"  c.model = dict(name={model!r})\n{more}  return c\n"
    )
    return str(folder / "c.py")


def test_python_path_is_the_config_files_folder_if_it_names_a_users_module(tmp_path, monkeypatch):
    write(tmp_path)
    assert config_lib.load_file(config_file(tmp_path, "gpt")).python_path == ""
    assert config_lib.load_file(config_file(tmp_path, "seqgan.model")).python_path == ""
    assert config_lib.load_file(config_file(tmp_path)).python_path == str(tmp_path)
    for more in (
        "  c.task.name = 'my_lab.task'\n",
        "  c.data = dict(name='my_lab.data')\n",
        "  c.evals = dict(x=dict(kind='my_lab.eval', every=1))\n",
    ):
        assert config_lib.load_file(config_file(tmp_path, "gpt", more)).python_path == str(tmp_path)
    more = (
        "  c.data = dict(name='text', tokenizer=dict(kind=3), sources=dict(a=dict(kind='v1.2')))\n"
    )
    assert config_lib.load_file(config_file(tmp_path, "gpt", more)).python_path == ""
    # Absolute, and that of the command line wins.
    monkeypatch.chdir(tmp_path)
    config_file(tmp_path, "gpt")
    write(tmp_path / "b", 7)
    c, _ = Arguments(["--config=c.py", "--config.model.name=my_lab.mixer"]).config()
    assert c.python_path == str(tmp_path) and c.model.size == 1
    c, _ = Arguments(
        ["--config=c.py", "--config.model.name=my_lab.mixer", "--config.python_path=b"]
    ).config()
    assert c.python_path == str(tmp_path / "b") and c.model.size == 7
    config_file(tmp_path)
    c, before = Arguments(["--config=c.py", "--config.python_path=b"]).config()
    assert before == {"python_path": str(tmp_path)} and c.model.size == 7


def test_fields_of_a_users_module_are_filled_and_overridden(tmp_path):
    write(tmp_path, 3)
    c, overridden = Arguments(
        [f"--config={config_file(tmp_path)}", "--config.model.size=4"]
    ).config()
    assert c.model.to_dict() == {"name": "my_lab.mixer", "preset": "", "size": 4}
    assert overridden == {"model.size": 3}
    again = config_lib.from_json(config_lib.to_json(c), "here")
    assert modules.options(again, "model") == find("my_lab.mixer", str(tmp_path)).Config(4)
    with pytest.raises(UserError, match="Unknown config key 'model.sise'. Did you mean 'size'"):
        Arguments([f"--config={config_file(tmp_path)}", "--config.model.sise=4"]).config()


# --- What modules declare ---------------------------------------------------------------------


def filled(**sections):
    c = config_lib.new_config()
    with c.unlocked():
        for name, section in sections.items():
            c[name] = section
    modules.fill(c)
    return c


def test_sections_are_filled_and_keep_what_was_set():
    c = filled(
        data=dict(name="text", tokenizer=dict(kind="bytes")),
        evals=dict(valid=dict(kind="loss", every=3)),
    )
    assert c.data.tokenizer.to_dict() == dict(
        kind="bytes", path="", vocab_size=4096, sentinels=0, lowercase=True
    )
    assert c.data.sources.docstrings.kind == "docstrings" and c.data.seq_len == 256
    assert c.evals.valid.to_dict() == dict(kind="loss", every=3, split="valid", batches=0)
    again = json.loads(config_lib.to_json(c))
    modules.fill(c)
    assert json.loads(config_lib.to_json(c)) == again


def test_a_section_within_a_section_keeps_the_modules_own_defaults():
    c = filled(data=dict(name="seqgan.headline_data", tokenizer=dict(vocab_size=9)))
    assert (c.data.tokenizer.kind, c.data.tokenizer.vocab_size) == ("wordpiece", 9)


@pytest.mark.parametrize(
    "data, words",
    [
        (dict(name="text", seqlen=3), "'data.seqlen'. Did you mean 'seq_len'"),
        (dict(name="text", tokenizer=3), "config.data.tokenizer is a section, but was set to 3"),
        (dict(name="text", tokenizer=dict(kin="x")), "'data.tokenizer.kin'. Did you mean 'kind'"),
        (dict(name="text", sources=dict(a=3)), "config.data.sources.a is a section"),
        (dict(name="text", sources=dict(a=dict())), "config.data.sources.a.kind is missing"),
        (dict(name="text", sources=dict(a=dict(kind=3))), "data.sources.a.kind must be a string"),
        (dict(name="text", tokenizer=dict(kind=3)), "config.data.tokenizer.kind must be a str"),
        (dict(name="text", sources=dict(a=dict(kind="text", weight="x"))), "weight must be a num"),
        (dict(name="labelled", sources={}), "Unknown config key 'data.sources'"),
        (dict(name="labelled", columns=dict(headline="x")), "'data.columns.headline'"),
        (dict(name="tokenizer"), "'tokenizer' is not a module of bigjax.data.*labelled, .*text"),
    ],
)
def test_wrong_sections(data, words):
    with pytest.raises(UserError, match=words):
        filled(data=data)


def test_declared_patterns_start_with_their_section():
    c = filled(
        task=dict(name="seqgan.headline"),
        model=dict(name="seqgan.headline_model"),
        data=dict(name="seqgan.headline_data"),
    )
    assert {"task.thesaurus", "data.tokenizer.path"} <= {*modules.declared(c, "PATHS")}
    assert {"model.*dropout", "task.click_*", "data.train"} <= {*modules.declared(c, "MAY_CHANGE")}
    assert modules.declared(c, "DATA_PATHS") == ["data.train", "data.valid", "data.test"]


def test_every_pattern_that_is_declared_matches_a_key():
    from tests.unit.test_bounds import MODULES

    sections = {"models": "model", "tasks": "task", "data": "data"}
    sections |= dict.fromkeys(("data.sources", "data.tokenizers"), "data")
    for room, names in MODULES.items():
        for name in names:
            module = modules.find(room, name, "x")
            if room not in sections:
                continue
            section = _section(module)
            fields = dict(config_lib.sorted_leaves(section))
            fields |= {f"{k}.x": 0 for k, v in section.items() if isinstance(v, type(section))}
            for declared in ("MAY_CHANGE", "PATHS", "DATA_PATHS"):
                for pattern in getattr(module.Config, declared, ()):
                    assert _matches(fields, pattern), (name, declared, pattern)


def _section(module):
    config_dict = type(config_lib.new_config())
    return config_dict(dataclasses.asdict(module.Config()))


def _matches(fields, pattern) -> bool:
    import fnmatch

    return any(fnmatch.fnmatchcase(key, pattern) for key in fields)


def test_a_config_is_a_frozen_dataclass_with_ranges_of_its_fields(tmp_path):
    def build(text):
        folder = tmp_path / str(len(text))
        name = f"my_lab_{len(text)}"
        write(folder, package=name, text=f"import dataclasses\n{text}")
        config = config_lib.new_config()
        with config.unlocked():
            config.python_path, config.model = str(folder), dict(name=f"{name}.mixer")
        return modules.options(config, "model")

    body = "class Config:\n  size: int = 1\n"
    for decorator in ("", "@dataclasses.dataclass\n"):
        with pytest.raises(UserError, match="Config is not a frozen dataclass"):
            build(decorator + body)
    with pytest.raises(UserError, match="RANGES of config.model name 'siz', which is not a field"):
        build(f"@dataclasses.dataclass(frozen=True)\n{body}  RANGES = {{'siz': None}}\n")


def test_a_modules_range_is_checked_once_for_all_commands(tmp_path):
    text = MODEL.format(size=1).replace(
        "import dataclasses", "import dataclasses\nfrom bigjax.bounds import at_least"
    )
    write(tmp_path, text=text + "    RANGES = {'size': at_least(1)}\n")
    assert find("my_lab.mixer", str(tmp_path)).Config.RANGES == {"size": at_least(1)}
    with pytest.raises(UserError, match="config.model.size is 0; it must be at least 1"):
        Arguments([f"--config={config_file(tmp_path)}", "--config.model.size=0"]).config()


@pytest.mark.parametrize(
    "task, data, words",
    [
        ("causal_lm", "labelled", "needs data with load_text, such as data.name='text'"),
        ("mlm_nsp", "labelled", "needs data with load_text, such as data.name='text'"),
        ("classify", "text", "needs data with load_labelled, such as data.name='labelled'"),
        ("seqgan.oracle", "text", "needs data with OracleText, such as .*seqgan.oracle_data"),
        ("seqgan.headline", "text", "needs data with load_headlines, such as .*headline_data"),
    ],
)
def test_a_task_refuses_data_of_another_kind(task, data, words):
    models = {"causal_lm": "gpt", "seqgan.oracle": "seqgan.model"}
    models["seqgan.headline"] = "seqgan.headline_model"
    c = filled(
        model=dict(name=models.get(task, "bert")),
        task=dict(name=task, **dict(labels=("a", "b")) if task == "classify" else {}),
        data=dict(name=data, seq_len=16),
    )
    with pytest.raises(UserError, match=f"{words}.*; data.name is '{data}'"):
        tasks.build(c)


@pytest.mark.parametrize(
    "command, config, words",
    [
        (
            "tokenizer",
            "configs/seqgan/oracle.py:tiny",
            "data.name='seqgan.oracle_data' has no tokenizer",
        ),
        ("tokenizer", "tests/tiny_bert.py:labelled", "is trained when a run reads its data"),
        (
            "embeddings",
            "configs/seqgan/oracle.py:tiny",
            "data.tokenizer.kind is '', but word vectors",
        ),
    ],
)
def test_commands_of_data_without_sources_or_tokenizer(command, config, words, tmp_path, capsys):
    more = [f"--out={tmp_path}/out"] if command == "embeddings" else []
    assert main.main([command, f"--config={config}", *more]) == 2
    assert words in capsys.readouterr().err
    assert not pathlib.Path("tokenizers").exists()  # no cache in the current folder


def test_the_tokenizer_of_labelled_data_is_shown(capsys):
    flags = ["--config=tests/tiny_bert.py:labelled", "--config.data.tokenizer.kind=bytes"]
    assert main.main(["tokenizer", *flags]) == 0
    assert "bytes tokenizer of 259 tokens" in capsys.readouterr().out


def test_the_sources_of_ones_own_are_the_imported_modules_of_packages_too(tmp_path):
    folder = write(tmp_path / "here", 3)
    write(tmp_path / "here", 5, name="not_imported")
    find("my_lab.mixer", folder)
    assert modules.own_sources(folder) == MODEL.format(size=3)
    assert modules.own_sources(str(tmp_path / "elsewhere")) == ""
