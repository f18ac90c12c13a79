"""The headline generator through the commands: train, resume, evaluate, write; refused input."""

import json
import pathlib
import random

import pytest

from bigjax import main
from bigjax.data import word_vectors
from bigjax.projects.seqgan import generate_headlines
from tests import helpers
from tests.conftest import WORDS
from tests.helpers import bigjax

pytestmark = pytest.mark.usefixtures("one_device")

TINY = str(pathlib.Path(__file__).parent.parent / "tiny_headline.py")


def write_table(path, n=120):
    """Articles whose headlines begin with their first word."""
    rng = random.Random(0)
    with open(path, "w", encoding="utf-8") as f:
        for _ in range(n):
            topic, words = rng.choice(WORDS), rng.choices(WORDS, k=10)
            f.write(
                json.dumps(
                    {
                        "headline": f"{topic} of {words[0]}",
                        "article": f"{topic}. {' '.join(words)}",
                        "clicks": WORDS.index(topic),
                        "shown": 100,
                        "tags": [topic],
                    }
                )
                + "\n"
            )
    return str(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("headline")


@pytest.fixture(scope="module")
def table(folder):
    return write_table(folder / "train.jsonl")


@pytest.fixture(scope="module")
def flags(table, cache_dir):
    return [
        f"--config={TINY}",
        f"--config.data.train={table}",
        f"--config.data.cache_dir={cache_dir}",
    ]


@pytest.fixture(scope="module")
def vectors(flags, folder):
    path = folder / "vectors.txt"
    assert main.main(["embeddings", *flags, f"--out={path}", "--passes=1"]) == 0
    return str(path)


@pytest.fixture(scope="module")
def trained(flags, folder, vectors):
    workdir = f"{folder}/run"
    assert (
        main.main(
            [
                "train",
                *flags,
                f"--workdir={workdir}",
                "--config.task.augment=0.1",
                "--config.task.augment_headlines=0.1",
                "--config.task.click_reward=0.2",
                f"--config.task.embeddings={vectors}",
            ]
        )
        == 0
    )
    return workdir


def test_vectors_of_the_articles(vectors):
    read = word_vectors.read(vectors)
    assert read.table.shape[1] == 16 and {"of", "shape", "tokens"} <= set(read.words)


def test_every_phase_reports(trained):
    lines = {
        m["step"]: m
        for m in helpers.read_metrics(trained)
        if "generator/loss" in m or "discriminator/loss" in m
    }
    valid = {
        m["step"]: m["eval/valid/loss"]
        for m in helpers.read_metrics(trained)
        if "eval/valid/loss" in m
    }
    assert valid[2] < valid[0] - 0.05
    assert "discriminator/click_loss" in lines[3] and "generator/loss" not in lines[3]
    assert {"generator/reward", "discriminator/accuracy"} <= set(lines[4])
    assert 0 < lines[4]["generator/reward"] < 1.2


def test_headlines_are_written_and_evaluated(trained):
    folder = pathlib.Path(trained, "evals", "written")
    lines = [json.loads(line) for line in (folder / "headlines.jsonl").read_text().splitlines()]
    assert 8 < len(lines) <= 16 and set(lines[0]) == {"article", "reference", "headline"}
    report = json.loads((folder / "report.json").read_text())
    last = helpers.read_metrics(trained)[-1]
    assert report["step"] == 4 and report["lead_rouge1"] > 0 and "hot_rouge1" in report
    assert report["rouge1"] == last["eval/written/rouge1"]
    assert "eval/written/lead_rouge1" not in last and 0 < last["eval/written/discriminator"] < 1


@pytest.mark.slow  # SeqGAN's own test resumes in every phase
def test_a_resumed_run_gives_the_same_numbers(flags, trained, tmp_path, capsys, vectors):
    workdir = f"{tmp_path}/run"
    base = [
        "train",
        *flags,
        f"--workdir={workdir}",
        "--config.task.augment=0.1",
        "--config.task.augment_headlines=0.1",
        "--config.task.click_reward=0.2",
        f"--config.task.embeddings={vectors}",
        "--config.evals.written.every=9",
    ]
    stop = [
        "--config.evals.valid.every=1",
        "--config.train.early_stop.metric=eval/valid/loss",
        "--config.train.early_stop.patience=1",
        "--config.train.early_stop.min_delta=100",
    ]
    assert bigjax(capsys, *base, *stop)[0] == 0
    code, out, err = bigjax(capsys, *base)
    assert code == 0 and "Resuming from step 2" in out, err  # the next phases are the other two
    assert helpers.saved_checksums(workdir, 4) == helpers.saved_checksums(trained, 4)


def test_eval_prints_the_report(trained, capsys):
    code, out, err = bigjax(capsys, "eval", f"--workdir={trained}", "--json")
    assert code == 0 and "lead_rouge1" in out, err
    got, want = json.loads(out.splitlines()[-1]), helpers.read_metrics(trained)
    last = {k: v for line in want for k, v in line.items()}
    for key in ("eval/valid/loss", "eval/written/rougeL", "eval/written/discriminator"):
        assert got[key] == pytest.approx(last[key], rel=1e-4)


@pytest.mark.slow
def test_headlines_of_an_article(trained, tmp_path, capsys, monkeypatch):
    article, hot = tmp_path / "a.txt", tmp_path / "hot.txt"
    article.write_text("shape. the tokens of a model")
    hot.write_text("shape\n")
    base = ["headline", f"--workdir={trained}", f"--article={article}", "--number=2"]
    code, first, err = bigjax(capsys, *base)
    assert code == 0 and first.count("real 0.") == 2 == first.count("clicks 0."), err
    assert bigjax(capsys, *base)[1] == first
    contexts, write = [], generate_headlines.HeadlineGenerator.__call__
    monkeypatch.setattr(
        generate_headlines.HeadlineGenerator,
        "__call__",
        lambda self, given: contexts.append(given) or write(self, given),
    )
    for more in (
        [],
        ["--clicks=high"],
        ["--clicks=low"],
        [f"--hot_words={hot}"],
        ["--previous=shape of the", "--temperature=1"],
    ):
        code, out, err = bigjax(capsys, *base, *more)
        assert code == 0 and "real 0." in out, err
    assert [given["clicks"].tolist() for given in contexts] == [[0], [4], [1], [0], [0]]
    assert [int(given["hot_mask"].sum()) for given in contexts][2:4] == [4, 1]
    assert [int(given["source_types"].sum()) for given in contexts] == [0, 0, 0, 0, 4]
    article.write_text("shape. the tokens of a model " * 9)
    assert "1 of 1 article is truncated to 24 tokens" in bigjax(capsys, *base)[1]
    code, _, err = bigjax(capsys, *base, "--config.data.truncate=False")
    assert code == 2 and "Set data.truncate=True" in err


def test_headlines_of_a_table(trained, table, tmp_path, capsys):
    out_file = tmp_path / "out.jsonl"
    code, out, err = bigjax(
        capsys,
        "headline",
        f"--workdir={trained}",
        f"--article={table}",
        f"--output={out_file}",
        "--number=1",
        "--beam=2",
    )
    assert code == 0 and "120 rows, step 4" in out, err
    rows = [json.loads(line) for line in out_file.read_text().splitlines()]
    given = [json.loads(line) for line in open(table, encoding="utf-8")]
    assert [r["article"] for r in rows] == [r["article"] for r in given]
    assert all(r["headline_2"] and 0 < r["real"] < 1 for r in rows)


BAD = {
    "no article": ([], ["--article"]),
    "a missing file": (["--article=none.txt"], ["none.txt", "cannot be read"]),
    "an empty file": (["--article=EMPTY"], ["is empty"]),
    "bytes that are not text": (["--article=BYTES"], ["UTF-8"]),
    "another kind of file": (["--article=a.doc"], [".txt", ".parquet"]),
    "a table without output": (["--article=TABLE"], ["--output"]),
    "an output for one article": (["--article=EMPTY", "--output=x.jsonl"], ["--output"]),
    "an empty table": (["--article=NO_ROWS", "--output=OUT"], ["no rows"]),
    "clicks": (["--article=EMPTY", "--clicks=many"], ["high, low"]),
    "a narrow beam": (["--article=EMPTY", "--number=9"], ["--beam"]),
    "a seed without sampling": (["--article=EMPTY", "--seed=1"], ["--seed would change nothing"]),
    "a beam with sampling": (["--article=EMPTY", "--temperature=1", "--beam=9"], ["--beam would"]),
}


@pytest.mark.parametrize("case", BAD)
def test_refused_articles(trained, table, tmp_path, capsys, case):
    arguments, words = BAD[case]
    (tmp_path / "EMPTY.txt").write_text(" \n")
    (tmp_path / "BYTES.txt").write_bytes(b"\xff\xfe")
    (tmp_path / "NO_ROWS.jsonl").write_text("")
    for mark, path in (
        ("EMPTY", "EMPTY.txt"),
        ("BYTES", "BYTES.txt"),
        ("OUT", "out.jsonl"),
        ("NO_ROWS", "NO_ROWS.jsonl"),
    ):
        arguments = [a.replace(f"={mark}", f"={tmp_path}/{path}") for a in arguments]
    arguments = [a.replace("=TABLE", f"={table}") for a in arguments]
    code, _, err = bigjax(capsys, "headline", f"--workdir={trained}", *arguments)
    assert code == 2 and all(w in err for w in words), err


TRAINING = {
    "clicks without click buckets": (
        ["--config.model.click_buckets=0", "--config.task.click_reward=1"],
        ["click_reward"],
    ),
    "an option out of range": (["--config.task.n_history=-1"], ["n_history"]),
    "a headline that is too long": (["--config.data.seq_len=11"], ["max_len"]),
    "another tokenizer": (["--config.model.special_ids=(1,0,2,3,4)"], ["special_ids"]),
    "an evaluation of another task": (
        ["--config.evals.written.kind=seqgan.oracle_eval"],
        ["oracle_eval", "seqgan.oracle'"],
    ),
    "no row with clicks": (
        ["--config.data.columns.clicks=", "--config.data.columns.impressions="],
        ["no training row has any"],
    ),
    "equal vectors for all pieces": (["--config.task.embeddings=ONES"], ["are the same"]),
}


@pytest.mark.parametrize("case", TRAINING)
def test_refused_configs(flags, tmp_path, capsys, case):
    arguments, words = TRAINING[case]
    (tmp_path / "ones.txt").write_text("a" + " 1" * 16 + "\nb" + " 1" * 16 + "\n")
    arguments = [a.replace("ONES", f"{tmp_path}/ones.txt") for a in arguments]
    code, _, err = bigjax(capsys, "train", *flags, f"--workdir={tmp_path}/run", *arguments)
    assert code == 2 and all(w in err for w in words), err
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_run_of_another_task_and_bad_vectors(tiny, tmp_path, capsys, flags):
    from bigjax.train import run

    with tiny.unlocked():
        tiny.train.steps, tiny.evals = 2, {}
    run.train(tiny, f"{tmp_path}/run")
    code, _, err = bigjax(capsys, "headline", f"--workdir={tmp_path}/run", "--article=a.txt")
    assert code == 2 and "causal_lm" in err
    for more, word in (
        ([], "--out"),
        ([f"--out={tmp_path}/no/v.txt"], "folder"),
        ([f"--out={tmp_path}"], "is a folder"),
        ([f"--out={tmp_path}/v.txt", "--passes=0"], "passes"),
        ([f"--out={tmp_path}/v.txt", "--config.data.tokenizer.kind=bytes"], "wordpiece"),
    ):
        code, _, err = bigjax(capsys, "embeddings", *flags, *more)
        assert code == 2 and word in err
