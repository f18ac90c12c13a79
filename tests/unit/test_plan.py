"""Plans for pods: what is counted in compiled steps (frozen by tests/golden/make_hlo.py)."""

import functools
import gzip
import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import pytest

from bigjax.errors import UserError
from bigjax.plan import chips, count, hlo, predict
from tests import helpers

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
L, D, T, V, B, CHIPS = 3, 128, 128, 512, 16, 4  # of make_hlo.py
WEIGHTS = L * 12 * D * D


@functools.cache
def text(form):
    return gzip.open(GOLDEN / f"hlo_{form}.txt.gz", "rt").read()


@functools.cache
def costs(form):
    mesh = {
        "data": 1,
        "fsdp": 1,
        "sequence": 1,
        "tensor": 1,
        "tensor" if form == "tensor" else "fsdp": CHIPS,
    }
    return predict.costs(text(form), chips.CHIPS["v5e"], mesh)


@pytest.mark.parametrize("form", ["scanned", "unrolled", "tensor"])
def test_flops_are_the_analytic_ones(form):
    """6 per weight and token, 12 L T d for attention scores: within 3%."""
    want = B * T * (6 * (WEIGHTS + V * D) + 12 * L * T * D) / CHIPS
    assert costs(form).flops == pytest.approx(want, rel=0.03)


def test_scanned_and_unrolled_agree():
    a, b = costs("scanned"), costs("unrolled")
    assert a.flops == pytest.approx(b.flops, rel=0.02)
    assert a.seconds == pytest.approx(b.seconds, rel=0.5)  # the compiler fuses them differently
    of = lambda c: {(x.kind, x.axes): x.bytes for x in c.collectives}
    for kind in ("all-gather", "reduce-scatter"):
        assert of(a)[kind, "fsdp"] == pytest.approx(of(b)[kind, "fsdp"], rel=0.1)


def test_bytes_sent_by_fsdp_and_tensor_parallelism():
    """Of n devices each sends (n - 1) / n of an array that is gathered or scattered."""
    share = (CHIPS - 1) / CHIPS
    sent = {x.kind: x.bytes for x in costs("scanned").collectives}
    assert {x.axes for x in costs("scanned").collectives} == {"fsdp"}
    # Weights and embedding tables in bfloat16, once: without rematerialisation the backward pass
    # reuses them. Gradients of weights in bfloat16; of the embedding, which is also the last
    # layer, in float32.
    assert sent["all-gather"] == pytest.approx(share * 2 * (WEIGHTS + V * D + T * D), rel=0.05)
    assert sent["reduce-scatter"] == pytest.approx(share * (2 * WEIGHTS + 4 * V * D), rel=0.01)
    tensor = {x.kind: x for x in costs("tensor").collectives}
    assert {x.axes for x in tensor.values()} == {"tensor"}
    # Activations [B, T, d] in bfloat16, sharded along the tokens between blocks: per layer two are
    # scattered and two gathered, forward and backward, and one at each end.
    unit = share * 2 * B * T * D
    assert tensor["reduce-scatter"].bytes == pytest.approx((4 * L + 2) * unit, rel=0.03)
    assert tensor["all-gather"].bytes == pytest.approx((4 * L + 2) * unit, rel=0.25)
    assert tensor["all-reduce"].bytes < 0.1 * unit
    link = chips.CHIPS["v5e"].link * 1e9
    for collective in tensor.values():
        assert collective.seconds == pytest.approx(collective.bytes / (2 * link))


def test_flops_of_splash_attention():
    """It recomputes scores: 2 products of queries and keys forward, 3 and 4 backward."""
    assert costs("splash").kernel_flops == pytest.approx(
        9 * 2 * B * T * T * D * L / CHIPS, rel=1e-6
    )
    assert costs("splash").flops == pytest.approx(
        costs("scanned").flops - 12 * L * B * T * T * D / CHIPS, rel=0.01
    )
    assert costs("scanned").kernel_flops == 0


@pytest.mark.parametrize(
    "form, n_bytes",
    [("scanned", 4_841_206), ("unrolled", 4_183_082), ("tensor", 5_117_894), ("splash", 4_841_198)],
)
def test_bytes_of_hbm(form, n_bytes):
    """As they are since each kind of operation was checked: a change needs a reason."""
    assert costs(form).hbm_bytes == pytest.approx(n_bytes, abs=1)


@pytest.mark.parametrize(
    "dtype, n_bytes",
    [("pred", 1), ("s4", 0.5), ("u2", 0.25), ("bf16", 2), ("f8e4m3b11fnuz", 1), ("f8e8m0fnu", 1)]
    + [("f4e2m1fn", 0.5), ("s64", 8), ("c128", 16), ("token", 0), ("opaque", 0)],
)
def test_bytes_of_a_type(dtype, n_bytes):
    assert hlo.Array(dtype, (8,), False).bytes == 8 * n_bytes


def test_loops_are_counted():
    module = hlo.Module(text("scanned"))
    loops = [
        op for c in module.computations.values() for op in c.ops.values() if op.opcode == "while"
    ]
    assert [count.Counter(module).trips(op) for op in loops] == [L, L]


@pytest.mark.parametrize(
    "notation, ids",
    [
        ("replica_groups={{0,4},{1,5}}", [0, 4]),
        ("replica_groups=[2,4]<=[8]", [0, 1, 2, 3]),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", [0, 4]),
        ("replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_0'}, dim", [0, 4]),
        ("replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_1'}", [0, 1, 2, 3]),
        ("replica_groups=mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'a'}, x", [0, 1, 2, 3]),
        ("replica_groups=mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'b'}, x", [0, 4]),
        ("source_target_pairs={{3,5},{4,6}}", [3, 5]),
        ("source_target_pairs={{0,0},{2,1}}", [2, 1]),
    ],
)
def test_groups_of_devices(notation, ids):
    assert predict.group(notation) == ids


def test_a_batched_product_as_a_convolution():
    """As a TPU writes it: 4 x 16 products of [2048, 128] and [128, 2048]."""
    module = hlo.Module("""HloModule m

ENTRY %main (a: bf16[4,2048,16,128], b: bf16[4,2048,16,128]) -> bf16[4,16,2048,2048] {
  %a = bf16[4,2048,16,128]{3,2,1,0} parameter(0)
  %b = bf16[4,2048,16,128]{3,2,1,0} parameter(1)
  ROOT %c = bf16[4,16,2048,2048]{3,2,1,0} convolution(%a, %b), \
window={size=4x16 stride=3x15 lhs_dilate=4x16}, dim_labels=0b1f_0o1i->01bf
}
""")
    assert count.Counter(module).flops("main") == 2 * 4 * 16 * 2048 * 2048 * 128


@pytest.mark.parametrize(
    "start, end, calls",
    [("async-start", "async-done", "calls"), ("call-start", "call-done", "to_apply")],
)
def test_a_collective_on_a_separate_core(start, end, calls):
    """As tpu7x runs it, concurrently with computation."""
    costs = predict.costs(
        f"""HloModule m

%aside (p: f32[1024]) -> f32[1024] {{
  %p = f32[1024]{{0}} parameter(0)
  ROOT %r = f32[1024]{{0}} all-reduce(%p), channel_id=1, replica_groups=[1,2]<=[2], to_apply=%add
}}, execution_thread="sparsecore"

ENTRY %main (a: f32[1024]) -> f32[1024] {{
  %a = f32[1024]{{0}} parameter(0)
  %s = ((f32[1024]{{0}}), f32[1024]{{0}}, s32[]) {start}(%a), \
async_execution_thread="sparsecore", {calls}=%aside
  ROOT %d = f32[1024]{{0}} {end}(%s)
}}
""",
        chips.CHIPS["tpu7x"],
        {"data": 2},
    )
    assert [(x.kind, x.axes, x.bytes) for x in costs.collectives] == [("all-reduce", "data", 4096)]
    assert costs.seconds == costs.hbm_bytes == 0


def test_the_range_is_from_complete_overlap_to_none():
    costs = predict.Costs(0, 0, 2.0, 1.0, [predict.Collective("all-reduce", "data", 8, 4.0)])
    assert costs.step == (4.0, 7.0)


def test_communication_between_slices_uses_the_network():
    """Four slices of four: the groups are within one slice, a host transfer is to the others."""
    costs = predict.costs(
        """HloModule m

ENTRY %main (a: f32[1024]) -> f32[1024] {
  %a = f32[1024]{0} parameter(0)
  %r = f32[1024]{0} all-reduce(%a), channel_id=1, replica_groups={{0,1},{2,3}}, to_apply=%add
  %t = token[] after-all()
  ROOT %s = (f32[1024]{0}, u32[], token[]) send(%r, %t), channel_id=2, is_host_transfer=true, \
frontend_attributes={_xla_megascale_transfer_type="ALL_REDUCE"}
}
""",
        chips.CHIPS["v5e"],
        {"data": 4, "fsdp": 2, "tensor": 2},
        4,
    )
    near, far = sorted(costs.collectives, key=lambda c: c.seconds)
    assert (near.axes, near.bytes, far.axes, far.bytes) == ("tensor", 4096, "slices", 1.5 * 4096)
    assert near.kind == far.kind == "all-reduce"
    assert near.seconds == pytest.approx(4096 / 90e9) and far.seconds == 1.5 * 4096 / 3.125e9
    assert costs.seconds == 0


def test_a_permutation_uses_one_link_or_goes_to_one_slice():
    """However many slices there are, each sends its array to one other."""
    costs = predict.costs(
        """HloModule m

ENTRY %main (a: f32[1024]) -> f32[1024] {
  %a = f32[1024]{0} parameter(0)
  %p = f32[1024]{0} collective-permute(%a), channel_id=1, source_target_pairs={{0,1},{1,0}}
  %t = token[] after-all()
  ROOT %s = (f32[1024]{0}, u32[], token[]) send(%p, %t), channel_id=2, is_host_transfer=true, \
frontend_attributes={_xla_megascale_transfer_type="ONE_TO_ONE"}
}
""",
        chips.CHIPS["v5e"],
        {"data": 4, "fsdp": 2, "tensor": 2},
        4,
    )
    near, far = sorted(costs.collectives, key=lambda c: c.seconds)
    assert near.kind == far.kind == "collective-permute"
    assert (near.axes, near.bytes, far.axes, far.bytes) == ("tensor", 4096, "slices", 4096)
    assert near.seconds == pytest.approx(4096 / 45e9) and far.seconds == 4096 / 3.125e9


@pytest.mark.parametrize(
    "topology, message",
    [
        ("v5e-16", "not a known chip. Known: v4, v5e.*--topology=v5e:,"),
        ("v9:4x4", "not a known chip.*tpu7x, h100"),
        ("v5e:", "not a valid slice. Valid: v5e:1x1, 2x2"),
        ("v5e:4x4x4", "not a valid slice.*4x4, 4x8"),
        ("v5e:3x3", "not a valid slice"),
        ("v5e:32x32", "not a valid slice"),
        ("v5p:4x4", "not a valid slice.*multiples of 4"),
        ("v5p:8x4x4", "not a valid slice"),
        ("v5p:0x4x4", "not a valid slice"),
        ("v5p:04x4x4", "not a valid slice"),
        ("v5p:4x4x4xa", "not a valid slice"),
        ("v5p:16x16x28", "6,144 chips"),
    ],
)
def test_unknown_topologies(topology, message):
    with pytest.raises(UserError, match=message):
        chips.parse(topology)


def test_known_topologies():
    assert chips.parse("v5e:16x16") == ("v5e", (16, 16))
    assert chips.parse("v5p:16x16x24") == ("v5p", (16, 16, 24))
    assert chips.parse("tpu7x:2x2x1") == ("tpu7x", (2, 2, 1))


def plan(tmp_path, *arguments):
    """Runs `bigjax plan` in a new process, which starts libtpu, or jax without it."""
    environment = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "JAX_PLATFORMS")}
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "bigjax.main",
            "plan",
            "--config=configs/gpt/gpt3.py:tiny",
            f"--config.data.cache_dir={tmp_path}",
            *arguments,
        ],
        capture_output=True,
        text=True,
        cwd=GOLDEN.parents[1],
        env=environment,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs libtpu: pip install -e '.[plan]'"
)
def test_a_config_is_planned_and_the_plan_cached(tmp_path):
    code, out, err = plan(tmp_path, "--topology=v5e:2x2", "--mesh=data=1,fsdp=4", "--json")
    assert code == 0 and "fits" in out and "along fsdp" in out, err
    result = json.loads(out.splitlines()[-1])
    assert result["fits"] and 0 < result["hbm_gib"] < 1 < result["hbm_limit_gib"]
    assert result["step_seconds"][0] <= result["step_seconds"][1] and 0 < result["mfu"][0] < 1
    (kept,) = tmp_path.glob("plans/*.json")
    assert (
        json.loads(
            plan(tmp_path, "--topology=v5e:2x2", "--mesh=data=1,fsdp=4", "--json")[1].splitlines()[
                -1
            ]
        )
        == result
    )
    code, _, err = plan(tmp_path, "--topology=v5e:2x2", "--mesh=data=3")
    assert code == 2 and "data=3" in err
    code, _, err = plan(tmp_path, "--topology=v5e:3x3")
    assert code == 2 and "'v5e:3x3' is not a valid slice" in err


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs libtpu: pip install -e '.[plan]'"
)
def test_frozen_parameters_have_no_gradients_in_a_plan(tmp_path):
    """Neither their FLOPs, a third of those of a kernel, nor their memory."""
    given = ["--topology=v5e:2x2", "--mesh=data=1,fsdp=4", "--json"]
    outputs = [
        plan(tmp_path, *given, *more) for more in ([], ["--config.optim.freeze=stack/.*/kernel"])
    ]
    none, frozen = (json.loads(out.splitlines()[-1]) for _, out, _ in outputs)
    c = helpers.load_config("configs/gpt/gpt3.py:tiny")
    m, n_tokens = c.model, c.train.batch_size * c.data.seq_len
    kernels = m.n_layers * (4 * m.d_model**2 + 2 * m.d_model * m.d_ff)
    assert none["flops"] - frozen["flops"] == pytest.approx(2 * kernels * n_tokens / 4, rel=0.02)
    assert none["parameters_gib"] == frozen["parameters_gib"]
    gib = kernels / 4 / 2**30  # of parameters on a device
    assert none["optimizer_gib"] - frozen["optimizer_gib"] == pytest.approx(8 * gib, rel=0.02)
    at_rest = [p["parameters_gib"] + p["optimizer_gib"] for p in (none, frozen)]
    gradients = none["hbm_gib"] - at_rest[0] - (frozen["hbm_gib"] - at_rest[1])
    assert gradients >= 4 * gib  # in float32, and activations that only they need


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is not None, reason="libtpu is installed")
def test_a_missing_libtpu_is_named(tmp_path):
    code, _, err = plan(tmp_path, "--topology=v5e:2x2")
    assert code == 2 and "pip install -e '.[plan]'" in err


def test_invalid_arguments_of_plan(tmp_path):
    for more, message in (
        ([], "--topology=CHIP:AxB is missing"),
        (["--topology=v5e:4x4", "--slices=0"], "--slices is 0"),
        (["--topology=v5e:4x4", "--mesh=rows=2"], "'rows=2' is not AXIS=NUMBER"),
    ):
        code, _, err = plan(tmp_path, *more)
        assert code == 2 and message in err, err
