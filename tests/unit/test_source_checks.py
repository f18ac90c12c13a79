"""Which parameters of a source are compared by tokenizer and by labels."""

import pathlib

import jax
import numpy as np
import pytest

from bigjax import modules
from bigjax.arguments import Arguments
from bigjax.data.tokenizers.bytes import Bytes
from bigjax.errors import UserError
from bigjax.train import init_from, source_checks
from bigjax.train.init_from import Source

AXES = {"embed": {"embedding": ("vocab", "embed")}, "norm": {"scale": ("embed",)}}
AXES |= {"out": {"kernel": ("embed", "vocab")}}
SHAPES = {"embed/embedding": (4, 2), "norm/scale": (2,), "out/kernel": (2, 4)}


def source(path="", labels=()):
    return Source("there", SHAPES, None, {}, "wordpiece", str(path), labels)


@pytest.mark.parametrize(
    "reset, refused", [("", True), ("^embed", True), ("^norm", True), ("^(embed|out)", False)]
)
def test_every_parameter_with_an_axis_of_tokens_needs_the_same_tokenizer(reset, refused, tmp_path):
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\n")
    check = lambda: source_checks.check_tokenizer(source(tmp_path), AXES, reset, Bytes(), print)
    if not refused:
        return check()
    with pytest.raises(UserError, match=r"init_reset='\^\(embed/embedding\|out/kernel\)'"):
        check()


def test_a_users_tokenizer_in_a_runs_folder(tmp_path):
    """It has no key `path`: its folder is loaded by its module."""
    folder = str(pathlib.Path(__file__).parents[1] / "extension")
    letters = modules.find("data.tokenizers", "my_lab.poems.Letters", "kind", folder)
    for text in ("abc", "xyz"):
        tokenizer = letters(text)
        tokenizer.kind = "my_lab.poems.Letters"
        tokenizer.save(tmp_path / text)
    there = source(tmp_path / "abc")._replace(tokenizer_kind=tokenizer.kind)
    check = lambda own: source_checks.check_tokenizer(there, AXES, "", own, print, folder)
    check(letters("abc"))
    with pytest.raises(UserError, match="another vocabulary .my_lab.poems.Letters, 6 tokens"):
        check(tokenizer)


def test_a_users_tokenizer_without_a_path_is_not_used_by_init_from(tmp_path, monkeypatch):
    flags = ["--config=tests/extension/poems.py", f"--config.init_from={tmp_path}"]
    c, _ = Arguments([*flags, "--config.data.tokenizer.kind=init_from"]).config()
    there = source(tmp_path)._replace(tokenizer_kind="my_lab.poems.Letters")
    monkeypatch.setattr(init_from, "open_source", lambda *args: there)
    with pytest.raises(UserError, match="'my_lab.poems.Letters', whose Config has no key 'path'"):
        init_from.fill(c)


def test_only_the_label_head_of_the_task_needs_the_same_labels():
    shapes = {"out": {"kernel": jax.ShapeDtypeStruct((2, 4), np.float32)}}
    check = lambda head: source_checks.check_labels(
        source(labels=("a", "b")), shapes, head, "", ("b", "a"), print
    )
    check("")
    check("elsewhere")
    with pytest.raises(
        UserError, match=r"has a head 'out' for the labels \['a', 'b'\].*\['b', 'a'\]"
    ):
        check("out")
