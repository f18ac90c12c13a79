"""Plans for GPUs: memory and communication, without seconds."""

import dataclasses
import gzip
import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import pytest

from bigjax.arguments import Arguments
from bigjax.cli import plan as plan_cli
from bigjax.errors import UserError
from bigjax.plan import chips, command, compilers, hlo, predict
from bigjax.plan import compile as compile_lib
from tests import helpers

ROOT = pathlib.Path(__file__).parents[2]
L, D, T, V, B, N = 3, 128, 128, 512, 16, 4  # of tests/golden/make_hlo.py
WEIGHTS = L * 12 * D * D
H100 = chips.CHIPS["h100"]


@pytest.fixture(scope="module")
def text():
    return gzip.open(ROOT / "tests/golden/hlo_h100.txt.gz", "rt").read()


@pytest.fixture(scope="module")
def costs(text):
    return predict.costs(text, H100, {"data": 2, "fsdp": 2, "sequence": 1, "tensor": 1})


def test_flops_are_the_analytic_ones(costs):
    """6 per weight and token; attention by cuDNN, which recomputes scores: 2 products of queries
    and keys forward, 5 backward."""
    assert costs.flops == pytest.approx(6 * B * T * (WEIGHTS + V * D) / N, rel=1e-6)
    assert costs.kernel_flops == pytest.approx(7 * 2 * B * T * T * D * L / N, rel=1e-6)


def test_attention_is_by_cudnn(text):
    kernels = [
        op
        for c in hlo.Module(text).computations.values()
        for op in c.ops.values()
        if "__cudnn$fmha" in op.text
    ]
    assert len(kernels) == 2 and all('"mask_type": "CAUSAL"' in op.text for op in kernels)
    assert "Bias" not in kernels[0].text + kernels[1].text  # rows are not packed: no mask is read


def test_bytes_sent_along_two_axes(costs):
    """All in bfloat16. The embedding table is gathered for the first and for the last layer, and
    its gradients are scattered twice. Each of two devices sends half of an array."""
    sent = {(x.kind, x.axes): x.bytes for x in costs.collectives}
    n_bytes = 2 * (WEIGHTS + 2 * V * D + T * D)
    assert sent["all-gather", "fsdp"] == pytest.approx(n_bytes / 2, rel=0.002)
    assert sent["reduce-scatter", "fsdp"] == pytest.approx(n_bytes / 2, rel=0.002)
    # The scattered gradients are summed over the other pair: sent, and their sum sent back.
    assert sent["all-reduce", "data"] == pytest.approx(n_bytes / 2, rel=0.002)
    # Norms, biases, the loss.
    assert sum(sent.values()) == pytest.approx(3 * n_bytes / 2, rel=0.01)


def test_bytes_of_hbm(costs):
    """As they are since each kind of operation was checked: a change needs a reason."""
    assert costs.hbm_bytes == pytest.approx(293_413_090, abs=1)


def test_no_seconds(costs):
    assert costs.seconds is costs.work is costs.communication is costs.step is None
    assert all(x.seconds is None for x in costs.collectives)


HAND_WRITTEN = """HloModule m

%body (p: (s32[], f32[64])) -> (s32[], f32[64]) {
  %p = (s32[], f32[64]{0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %x = f32[64]{0} get-tuple-element(%p), index=1
  %s = ((f32[64]{0}), f32[16]{0}) reduce-scatter-start(%x), channel_id=1, replica_groups=[1,4]<=[4]
  %sd = f32[16]{0} reduce-scatter-done(%s)
  %g = (f32[16]{0}, f32[64]{0}) all-gather-start(%sd), channel_id=2, replica_groups=[1,4]<=[4]
  %gd = f32[64]{0} all-gather-done(%g)
  %r = f32[64]{0} all-reduce-start(%gd), channel_id=3, replica_groups=[1,4]<=[4]
  %rd = f32[64]{0} all-reduce-done(%r)
  ROOT %t = (s32[], f32[64]{0}) tuple(%i, %rd)
}

%condition (p.1: (s32[], f32[64])) -> pred[] {
  %p.1 = (s32[], f32[64]{0}) parameter(0)
  ROOT %c = pred[] constant(true)
}

ENTRY %main (a: (s32[], f32[64]), b: bf16[3,8,32], d: bf16[3,32,16]) -> bf16[3,8,16] {
  %a = (s32[], f32[64]{0}) parameter(0)
  %b = bf16[3,8,32]{2,1,0} parameter(1)
  %d = bf16[3,32,16]{2,1,0} parameter(2)
  %w = (s32[], f32[64]{0}) while(%a), condition=%condition, body=%body, \
backend_config={"known_trip_count":{"n":"5"}}
  %two = ((bf16[3,8,32]{2,1,0}, bf16[3,32,16]{2,1,0}), (bf16[12,8,32]{2,1,0}, \
bf16[12,32,16]{2,1,0})) all-gather-start(%b, %d), channel_id=4, replica_groups=[2,2]<=[2,2]T(1,0)
  %m = (bf16[3,8,16]{2,1,0}, s8[4194304]{0}) custom-call(%b, %d), \
custom_call_target="__cublas$lt$matmul", backend_config={"gemm_backend_config":{\
"dot_dimension_numbers":{"lhs_contracting_dimensions":["2"],"rhs_contracting_dimensions":["1"],\
"lhs_batch_dimensions":["0"],"rhs_batch_dimensions":["0"]}}}
  ROOT %o = bf16[3,8,16]{2,1,0} get-tuple-element(%m), index=0
}
"""


def test_asynchronous_collectives_count_once():
    """The result of a -start includes its inputs. The loop runs five times."""
    costs = predict.costs(HAND_WRITTEN, H100, {"data": 2, "fsdp": 2})
    sent = {(x.kind, x.axes): x.bytes for x in costs.collectives}
    assert sent == {
        ("reduce-scatter", "data x fsdp"): 5 * 3 / 4 * 4 * 64,
        ("all-gather", "data x fsdp"): 5 * 3 / 4 * 4 * 64,
        ("all-reduce", "data x fsdp"): 5 * 2 * 3 / 4 * 4 * 64,
        ("all-gather", "data"): 1 / 2 * 2 * 12 * (8 * 32 + 32 * 16),
    }
    assert costs.flops == 2 * 3 * 8 * 16 * 32  # by cuBLAS


def test_topologies():
    assert chips.parse("h100:1") == ("h100", (1,))
    assert chips.parse("h100:8") == ("h100", (8,))
    assert chips.parse("h100:4x8") == ("h100", (4, 8))


@pytest.mark.parametrize(
    "topology",
    ["h100", "h100:", "h100:16", "h100:3", "h100:1x8", "h100:2x4", "h100:1024x8", "h100:2x2x8"],
)
def test_unknown_topologies(topology):
    with pytest.raises(UserError, match="not a valid slice.*h100:1, 2, 4, 8, and HOSTSx8 from 2x8"):
        chips.parse(topology)


def test_the_limit_is_what_jax_allocates(monkeypatch):
    for name in ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION"):
        monkeypatch.delenv(name, raising=False)
    assert chips.figures("h100:8").limit == pytest.approx(0.75 * 79.11, abs=0.01)
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", ".9")
    assert chips.figures("h100:8").limit == pytest.approx(0.9 * 79.11, abs=0.01)
    assert chips.figures("v5e:4x4").limit == 15.75
    for text in ("90", "much", "0"):
        monkeypatch.setenv("XLA_CLIENT_MEM_FRACTION", text)
        with pytest.raises(UserError, match=f"XLA_CLIENT_MEM_FRACTION='{text}'.*such as 0.9"):
            chips.figures("h100:8")


def made(gib: float):
    fits = gib < 59
    return compile_lib.Plan(
        phase="",
        mesh={"data": 1, "fsdp": 8},
        model_flops=1e15,
        limit_bytes=59.0 * chips.GIB,
        parameter_bytes=1e9,
        optimizer_bytes=2e9,
        frozen_bytes=0.0,
        unit="tokens",
        units=64 * 2048,
        peak_bytes=gib * chips.GIB,
        compile_seconds=3.0,
        **(
            dict(
                flops=2e12,
                kernel_flops=1e12,
                collectives=(predict.Collective("all-gather", "fsdp", 3e9, None),),
            )
            if fits
            else {}
        ),
    )


def test_a_plan_says_what_it_does_not_include(monkeypatch, capsys):
    plan = dataclasses.replace(made(20.0), without=compile_lib.SAMPLING)
    text = run(monkeypatch, capsys, plan, "--topology=h100:8")
    assert "not included   the completions that are sampled before a step" in text
    assert "not included" not in run(monkeypatch, capsys, made(20.0), "--topology=h100:8")


def run(monkeypatch, capsys, plan, *arguments):
    """What `bigjax plan` prints for this plan."""
    values = Arguments(["--config=configs/gpt/gpt3.py", *arguments], plan_cli.COMMAND).flags
    monkeypatch.setattr(compile_lib, "plans", lambda *_: [plan])
    command.run(values, helpers.load_config("configs/gpt/gpt3.py:1.3b"))
    return capsys.readouterr().out


def test_the_page_and_the_numbers(monkeypatch, capsys):
    out = run(monkeypatch, capsys, made(20.0), "--topology=h100:8", "--json")
    assert "20.00 GiB of 59.00: fits" in out and "no time is predicted for h100" in out
    assert "along fsdp: 3 GB sent\n" in out and "MFU  " not in out
    numbers = json.loads(out.splitlines()[-1])
    assert numbers["fits"] and numbers["flops"] == 2e12 and numbers["collective_bytes"] == 3e9
    for name in ("step_seconds", "mfu", "tokens_per_sec", "work_seconds", "communication_seconds"):
        assert numbers[name] is None, name


def test_a_plan_that_does_not_fit(monkeypatch, capsys):
    out = run(monkeypatch, capsys, made(61.0), "--topology=h100:8", "--json")
    assert "DOES NOT FIT, by 2.00 GiB" in out and "--search" not in out
    assert json.loads(out.splitlines()[-1])["fits"] is False


@pytest.mark.parametrize("argument", ["--search", "--calibrate=runs.jsonl"])
def test_flags_that_need_seconds_are_refused(argument, monkeypatch, capsys):
    with pytest.raises(UserError, match=f"{argument.partition('=')[0]} needs predicted seconds"):
        run(monkeypatch, capsys, made(20.0), "--topology=h100:8", argument)


def test_slices_of_gpus_are_refused():
    with pytest.raises(UserError, match="--slices=2.*--topology=h100:2x8"):
        chips.devices("h100:8", 2)


def test_a_missing_compiler_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install -e '\.\[cuda\]'"):
        chips.devices("h100:8")


@pytest.mark.skipif(
    importlib.util.find_spec(compilers.gpu().module) is None,
    reason="needs the GPU compiler: pip install -e '.[cuda]'",
)
def test_a_config_is_planned(tmp_path):
    """Packed rows, sharded along the sequence: the hardest case for cuDNN."""
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "bigjax.main",
            "plan",
            "--config=configs/gpt/gpt3.py:tiny",
            f"--config.data.cache_dir={tmp_path}",
            "--config.model.dtype=bfloat16",
            "--config.data.packing=True",
            "--topology=h100:2x8",
            "--mesh=data=1,fsdp=4,sequence=2,tensor=2",
            "--json",
        ],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=300,
        env={k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "JAX_PLATFORMS")},
    )
    assert done.returncode == 0 and not done.stderr, done.stderr
    plan = json.loads(done.stdout.splitlines()[-1])
    assert plan["fits"] and 0 < plan["hbm_gib"] < 1 and plan["kernel_flops"] > 0
    assert plan["step_seconds"] is None
    axes = " ".join(c["axes"] for c in plan["collectives"])
    assert "fsdp" in axes and "sequence" in axes and "tensor" in axes
