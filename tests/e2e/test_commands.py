"""The commands as a user types them, and their messages for bad input."""

import json
import re

import pytest

from tests import helpers
from tests.helpers import bigjax


@pytest.fixture(scope="module")
def trained(tiny_flags, tmp_path_factory):
    """A finished run, with TensorBoard files, the best checkpoint kept, and a sample."""
    workdir = str(tmp_path_factory.mktemp("runs") / "trained")
    code, out, err = helpers.run(
        "train",
        *tiny_flags,
        f"--workdir={workdir}",
        "--config.log.tensorboard=true",
        "--config.checkpoint.keep=1",
        "--config.checkpoint.best=eval/valid/loss",
        "--config.train.ema=0.5",
    )
    assert code == 0, err
    return workdir, out


def test_train_learns_and_reports(trained):
    workdir, out = trained
    numbers = helpers.read_metrics(workdir, times=True)
    assert [m["step"] for m in numbers if "loss" in m] == [1, *range(5, 41, 5)]
    losses = [m["loss"] for m in numbers if "loss" in m]
    assert losses[-1] < losses[0] - 1
    assert {
        "loss",
        "perplexity",
        "bits_per_byte",
        "accuracy",
        "learning_rate",
        "grad_norm",
        "param_norm",
        "update_norm",
        "tokens_per_sec",
        "data_wait_fraction",
        "host_memory_gib",
        "epoch",
    } <= set().union(*numbers)
    assert re.search(r"step 40/40  loss \d\.\d+  [\d,]+ tokens/s  ETA 0:00", out)
    assert f"Wrote {workdir}: checkpoints/40, metrics.jsonl, config.json, tokenizer/" in out
    (events,) = helpers.pathlib.Path(workdir, "tensorboard").iterdir()
    assert b"eval/valid/loss" in events.read_bytes() and b"grad_norm" in events.read_bytes()


def test_eval_equals_the_evaluation_during_training_at_every_saved_step(capsys, trained):
    workdir, _ = trained
    trained_with = {m["step"]: m for m in helpers.read_metrics(workdir) if "eval/valid/loss" in m}
    steps = sorted(
        int(p.name)
        for p in helpers.pathlib.Path(workdir, "checkpoints").iterdir()
        if p.name.isdigit()
    )
    for step in (steps[0], None):
        choice = [] if step is None else [f"--step={step}"]
        code, out, _ = bigjax(
            capsys, "eval", f"--workdir={workdir}", "--json", "--config.mesh.tensor=2", *choice
        )
        assert code == 0
        got = json.loads(out.splitlines()[-1])
        assert got["step"] == (step or 40)
        for key in ("loss", "perplexity", "bits_per_byte", "accuracy"):
            assert got[f"eval/valid/{key}"] == pytest.approx(
                trained_with[got["step"]][f"eval/valid/{key}"], rel=1e-3
            )


def test_eval_of_other_data(capsys, trained, tmp_path):
    other = tmp_path / "other.txt"
    other.write_text("\n\n".join(f"zebra {i} quilt xylophone " * 100 for i in range(20)))
    code, out, _ = bigjax(
        capsys,
        "eval",
        f"--workdir={trained[0]}",
        "--json",
        f"--config.data.sources.text.path={other}",
        "--config.data.valid_fraction=0.5",
        "--config.data.test_fraction=0.5",
    )
    last = json.loads(out.splitlines()[-1])
    own = [m["eval/valid/loss"] for m in helpers.read_metrics(trained[0]) if "eval/valid/loss" in m]
    assert code == 0 and last["eval/valid/loss"] > own[-1] + 0.5


def test_generate(capsys, trained):
    arguments = [
        "generate",
        f"--workdir={trained[0]}",
        "--prompt=the shape",
        "--prompt=a",
        "--number=2",
        "--max_tokens=12",
        "--top_k=5",
        "--seed=3",
    ]
    code, out, _ = bigjax(capsys, *arguments)
    assert code == 0 and "--- 4 of 4" in out and out.count("\nthe shape") == 2
    assert bigjax(capsys, *arguments)[1] == out
    stopped = bigjax(capsys, *arguments, "--stop= ")[1]
    assert all(
        " " not in part.removeprefix("the shape")
        for part in re.split(r"--- \d of 4\n", stopped)[1:]
    )


def test_checkpoint_shows_steps_and_parameters(capsys, trained):
    code, out, _ = bigjax(capsys, "checkpoint", f"--workdir={trained[0]}")
    assert code == 0
    assert re.search(r"^ +40 +[\d.]+ kB  params", out, re.M)
    assert re.search(r"stack/layers/mlp/up/kernel +\(2, 32, 128\) +float32 .* 8,192", out)
    total = int(re.search(r"total +([\d,]+)", out)[1].replace(",", ""))
    assert total == 264 * 32 + 64 * 32 + 2 * (12 * 32 * 32 + 13 * 32) + 2 * 32


def test_report_draws_several_runs(capsys, trained, tmp_path):
    out_file = tmp_path / "report.png"
    code, out, _ = bigjax(
        capsys, "report", f"--workdir={trained[0]}", f"--workdir={trained[0]}", f"--out={out_file}"
    )
    assert code == 0 and out_file.read_bytes()[:4] == b"\x89PNG" and "eval/valid/loss" in out


def test_tokenizer(capsys, tiny_flags, tmp_path):
    code, out, _ = bigjax(
        capsys,
        "tokenizer",
        *tiny_flags,
        "--config.data.tokenizer.kind=sentencepiece",
        "--config.data.tokenizer.vocab_size=300",
        f"--out={tmp_path}/t",
    )
    assert code == 0 and "sentencepiece tokenizer of 300 tokens" in out
    assert (
        bigjax(
            capsys,
            "train",
            *tiny_flags,
            f"--workdir={tmp_path}/run",
            "--config.data.tokenizer.kind=sentencepiece",
            "--config.model.vocab_size=304",
            f"--config.data.tokenizer.path={tmp_path}/t",
            "--config.train.steps=2",
        )[0]
        == 0
    )


def test_listing_configs(capsys):
    assert "A small GPT on docstrings" in bigjax(capsys, "configs")[1]
    out = bigjax(capsys, "config", "--config.seed=3")[1]
    assert "seed = 3   # overridden, was 0" in out
    for command in ("help", "--version"):
        assert bigjax(capsys, command)[0] == 0


def test_a_best_checkpoint_is_kept(trained):
    scores = {
        m["step"]: m["eval/valid/loss"]
        for m in helpers.read_metrics(trained[0])
        if "eval/valid/loss" in m
    }
    best = min((s for s in scores if s), key=scores.get)
    steps = {
        int(p.name)
        for p in helpers.pathlib.Path(trained[0], "checkpoints").iterdir()
        if p.name.isdigit()
    }
    assert steps == {best, 40}


def test_a_saved_run_gets_the_devices_of_its_mesh(trained):
    """In a process of its own: Orbax, which opens the checkpoint, must not start jax first."""
    code, out, err = helpers.run(
        "generate",
        f"--workdir={trained[0]}",
        "--max_tokens=2",
        "--config.mesh.data=1",
        "--config.mesh.tensor=2",
        devices=None,
    )
    assert code == 0, err


BAD = {
    "an unknown command": (["trian"], ["trian", "'train'"]),
    "no work folder": (["train", "--config=configs/gpt/docstrings.py"], ["--workdir"]),
    "an unknown key": (["train", "--config.train.step=3"], ["train.step", "'steps'"]),
    "a wrong type": (["train", "--config.train.steps=x"], ["train.steps", "int"]),
    "a missing file": (
        ["train", "--config=configs/gpt/dcstrings.py", "--workdir=w"],
        ["configs/gpt/docstrings.py"],
    ),
    "a batch over the mesh": (
        ["TINY", "--config.train.batch_size=6"],
        ["6", "data=8", "multiple of 8"],
    ),
    "a mesh over the devices": (["TINY", "--config.mesh.data=3"], ["data=3", "= 3", "8 cpu"]),
    "heads over tensor": (["TINY", "--config.mesh.tensor=8"], ["heads", "4", "tensor=8"]),
    "an unknown optimizer": (["TINY", "--config.optim.name=adam"], ["adam", "adamw"]),
    "a regex that finds nothing": (
        ["TINY", "--config.optim.decay_params=zzz"],
        ["zzz", "embed/embedding"],
    ),
    "a sequence beyond the model": (["TINY", "--config.data.seq_len=128"], ["128", "max_len=64"]),
    "a small vocabulary": (
        ["TINY", "--config.model.vocab_size=100"],
        ["259", "model.vocab_size is only 100"],
    ),
    "a source that is not there": (
        ["TINY", "--config.data.sources.text.path=/nowhere/x.txt"],
        ["/nowhere/x.txt"],
    ),
    "an unknown kind of source": (
        ["TINY", "--config.data.sources.text.kind=parquet"],
        ["parquet", "jsonl"],
    ),
    "too little text": (
        ["TINY", "--config.train.batch_size=80000"],
        ["80,000", "train.batch_size"],
    ),
    "nothing to train on": (
        ["TINY", "--config.data.valid_fraction=1", "--config.data.test_fraction=0"],
        ["train split", "data.valid_fraction"],
    ),
    "an unknown evaluation": (["TINY", "--config.evals.valid.kind=los"], ["los", "'loss'"]),
    "a metric that no evaluation gives": (
        ["TINY", "--config.train.early_stop.metric=eval/valid/los"],
        ["train.early_stop.metric", "eval/valid/los", "eval/valid/loss"],
    ),
    "an empty stop": (["generate", "--workdir=/nowhere", "--stop="], ["--stop"]),
    "no such run": (["eval", "--workdir=/nowhere"], ["/nowhere", "config.json"]),
    "init_from nothing": (["TINY", "--config.init_from=/nowhere"], ["/nowhere"]),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_reported_and_nothing_is_written(
    capsys, tiny_flags, tmp_path, monkeypatch, case
):
    monkeypatch.chdir(tmp_path)
    arguments, words = BAD[case]
    if arguments[0] == "TINY":
        arguments = ["train", *tiny_flags, f"--workdir={tmp_path}/run", *arguments[1:]]
    code, _, err = bigjax(capsys, *arguments)
    assert code == 2 and err.startswith("bigjax: ") and err.count("\n") <= 3
    assert all(w.replace(",", "") in err.replace(",", "") for w in words), err
    assert not (tmp_path / "run" / "checkpoints" / "1").exists()


def test_a_work_folder_of_another_config(capsys, tiny_flags, trained):
    code, _, err = bigjax(
        capsys,
        "train",
        *tiny_flags,
        f"--workdir={trained[0]}",
        "--config.train.ema=0.5",
        "--config.model.d_model=64",
        "--config.data.seq_len=16",
    )
    assert code == 2 and "model.d_model was 32, now 64" in err and "data.seq_len" in err
    assert "optim.learning_rate" not in err


def test_resume_from_a_run_of_another_config(capsys, tiny_flags, trained, tmp_path):
    code, _, err = bigjax(
        capsys,
        "train",
        *tiny_flags,
        f"--workdir={tmp_path}/run",
        "--config.seed=7",
        "--config.train.ema=0.5",
        f"--config.resume_from={trained[0]}",
    )
    assert code == 2 and "seed was 0, now 7" in err


@pytest.mark.slow
def test_init_from_casts_to_the_types_of_this_model(capsys, tiny_flags, trained, tmp_path):
    code, out, err = bigjax(
        capsys,
        "train",
        *tiny_flags,
        f"--workdir={tmp_path}/run",
        "--config.model.param_dtype=bfloat16",
        "--config.train.steps=2",
        "--config.optim.warmup_steps=0",
        f"--config.init_from={trained[0]}",
    )
    assert code == 0 and "with the parameters of" in out, err


def test_init_from_a_model_of_another_size(capsys, tiny_flags, trained, tmp_path):
    code, _, err = bigjax(
        capsys,
        "train",
        *tiny_flags,
        f"--workdir={tmp_path}/run",
        "--config.model.d_model=64",
        f"--config.init_from={trained[0]}",
    )
    assert code == 2 and "embed/embedding has the shape (264, 32) there and (264, 64) in" in err
