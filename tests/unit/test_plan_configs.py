"""Every config is planned on every chip, with two layers. An hour or more."""

import importlib.util
import json

import pytest

from bigjax import config
from bigjax.plan import chips, compilers
from tests.unit.test_plan import plan

SLICES = ("v4:2x2x1", "v5e:2x2", "v5p:2x2x1", "v6e:2x2", "tpu7x:2x2x1", "h100:4")
SMALL = ("--config.model.n_layers=2", "--config.train.batch_size=16", "--config.train.accumulate=1")
# Of a config with several sizes, phases or kinds of data: those that differ in the program.
VARIANTS = {
    **dict.fromkeys(("base", "large", "large_lamb"), ("phase1", "phase2")),
    **dict.fromkeys(("brief", "dates", "digits", "digits_transfer"), ("tiny",)),
    **dict.fromkeys(("fashion_mnist", "hyperrule"), ("tiny",)),
    **dict.fromkeys(("imagenet", "b16_imagenet", "s16_imagenet", "r50x1_imagenet"), ("tiny",)),
    "b16_i21k": ("tiny",),
    "docstrings": ("", "tiny"),
    "finetune": ("tiny",),  # the others start from a trained run
    "gpt2": ("124m", "1.5b"),
    "gpt3": ("125m", "1.3b"),
    "headlines": ("", "titles"),
    "llama2": ("7b",),
    "llama3": ("8b",),
    "lora": ("tiny",),  # the others start from a model
    "morse": ("tiny",),
    "oracle": ("", "paper", "mle", "scheduled"),
    "oracle_paper": ("",),
    "pretrain": ("tiny",),
    "sort": ("taught", "tiny"),  # the other starts from a trained run
    "t5": ("small", "11b"),
    "text": ("",),
    "transformer": ("big",),
    "whisper": ("small",),
}
# Of a config whose name another one has.
OF_FILE = {"dpo/docstrings.py": ("tiny",)}  # the others start from a trained run
# Of each config that cannot be planned a part of the message, with the key to change.
REFUSED = {
    "bert/finetune.py": "config.init_from='runs/bert-docstrings' is neither",
    "dpo/docstrings.py": "config.init_from='runs/sft' is neither",
    "bert/finetune.py:pairs": "config.init_from='runs/bert-docstrings' is neither",
    "gpt/gpt3.py:175b": "tensor=8: the other axes need 8, which does not divide the 4",
    "gpt/llama2.py:70b": "tensor=8: the other axes need 8, which does not divide the 4",
    "gpt/llama3.py:70b": "tensor=8: the other axes need 8, which does not divide the 4",
    "seqgan/oracle.py": "but the run has 4",
}
FILES = {path.parent.name + "/" + path.name: path for path in config.config_files()}
SPECS = [
    f"{name}:{v}".rstrip(":")
    for name, path in FILES.items()
    for v in OF_FILE.get(name, VARIANTS[path.stem])
]


def skip_without_compiler(topology):
    compiler = compilers.TPU if chips.figures(topology).timed else compilers.gpu()
    if importlib.util.find_spec(compiler.module) is None:
        pytest.skip(f"the compiler of this chip, {compiler.module}, is not installed: docs/plan.md")


def config_flag(spec: str) -> str:
    name, colon, variant = spec.partition(":")
    return f"--config={FILES[name]}{colon}{variant}"


def arguments(spec: str) -> list[str]:
    if spec.startswith("seqgan/"):  # small ones may ask for one device
        return [config_flag(spec), "--mesh=data=-1"]
    return [config_flag(spec), *(() if spec.endswith(":tiny") else SMALL)]


@pytest.mark.slow
@pytest.mark.parametrize("topology", SLICES)
@pytest.mark.parametrize("spec", SPECS)
def test_a_config_on_a_chip(spec, topology, tmp_path):
    skip_without_compiler(topology)
    code, out, err = plan(tmp_path, *arguments(spec), f"--topology={topology}", "--json")
    assert code == 0 and not err, err
    result = json.loads(out.splitlines()[-1])
    assert result["fits"] and result["flops"] > 0, result
    assert result["unknown_loops"] == 0
    assert 0 < result["hbm_gib"] < result["hbm_limit_gib"]
    if not chips.CHIPS[topology.partition(":")[0]].timed:
        assert result["step_seconds"] is None and "no time is predicted" in out
        return
    low, high = result["step_seconds"]
    assert 0 < low <= high


@pytest.mark.slow
@pytest.mark.parametrize("spec", REFUSED)
def test_what_cannot_be_planned_is_said_in_one_sentence(spec, tmp_path):
    skip_without_compiler("v5e:2x2")
    code, out, err = plan(tmp_path, config_flag(spec), "--topology=v5e:2x2", "--json")
    assert code == 2 and not out, out
    assert REFUSED[spec] in err and err.count("\n") == 1, err


def test_every_config_is_planned():
    assert {path.stem for path in FILES.values()} == {*VARIANTS}
