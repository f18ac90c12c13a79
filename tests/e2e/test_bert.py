"""BERT through the commands: pre-train, fine-tune from the run, evaluate, predict; bad input."""

import csv
import json
import pathlib
import random
import re

import pytest

from bigjax import main
from tests import helpers
from tests.conftest import WORDS
from tests.helpers import bigjax

pytestmark = pytest.mark.usefixtures("one_device")

TINY_BERT = str(pathlib.Path(__file__).parent.parent / "tiny_bert.py")


def write_table(path, n, seed=0, labels=("left", "right")):
    """Texts of words of the first half of WORDS or of the second; the label says which."""
    rng, half = random.Random(seed), len(WORDS) // 2
    with open(path, "w", encoding="utf-8") as f:
        f.write("id\ttext\tlabel\n")
        for i in range(n):
            k = rng.randrange(2)
            text = " ".join(rng.choices(WORDS[k * half : (k + 1) * half], k=rng.randrange(3, 12)))
            f.write(f"{i}\t{text}\t{labels[k]}\n")
    return str(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("bert")


@pytest.fixture(scope="module")
def table(folder):
    return write_table(folder / "train.tsv", 300)


@pytest.fixture(scope="module")
def pretrained(corpus_file, cache_dir, folder):
    """A pre-training run."""
    flags = [
        f"--config={TINY_BERT}",
        f"--config.data.sources.text.path={corpus_file}",
        f"--config.data.cache_dir={cache_dir}",
        f"--workdir={folder}/pre",
    ]
    assert main.main(["train", *flags]) == 0
    return f"{folder}/pre"


@pytest.fixture(scope="module")
def flags(pretrained, table, cache_dir):
    return [
        f"--config={TINY_BERT}:labelled",
        f"--config.data.train={table}",
        f"--config.init_from={pretrained}",
        "--config.model.preset=init_from",
        "--config.data.tokenizer.kind=init_from",
        f"--config.data.cache_dir={cache_dir}",
    ]


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
