"""How often loops of a compiled program run, and what is kept of a program that was read."""

import gc
import weakref

import pytest

from bigjax.plan import chips, count, hlo, predict
from tests.unit.test_plan_traffic import ROW, UPDATE, entry

LOOP = """HloModule m

%body (p: (s32[], f32[8,8])) -> (s32[], f32[8,8]) {{
  %p = (s32[], f32[8,8]{{1,0}}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %x = f32[8,8]{{1,0}} get-tuple-element(%p), index=1
  %step = s32[] constant({step})
  %next = s32[] add(%i, %step)
  %y = f32[8,8]{{1,0}} dot(%x, %x), lhs_contracting_dims={{1}}, rhs_contracting_dims={{0}}
  ROOT %r = (s32[], f32[8,8]{{1,0}}) tuple(%next, %y)
}}

%condition (q: (s32[], f32[8,8])) -> pred[] {{
  %q = (s32[], f32[8,8]{{1,0}}) parameter(0)
  %j = s32[] get-tuple-element(%q), index=0
  %end = s32[] constant({end})
  ROOT %more = pred[] compare(%j, %end), direction={direction}
}}

ENTRY %main (a: f32[8,8]) -> f32[8,8] {{
  %a = f32[8,8]{{1,0}} parameter(0)
  %start = s32[] constant({start})
  %t = (s32[], f32[8,8]{{1,0}}) tuple(%start, %a)
  %loop = (s32[], f32[8,8]{{1,0}}) while(%t), condition=%condition, body=%body
  ROOT %b = f32[8,8]{{1,0}} get-tuple-element(%loop), index=1
}}
"""


@pytest.mark.parametrize(
    "start, step, direction, end, trips",
    [
        (0, 1, "LT", 10, 10),
        (0, 3, "LT", 10, 4),
        (1, 2, "LE", 9, 5),
        (0, 2, "NE", 8, 4),
        (10, -1, "GT", 0, 10),
        (10, -3, "GT", 0, 4),
        (9, -1, "GE", 0, 10),
    ],
)
def test_a_loop_that_counts_to_a_constant(start, step, direction, end, trips):
    text = LOOP.format(start=start, step=step, direction=direction, end=end)
    module = hlo.Module(text)
    assert count.Counter(module).trips(module.computations["main"].ops["loop"]) == trips
    costs = predict.costs(text, chips.CHIPS["v5e"], {"data": 1})
    assert costs.flops == trips * 2 * 8**3


def test_a_loop_starts_from_a_constant_that_is_copied():
    text = LOOP.format(start=4, step=1, direction="LT", end=10)
    copied = text.replace("tuple(%start,", "tuple(%first,").replace(
        "  %t = ", "  %first = s32[] copy(%start)\n  %t = "
    )
    assert copied != text
    for each in (text, copied):
        assert predict.costs(each, chips.CHIPS["v5e"], {"data": 1}).flops == 6 * 2 * 8**3


def test_a_loop_of_unknown_length_counts_once_and_is_reported():
    """It ends when the array says so: %end is not a constant."""
    text = LOOP.format(start=0, step=1, direction="LT", end=10)
    text = text.replace("%end = s32[] constant(10)", "%end = s32[] get-tuple-element(%q), index=0")
    module = hlo.Module(text)
    assert count.Counter(module).trips(module.computations["main"].ops["loop"]) is None
    costs = predict.costs(text, chips.CHIPS["v5e"], {"data": 1})
    assert costs.flops == 2 * 8**3 and costs.unknown_loops == 1
    known = LOOP.format(start=0, step=1, direction="LT", end=10)
    assert predict.costs(known, chips.CHIPS["v5e"], {"data": 1}).unknown_loops == 0


def test_a_program_that_was_read_is_forgotten(monkeypatch):
    """A search reads dozens, of some MB each."""
    modules = []
    make = hlo.Module
    monkeypatch.setattr(hlo, "Module", lambda text: modules.append(make(text)) or modules[-1])
    text = LOOP.format(start=0, step=1, direction="LT", end=10)
    predict.costs(text, chips.CHIPS["v5e"], {"data": 1})
    module = weakref.ref(modules.pop())
    gc.collect(1)  # the oldest objects are those of other tests
    assert module() is None


def test_loops_multiply_what_their_body_moves():
    """Six times an update of one row: 6 x (1 + 1) rows. The branch of a call counts once: 16."""
    text = (
        UPDATE.replace("f32[2,256]", "f32[1,256]")
        + """%body (s: (s32[], f32[8,256], f32[1,256])) -> (s32[], f32[8,256], f32[1,256]) {
  %s = (s32[], f32[8,256]{1,0}, f32[1,256]{1,0}) parameter(0)
  %n = s32[] get-tuple-element(%s), index=0
  %x = f32[8,256]{1,0} get-tuple-element(%s), index=1
  %y = f32[1,256]{1,0} get-tuple-element(%s), index=2
  %one = s32[] constant(1)
  %next = s32[]{:S(6)} add(%n, %one)
  %z = f32[8,256]{1,0} fusion(%x, %y, %next), kind=kLoop, calls=%fused
  ROOT %r = (s32[], f32[8,256]{1,0}, f32[1,256]{1,0}) tuple(%next, %z, %y)
}

%condition (t: (s32[], f32[8,256], f32[1,256])) -> pred[] {
  %t = (s32[], f32[8,256]{1,0}, f32[1,256]{1,0}) parameter(0)
  %m = s32[] get-tuple-element(%t), index=0
  %six = s32[] constant(6)
  ROOT %less = pred[] compare(%m, %six), direction=LT
}

%copied (k: f32[8,256]) -> f32[8,256] {
  %k = f32[8,256]{1,0} parameter(0)
  ROOT %l = f32[8,256]{0,1} copy(%k)
}

"""
    )
    lines = (
        "%zero = s32[] constant(0)",
        "%row = f32[1,256]{1,0} constant({...})",
        "%start = (s32[], f32[8,256]{1,0}, f32[1,256]{1,0}) tuple(%zero, %a, %row)",
        "%loop = (s32[], f32[8,256]{1,0}, f32[1,256]{1,0}) while(%start), condition=%condition, "
        "body=%body",
        "%called = f32[8,256]{0,1} call(%b), to_apply=%copied",
    )
    text = "HloModule m\n\n" + text + entry(*lines)
    v5e = chips.CHIPS["v5e"]
    costs = predict.costs(text, v5e, {"data": 1})
    # The sum %next reads two scalars: %n and %one, 4 bytes each.
    n_bytes = 6 * (2 * ROW + 4 + 4) + 16 * ROW
    assert costs.seconds == pytest.approx(n_bytes / (v5e.hbm * 1e9), rel=1e-12)
