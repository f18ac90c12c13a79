"""Collectives in fusions, which are communication, and what fusions hand on: no bytes of HBM.

Arrays in S(1), S(2) and S(6) are on the chip, the others in HBM. A row, f32[256], has 1,024 bytes.
"""

import re

import pytest

from bigjax.plan import chips, predict
from tests.unit.test_plan_traffic import ROW, entry, moved


@pytest.mark.parametrize("of", ["async-start(%a), calls=", "call-start(%a), to_apply="])
def test_an_operation_of_another_core(of):
    """What its computation moves: a slice is read and written; its sum is communication."""
    text = """%aside (p: f32[8,256]) -> f32[2,256] {
  %p = f32[8,256]{1,0} parameter(0)
  %s = f32[2,256]{1,0} slice(%p), slice={[0:2], [0:256]}
  ROOT %r = f32[2,256]{1,0} all-reduce(%s), channel_id=1, replica_groups={{0,1}}, to_apply=%add
}, execution_thread="sparsecore"

"""
    lines = (
        f"%op = ((f32[8,256]{{1,0}}), f32[2,256]{{1,0}}, s32[]) {of}%aside",
        f"%done = f32[2,256]{{1,0}} {of.partition('-')[0]}-done(%op)",
    )
    assert moved(text + entry(*lines)) == (2 + 2) * ROW
    assert moved(text + entry(*lines), "done") == 0


# As the compiler splits an all-gather of bf16[4,256] over four devices: it starts in the first
# fusion, goes on beside a product in the second, and ends in the third.
ASYNC = """%begin (p: bf16[4,256]) -> (bf16[4,256], bf16[16,256], u32[]) {
  %p = bf16[4,256]{1,0} parameter(0)
  %g1 = bf16[16,256]{1,0} all-gather(%p), channel_id=1, replica_groups={{0,1,2,3}}, dimensions={0}
  ROOT %begun = (bf16[4,256]{1,0}, bf16[16,256]{1,0}, u32[]{:S(2)}) custom-call(%g1), \
custom_call_target="AsyncCollectiveStart"
}

%beside (q: bf16[4,256], r: bf16[16,256], f: u32[], x: bf16[8,256], w: bf16[256,32]) -> \
(bf16[8,32], bf16[4,256], bf16[16,256], bf16[16,256], u32[]) {
  %x = bf16[8,256]{1,0} parameter(3)
  %w = bf16[256,32]{1,0} parameter(4)
  %y = bf16[8,32]{1,0} convolution(%x, %w), dim_labels=bf_io->bf
  %q = bf16[4,256]{1,0} parameter(0)
  %r = bf16[16,256]{1,0} parameter(1)
  %f = u32[]{:S(2)} parameter(2)
  %g2 = bf16[16,256]{1,0} all-gather(%q), channel_id=1, replica_groups={{0,1,2,3}}, dimensions={0}
  ROOT %t = (bf16[8,32]{1,0}, bf16[4,256]{1,0}, bf16[16,256]{1,0}, bf16[16,256]{1,0}, \
u32[]{:S(2)}) tuple(%y, %q, %r, %g2, %f)
}

%end (k: bf16[4,256], l: bf16[16,256], m: u32[]) -> bf16[16,256] {
  %k = bf16[4,256]{1,0} parameter(0)
  %l = bf16[16,256]{1,0} parameter(1)
  %m = u32[]{:S(2)} parameter(2)
  %g3 = bf16[16,256]{1,0} all-gather(%k), channel_id=1, replica_groups={{0,1,2,3}}, dimensions={0}
  ROOT %ended = bf16[16,256]{1,0} custom-call(%k, %l, %g3, %m), \
custom_call_target="AsyncCollectiveDone"
}

ENTRY %main (s: bf16[4,256], a: bf16[8,256], b: bf16[256,32]) -> bf16[16,256] {
  %s = bf16[4,256]{1,0} parameter(0)
  %a = bf16[8,256]{1,0} parameter(1)
  %b = bf16[256,32]{1,0} parameter(2)
  %async-collective-start = (bf16[4,256]{1,0}, bf16[16,256]{1,0}, u32[]{:S(2)}) fusion(%s), \
kind=kCustom, output_to_operand_aliasing={{0}: (0, {})}, calls=%begin
  %e0 = bf16[4,256]{1,0} get-tuple-element(%async-collective-start), index=0
  %e1 = bf16[16,256]{1,0} get-tuple-element(%async-collective-start), index=1
  %e2 = u32[]{:S(2)} get-tuple-element(%async-collective-start), index=2
  %both = (bf16[8,32]{1,0}, bf16[4,256]{1,0}, bf16[16,256]{1,0}, bf16[16,256]{1,0}, \
u32[]{:S(2)}) fusion(%e0, %e1, %e2, %a, %b), kind=kOutput, \
output_to_operand_aliasing={{1}: (0, {}), {2}: (1, {}), {3}: (1, {}), {4}: (2, {})}, calls=%beside
  %d0 = bf16[4,256]{1,0} get-tuple-element(%both), index=1
  %d1 = bf16[16,256]{1,0} get-tuple-element(%both), index=3
  %d2 = u32[]{:S(2)} get-tuple-element(%both), index=4
  ROOT %async-collective-done = bf16[16,256]{1,0} fusion(%d0, %d1, %d2), kind=kCustom, \
output_to_operand_aliasing={{}: (1, {})}, calls=%end
}
"""


def test_a_collective_over_several_fusions():
    """The product beside it reads 8 x 256 and 256 x 32 and writes 8 x 32, two bytes each. What is
    handed on, and what is received, moves nothing."""
    assert moved(ASYNC, "async-collective-start") == moved(ASYNC, "async-collective-done") == 0
    product = 2 * (8 * 256 + 256 * 32 + 8 * 32)
    assert moved(ASYNC, "both") == product
    v5e = chips.CHIPS["v5e"]
    costs = predict.costs("HloModule m\n\n" + ASYNC, v5e, {"fsdp": 4})
    assert costs.flops == 2 * 8 * 256 * 32
    assert costs.seconds == product / (v5e.hbm * 1e9)
    # Three quarters of the result are sent, once, over two links.
    sent = 3 / 4 * 2 * 16 * 256
    assert costs.collectives == [
        predict.Collective("all-gather", "fsdp", sent, sent / (2 * v5e.link * 1e9))
    ]


SCATTER = """%all-reduce-scatter.1 (p: f32[8,256], q: bf16[8,256]) -> (f32[2,256], bf16[2,256]) {
  %p = f32[8,256]{1,0} parameter(0)
  %q = bf16[8,256]{1,0} parameter(1)
  %wide = f32[8,256]{1,0} convert(%q)
  %sum = (f32[8,256]{1,0}, f32[8,256]{1,0}) all-reduce(%p, %wide), channel_id=1, \
replica_groups={{0,1,2,3}}, to_apply=%add
  %id = u32[] partition-id()
  %two = u32[] constant(2)
  %at = u32[] multiply(%id, %two)
  %zero = u32[] constant(0)
  %sum0 = f32[8,256]{1,0} get-tuple-element(%sum), index=0
  %mine0 = f32[2,256]{1,0} dynamic-slice(%sum0, %at, %zero), dynamic_slice_sizes={2,256}
  %sum1 = f32[8,256]{1,0} get-tuple-element(%sum), index=1
  %mine1 = f32[2,256]{1,0} dynamic-slice(%sum1, %at, %zero), dynamic_slice_sizes={2,256}
  %narrow = bf16[2,256]{1,0} convert(%mine1)
  ROOT %t = (f32[2,256]{1,0}, bf16[2,256]{1,0}) tuple(%mine0, %narrow)
}

"""


def test_a_reduce_scatter_in_a_fusion():
    """Communication: three quarters of two arrays f32[8,256]. No memory traffic, even where the
    fusion converts what it sends and receives."""
    lines = (
        "%c = bf16[8,256]{1,0} convert(%b)",
        "%op = (f32[2,256]{1,0}, bf16[2,256]{1,0}) fusion(%a, %c), kind=kCustom, "
        "calls=%all-reduce-scatter.1",
    )
    text = SCATTER + entry(*lines)
    assert moved(text) == 0
    costs = predict.costs("HloModule m\n\n" + text, chips.CHIPS["v5e"], {"fsdp": 4})
    assert [(x.kind, x.bytes) for x in costs.collectives] == [
        ("reduce-scatter", 3 / 4 * 2 * 8 * ROW)
    ]
    # Only %c is memory traffic: f32 in, bf16 out.
    assert costs.seconds == (8 + 8 / 2) * ROW / (chips.CHIPS["v5e"].hbm * 1e9)


def test_a_reduce_scatter_of_one_array():
    text = """%all-reduce-scatter.2 (p: f32[8,256]) -> f32[2,256] {
  %p = f32[8,256]{1,0} parameter(0)
  %sum = f32[8,256]{1,0} all-reduce(%p), channel_id=1, replica_groups={{0,1,2,3}}, to_apply=%add
  %id = u32[] partition-id()
  %two = u32[] constant(2)
  %at = u32[] multiply(%id, %two)
  %zero = u32[] constant(0)
  ROOT %mine = f32[2,256]{1,0} dynamic-slice(%sum, %at, %zero), dynamic_slice_sizes={2,256}
}

"""
    line = "%op = f32[2,256]{1,0} fusion(%a), kind=kCustom, calls=%all-reduce-scatter.2"
    assert moved(text + entry(line)) == 0


def test_what_a_fusion_computes_from_a_collective_is_written():
    text = SCATTER.replace("convert(%mine1)", "negate(%mine1)")
    lines = (
        "%c = bf16[8,256]{1,0} convert(%b)",
        "%op = (f32[2,256]{1,0}, bf16[2,256]{1,0}) fusion(%a, %c), kind=kCustom, "
        "calls=%all-reduce-scatter.1",
    )
    assert moved(text + entry(*lines)) == 2 * ROW / 2


def test_what_was_received_may_be_named_and_updated():
    """In a nested fusion; only the update of one row is written, and read."""
    text = """%as_is (x: f32[8,256]) -> f32[8,256] {
  %x = f32[8,256]{1,0} parameter(0)
  ROOT %same = f32[8,256]{1,0} bitcast(%x)
}

%gathered (y: f32[4,256]) -> f32[8,256] {
  %y = f32[4,256]{1,0} parameter(0)
  ROOT %g = f32[8,256]{1,0} all-gather(%y), channel_id=1, replica_groups={{0,1}}, dimensions={0}
}

%fused (p: f32[4,256], q: f32[1,256], j: s32[]) -> f32[8,256] {
  %p = f32[4,256]{1,0} parameter(0)
  %q = f32[1,256]{1,0} parameter(1)
  %j = s32[] parameter(2)
  %zero = s32[] constant(0)
  %received = f32[8,256]{1,0} fusion(%p), kind=kLoop, calls=%gathered
  %named = f32[8,256]{1,0} fusion(%received), kind=kLoop, calls=%as_is
  ROOT %new = f32[8,256]{1,0} dynamic-update-slice(%named, %q, %j, %zero)
}

"""
    lines = (
        "%half = f32[4,256]{1,0} slice(%a), slice={[0:4], [0:256]}",
        "%row = f32[1,256]{1,0} slice(%a), slice={[0:1], [0:256]}",
        "%op = f32[8,256]{1,0} fusion(%half, %row, %i), kind=kCustom, calls=%fused",
    )
    assert moved(text + entry(*lines)) == (1 + 1) * ROW


def test_elements_that_a_fusion_hands_on():
    """Its new array is written, 8 rows, from 8 rows that are read; the rest keeps its place."""
    text = """%fused (p: f32[8,256], q: f32[8,256], r: f32[8,256]) -> (f32[8,256], f32[8,256], \
f32[256,8]) {
  %p = f32[8,256]{1,0} parameter(0)
  %q = f32[8,256]{1,0} parameter(1)
  %r = f32[8,256]{1,0} parameter(2)
  %turned = f32[256,8]{0,1} bitcast(%r)
  %negated = f32[8,256]{1,0} negate(%p)
  ROOT %t = (f32[8,256]{1,0}, f32[8,256]{1,0}, f32[256,8]{0,1}) tuple(%negated, %q, %turned)
}

"""
    lines = (
        "%c = f32[8,256]{1,0} copy(%a)",
        "%op = (f32[8,256]{1,0}, f32[8,256]{1,0}, f32[256,8]{0,1}) fusion(%a, %b, %c), kind=kLoop, "
        "output_to_operand_aliasing={{1}: (1, {}), {2}: (2, {})}, calls=%fused",
    )
    assert moved(text + entry(*lines)) == (8 + 8) * ROW
    unstated = [re.sub(r"output_to_operand_aliasing=\{.*?\}\)\}, ", "", line) for line in lines]
    assert unstated != [*lines] and moved(text + entry(*unstated)) == (8 + 8) * ROW


@pytest.mark.parametrize(
    "algorithm, links",
    [
        ('{"emitter":"1DAllGatherNonMajorDim"}', 2),
        ('{"emitter":"3DAllGatherOnMajorDim"}', 6),
        (r'{"strategy":"StrategyND","debug":"\nStrategyND{colors:2 phases:2 cores:{16 16}"}', 4),
        (r'{"strategy":"StrategyRing","debug":"\nStrategyRing{colors:1 phases:1 cores:{16}"}', 2),
        (r'{"debug":"\nUniDirectionNDRingStrategy{colors:6 phases:3 cores:{4 4 4}"}', 6),
        (r'{"debug":"\nUniDirection1DRingStrategy{colors:2 phases:1 cores:{4}"}', 2),
        ('{"emitter":"NetRouterEmitter"}', 2),
    ],
)
def test_a_collective_uses_the_links_of_its_algorithm(algorithm, links):
    """A sum of 8 rows over four devices sends 1.5 times its bytes, over this many links at once;
    within a fusion the algorithm stands beside the fusion."""
    chip = chips.CHIPS["v5p"]
    config = f', backend_config={{"collective_algorithm_config":{algorithm}}}'
    groups = "channel_id=1, replica_groups={{0,1,2,3}}, to_apply=%add"
    alone = entry(f"%op = f32[8,256]{{1,0}} all-reduce(%a), {groups}{config}")
    inside = f"""%sum (p: f32[8,256]) -> f32[8,256] {{
  %p = f32[8,256]{{1,0}} parameter(0)
  ROOT %s = f32[8,256]{{1,0}} all-reduce(%p), {groups}
}}

"""
    fused = inside + entry(f"%op = f32[8,256]{{1,0}} fusion(%a), kind=kCustom, calls=%sum{config}")
    for text in alone, fused:
        costs = predict.costs(text, chip, {"data": 4})
        assert costs.communication == pytest.approx(1.5 * 8 * ROW / (links * chip.link * 1e9))
        # A chip in the corner of a slice that is not closed has one link per dimension.
        costs = predict.costs(text, chip._replace(wraps=False), {"data": 4})
        assert costs.communication == pytest.approx(1.5 * 8 * ROW / (2 * chip.link * 1e9))


def test_slices_that_are_closed_to_rings():
    slices = ("v5e:16x16", "v5e:8x16", "v5e:4x4", "v5p:4x4x4", "v5p:2x4x4")
    assert [x for x in slices if chips.figures(x).wraps] == ["v5e:16x16", "v5p:4x4x4"]
