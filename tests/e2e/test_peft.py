"""Adapters from the command line: trained, resumed, used, exported and refused."""

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file

from bigjax import main
from tests import helpers
from tests.conftest import on_one_device
from tests.helpers import TINY

STEPS = 4
LORA = ("--config.peft.name=lora", "--config.peft.rank=2", "--config.optim.weight_decay=0.0")


@pytest.fixture(scope="module")
def run(corpus_file, cache_dir, compiled_programs):
    """run(command, *flags): the exit code, on one device."""
    data = [
        f"--config.data.sources.text.path={corpus_file}",
        f"--config.data.cache_dir={cache_dir}",
    ]

    def call(command, *flags):
        more = [f"--config={TINY}", *data, "--config.model.n_layers=2"]
        with on_one_device(compiled_programs):
            return main.main([command, *(more if command == "train" else ()), *map(str, flags)])

    return call


@pytest.fixture(scope="module")
def runs(run, tmp_path_factory):
    """A folder with `base`, and `lora`: trained for STEPS steps."""
    folder = tmp_path_factory.mktemp("peft")
    few = (f"--config.train.steps={STEPS}", "--config.checkpoint.every=2")
    assert run("train", f"--workdir={folder / 'base'}", *few) == 0
    tune = (*few, *LORA, f"--config.peft.base={folder / 'base'}", "--config.train.ema=0.9")
    assert run("train", f"--workdir={folder / 'lora'}", *tune) == 0
    return folder, tune


def loss_at(workdir, step: int) -> float:
    lines = [m for m in helpers.read_metrics(workdir) if m["step"] == step]
    return next(m["eval/valid/loss"] for m in lines if "eval/valid/loss" in m)


def test_a_run_starts_at_its_base_and_saves_its_adapter_alone(runs):
    folder, _ = runs
    before = loss_at(folder / "lora", 0)
    assert before == loss_at(folder / "base", STEPS) > loss_at(folder / "lora", STEPS)
    saved = helpers.saved_checksums(folder / "lora", STEPS)
    assert all("lora_" in name for name in saved["params"])


def test_a_resumed_run_is_the_same_bits(run, runs, tmp_path):
    folder, tune = runs
    part = tmp_path / "part"
    shutil.copytree(folder / "lora", part)
    shutil.rmtree(part / "checkpoints" / str(STEPS))
    assert run("train", f"--workdir={part}", *tune) == 0
    want = helpers.saved_checksums(folder / "lora", STEPS)
    assert helpers.saved_checksums(part, STEPS) == want


def test_another_base_is_refused(run, runs, tmp_path, capsys):
    folder, tune = runs
    lora, other, few = f"--workdir={folder / 'lora'}", tmp_path / "other", tune[:2]
    assert run("train", f"--workdir={other}", *few, "--config.seed=1") == 0
    on_other = [flag for flag in tune if "peft.base" not in flag] + [f"--config.peft.base={other}"]
    assert run("train", lora, *on_other, f"--config.train.steps={STEPS + 1}") == 2
    assert run("eval", lora, on_other[-1]) == 2
    assert capsys.readouterr().err.count("The frozen part 'base'") == 2
    start = f"--config.init_from={folder / 'lora'}"
    assert run("train", f"--workdir={tmp_path / 'new'}", *on_other, start) == 2
    assert "an adapter of another base" in capsys.readouterr().err
    vocabulary = (
        "--config.data.tokenizer.kind=wordpiece",
        "--config.data.tokenizer.vocab_size=110",
    )
    assert run("train", f"--workdir={tmp_path / 'new'}", *tune, *vocabulary) == 2
    assert "another vocabulary" in capsys.readouterr().err


def test_an_adapter_is_used_continued_and_exported_merged(run, runs, tmp_path, capsys):
    folder, tune = runs
    lora, merged = folder / "lora", tmp_path / "merged"
    assert run("eval", f"--workdir={lora}", "--json") == 0
    loss = json.loads(capsys.readouterr().out.splitlines()[-1])["eval/valid/loss"]
    assert loss == pytest.approx(loss_at(lora, STEPS))
    assert run("generate", f"--workdir={lora}", "--prompt=the ", "--max_tokens=4") == 0
    for name in ("base", "lora"):
        assert run("export", f"--workdir={folder / name}", f"--to={merged / name}") == 0
    a, b = (load_file(merged / name / "model.safetensors") for name in ("base", "lora"))
    changed = {n for n in a if not np.array_equal(a[n], b[n])}
    assert changed == {f"transformer.h.{i}.attn.c_attn.weight" for i in range(2)}
    on = f"--workdir={tmp_path / 'on'}"
    assert run("train", on, *tune, f"--config.init_from={lora}") == 0
    assert loss_at(tmp_path / "on", 0) == pytest.approx(loss)


def test_an_adapter_in_the_format_of_peft(run, runs, tmp_path, capsys):
    folder, _ = runs
    to, back = tmp_path / "peft", tmp_path / "back"
    assert run("export", f"--workdir={folder / 'lora'}", f"--to={to}", "--adapter") == 0
    base = f"--config.peft.base={folder / 'base'}"
    assert run("import", f"--from={to}", f"--workdir={back}", base) == 0
    capsys.readouterr()
    assert run("eval", f"--workdir={back}", "--json") == 0
    loss = json.loads(capsys.readouterr().out.splitlines()[-1])["eval/valid/loss"]
    assert loss == pytest.approx(loss_at(folder / "lora", STEPS), rel=1e-5)
    assert run("train", f"--workdir={back}") == 2
    assert "holds an imported model" in capsys.readouterr().err
    assert (
        run("export", f"--workdir={folder / 'base'}", f"--to={tmp_path / 'no'}", "--adapter") == 2
    )
    assert "Only adapters of peft.name='lora'" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lora", "bitfit", "prompt"])
def test_a_classifier_on_a_pretrained_base(
    name, pretrained, labelled_flags, labelled_table, compiled_programs, tmp_path, capsys
):
    """Its sizes and vocabulary are the base's, its head is new, and init_from may be the base."""
    workdir = tmp_path / "run"
    few = ("--config.train.steps=4", "--config.data.packing=False", "--config.checkpoint.every=2")
    flags = [
        *labelled_flags,
        *few,
        f"--config.peft.name={name}",
        f"--config.peft.base={pretrained}",
    ]
    if name != "lora":
        flags.append("--config.optim.weight_decay=0.0")
    with on_one_device(compiled_programs):
        assert main.main(["train", f"--workdir={workdir}", *flags]) == 0
        saved = helpers.saved_checksums(workdir, 4)["params"]
        assert all(n.startswith("classifier") or name != "lora" or "lora_" in n for n in saved)
        assert any(n.startswith("classifier") for n in saved)
        output = tmp_path / "predictions.jsonl"
        given = [f"--input={labelled_table}", f"--output={output}"]
        assert main.main(["predict", f"--workdir={workdir}", *given]) == 0
        assert len(output.read_text().splitlines()) == 300
        code = main.main(["export", f"--workdir={workdir}", f"--to={tmp_path / 'merged'}"])
        assert code == (2 if name == "prompt" else 0)
        if name == "lora":
            to = f"--to={tmp_path / 'adapter'}"
            assert main.main(["export", f"--workdir={workdir}", to, "--adapter"]) == 2
            assert "no place for 2 parameters of this run: classifier" in capsys.readouterr().err
