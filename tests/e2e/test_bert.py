"""BERT through the commands: pre-train, fine-tune from the run, evaluate, predict."""

import csv
import json
import pathlib
import re

import pytest

from bigjax import main
from tests import helpers
from tests.e2e.conftest import TINY_BERT, write_table
from tests.helpers import bigjax

pytestmark = pytest.mark.usefixtures("one_device")


@pytest.fixture(scope="module")
def tuned(flags, folder):
    """A fine-tuned run, unrolled from a scanned one."""
    workdir = f"{folder}/tuned"
    assert (
        main.main(
            [
                "train",
                *flags,
                f"--workdir={workdir}",
                "--config.model.scan=false",
                "--config.optim.layer_decay=0.9",
                "--config.optim.freeze=token_type",
                "--config.checkpoint.best=eval/valid/f1_macro",
                "--config.checkpoint.best_mode=max",
                "--config.checkpoint.every=15",
            ]
        )
        == 0
    )
    return workdir


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


def test_what_was_loaded_what_is_new_and_what_was_left_is_printed(flags, tmp_path, capsys):
    code, out, err = bigjax(
        capsys,
        "train",
        *flags,
        f"--workdir={tmp_path}/run",
        "--config.train.steps=1",
        "--config.optim.warmup_steps=0",
        "--config.init_reset=layer_1/|pooler",
    )
    assert code == 0, err
    table = [
        re.split(r"\s{2,}", line.strip())
        for line in out.splitlines()
        if re.match(r"(loaded|new|left) ", line)
    ]
    found = {tuple(" ".join(row[:-2]).split(maxsplit=1)): row[-2:] for row in table}
    assert set(found) == {
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
    assert found["loaded", "embed"] == ["1", "5,120"] and found["new", "classifier"] == ["2", "66"]
    assert re.search(r"\d\.\d% of the tokens are padding", out)


def test_fine_tuning_learns_and_writes_its_reports(tuned):
    lines = helpers.read_metrics(tuned)
    first, last = next(m for m in lines if m["step"] == 0), lines[-1]
    assert last["eval/valid/accuracy"] > 0.9 > first["eval/valid/accuracy"]
    folder = pathlib.Path(tuned, "evals", "valid")
    assert "left" in (folder / "report.txt").read_text()
    report = json.loads((folder / "report.json").read_text())
    assert report["step"] == 30 and report["by_label"]["left"]["precision"] > 0.8
    assert (folder / "confusion.png").read_bytes()[:4] == b"\x89PNG"
    rows = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    right = sum(r["label"] == r["prediction"] for r in rows) / len(rows)
    assert right == pytest.approx(last["eval/valid/accuracy"])


def test_eval_prints_the_report_and_the_same_numbers(tuned, capsys):
    code, out, err = bigjax(
        capsys, "eval", f"--workdir={tuned}", "--json", "--config.data.packing=false"
    )
    assert code == 0 and "precision    recall  f1-score" in out, err
    got = json.loads(out.splitlines()[-1])
    want = helpers.read_metrics(tuned)[-1]
    for key in ("accuracy", "loss", "matthews"):
        assert got[f"eval/valid/{key}"] == pytest.approx(want[f"eval/valid/{key}"], rel=1e-4)


@pytest.mark.parametrize("ending", ["tsv", "csv", "jsonl"])
def test_predict(tuned, tmp_path, capsys, ending):
    table = write_table(tmp_path / "new.tsv", 60, seed=5)
    out_file = tmp_path / f"out.{ending}"
    code, out, err = bigjax(
        capsys, "predict", f"--workdir={tuned}", f"--input={table}", f"--output={out_file}"
    )
    assert code == 0 and "60 rows, step 30" in out, err
    if ending == "jsonl":
        rows = [json.loads(line) for line in out_file.read_text().splitlines()]
        assert all(abs(sum(r["probabilities"].values()) - 1) < 1e-6 for r in rows)
    else:
        with open(out_file, newline="", encoding="utf-8") as f:
            rows = list(csv.DictReader(f, delimiter="\t" if ending == "tsv" else ","))
    truth = [line.split("\t") for line in open(table, encoding="utf-8").read().splitlines()[1:]]
    assert [r["text"] for r in rows] == [t[1] for t in truth]
    assert sum(r["prediction"] == t[2] for r, t in zip(rows, truth)) > 54


@pytest.mark.slow
def test_from_unrolled_to_scanned_and_on(tuned, flags, tmp_path, capsys):
    """Layers are found by path in either form."""
    code, out, err = bigjax(
        capsys,
        "train",
        *[f for f in flags if "init_from=/" not in f],
        f"--config.init_from={tuned}",
        "--config.model.scan=true",
        f"--workdir={tmp_path}/run",
        "--config.train.steps=1",
        "--config.optim.warmup_steps=0",
    )
    assert code == 0 and "stack, layers 0-1" in out and "\nnew" not in out, err
    first, want = helpers.read_metrics(tmp_path / "run")[0], helpers.read_metrics(tuned)[-1]
    assert first["eval/valid/loss"] == pytest.approx(want["eval/valid/loss"], rel=1e-4)


def test_bad_predictions(tuned, pretrained, table, tmp_path, capsys):
    for arguments, words in (
        ([f"--workdir={tuned}", f"--input={table}", f"--output={tmp_path}/o.xls"], [".jsonl"]),
        (
            [f"--workdir={tuned}", f"--input={tmp_path}/none.tsv", f"--output={tmp_path}/o.tsv"],
            ["none.tsv"],
        ),
        (
            [f"--workdir={pretrained}", f"--input={table}", f"--output={tmp_path}/o.tsv"],
            ["mlm_nsp", "classify"],
        ),
        ([f"--workdir={tuned}", f"--input={table}"], ["--output"]),
    ):
        code, _, err = bigjax(capsys, "predict", *arguments)
        assert code == 2 and all(w in err for w in words), err
    assert not list(tmp_path.glob("o.*"))


def test_through_hugging_face_and_back(tuned, flags, tmp_path, capsys):
    """Exported, imported and evaluated on a file of its own; and as what a run starts from."""
    folder, table = tmp_path / "hf", write_table(tmp_path / "dev.tsv", 50, seed=9)
    code, out, err = bigjax(capsys, "export", f"--workdir={tuned}", f"--to={folder}")
    assert code == 0 and "BertForSequenceClassification" in out, err
    code, out, err = bigjax(capsys, "import", f"--from={folder}", f"--workdir={tmp_path}/imported")
    assert code == 0, err
    scores = {}
    for workdir in (tuned, f"{tmp_path}/imported"):
        code, out, err = bigjax(
            capsys,
            "eval",
            f"--workdir={workdir}",
            "--json",
            f"--config.data.valid={table}",
            "--config.data.seq_len=32",
        )
        assert code == 0, err
        scores[workdir] = json.loads(out.splitlines()[-1])
    assert scores[tuned]["eval/valid/loss"] == pytest.approx(
        scores[f"{tmp_path}/imported"]["eval/valid/loss"], rel=1e-4
    )
    assert scores[tuned]["eval/valid/accuracy"] > 0.9
    code, out, err = bigjax(
        capsys,
        "train",
        *[f for f in flags if "init_from=/" not in f],
        f"--config.init_from={folder}",
        f"--workdir={tmp_path}/run",
        "--config.train.steps=1",
        "--config.optim.warmup_steps=0",
        f"--config.data.valid={table}",
    )
    assert code == 0 and f"from {folder}" in out and "\nnew" not in out, err
    first = helpers.read_metrics(tmp_path / "run")[0]
    assert first["eval/valid/accuracy"] == scores[tuned]["eval/valid/accuracy"]
    code, _, err = bigjax(capsys, "train", *flags, f"--workdir={tmp_path}/imported")
    assert code == 2 and "imported model" in err and "init_from" in err


def test_an_encoder_writes_no_text(pretrained, capsys):
    code, _, err = bigjax(capsys, "generate", f"--workdir={pretrained}", "--prompt=the")
    assert code == 2 and "decoder" in err


def test_the_best_step(tuned, table, tmp_path, capsys):
    scores = {
        m["step"]: m["eval/valid/f1_macro"]
        for m in helpers.read_metrics(tuned)
        if "eval/valid/f1_macro" in m and m["step"]
    }
    best = min(step for step, score in scores.items() if score == max(scores.values()))
    code, out, err = bigjax(
        capsys,
        "predict",
        f"--workdir={tuned}",
        f"--input={table}",
        f"--output={tmp_path}/o.tsv",
        "--step=best",
    )
    assert code == 0 and f"step {best} of" in out, err
    code, _, err = bigjax(capsys, "eval", f"--workdir={tuned}", "--step=latest")
    assert code == 2 and "latest" in err


def test_eval_where_its_files_cannot_be_written(tuned, capsys):
    """As in another user's folder: here because a file is in their place."""
    evals = pathlib.Path(tuned) / "evals"
    evals.rename(evals.with_name("kept"))
    evals.touch()
    code, out, err = bigjax(capsys, "eval", f"--workdir={tuned}", "--json")
    evals.unlink()
    evals.with_name("kept").rename(evals)
    assert code == 0 and not err, err
    *_, numbers, said, line = out.splitlines()
    assert "eval/valid/" in numbers and said.startswith(f"Not written: {evals}/valid (")
    assert 0 <= json.loads(line)["eval/valid/accuracy"] <= 1 and "Files:" not in out


def test_a_head_for_other_labels_is_not_taken(tuned, flags, tmp_path, capsys):
    other = write_table(tmp_path / "other.tsv", 200, labels=("up", "down"))
    arguments = [
        "train",
        *[f for f in flags if "init_from=/" not in f and "data.train" not in f],
        f"--config.init_from={tuned}",
        f"--config.data.train={other}",
        "--config.train.steps=1",
        "--config.optim.warmup_steps=0",
    ]
    code, _, err = bigjax(capsys, *arguments, f"--workdir={tmp_path}/a")
    assert code == 2 and "['left', 'right']" in err and "init_reset" in err
    code, out, err = bigjax(
        capsys, *arguments, f"--workdir={tmp_path}/b", "--config.init_reset=^classifier"
    )
    assert code == 0 and re.search("new +classifier", out), err


@pytest.mark.slow
def test_a_run_goes_on_without_the_folder_it_came_from(flags, pretrained, tmp_path, capsys):
    import shutil

    source = tmp_path / "source"
    shutil.copytree(pretrained, source)
    arguments = [
        "train",
        *[f for f in flags if "init_from=/" not in f],
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


def test_options_of_a_task_that_the_command_line_chose(capsys):
    code, out, err = bigjax(
        capsys,
        "config",
        "--config=configs/bert/finetune.py",
        "--config.task.allow_no_answer=true",
        "--config.task.name=answer",
    )
    assert code == 0 and "task.allow_no_answer = True" in out, err
