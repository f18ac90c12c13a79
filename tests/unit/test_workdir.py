"""Which config keys a resumed run may change, by the declarations of its modules."""

import sys

from etils import epath
import pytest

from bigjax import config as config_lib
from bigjax import modules
from bigjax.errors import UserError
from bigjax.train import init_from, workdir
from tests import helpers

CONFIGS = {
    "text": "configs/gpt/docstrings.py",
    "encoder": "configs/bert/docstrings.py",
    "labelled": "configs/bert/finetune.py:tiny",
    "oracle": "configs/seqgan/oracle.py",
    "headlines": "configs/seqgan/headlines.py",
}
# Keys that a resumed run must keep (FIXED) and may change (FREE): {config: {key: another value}}.
FIXED = {
    "text": {
        "seed": 7,
        "optim.name": "lamb",
        "optim.freeze": "embed",
        "train.batch_size": 2,
        "model.d_model": 256,
        "model.n_layers": 5,
        "model.tie_embeddings": False,
        "data.seq_len": 8,
        "data.packing": False,
        "data.valid_fraction": 0.5,
        "data.tokenizer.kind": "bytes",
        "data.tokenizer.vocab_size": 999,
        "data.sources.docstrings.weight": 2.0,
        "data.sources.docstrings.kind": "jsonl",
        "train.ema": 0.5,
    },
    "encoder": {"task.pairs": "none", "model.d_ff": 9},
    "labelled": {"task.kind": "regress", "task.labels": ("a", "b"), "data.columns.text": "x"},
    "oracle": {
        "data.seed": 3,
        "data.sequences": 5,
        "task.reward": "constant",
        "task.mle_rounds": 1,
        "task.generator_updates": 9,
        "model.filters": (1,) * 12,
    },
    "headlines": {"model.article_len": 9, "task.pretrain_updates": 3, "data.columns.clicks": "x"},
}
FREE = {
    "text": {
        "init_from": "/x",
        "optim.learning_rate": 1.0,
        "train.steps": 7,
        "mesh.fsdp": 4,
        "log.every": 3,
        "model.dropout": 0.5,
        "model.remat": "full",
        "model.dtype": "bfloat16",
        "model.attention": "einsum",
        "data.cache_dir": "/x",
        "data.tokenizer.path": "/x",
        "data.sources.docstrings.path": "/x",
        "task.label_smoothing": 0.5,
        "python_path": "/x",
    },
    "encoder": {"task.mask_rate": 0.5, "model.attention_dropout": 0.5},
    "labelled": {"data.train": "/x", "data.test": "/x", "task.label_smoothing": 0.5},
    "oracle": {"data.params": "/x", "task.rollouts": 9, "task.kl": 0.5},
    "headlines": {
        "data.valid": "/x",
        "task.hot_words_file": "/x",
        "task.thesaurus": "/x",
        "task.embeddings": "/x",
        "model.click_dropout": 0.5,
    },
}


def with_value(c, key, value):
    changed = c.copy_and_resolve_references()
    *parents, last = key.split(".")
    node = config_lib.get(changed, ".".join(parents)) if parents else changed
    with changed.unlocked(), node.ignore_type():
        assert node[last] != value
        node[last] = value
    return changed


@pytest.mark.parametrize("name", CONFIGS)
def test_fixed_keys_and_keys_that_may_change(name, tmp_path):
    c, messages = helpers.load_config(CONFIGS[name]), []
    workdir.write_config(epath.Path(tmp_path), c)
    workdir.check_same_run(str(tmp_path), c, messages.append)
    assert not messages
    for key, value in FIXED[name].items():
        old = config_lib.get(c, key)
        with pytest.raises(UserError, match=f"with another config.*: {key} was .*, now ") as e:
            workdir.check_same_run(str(tmp_path), with_value(c, key, value), messages.append)
        assert repr(value) in str(e.value) and not messages, old
    for key, value in FREE[name].items():
        workdir.check_same_run(str(tmp_path), with_value(c, key, value), messages.append)
        assert len(messages) == 1 and f"last started: {key} from " in messages.pop()


def test_evaluations_may_change(tmp_path):
    c, messages = helpers.load_config("tests/tiny.py"), []
    workdir.write_config(epath.Path(tmp_path), c)
    with c.unlocked():
        c.evals = dict(other=dict(kind="sample", every=3))
    workdir.check_same_run(str(tmp_path), helpers.filled(c), messages.append)
    assert messages and all("evals." in line for line in messages)


MODEL = """
import dataclasses

@dataclasses.dataclass(frozen=True)
class Config:
    size: int = 1
    speed: int = 1
    {more}
    MAY_CHANGE = ("speed",)
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """own(folder, more) -> the config of a run with a model of a user's own in this folder."""
    monkeypatch.setattr(sys, "path", [*sys.path])

    def make(name, more=""):
        folder = tmp_path / name / "my_changing_lab"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "__init__.py").touch()
        (folder / "model.py").write_text(MODEL.format(more=more))
        c = config_lib.new_config()
        with c.unlocked():
            c.model = dict(name="my_changing_lab.model")
            c.python_path = str(tmp_path / name)
        return helpers.filled(c)

    yield make
    for name in [n for n in sys.modules if n.startswith("my_changing_lab")]:
        del sys.modules[name]


def test_a_users_model(own, tmp_path):
    c, messages = own("a"), []
    workdir.write_config(epath.Path(tmp_path), c)
    workdir.check_same_run(str(tmp_path), with_value(c, "model.speed", 2), messages.append)
    assert len(messages) == 1
    with pytest.raises(UserError, match="model.size was 1, now 2"):
        workdir.check_same_run(str(tmp_path), with_value(c, "model.size", 2), messages.append)
    # Moved to another folder, with a field more since the run was started, and one less.
    more = own("b", "depth: int = 4")
    assert modules.options(more, "model").depth == 4
    messages.clear()
    workdir.check_same_run(str(tmp_path), more, messages.append)
    assert len(messages) == 1 and "python_path" in messages[0]
    with pytest.raises(UserError, match="model.depth was 4, now 5"):
        workdir.check_same_run(str(tmp_path), with_value(more, "model.depth", 5), messages.append)
    workdir.write_config(epath.Path(tmp_path), more)
    with pytest.raises(UserError, match="model.depth was 4, now absent"):
        workdir.check_same_run(str(tmp_path), own("c"), messages.append)


def test_keys_of_another_module_are_not_listed(own, tmp_path):
    workdir.write_config(epath.Path(tmp_path), own("a"))
    gpt = helpers.load_config("tests/tiny.py")
    with pytest.raises(UserError) as e:
        workdir.check_same_run(str(tmp_path), gpt, print)
    changed = str(e.value).partition("with this one: ")[2].partition(". Use another")[0]
    changed = changed.split("; ")
    assert [x for x in changed if x.startswith("model.")] == [
        "model.name was 'my_changing_lab.model', now 'gpt'"
    ]
    assert [x for x in changed if x.startswith("data.sources.text.")] == [
        "data.sources.text.kind was absent, now 'text'"
    ]


def test_init_from_does_not_copy_what_a_resumed_run_may_change(own, monkeypatch):
    c = own("one")
    name = c.model.name
    source = init_from.Source("", {}, None, dict(name=name, size=3, speed=9), "", "", ())
    monkeypatch.setattr(init_from, "open_source", lambda *arguments: source)
    with c.unlocked():
        c.model, c.init_from = dict(name=name, preset="init_from"), "somewhere"
    init_from.fill(c)
    model = modules.options(c, "model")
    assert (model.size, model.speed) == (3, 1)
