"""Config files, overrides, and error messages."""

import json
import subprocess
import sys

import pytest

from bigjax import config, modules
from bigjax.arguments import Arguments
from bigjax.errors import UserError


def resolved(*arguments, file="configs/gpt/docstrings.py"):
    return Arguments([f"--config={file}", *arguments]).config()


def test_overrides_keep_types_and_may_set_fields_that_the_file_does_not():
    c, overridden = resolved(
        "--config.optim.learning_rate=1",
        "--config.model.n_kv_heads=2",
        "--config.data.sources.docstrings.weight=2",
        "--config.data.packing=false",
    )
    assert c.optim.learning_rate == 1.0 and isinstance(c.optim.learning_rate, float)
    assert c.model.n_kv_heads == 2 and c.data.packing is False
    assert c.data.sources.docstrings.weight == 2.0
    assert overridden["model.n_kv_heads"] == 4 and overridden["optim.learning_rate"] == 4e-3


def test_an_evaluator_is_added_or_becomes_another_on_the_command_line(tmp_path):
    add = ("--config.evals.g.split=test", "--config.evals.g.kind=generation")
    c, overridden = resolved(*add, "--config.train.steps=7")
    assert {*c.evals} == {"valid", "sample", "g"} and c.evals.valid.kind == "loss"
    assert (c.evals.g.kind, c.evals.g.split, c.evals.g.beam) == ("generation", "test", 1)
    assert c.evals.g.every == 7 and overridden["evals.g.kind"] is None
    assert resolved(*add, "--config.evals.g.every=3")[0].evals.g.every == 3
    # A run's config has all keys of its evaluators, and one of another kind has other keys.
    (tmp_path / "config.json").write_text(config.to_json(c))
    of_run = lambda *keys: Arguments([f"--workdir={tmp_path}", *keys]).config_of_run().evals
    same = of_run("--config.evals.g.kind=generation", "--config.evals.g.beam=4").g
    assert (same.split, same.every, same.beam) == ("test", 7, 4)
    other = of_run("--config.evals.g.kind=loss", "--config.evals.g.batches=2").g
    assert other.to_dict() == dict(kind="loss", every=7, split="test", batches=2)
    assert of_run("--config.evals.valid.kind=generation").valid.beam == 1
    assert "h" in of_run("--config.evals.h.kind=sample")
    for key, words in (
        (
            "g.split=test",
            r"config.evals has no 'g'. .*valid.* give also --config.evals.g.kind=KIND, ",
        ),
        ("vaild.every=2", r"has no 'vaild'. Did you mean 'valid'\?"),
        ("g.kind=los", "config.evals.g.kind='los' is not a module.*Did you mean 'loss'"),
        ("a/b.kind=loss", "a name in config.evals"),
    ):
        with pytest.raises(UserError, match=words):
            resolved(f"--config.evals.{key}")


def test_keys_of_the_file_override_a_preset(tmp_path):
    c, _ = resolved("--config.model.preset=gpt2-355m")
    assert c.model.n_layers == 4 and c.model.vocab_size == 2048  # written in the file
    file = tmp_path / "c.py"
    file.write_text(
        "from bigjax import config\ndef get_config(variant=''):\n"
        "  c = config.new_config()\n"
        "  c.model = dict(name='gpt', preset='gpt2-355m', n_layers=3)\n  return c\n"
    )
    c, _ = resolved(file=str(file))
    assert (c.model.d_model, c.model.n_heads, c.model.n_layers) == (1024, 16, 3)


def test_a_derived_field_follows_an_override(tmp_path):
    """A field that a Config derives in __post_init__, of a model and of any other module."""
    (tmp_path / "derived_lab.py").write_text(
        "import dataclasses\n"
        "@dataclasses.dataclass(frozen=True)\n"
        "class Options:\n"
        "  heads: int = 2\n"
        "  width: int = 0\n"
        "  def __post_init__(self):\n"
        "    if not self.width: object.__setattr__(self, 'width', 8 * self.heads)\n"
        "class Task:\n"
        "  Config, build = Options, None\n"
    )
    file = tmp_path / "c.py"
    file.write_text(
        "from bigjax import config\n"
        "def get_config(variant=''):\n"
        "  c = config.new_config()\n"
        "  c.model = dict(name='gpt', d_model=64, n_heads=4)\n"
        "  c.task = dict(name='derived_lab.Task')\n"
        "  return c\n"
    )
    c, overridden = resolved(
        "--config.task.heads=5",
        "--config.model.d_model=128",
        "--config.data.sources.docstrings.weight=2",
        file=str(file),
    )
    assert (c.model.d_ff, c.model.head_dim) == (512, 32) and c.task.width == 40
    assert overridden == {
        "task.heads": 2,
        "model.d_model": 64,
        "data.sources.docstrings.weight": 1.0,
    }
    assert (
        c.data.sources.docstrings.to_dict().items() >= {"kind": "docstrings", "weight": 2}.items()
    )


def test_overridden_keys_are_marked():
    c, overridden = resolved("--config.train.steps=7")
    lines = config.describe(c, overridden).splitlines()
    assert "train.steps = 7   # overridden, was 600" in lines
    assert sum("overridden" in line for line in lines) == 1


def test_entries_of_a_dict_of_numbers_are_set_by_name():
    c, overridden = resolved("--config.task.sum_weights.balance=0.5")
    assert c.task.sum_weights.to_dict() == {"balance": 0.5}
    assert overridden == {"task.sum_weights.balance": None}
    with pytest.raises(UserError, match="sum_weights.balance=much.*a number"):
        resolved("--config.task.sum_weights.balance=much")
    with pytest.raises(UserError, match="sum_weights is a section.*sum_weights.NAME=VALUE"):
        resolved("--config.task.sum_weights=3")


def test_only_a_saved_step_can_be_the_best():
    c, _ = resolved("--config.checkpoint.best=eval/valid/loss", "--config.checkpoint.every=30")
    with pytest.raises(UserError, match="evals.valid.every=100 must be a multiple.*every=30"):
        config.check_values(c)


def leaves(c) -> list:
    """The keys and values. The tuples of a module are lists until its Config is made from them."""
    as_tuple = lambda value: tuple(value) if isinstance(value, list) else value
    return [(key, as_tuple(value)) for key, value in config.sorted_leaves(c)]


def test_json_preserves_the_config():
    c, _ = resolved("--config.optim.boundaries=10,20")
    assert c.optim.boundaries == (10, 20)
    again = config.from_json(config.to_json(c), "here")
    assert again.optim.boundaries == (10, 20)
    assert leaves(again) == leaves(c)
    assert modules.options(again, "model") == modules.options(c, "model")


def test_a_config_of_an_older_version_gets_new_keys():
    c, _ = resolved()
    old = json.loads(config.to_json(c))
    del old["hosts"], old["train"]["ema"], old["evals"]["valid"]["split"]
    del old["data"]["packing"], old["data"]["tokenizer"]["lowercase"], old["model"]["preset"]
    again = config.from_json(json.dumps(old), "here")
    modules.fill(again)
    assert leaves(again) == leaves(c)


@pytest.mark.parametrize(
    "argument, words",
    [
        ("--config.optim.learning_rat=1", ["optim.learning_rat", "'learning_rate'"]),
        ("--config.optin.name=sgd", ["optin", "'optim'"]),
        ("--config.model.n_layer=3", ["model.n_layer", "'n_layers'"]),
        ("--config.train.steps=many", ["train.steps", "int", "many"]),
        ("--config.train.steps", ["--config.train.steps=VALUE"]),
        ("--config.model.preset=gpt2-124", ["gpt2-124", "gpt2-124m"]),
        ("--config.model.name=gtp", ["gtp", "gpt"]),
        ("--config.task.name=casual_lm", ["casual_lm", "causal_lm"]),
        ("--config.model.norm=batchnorm", ["model.norm", "layernorm", "rmsnorm"]),
        ("--config.model.n_heads=3", ["128", "3"]),
        ("--stepz=1", ["stepz"]),
    ],
)
def test_an_error_names_the_wrong_argument(argument, words):
    with pytest.raises(UserError) as e:
        resolved(argument)
    assert all(w in str(e.value) for w in words), e.value


@pytest.mark.parametrize(
    "key, value, words",
    [
        ("train.steps", 0, ["train.steps", "at least 1"]),
        ("train.accumulate", 5, ["16", "5", "micro-batches"]),
        ("train.ema", 1.0, ["train.ema", "[0, 1)"]),
        ("checkpoint.best", "eval/test/loss", ["eval/test/loss", "eval/valid/"]),
        ("optim.learning_rate", -1, ["optim.learning_rate", "positive"]),
        ("evals.valid.batches", -1, ["evals.valid.batches", "at least 0"]),
        ("train.early_stop.mode", "least", ["least", "min, max"]),
    ],
)
def test_values_out_of_range_are_refused(key, value, words):
    with pytest.raises(UserError) as e:
        c, _ = resolved(f"--config.{key}={value}")  # which refuses what modules declare
        config.check_values(c)
    assert all(w in str(e.value) for w in words), e.value


@pytest.mark.parametrize(
    "body, words",
    [
        ("import nothing_of_this_name", ["line 1", "nothing_of_this_name"]),
        ("x = (", ["line 1", "SyntaxError"]),
        ("x = 1", ["get_config"]),
        ("def get_config(v=''):\n  return {}", ["dict", "ConfigDict"]),
        (
            "from bigjax import config\ndef get_config(v=''):\n  c = config.new_config()\n"
            "  c.optim.learning_rat = 1.0\n  return c",
            ["line 4", "learning_rate"],
        ),
        (
            "from ml_collections import ConfigDict\ndef get_config(v=''):\n"
            "  return ConfigDict({'sed': 1})",
            ["sed", "seed"],
        ),
    ],
)
def test_a_config_file_that_fails(tmp_path, body, words):
    file = tmp_path / "bad.py"
    file.write_text(body)
    with pytest.raises(UserError) as e:
        config.load_file(str(file))
    assert all(w in str(e.value) for w in words), e.value


def test_a_missing_file_and_a_missing_variant():
    with pytest.raises(UserError, match="configs/gpt/docstrings.py"):
        config.load_file("configs/gpt/docstring.py")
    with pytest.raises(UserError, match="no variant 'smal'.*tiny"):
        config.load_file("configs/gpt/docstrings.py:smal")


def test_configs_and_the_config_module_import_no_jax():
    code = (
        "import sys; from bigjax import config\n"
        "for p in config.config_files(): config.load_file(str(p))\n"
        "assert 'jax' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_folder_or_another_kind_of_file_is_no_config(tmp_path):
    (tmp_path / "runs.jsonl").write_text("{}")
    with pytest.raises(UserError, match="runs.jsonl' is not a Python file.*end in .py"):
        config.load_file(str(tmp_path / "runs.jsonl"))
    with pytest.raises(UserError, match="is a folder. Name a file in it"):
        config.load_file(str(tmp_path))


def test_a_section_without_keys_is_printed():
    assert "train.compiler_options = {}" in config.describe(config.new_config(), {}).splitlines()
