"""BERT's labelled tasks through the commands: class weights, tags, answers, bad input."""

import json
import pathlib
import random

import pytest

from tests import helpers
from tests.conftest import WORDS
from tests.e2e.conftest import TINY_BERT, write_table
from tests.helpers import bigjax

pytestmark = pytest.mark.usefixtures("one_device")


@pytest.mark.slow
def test_class_weights_follow_the_counts(flags, folder, tmp_path, capsys):
    path = tmp_path / "skewed.tsv"
    lines = pathlib.Path(write_table(folder / "all.tsv", 300)).read_text().splitlines()
    rare = [line for line in lines if line.endswith("right")][:40]
    path.write_text(
        "\n".join([lines[0], *rare, *[line for line in lines if line.endswith("left")]]) + "\n"
    )
    code, _, err = bigjax(
        capsys,
        "train",
        *flags,
        f"--config.data.train={path}",
        "--config.task.balanced=true",
        f"--workdir={tmp_path}/run",
        "--config.train.steps=1",
        "--config.optim.warmup_steps=0",
    )
    assert code == 0, err
    task = json.loads((tmp_path / "run" / "config.json").read_text())["task"]
    assert task["labels"] == ["left", "right"]
    assert task["label_weights"][1] > 2 * task["label_weights"][0]


def sentences(n=150):
    rng = random.Random(0)
    return [rng.choices(WORDS, k=8) for _ in range(n)]


def of_40_steps(flags):
    """Without the table of labelled texts."""
    return [f for f in flags if "data.train" not in f] + [
        "--config.train.steps=40",
        "--config.optim.warmup_steps=2",
    ]


@pytest.mark.slow
def test_tagging(flags, tmp_path, capsys):
    conll = tmp_path / "train.conll"
    conll.write_text(
        "".join(
            "".join(f"{w} {'K' if w in WORDS[:10] else 'O'}\n" for w in words) + "\n"
            for words in sentences()
        )
    )
    code, out, err = bigjax(
        capsys,
        "train",
        *of_40_steps(flags),
        f"--config={TINY_BERT}:tag",
        f"--config.data.train={conll}",
        f"--workdir={tmp_path}/tag",
    )
    assert code == 0, err
    last = helpers.read_metrics(tmp_path / "tag")[-1]
    assert last["eval/valid/f1_micro"] > 0.8  # of K alone
    code, out, err = bigjax(
        capsys,
        "predict",
        f"--workdir={tmp_path}/tag",
        f"--input={conll}",
        f"--output={tmp_path}/tags.jsonl",
    )
    assert code == 0, err
    row = json.loads((tmp_path / "tags.jsonl").read_text().splitlines()[0])
    assert len(row["prediction"]) == len(row["tokens"]) == 8


def test_answering(flags, tmp_path, capsys):
    squad = tmp_path / "train.jsonl"
    with open(squad, "w") as f:
        for words in sentences():
            context = " ".join(words)
            f.write(
                json.dumps(
                    {
                        "question": f"which is {words[2]}",
                        "context": context,
                        "answers": [{"text": words[2], "answer_start": context.index(words[2])}],
                    }
                )
                + "\n"
            )
    code, out, err = bigjax(
        capsys,
        "train",
        *of_40_steps(flags),
        "--config.train.steps=10",
        f"--config={TINY_BERT}:answer",
        f"--config.data.train={squad}",
        f"--workdir={tmp_path}/answer",
    )
    assert code == 0, err
    last = helpers.read_metrics(tmp_path / "answer")[-1]
    assert {"eval/valid/exact_match", "eval/valid/f1", "eval/valid/loss"} <= set(last)
    code, out, err = bigjax(
        capsys,
        "predict",
        f"--workdir={tmp_path}/answer",
        f"--input={squad}",
        f"--output={tmp_path}/answers.jsonl",
    )
    rows = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert code == 0 and all(r["prediction"] in r["context"] for r in rows), err


BAD = {
    "no labelled data": (["--config.data.train="], ["data.train is empty"]),
    "no such column": (["--config.data.columns.label=stars"], ["stars", "text", "label"]),
    "an unseen label": (["VALID"], ["valid.tsv", "up", "left"]),
    "a text that is too long": (["LONG"], ["long.tsv:2", "data.truncate"]),
    "an empty text": (["EMPTY"], ["empty.tsv:2"]),
    "numbers needed": (["--config.task.kind=regress"], ["train.tsv:2", "number"]),
    "a kind that is not there": (["--config.task.kind=rank"], ["rank"]),
    "another vocabulary": (
        ["--config.data.tokenizer.kind=wordpiece", "--config.data.tokenizer.vocab_size=80"],
        ["another vocabulary", "init_from"],
    ),
    "shapes that differ": (["--config.model.d_model=64"], ["embed/embedding", "(160, 32) there"]),
    "nothing to take the sizes from": (["--config.init_from="], ["init_from", "preset"]),
    "a pattern that finds nothing": (["--config.init_reset=layer_9"], ["init_reset", "layer_9"]),
    "a metric of text": (
        ["--config.evals.valid.kind=loss", "--config.train.early_stop.metric=eval/valid/f1"],
        ["early_stop.metric", "eval/valid/accuracy"],
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(flags, tmp_path, capsys, case):
    arguments, words = BAD[case]
    header = "id\ttext\tlabel\n"
    for mark, key, text in (
        ("VALID", "valid", "1\tthe shape\tup\n"),
        ("LONG", "valid", "1\t" + "shape " * 90 + "\tleft\n"),
        ("EMPTY", "valid", "1\t \tleft\n"),
    ):
        if arguments == [mark]:
            path = tmp_path / f"{mark.lower()}.tsv"
            path.write_text(header + text)
            arguments = [f"--config.data.{key}={path}"]
    code, _, err = bigjax(
        capsys,
        "train",
        *flags,
        *arguments,
        f"--workdir={tmp_path}/run",
        "--config.train.steps=1",
        "--config.optim.warmup_steps=0",
    )
    assert code == 2 and err.startswith("bigjax: "), err
    assert all(w in err for w in words), err
    assert not list(pathlib.Path(tmp_path).glob("run/checkpoints/*"))
