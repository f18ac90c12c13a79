"""A decoder learns a few conversations by heart: training, its evaluations, and `bigjax chat`."""

import contextlib
import io
import json

import pytest

from bigjax import main
from tests import helpers
from tests.conftest import on_one_device

ANSWERS = {
    **{"red": "rose", "blue": "sky", "green": "leaf", "black": "night"},
    **{"white": "snow", "gold": "sun", "grey": "fog", "brown": "earth"},
}
CONFIG = """
from bigjax import config


def get_config(variant=""):
    c = config.new_config()
    c.model = dict(name="gpt", vocab_size=264, max_len=64, d_model=64, n_layers=2, n_heads=2)
    c.model.update(position="rotary", scan=False)
    c.task = dict(name="sft")
    c.data = dict(name="conversations", train=variant, valid=variant, test=variant)
    c.data.update(seq_len=48, packing=False, chat_template="plain", tokenizer=dict(kind="bytes"))
    c.optim.learning_rate = 3e-3
    c.train.steps, c.train.batch_size, c.log.every = 150, 8, 50
    c.checkpoint.every = 150
    c.evals = dict(
        valid=dict(kind="loss", every=150),
        test=dict(kind="generation", every=150, metrics=("exact_match",), max_new_tokens=16),
        sample=dict(kind="sample", every=150, prompt="What is red?", max_new_tokens=16),
    )
    return c
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory, compiled_programs):
    """(the work folder, what training printed)."""
    folder = tmp_path_factory.mktemp("sft")
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"What is {color}?"},
                {"role": "assistant", "content": answer},
            ]
        }
        for color, answer in ANSWERS.items()
    ]
    (folder / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "config.py").write_text(CONFIG)
    workdir = folder / "run"
    out = io.StringIO()
    with (
        on_one_device(compiled_programs),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(out),
    ):
        code = main.main(
            [
                "train",
                f"--config={folder}/config.py:{folder}/chats.jsonl",
                f"--workdir={workdir}",
                f"--config.data.cache_dir={folder}/cache",
            ]
        )
    assert code == 0, out.getvalue()
    return workdir, out.getvalue()


def test_the_evaluations_read_conversations(run):
    workdir, printed = run
    by_name = {k: v for line in helpers.read_metrics(workdir) for k, v in line.items()}
    assert by_name["eval/test/exact_match"] == 1.0
    assert by_name["eval/valid/accuracy"] == 1.0
    assert "What is red?\n    rose\n" in printed  # of the evaluation `sample`, its end included
    generations = (workdir / "evals/test/generations.jsonl").read_text().splitlines()
    assert len(generations) == len(ANSWERS) and '"sky"' in "".join(generations)


@pytest.mark.usefixtures("one_device")
def test_a_chat_with_the_model(run, capsys):
    workdir, _ = run
    assert main.main(["chat", f"--workdir={workdir}", "--prompt=What is green?"]) == 0
    assert capsys.readouterr().out == "leaf\n"
