"""BERT pre-training, and how a labelled run starts from it; bad input."""

import json
import pathlib
import re
import shutil

import pytest

from tests import helpers
from tests.conftest import write_table
from tests.helpers import TINY_BERT, bigjax

pytestmark = pytest.mark.usefixtures("one_device")


def test_pre_training_learns_and_reports_both_objectives(pretrained):
    lines = helpers.read_metrics(pretrained)
    last = lines[-1] | lines[-2]
    assert {
        "mlm_loss",
        "mlm_accuracy",
        "nsp_loss",
        "nsp_accuracy",
        "eval/valid/mlm_accuracy",
        "eval/valid/nsp_accuracy",
        "eval/valid/mlm_loss",
    } <= set(last)
    assert last["mlm_loss"] < lines[0].get("mlm_loss", lines[1].get("mlm_loss")) - 0.5


@pytest.mark.slow
def test_a_resumed_pre_training_gives_the_same_numbers(
    corpus_file, cache_dir, tmp_path, capsys, pretrained
):
    base = [
        f"--config={TINY_BERT}",
        f"--config.data.sources.text.path={corpus_file}",
        f"--config.data.cache_dir={cache_dir}",
        f"--workdir={tmp_path}/run",
    ]
    code, _, err = bigjax(
        capsys,
        "train",
        *base,
        "--config.evals.valid.every=5",
        "--config.train.early_stop.metric=eval/valid/loss",
        "--config.train.early_stop.patience=1",
        "--config.train.early_stop.min_delta=100",
    )
    assert code == 0, err
    code, out, err = bigjax(capsys, "train", *base)
    assert code == 0 and "Resuming from step 10" in out, err
    assert helpers.saved_checksums(f"{tmp_path}/run", 30) == helpers.saved_checksums(pretrained, 30)


def test_generate_refuses_an_encoder(pretrained, capsys):
    code, _, err = bigjax(capsys, "generate", f"--workdir={pretrained}", "--prompt=the")
    assert code == 2 and "decoder" in err


def test_loaded_new_and_unused_parameters_are_printed(labelled_flags, tmp_path, capsys):
    code, out, err = bigjax(
        capsys,
        "train",
        *labelled_flags,
        f"--workdir={tmp_path}/run",
        "--config.train.steps=1",
        "--config.optim.warmup_steps=0",
        "--config.init_reset=layer_1/|pooler",
    )
    assert code == 0, err
    table = [
        re.split(r"\s{2,}", line.strip())
        for line in out.splitlines()
        if re.match(r"(loaded|new|unused) ", line)
    ]
    counts = {tuple(" ".join(row[:-2]).split(maxsplit=1)): row[-2:] for row in table}
    assert set(counts) == {
        ("loaded", "embed"),
        ("loaded", "embed_norm"),
        ("loaded", "position"),
        ("loaded", "token_type"),
        ("loaded", "stack, layers 0"),
        ("new", "stack, layers 1"),
        ("new", "classifier"),
        ("new", "pooler"),
        ("unused", "mlm"),
        ("unused", "nsp"),
        ("unused", "pooler"),
        ("unused", "stack, layers 1"),
    }
    assert counts["loaded", "embed"] == ["1", "5,120"]
    assert counts["new", "classifier"] == ["2", "66"]
    assert re.search(r"\d\.\d% of the tokens are padding", out)


@pytest.mark.slow
def test_class_weights_follow_the_counts(labelled_flags, tmp_path, capsys):
    path = tmp_path / "skewed.tsv"
    lines = pathlib.Path(write_table(tmp_path / "all.tsv", 300)).read_text().splitlines()
    rare = [line for line in lines if line.endswith("right")][:40]
    path.write_text(
        "\n".join([lines[0], *rare, *[line for line in lines if line.endswith("left")]]) + "\n"
    )
    code, _, err = bigjax(
        capsys,
        "train",
        *labelled_flags,
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


@pytest.mark.slow
def test_a_run_resumes_after_its_init_from_folder_was_deleted(
    labelled_flags, pretrained, tmp_path, capsys
):
    source = tmp_path / "source"
    shutil.copytree(pretrained, source)
    arguments = [
        "train",
        *[f for f in labelled_flags if "init_from=/" not in f],
        f"--config.init_from={source}",
        f"--workdir={tmp_path}/run",
    ]
    assert bigjax(capsys, *arguments, "--config.train.steps=10")[0] == 0
    shutil.rmtree(source)
    code, out, err = bigjax(
        capsys, *arguments, "--config.train.steps=12", "--config.optim.layer_decay=0.9"
    )
    assert code == 0 and "Resuming from step 10" in out, err
    code, _, err = bigjax(capsys, *arguments[:-1], f"--workdir={tmp_path}/new")
    assert code == 2 and "config.init_from" in err and not (tmp_path / "new").exists()


BAD = {
    "no labelled data": (["--config.data.train="], ["data.train is empty"]),
    "no such column": (["--config.data.columns.label=stars"], ["stars", "text", "label"]),
    "an unseen label": (["VALID"], ["valid.tsv", "up", "left"]),
    "a text that is too long": (["LONG"], ["long.tsv:2", "data.truncate"]),
    "an empty text": (["EMPTY"], ["empty.tsv:2"]),
    "numbers needed": (["--config.task.kind=regress"], ["train.tsv:2", "number"]),
    "an unknown kind": (["--config.task.kind=rank"], ["rank"]),
    "a different vocabulary": (
        ["--config.data.tokenizer.kind=wordpiece", "--config.data.tokenizer.vocab_size=80"],
        ["another vocabulary", "init_from"],
    ),
    "different shapes": (["--config.model.d_model=64"], ["embed/embedding", "(160, 32) there"]),
    "a preset without init_from": (["--config.init_from="], ["init_from", "preset"]),
    "a pattern without a match": (["--config.init_reset=layer_9"], ["init_reset", "layer_9"]),
    "a metric that is not computed": (
        ["--config.evals.valid.kind=loss", "--config.train.early_stop.metric=eval/valid/f1"],
        ["early_stop.metric", "eval/valid/accuracy"],
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(labelled_flags, tmp_path, capsys, case):
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
        *labelled_flags,
        *arguments,
        f"--workdir={tmp_path}/run",
        "--config.train.steps=1",
        "--config.optim.warmup_steps=0",
    )
    assert code == 2 and err.startswith("bigjax: "), err
    assert all(w in err for w in words), err
    assert not list(pathlib.Path(tmp_path).glob("run/checkpoints/*"))


def test_options_of_a_task_chosen_on_the_command_line(capsys):
    code, out, err = bigjax(
        capsys,
        "config",
        "--config=configs/bert/finetune.py",
        "--config.task.allow_no_answer=true",
        "--config.task.name=answer",
    )
    assert code == 0 and "task.allow_no_answer = True" in out, err
