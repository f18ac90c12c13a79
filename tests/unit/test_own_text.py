"""A user's source of text and tokenizer, those of tests/extension/my_lab/poems.py."""

import sys

import pytest

from bigjax import modules, tasks
from bigjax.arguments import Arguments
from bigjax.data import load_tokenizer
from bigjax.errors import UserError
from tests import helpers


@pytest.fixture(autouse=True)
def imports(monkeypatch):
    """Removes the modules that a test has imported."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield
    for name in [n for n in sys.modules if n.partition(".")[0] == "my_lab"]:
        del sys.modules[name]


def test_a_users_source_and_tokenizer(tmp_path):
    """Their keys are those of their Config; a run's folder restores the tokenizer by its kind."""
    path, cache = tmp_path / "poems.csv", f"--config.data.cache_dir={tmp_path}/cache"
    path.write_text("line,year\n" + "".join(f"the line {i} of it,1900\n" for i in range(99)))
    flags = ["--config=tests/extension/poems.py", f"--config.data.sources.poems.path={path}", cache]
    c, _ = Arguments([*flags, "--config.data.tokenizer.size=12"]).config()
    assert c.data.sources.poems.to_dict() == dict(
        kind="my_lab.poems.Column", path=str(path), column="line", weight=1.0
    )
    assert {"data.sources.poems.path", "data.cache_dir"} <= {*modules.declared(c, "MAY_CHANGE")}
    assert modules.declared(c, "DATA_PATHS") == ["data.sources.poems.path"]
    lines: list[str] = []
    corpus = tasks.build(c).load_data(lines.append)
    tokenizer = corpus.tokenizer
    assert tokenizer.kind == "my_lab.poems.Letters" and tokenizer.vocab_size == 12 + 3
    batch = corpus.split("train", batch_size=2, seed=0).batch_at(0)
    assert "the line" in tokenizer.decode(batch["inputs"][0])
    assert any("training an alphabet" in line for line in lines)
    assert tasks.build(c).load_data(lines.append).fingerprint == corpus.fingerprint
    assert sum("training an alphabet" in line for line in lines) == 1
    tokenizer.save(tmp_path / "tokenizer")
    again = load_tokenizer(tmp_path / "tokenizer")
    assert (again.kind, again.fingerprint) == (tokenizer.kind, tokenizer.fingerprint)
    for flag, words in {
        "data.tokenizer.vocab_size=9": "'data.tokenizer.vocab_size'",
        "data.tokenizer.size=0": "data.tokenizer.size is 0",
        "data.sources.poems.kind=csv": "not a module of bigjax.data.sources",
        "data.tokenizer.kind=my_lab.poems": "does not define 'build'",
    }.items():
        with pytest.raises(UserError, match=words):
            Arguments([*flags, f"--config.{flag}"]).config()
    # Kinds first: the keys are those of the new module.
    flags = ["--config=configs/gpt/text.py", "--config.data.tokenizer.kind=my_lab.poems.Letters"]
    flags += ["--config.data.tokenizer.size=7", "--config.python_path=tests/extension"]
    c, before = Arguments(flags).config()
    assert c.data.tokenizer.to_dict() == dict(kind="my_lab.poems.Letters", size=7)
    assert before["data.tokenizer.kind"] == "bytes" and before["data.tokenizer.size"] is None


def test_another_kind_replaces_the_keys_of_the_former_one(tmp_path):
    flags = ["--config=tests/extension/poems.py", "--config.data.tokenizer.kind=bytes"]
    flags += ["--config.data.sources.poems.kind=text", "--config.data.sources.poems.path=x"]
    c, before = Arguments(flags).config()
    assert set(c.data.tokenizer) == {"kind", "path", "vocab_size", "sentinels", "lowercase"}
    assert c.data.sources.poems.path == "x" and "column" not in c.data.sources.poems
    assert before["data.tokenizer.kind"] == "my_lab.poems.Letters"
    with pytest.raises(UserError, match="Unknown config key 'data.tokenizer.size'"):
        Arguments([*flags, "--config.data.tokenizer.size=3"]).config()


def test_a_users_source_without_its_column(tmp_path):
    (tmp_path / "poems.csv").write_text("line,year\na,1900\n")
    flags = ["--config=tests/extension/poems.py", f"--config.data.cache_dir={tmp_path}/cache"]
    flags += [f"--config.data.sources.poems.path={tmp_path}/poems.csv"]
    c, _ = Arguments([*flags, "--config.data.sources.poems.column=lime"]).config()
    with pytest.raises(UserError, match="no column 'lime'; it has: line, year. Set"):
        tasks.build(c).load_data(str)


def test_a_users_source_and_tokenizer_after_another_package_of_their_name(tmp_path):
    """Such as that of a teacher's config, which replaces the package in sys.modules."""
    (tmp_path / "poems.csv").write_text("line,year\n" + "a b,1900\n" * 9)
    flags = ["--config=tests/extension/poems.py", f"--config.data.cache_dir={tmp_path}/cache"]
    flags += [f"--config.data.sources.poems.path={tmp_path}/poems.csv"]
    c, _ = Arguments([*flags, "--config.data.valid_fraction=0"]).config()
    task = tasks.build(c)
    (tmp_path / "other" / "my_lab").mkdir(parents=True)
    (tmp_path / "other" / "my_lab" / "__init__.py").touch()
    other = lambda: modules.find("tasks", "my_lab.task", "task.name", str(tmp_path / "other"))
    (tmp_path / "other" / "my_lab" / "task.py").write_text("build = 1\n")
    other()
    task.load_data(str).tokenizer.save(tmp_path / "tokenizer")
    other()
    assert load_tokenizer(tmp_path / "tokenizer", c.python_path).vocab_size == 3 + 3


def test_a_users_model_without_a_limit_of_its_length(tmp_path):
    c = helpers.load_config("tests/tiny.py").unlock()
    (tmp_path / "my_lab").mkdir()
    (tmp_path / "my_lab" / "endless.py").write_text(
        "import dataclasses\n@dataclasses.dataclass(frozen=True)\n"
        "class Config:\n    vocab_size: int = 9\n"
    )
    c.model, c.python_path = dict(name="my_lab.endless"), str(tmp_path)
    family, options = tasks.family_for(c, "any", lambda family: True)
    assert family.Config() == options
