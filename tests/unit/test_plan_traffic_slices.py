"""Slices that a fusion takes of what it makes of an operand, and branches of which one runs, in
programs small enough to count by hand."""

import pytest

from bigjax.plan import chips, predict
from tests.unit.test_plan_traffic import ROW, entry, moved


def fused(*lines: str, result: str = "f32[1,256]") -> str:
    """A fusion of %x, 8 rows of bfloat16 (4 of our rows in bytes), %y, 8 rows, and an index %j."""
    return "\n".join(
        [
            f"%fused (x: bf16[8,256], y: f32[8,256], j: s32[]) -> {result} {{",
            "  %x = bf16[8,256]{1,0} parameter(0)",
            "  %y = f32[8,256]{1,0} parameter(1)",
            "  %j = s32[] parameter(2)",
            "  %zero = s32[] constant(0)",
            "  %none = f32[] constant(0)",
            *("  " + line for line in lines),
            "}\n\n",
        ]
    )


WIDE = "%wide = f32[8,256]{1,0} convert(%x)"
ROW_OF = "f32[1,256]{1,0} dynamic-slice(%s, %%j, %%zero), dynamic_slice_sizes={1,256}"
SUM = "%sum = f32[256]{0} reduce(%wide, %none), dimensions={0}, to_apply=%add"


@pytest.mark.parametrize(
    "lines, rows",
    [
        # One row of eight, through a conversion, and through a sum of two operands.
        ((WIDE, "ROOT %r = " + ROW_OF % "%wide"), 1 / 2),
        (
            (WIDE, "%both = f32[8,256]{1,0} add(%wide, %y)", "ROOT %r = " + ROW_OF % "%both"),
            1 / 2 + 1,
        ),
        # Through a pad: at most as much as the slice.
        (
            (
                "%more = f32[12,256]{1,0} pad(%y, %none), padding=2_2x0_0",
                "ROOT %r = f32[1,256]{1,0} slice(%more), slice={[3:4], [0:256]}",
            ),
            1,
        ),
        # Through a slice of two rows, of which one is taken.
        (
            (
                "%two = f32[2,256]{1,0} slice(%y), slice={[2:4], [0:256]}",
                "ROOT %r = f32[1,256]{1,0} slice(%two), slice={[0:1], [0:256]}",
            ),
            1,
        ),
        # Two rows are taken of one conversion; all of it is summed.
        ((WIDE, "%s = " + ROW_OF % "%wide", "%t = f32[1,256]{1,0} slice(%wide), slice={[0:1], "
          "[0:256]}", "ROOT %r = f32[1,256]{1,0} add(%s, %t)"), 2 / 2),
        ((WIDE, SUM, "ROOT %r = f32[1,256]{1,0} bitcast(%sum)"), 8 / 2),
        # A row is taken of it, and all of it is summed.
        ((WIDE, SUM, "%w = f32[1,256]{1,0} bitcast(%sum)", "%s = " + ROW_OF % "%wide",
          "ROOT %r = f32[1,256]{1,0} add(%s, %w)"), 8 / 2),
    ],
)  # fmt: skip
def test_a_slice_of_what_a_fusion_makes_of_an_operand(lines, rows):
    """The result is on the chip, so only what is read counts."""
    program = fused(*lines) + entry(
        "%x = bf16[8,256]{1,0} constant({...})",
        "%op = f32[1,256]{1,0:S(1)} fusion(%x, %a, %i), kind=kLoop, calls=%fused",
    )
    assert moved(program) == rows * ROW


def test_a_slice_that_a_nested_fusion_takes():
    """Of a conversion in the outer fusion: one row of eight."""
    text = f"""%inner (q: f32[8,256], k: s32[]) -> f32[1,256] {{
  %q = f32[8,256]{{1,0}} parameter(0)
  %k = s32[] parameter(1)
  %nought = s32[] constant(0)
  ROOT %one = f32[1,256]{{1,0}} dynamic-slice(%q, %k, %nought), dynamic_slice_sizes={{1,256}}
}}

%same (q: f32[8,256]) -> f32[2048] {{
  %q = f32[8,256]{{1,0}} parameter(0)
  ROOT %flat = f32[2048]{{0}} bitcast(%q)
}}

{fused(WIDE, "ROOT %r = f32[1,256]{1,0} fusion(%wide, %j), kind=kLoop, calls=%inner")}"""
    lines = (
        "%x = bf16[8,256]{1,0} constant({...})",
        "%op = f32[1,256]{1,0:S(1)} fusion(%x, %a, %i), kind=kLoop, calls=%fused",
    )
    assert moved(text + entry(*lines)) == ROW / 2
    whole = text.replace("f32[1,256]{1,0} fusion(%wide, %j), kind=kLoop, calls=%inner", "f32[2048]"
                         "{0} fusion(%wide), kind=kLoop, calls=%same")  # fmt: skip
    assert moved(whole + entry(*lines).replace("f32[1,256]{1,0:S(1)}", "f32[2048]{0:S(1)}")) == (
        8 / 2 * ROW
    )


BRANCHES = """%small (k: f32[8,256]) -> f32[8,256] {
  %k = f32[8,256]{1,0} parameter(0)
  ROOT %l = f32[8,256]{0,1} copy(%k)
}

%large (m: f32[8,256]) -> f32[8,256] {
  %m = f32[8,256]{1,0} parameter(0)
  %n = f32[8,256]{0,1} copy(%m)
  %sum = f32[8,256]{0,1} all-reduce(%n), channel_id=7, replica_groups={{0,1}}, to_apply=%add
  %product = f32[8,8]{1,0} convolution(%sum, %m), dim_labels=bf_oi->bf
  ROOT %o = f32[8,256]{1,0} copy(%sum)
}

"""


@pytest.mark.parametrize("chip", ["v5e", "h100"])
@pytest.mark.parametrize(
    "branches",
    [
        "branch_computations={%small, %large}",
        "branch_computations={%large, %small}",
        "true_computation=%small, false_computation=%large",
        "true_computation=%large, false_computation=%small",
    ],
)
def test_of_a_conditional_the_largest_branch_counts(branches, chip):
    """Each of the two arms copies; the large one twice, with a product and a collective."""
    line = f"%op = f32[8,256]{{1,0}} conditional(%i, %a, %b), {branches}"
    mesh = {"data": 2}
    both = predict.costs("HloModule m\n\n" + BRANCHES + entry(line), chips.CHIPS[chip], mesh)
    call = "%op = f32[8,256]{1,0} call(%a), to_apply=%large"
    large = predict.costs("HloModule m\n\n" + BRANCHES + entry(call), chips.CHIPS[chip], mesh)
    assert both == large
    assert large.flops == 2 * 8 * 8 * 256 and len(large.collectives) == 1
    assert large.hbm_bytes == (16 + 16 + 16) * ROW + 4 * 8 * 8
