"""Which flags and config keys each command accepts."""

import importlib

import pytest

from bigjax import cli, main
from bigjax.arguments import Arguments

# What each command accepts: --config, --workdir, and keys of these sections.
TAKES = {
    "train": ("config", "workdir", "optim"),
    "eval": ("workdir", "data"),
    "predict": ("workdir", "data"),
    "score": ("workdir", "data"),
    "generate": ("workdir", "data"),
    "chat": ("workdir", "mesh"),
    "evaluate": ("workdir", "mesh"),
    "feedback": (),
    "transcribe": ("workdir", "data"),
    "plan": ("config", "optim"),
    "look": ("config", "optim"),
    "configs": (),
    "config": ("config", "workdir", "optim"),
    "checkpoint": ("workdir",),
    "report": ("workdir",),
    "seqgan-report": ("workdir",),
    "tokenizer": ("config",),
    "headline": ("workdir", "mesh"),
    "embeddings": ("config", "data"),
    "import": ("workdir", "data"),
    "export": ("workdir",),
}
FLAGS = {
    "config": "--config=configs/gpt/docstrings.py",
    "workdir": "--workdir=/nowhere",
    "optim": "--config.optim.b1=0.5",
    "data": "--config.data.seq_len=8",
    "mesh": "--config.mesh.data=1",
    "log": "--config.log.every=7",
}
# Unused keys of sections that a command uses: a run has its tokenizer and its data.
_OPENED = ("data.tokenizer.kind=bytes", "model.dropout=0.5", "model.attention_dropout=0.5")
SETTLED = {
    "eval": _OPENED,
    "predict": (*_OPENED, "data.train=/nowhere", "data.sources.text.path=/nowhere"),
    "score": (*_OPENED, "data.train=/nowhere"),
    "generate": (*_OPENED, "data.train=/nowhere"),
    "chat": (*_OPENED, "data.train=/nowhere", "data.seq_len=8"),
    "evaluate": (*_OPENED, "data.train=/nowhere", "data.seq_len=8"),
    "transcribe": (*_OPENED, "data.train=/nowhere"),
    "headline": (*_OPENED, "data.train=/nowhere", "model.click_dropout=0.5"),
    "tokenizer": ("data.train=/nowhere", "data.seq_len=8", "data.packing=false"),
}


@pytest.mark.parametrize("command", [*cli.commands()])
def test_commands_refuse_flags_that_they_do_not_use(command, capsys):
    takes = TAKES[command]
    every_key = "optim" in takes and command != "plan"
    for name, flag in FLAGS.items():
        used = name in takes or every_key and name in ("data", "mesh", "log")
        if used or command == "plan" and name in ("data", "mesh"):
            continue
        if name == "mesh" and {"workdir", "data"} <= {*takes}:
            continue  # they run the model
        assert main.main([command, flag]) == 2, flag
        err = capsys.readouterr().err
        assert "does not use" in err and err.count("\n") == 1, err
    assert main.main([command, "--nonsense=1"]) == 2
    assert "nonsense" in capsys.readouterr().err
    if takes and "config" in takes:
        assert main.main([command, "--config.modle.remat=full"]) == 2
        assert "Unknown config key 'modle.remat'. Did you mean 'model'?" in capsys.readouterr().err

    for key in SETTLED.get(command, ()):
        assert main.main([command, f"--config.{key}"]) == 2
        assert f"does not use config.{key.partition('=')[0]}," in capsys.readouterr().err


def test_flags_that_are_used_are_not_refused(capsys):
    """The opposite: these commands fail for another reason."""
    for command, takes in TAKES.items():
        for name in takes:
            if name in ("workdir", "data", "mesh") and "workdir" in takes and command != "train":
                main.main([command, "--workdir=/nowhere", FLAGS[name]][: 2 + (name != "workdir")])
                assert "does not use" not in capsys.readouterr().err, (command, name)


# The used keys of sections that a command uses in part.
USED = {
    "eval": "data.train data.on_bad_utf8 data.seed evals.valid.split seed",
    "predict": "data.columns.text data.seq_len data.packing data.truncate data.doc_stride",
    "score": "data.columns.chosen data.seq_len data.truncate data.system seed mesh.data",
    "headline": "data.columns.article data.truncate task.hot_words_file",
    "tokenizer": "data.sources.text.path data.tokenizer.kind data.valid_fraction data.cache_dir "
    "data.test_fraction data.on_bad_utf8 init_from",
}


@pytest.mark.parametrize("command", USED)
def test_used_keys_of_a_partly_used_section_are_accepted(command):
    flags = [f"--config.{key}=1" for key in USED[command].split()]
    takes = importlib.import_module(cli.commands()[command]).COMMAND
    assert Arguments(flags, takes).overrides == flags


@pytest.mark.parametrize(
    "arguments, words",
    [
        (
            ["generate", "--workdir=/nowhere", "--temperature=0", "--top_k=5"],
            "--top_k would change",
        ),
        (["generate", "--workdir=/nowhere", "--temperature=0", "--seed=5"], "--seed would change"),
        (["generate", "--workdir=/nowhere", "--temperature=nan"], "temperature is nan"),
        (["generate", "--workdir=/nowhere", "--seed=-1"], "--seed is -1"),
        (["generate", "--workdir=/nowhere", f"--seed={2**64}"], "--seed is 184"),
        (["plan", "--topology=v5e:1x1", "--budget-minutes=3"], "no effect without --search"),
        (["config", "--config=configs/gpt/text.py", "--workdir=/x"], "Both --config"),
        (["eval", "--workdir=/a", "--workdir=/b"], "accepts one --workdir=FOLDER; got 2"),
        (["train", "--workdir="], "--workdir is empty"),
        (["report", "--workdir=/nowhere", "--out="], "--out is empty"),
        (["generate", "--promt=a"], "'promt'. Did you mean --prompt? Flags"),
        (["generate", "--max_tokens=a"], "--max_tokens=a: 'a' is not an integer. Flags"),
    ],
)
def test_conflicting_or_invalid_flags_are_refused(arguments, words, capsys):
    assert main.main(arguments) == 2
    err = capsys.readouterr().err
    assert words in err and err.count("\n") == 1, err
