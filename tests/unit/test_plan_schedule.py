"""Where the time of a step goes, by layer, part and kind; as text, numbers and a page."""

import json
import re

import pytest

from bigjax.arguments import Arguments
from bigjax.cli import plan as plan_cli
from bigjax.plan import chips, command, predict, schedule
from bigjax.plan import compile as compile_lib
from tests import helpers
from tests.unit.test_plan_search import made

V5E = chips.CHIPS["v5e"]
STACK = "jit(step)/jvp(Model)/stack/while/body/closed_call/layers"
BACK = STACK.replace("jvp(Model)", "transpose(jvp(Model))")


@pytest.mark.parametrize(
    "path, layer, part",
    [
        (f"{STACK}/attention/query/dot_general", "stack/attention/query", "forward"),
        (f"{STACK}/attention/query/query._factors/convert", "stack/attention/query", "forward"),
        (f"{BACK}/checkpoint/layers/mlp/up/dot_general", "stack/mlp/up", "backward"),
        (f"{BACK}/checkpoint/rematted_computation/layers/mlp/mul", "stack/mlp", "recomputed"),
        ("jit(step)/jvp(Model)/stack/layer_11/attention/out/add", "stack/attention/out", "forward"),
        (f"{STACK}/block_0_of_2/mlp/add", "stack/block_0_of_2/mlp", "forward"),
        (f"{STACK}/attention/attention_product_64/splash_mha_fwd/x", "stack/attention", "forward"),
        ("jit(step)/transpose(jvp(Model))/embed.output/embed.table/convert", "embed", "backward"),
        ("jit(step)/jvp(Model)/iota", "model", "forward"),
        ("jit(step)/jvp()/shard_map/while/body/closed_call/jit(clip)/max", "loss", "forward"),
        ("jit(step)/transpose(jvp())/mul;jit(step)/x/y", "loss", "backward"),
        ("jit(step)/while/body/jvp(Model)/embed/gather", "embed", "forward"),  # micro-batches
        ("checkpoint/layers/norm_1/reduce_sum", "norm_1", "backward"),
        ("jit(step)/jit(_where)/select_n", "optimizer", "update"),
        (f"{STACK}/jit(_threefry_split)/Block.__call__/xor", "stack", "forward"),
        ("jit(step)/jit(_threefry_fold_in)/make_step.<locals>.sums/xor", "optimizer", "update"),
    ],
)
def test_the_place_of_an_operation(path, layer, part):
    assert schedule.place(path) == (layer, part)


def named(path):
    return f'metadata={{op_name="{path}" stack_frame_id=7}}'


ARGUMENT = named(r"state.extras[\'a/b\']")  # is no path


# A product of bf16[1024,1024] and [1024,4096] is overlapped with the gather of the next weights.
PROGRAM = f"""HloModule m

%double (p: f32[1024,1024]) -> f32[1024,1024] {{
  %p = f32[1024,1024]{{1,0}} parameter(0)
  ROOT %s = f32[1024,1024]{{1,0}} add(%p, %p)
}}

%beside (x: bf16[1024,1024], w: bf16[1024,4096], q: bf16[256,1024]) -> (bf16[1024,4096], \
bf16[1024,1024]) {{
  %x = bf16[1024,1024]{{1,0:S(1)}} parameter(0)
  %w = bf16[1024,4096]{{1,0}} parameter(1)
  %q = bf16[256,1024]{{1,0}} parameter(2)
  %y = bf16[1024,4096]{{1,0}} convolution(%x, %w), dim_labels=bf_io->bf, \
{named(STACK + "/mlp/up/dot_general")}
  %g = bf16[1024,1024]{{1,0}} all-gather(%q), channel_id=1, replica_groups={{{{0,1,2,3}}}}, \
{named(STACK + "/mlp/down/down._factors/sharding_constraint")}
  ROOT %t = (bf16[1024,4096]{{1,0}}, bf16[1024,1024]{{1,0}}) tuple(%y, %g)
}}

%all-reduce-scatter.1 (r: f32[1024,1024]) -> f32[256,1024] {{
  %r = f32[1024,1024]{{1,0}} parameter(0)
  %sum = f32[1024,1024]{{1,0}} all-reduce(%r), channel_id=2, replica_groups={{{{0,1,2,3}}}}, \
to_apply=%add
  %zero = u32[] constant(0)
  ROOT %mine = f32[256,1024]{{1,0}} dynamic-slice(%sum, %zero, %zero)
}}

ENTRY %main (a: bf16[1024,1024], b: bf16[1024,4096], c: bf16[256,1024], d: f32[1024,1024]) -> \
f32[1024,1024] {{
  %a = bf16[1024,1024]{{1,0:S(1)}} parameter(0)
  %b = bf16[1024,4096]{{1,0}} parameter(1)
  %c = bf16[256,1024]{{1,0}} parameter(2)
  %d = f32[1024,1024]{{1,0}} parameter(3), {ARGUMENT}
  %idle = f32[1024,1024]{{0,1}} copy(%d)
  %both = (bf16[1024,4096]{{1,0}}, bf16[1024,1024]{{1,0}}) fusion(%a, %b, %c), kind=kOutput, \
calls=%beside, {named(STACK + "/mlp/add")}, backend_config={{"estimated_cycles":"90000"}}
  %kernel = bf16[1024,1024]{{1,0}} custom-call(%a), custom_call_target="tpu_custom_call", \
{named(STACK + "/attention/shard_map/splash_mha_fwd")}, backend_config={{"flops":"1970000000"}}
  %fetched = (f32[1024,1024]{{1,0:S(1)}}, f32[1024,1024]{{1,0}}, u32[]{{:S(2)}}) copy-start(%d)
  %here = f32[1024,1024]{{1,0:S(1)}} copy-done(%fetched)
  %grads = f32[256,1024]{{1,0}} fusion(%here), kind=kCustom, calls=%all-reduce-scatter.1, \
{named(BACK + "/checkpoint/layers/norm_1/add_any")}
  ROOT %new = f32[1024,1024]{{1,0}} fusion(%d), kind=kLoop, calls=%double, \
{named("jit(step)/mul")}
}}
"""


def test_the_schedule_of_a_program():
    """Seconds by hand, at 197 TFLOP/s, 819 GB/s, 1.5 GHz and two links of 45 GB/s."""
    costs = predict.costs(PROGRAM, V5E, {"fsdp": 4})
    seconds = {tuple(e)[:3]: (e.seconds, e.bound) for e in costs.schedule}
    product = 2 * 1024 * 1024 * 4096 / 197e12  # 43.6 us; its 16.8 MB take 20.5 us
    assert 2 * 2 * 1024 * 4096 / 819e9 < product < 90000 / 1.5e9
    want = {
        ("stack/mlp/up", "forward", "matrix product"): (90000 / 1.5e9, "cycles"),
        ("stack/mlp/down", "forward", "collective"): (3 / 4 * 2 * 1024**2 / 90e9, "links"),
        ("stack/attention", "forward", "kernel"): (1.97e9 / (0.8 * 197e12), "schedule"),
        # Without a name: it prepares what the next operation reads.
        ("stack/norm_1", "backward", "copy"): (4 * 1024**2 / 819e9, "HBM"),
        ("stack/norm_1", "backward", "collective"): (3 / 4 * 4 * 1024**2 / 90e9, "links"),
        ("optimizer", "update", "elementwise"): (2 * 4 * 1024**2 / 819e9, "HBM"),
        ("compiler", "update", "copy"): (2 * 4 * 1024**2 / 819e9, "HBM"),  # nothing has a name
    }
    assert {k: v[1] for k, v in seconds.items()} == {k: v[1] for k, v in want.items()}
    for key, (value, _) in want.items():
        assert seconds[key][0] == pytest.approx(value, rel=1e-12), key
    in_order = sorted((v for v, _ in want.values()), reverse=True)
    assert [e.seconds for e in costs.schedule] == pytest.approx(in_order, rel=1e-12)
    total = costs.work + costs.communication
    assert sum(e.seconds for e in costs.schedule) == pytest.approx(total, rel=1e-12)
    kinds = schedule.by_kind(costs.schedule)
    assert kinds["collective"] == pytest.approx(costs.communication, rel=1e-12)
    assert kinds["kernel"] == pytest.approx(costs.kernel_seconds, rel=1e-12)


def test_a_product_without_an_estimate_is_bound_by_flops_or_by_memory():
    entries = lambda text: predict.costs(text, V5E, {"fsdp": 4}).schedule
    bound = lambda text: next(e.bound for e in entries(text) if e.kind == "matrix product")
    none = PROGRAM.replace('"estimated_cycles":"90000"', "")
    assert bound(none) == "FLOPs"
    few = none.replace("bf16[1024,4096]{1,0} convolution", "bf16[64,4096]{1,0} convolution")
    assert bound(few) == "HBM"


@pytest.mark.parametrize(
    "last, kind",
    [
        ("transpose(%p), dimensions={1,0}", "copy"),
        ("reshape(%p)", "copy"),
        ("convert(%p)", "elementwise"),
        ("fusion(%p), kind=kLoop, calls=%moved", "copy"),
        ("fusion(%p), kind=kLoop, calls=%doubled", "elementwise"),
    ],
)
def test_a_fusion_that_only_moves_data_is_a_copy(last, kind):
    text = f"""HloModule m

%moved (x: f32[8,8]) -> f32[8,8] {{
  %x = f32[8,8]{{1,0}} parameter(0)
  ROOT %y = f32[8,8]{{0,1}} copy(%x)
}}

%doubled (v: f32[8,8]) -> f32[8,8] {{
  %v = f32[8,8]{{1,0}} parameter(0)
  ROOT %w = f32[8,8]{{1,0}} add(%v, %v)
}}

%fused (p: f32[8,8]) -> f32[8,8] {{
  %p = f32[8,8]{{1,0}} parameter(0)
  ROOT %q = f32[8,8]{{1,0}} {last}
}}

ENTRY %main (a: f32[8,8]) -> f32[8,8] {{
  %a = f32[8,8]{{1,0}} parameter(0)
  ROOT %b = f32[8,8]{{1,0}} fusion(%a), kind=kLoop, calls=%fused
}}
"""
    assert [e.kind for e in predict.costs(text, V5E, {"data": 1}).schedule] == [kind]


def test_what_nothing_uses_belongs_to_what_it_uses():
    """If it has no name, as the copies that the compiler adds at the end."""
    text = f"""HloModule m

ENTRY %main (a: f32[8,8]) -> f32[8,8] {{
  %a = f32[8,8]{{1,0}} parameter(0), {ARGUMENT}
  %b = f32[8,8]{{1,0}} add(%a, %a), {named(BACK + "/mlp/add")}
  %c = f32[8,8]{{1,0}} copy(%b)
  ROOT %d = f32[8,8]{{0,1}} copy(%c)
}}
"""
    entries = predict.costs(text, V5E, {"data": 1}).schedule
    assert {e[:3] for e in entries} == {
        ("stack/mlp", "backward", "copy"),
        ("stack/mlp", "backward", "elementwise"),
    }


def test_a_gpu_has_no_schedule():
    assert predict.costs(PROGRAM, chips.CHIPS["h100"], {"fsdp": 4}).schedule == ()


def entry(layer, kind, seconds, part="forward", bound="HBM"):
    return schedule.Entry(layer, part, kind, seconds, bound)


ENTRIES = (
    entry("stack/mlp/up", "matrix product", 0.5, "backward", "cycles"),
    entry("stack/attention", "kernel", 0.25, bound="schedule"),
    *(entry(f"layer<{i}>&", "copy", 0.25 / 16) for i in range(16)),
)


def planned(monkeypatch, capsys, plan, *arguments):
    """What `bigjax plan` prints for these plans."""
    plans = plan if isinstance(plan, list) else [plan]
    values = Arguments(["--config=configs/gpt/gpt3.py", *arguments], plan_cli.COMMAND).flags
    monkeypatch.setattr(compile_lib, "plans", lambda *_: plans)
    command.run(values, helpers.load_config("configs/gpt/gpt3.py:1.3b"))
    return capsys.readouterr().out


def test_the_largest_are_printed(monkeypatch, capsys):
    out = planned(monkeypatch, capsys, made(1.0, schedule=ENTRIES), "--topology=v5e:4x4", "--json")
    assert "by kind        matrix product 50.0%, kernel 25.0%, copy 25.0%\n" in out
    assert re.search(r"stack/mlp/up, backward +matrix product +0.500 s +50.0%  cycles\n", out)
    assert re.search(r"stack/attention, forward +kernel +0.250 s +25.0%  schedule\n", out)
    assert re.search(r"largest +kind +seconds +share  bound\n", out)
    assert "layer<7>&" in out and "layer<8>&" not in out  # 2 + 8
    numbers = json.loads(out.splitlines()[-1])
    assert len(numbers["schedule"]) == 10 and numbers["schedule"][0] == {
        "layer": "stack/mlp/up",
        "part": "backward",
        "kind": "matrix product",
        "seconds": 0.5,
        "bound": "cycles",
        "share": 0.5,
    }
    longer = [e._replace(seconds=3 * e.seconds) for e in ENTRIES]
    assert schedule.numbers(longer)[0]["share"] == 0.5
    out = planned(monkeypatch, capsys, made(0, 18.0), "--topology=v5e:4x4", "--json")
    assert json.loads(out.splitlines()[-1])["schedule"] is None and "largest" not in out


def test_a_task_fits_if_each_of_its_phases_does(monkeypatch, capsys):
    large, small = made(0, 18.0, phase="generator"), made(1.0, phase="discriminator")
    for plans, fits in (([large, small], False), ([small, large], False), ([small, small], True)):
        out = planned(monkeypatch, capsys, plans, "--topology=v5e:4x4", "--json")
        assert json.loads(out.splitlines()[-1])["fits"] is fits


def test_a_cached_plan_has_its_schedule():
    plan = made(1.0, schedule=ENTRIES, hbm_bytes=5.0)
    kept = json.loads(json.dumps(compile_lib.dataclasses.asdict(plan)))
    assert compile_lib._from_json(kept) == plan


@pytest.mark.parametrize(
    "chip, share", [("v5e", {64: 0.4, 128: 0.8, 256: 0.85}), ("v6e", {256: 0.62})]
)
def test_narrow_heads_take_as_long_as_wide_ones_up_to_a_share_of_the_peak(chip, share):
    """The result has the width of the heads; what else a kernel returns belongs to one block."""
    for width, of_peak in share.items():
        text = f"""HloModule m

ENTRY %main (q: bf16[4,512,{width}]) -> (f32[512,128], bf16[4,512,{width}]) {{
  %q = bf16[4,512,{width}]{{2,1,0}} parameter(0)
  ROOT %splash_mha_fwd.1 = (f32[512,128]{{1,0}}, bf16[4,512,{width}]{{2,1,0}}) custom-call(%q), \
custom_call_target="tpu_custom_call", metadata={{op_name="attention/attention_product_1000/x"}}
}}
"""
        costs = predict.costs(text, chips.CHIPS[chip], {"data": 1})
        assert costs.kernel_flops == 2 * 2 * 1000
        assert costs.kernel_seconds == pytest.approx(
            4000 / (of_peak * chips.CHIPS[chip].peak * 1e12)
        )


@pytest.mark.parametrize("name, pass_", [("whole_forward", 0), ("whole_backward", 1)])
def test_attention_over_short_rows_takes_the_time_of_its_scores(name, pass_):
    """Whatever the width of the heads: 3,000 scores, 1,000 multiplications a product."""
    text = f"""HloModule m

ENTRY %main (q: bf16[4,197,768]) -> bf16[4,197,768] {{
  %q = bf16[4,197,768]{{2,1,0}} parameter(0)
  ROOT %{name}.1 = bf16[4,197,768]{{2,1,0}} custom-call(%q), \
custom_call_target="tpu_custom_call", \
metadata={{op_name="attention/attention_product_1000/attention_scores_3000/{name}"}}
}}
"""
    for chip in map(chips.CHIPS.get, ("v5e", "v6e")):
        costs = predict.costs(text, chip, {"data": 1})
        assert costs.kernel_flops == 2 * (2, 5)[pass_] * 1000
        assert costs.kernel_seconds == pytest.approx(3 * chip.scores[pass_] / (chip.clock * 1e9))


def test_every_timed_chip_has_cycles_of_scores():
    assert all(min(chip.scores) > 0 for chip in chips.CHIPS.values() if chip.timed)
