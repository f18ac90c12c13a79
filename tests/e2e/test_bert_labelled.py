"""Labelled tasks of BERT: fine-tune a pre-trained run, evaluate, predict, export."""

import csv
import json
import pathlib
import random
import re

import pytest

from bigjax import main
from tests import helpers
from tests.conftest import WORDS, write_table
from tests.helpers import TINY_BERT, bigjax

pytestmark = pytest.mark.usefixtures("one_device")


@pytest.fixture(scope="module")
def tuned(labelled_flags, tmp_path_factory):
    """A fine-tuned run: an unrolled model, initialised from a scanned one."""
    workdir = str(tmp_path_factory.mktemp("bert") / "tuned")
    assert (
        main.main(
            [
                "train",
                *labelled_flags,
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
    accuracy = sum(r["label"] == r["prediction"] for r in rows) / len(rows)
    assert accuracy == pytest.approx(last["eval/valid/accuracy"])


def test_eval_prints_the_report_and_the_same_numbers(tuned, capsys):
    code, out, err = bigjax(
        capsys, "eval", f"--workdir={tuned}", "--json", "--config.data.packing=false"
    )
    assert code == 0 and "precision    recall  f1-score" in out, err
    metrics = json.loads(out.splitlines()[-1])
    expected = helpers.read_metrics(tuned)[-1]
    for key in ("accuracy", "loss", "matthews"):
        assert metrics[f"eval/valid/{key}"] == pytest.approx(
            expected[f"eval/valid/{key}"], rel=1e-4
        )


def test_step_best_selects_the_best_checkpoint(tuned, labelled_table, tmp_path, capsys):
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
        f"--input={labelled_table}",
        f"--output={tmp_path}/o.tsv",
        "--step=best",
    )
    assert code == 0 and f"step {best} of" in out, err
    code, _, err = bigjax(capsys, "eval", f"--workdir={tuned}", "--step=latest")
    assert code == 2 and "latest" in err


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


def test_eval_prints_its_numbers_when_it_cannot_write_files(tuned, capsys):
    """As in another user's folder; in this test a file blocks the folder."""
    evals = pathlib.Path(tuned) / "evals"
    evals.rename(evals.with_name("kept"))
    evals.touch()
    code, out, err = bigjax(capsys, "eval", f"--workdir={tuned}", "--json")
    evals.unlink()
    evals.with_name("kept").rename(evals)
    assert code == 0 and not err, err
    *_, numbers, warning, line = out.splitlines()
    assert "eval/valid/" in numbers and warning.startswith(f"Not written: {evals}/valid (")
    assert 0 <= json.loads(line)["eval/valid/accuracy"] <= 1 and "Files:" not in out


def test_bad_input_of_predict(tuned, pretrained, labelled_table, tmp_path, capsys, monkeypatch):
    for arguments, words in (
        (
            [f"--workdir={tuned}", f"--input={labelled_table}", f"--output={tmp_path}/o.xls"],
            [".jsonl"],
        ),
        (
            [f"--workdir={tuned}", f"--input={tmp_path}/none.tsv", f"--output={tmp_path}/o.tsv"],
            ["none.tsv"],
        ),
        (
            [f"--workdir={pretrained}", f"--input={labelled_table}", f"--output={tmp_path}/o.tsv"],
            ["mlm_nsp", "classify"],
        ),
        ([f"--workdir={tuned}", f"--output={tmp_path}/o.tsv"], ["--input"]),
    ):
        code, _, err = bigjax(capsys, "predict", *arguments)
        assert code == 2 and all(w in err for w in words), err
    # Before the checkpoint is loaded
    monkeypatch.setattr("bigjax.train.load.load", pytest.fail)
    (tmp_path / "tab.jsonl").write_text(json.dumps({"text": "the model", "note": "a\tb"}))
    arguments = f"--workdir={tuned}", f"--input={tmp_path}/tab.jsonl", f"--output={tmp_path}/o.tsv"
    code, _, err = bigjax(capsys, "predict", *arguments)
    assert code == 2 and "column 'note' of row 1 has a tab or a line end" in err
    assert not list(tmp_path.glob("o.*"))


@pytest.mark.slow
def test_a_scanned_model_starts_from_an_unrolled_one(tuned, labelled_flags, tmp_path, capsys):
    """Layers are matched by path in both layouts."""
    code, out, err = bigjax(
        capsys,
        "train",
        *[f for f in labelled_flags if "init_from=/" not in f],
        f"--config.init_from={tuned}",
        "--config.model.scan=true",
        f"--workdir={tmp_path}/run",
        "--config.train.steps=1",
        "--config.optim.warmup_steps=0",
    )
    assert code == 0 and "stack, layers 0-1" in out and "\nnew" not in out, err
    first = helpers.read_metrics(tmp_path / "run")[0]
    expected = helpers.read_metrics(tuned)[-1]
    assert first["eval/valid/loss"] == pytest.approx(expected["eval/valid/loss"], rel=1e-4)


def test_a_head_for_other_labels_is_not_loaded(tuned, labelled_flags, tmp_path, capsys):
    other = write_table(tmp_path / "other.tsv", 200, labels=("up", "down"))
    arguments = [
        "train",
        *[f for f in labelled_flags if "init_from=/" not in f and "data.train" not in f],
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


def sentences(n=150):
    rng = random.Random(0)
    return [rng.choices(WORDS, k=8) for _ in range(n)]


def flags_for_40_steps(flags):
    """Flags without the table of labelled texts."""
    return [f for f in flags if "data.train" not in f] + [
        "--config.train.steps=40",
        "--config.optim.warmup_steps=2",
    ]


@pytest.mark.slow
def test_tagging(labelled_flags, tmp_path, capsys):
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
        *flags_for_40_steps(labelled_flags),
        f"--config={TINY_BERT}:tag",
        f"--config.data.train={conll}",
        f"--workdir={tmp_path}/tag",
    )
    assert code == 0, err
    last = helpers.read_metrics(tmp_path / "tag")[-1]
    assert last["eval/valid/f1_micro"] > 0.8  # of K only
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


@pytest.mark.slow
def test_answering(labelled_flags, tmp_path, capsys):
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
        *flags_for_40_steps(labelled_flags),
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


def test_export_to_hugging_face_and_import(tuned, labelled_flags, tmp_path, capsys):
    """The imported export gives the same metrics, and a run can start from it."""
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
        *[f for f in labelled_flags if "init_from=/" not in f],
        f"--config.init_from={folder}",
        f"--workdir={tmp_path}/run",
        "--config.train.steps=1",
        "--config.optim.warmup_steps=0",
        f"--config.data.valid={table}",
    )
    assert code == 0 and f"from {folder}" in out and "\nnew" not in out, err
    first = helpers.read_metrics(tmp_path / "run")[0]
    assert first["eval/valid/accuracy"] == scores[tuned]["eval/valid/accuracy"]
    code, _, err = bigjax(capsys, "train", *labelled_flags, f"--workdir={tmp_path}/imported")
    assert code == 2 and "imported model" in err and "init_from" in err
