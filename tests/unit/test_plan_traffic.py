"""Bytes of HBM that operations move, in programs small enough to count by hand.

Arrays in S(1), S(2) and S(6) are on the chip, the others in HBM. A row, f32[256], has 1,024 bytes.
"""

import pytest

from bigjax.plan import hlo, traffic

ROW = 4 * 256


def moved(text: str, name: str = "op") -> float:
    """Bytes that the operation of this name moves."""
    module = hlo.Module("HloModule m\n\n" + text)
    (c,) = (c for c in module.computations.values() if name in c.ops)
    return traffic.Traffic(module).bytes(c, c.ops[name])


def entry(*lines: str) -> str:
    """A program of these lines; %a and %b are 8 rows in HBM, %v is 8 rows on the chip."""
    return "\n".join(
        [
            "ENTRY %main (a: f32[8,256], b: f32[8,256], v: f32[8,256], i: s32[]) -> f32[8,256] {",
            "  %a = f32[8,256]{1,0:T(8,128)} parameter(0)",
            "  %b = f32[8,256]{1,0:T(8,128)} parameter(1)",
            "  %v = f32[8,256]{1,0:T(8,128)S(1)} parameter(2)",
            "  %i = s32[]{:T(128)S(6)} parameter(3)",
            *("  " + line for line in lines),
            "}",
        ]
    )


@pytest.mark.parametrize(
    "line, rows",
    [
        # Reads two arrays and writes one, unless they are on the chip.
        ("%op = f32[8,256]{1,0:T(8,128)} add(%a, %b)", 8 + 8 + 8),
        ("%op = f32[8,256]{1,0:T(8,128)S(1)} add(%a, %v)", 8),
        ("%op = f32[8,256]{0,1:T(8,128)} copy(%v)", 8),
        ("%op = f32[8,256]{1,0:T(8,128)} iota(), iota_dimension=0", 8),
        # A slice reads as much as it writes.
        ("%op = f32[2,256]{1,0:T(8,128)} slice(%a), slice={[0:2], [0:256]}", 2 + 2),
        ("%op = f32[2,256]{1,0:T(8,128)S(1)} dynamic-slice(%a, %i, %i)", 2),
        ("%op = f32[2,256]{1,0:T(8,128)} dynamic-slice(%v, %i, %i)", 2),
        # The compiler may convert a slice on the way: f32 is read, bf16 written.
        ("%op = bf16[2,256]{1,0:T(8,128)} dynamic-slice(%a, %i, %i)", 2 + 2 / 2),
        # What gives data another name moves nothing.
        ("%op = f32[256,8]{0,1:T(8,128)} bitcast(%a)", 0),
        ("%op = (f32[8,256]{1,0}, f32[8,256]{1,0}) tuple(%a, %b)", 0),
        ("%op = f32[8,256]{1,0:T(8,128)} opt-barrier(%a)", 0),
        ('%op = f32[8,256]{1,0} custom-call(), custom_call_target="AllocateBuffer"', 0),
        ('%op = f32[16,256]{1,0} custom-call(%a, %b), custom_call_target="ConcatBitcast"', 0),
        ("%op = u32[] partition-id()", 0),
        # What is called moves something, not the call.
        ("%op = f32[8,256]{1,0} call(%a), to_apply=%x", 0),
        ("%op = f32[8,256]{1,0} while(%a), condition=%x, body=%y", 0),
        ("%op = f32[8,256]{1,0} conditional(%i, %a, %b), branch_computations={%x, %y}", 0),
        # Any other custom call reads and writes.
        ('%op = f32[8,256]{1,0} custom-call(%a), custom_call_target="ConcatBitcastOther"', 8 + 8),
        # Collectives are communication.
        ("%op = f32[32,256]{1,0} all-gather(%a), dimensions={0}, replica_groups={{0,1,2,3}}", 0),
        ("%op = f32[8,256]{1,0} ragged-all-to-all(%a, %b), replica_groups={{0,1,2,3}}", 0),
    ],
)
def test_one_operation(line, rows):
    assert moved(entry(line)) == rows * ROW


@pytest.mark.parametrize(
    "lines, rows",
    [
        # A prefetch of a copy or slice reads HBM, the opposite writes it; once, at the start.
        (
            (
                "%op = (f32[8,256]{1,0:T(8,128)S(1)}, f32[8,256]{1,0:T(8,128)}, u32[]{:S(2)}) "
                "copy-start(%a)",
                "%done = f32[8,256]{1,0:T(8,128)S(1)} copy-done(%op)",
            ),
            8,
        ),
        (
            (
                "%op = (f32[8,256]{1,0:T(8,128)}, f32[8,256]{1,0:T(8,128)S(1)}, u32[]{:S(2)}) "
                "copy-start(%v)",
                "%done = f32[8,256]{1,0:T(8,128)} copy-done(%op)",
            ),
            8,
        ),
        (
            (
                "%op = (f32[8,256]{0,1:T(8,128)}, f32[8,256]{1,0:T(8,128)}, u32[]{:S(2)}) "
                "copy-start(%a)",
                "%done = f32[8,256]{0,1:T(8,128)} copy-done(%op)",
            ),
            8 + 8,
        ),
        (
            (
                "%op = ((f32[8,256]{1,0:T(8,128)}), f32[2,256]{1,0:T(8,128)S(1)}, s32[]{:S(2)}) "
                "slice-start(%a), slice={[2:4], [0:256]}",
                "%done = f32[2,256]{1,0:T(8,128)S(1)} slice-done(%op)",
            ),
            2,
        ),
        (
            (
                "%op = ((f32[8,256]{1,0}, s32[]{:S(6)}, s32[]{:S(6)}), f32[2,256]{1,0}, "
                "u32[]{:S(2)}) dynamic-slice-start(%a, %i, %i)",
                "%done = f32[2,256]{1,0} dynamic-slice-done(%op)",
            ),
            2 + 2,
        ),
        # Collectives are communication, also in parts.
        (
            (
                "%op = (f32[8,256]{1,0}, f32[32,256]{1,0}) all-gather-start(%a), dimensions={0}",
                "%done = f32[32,256]{1,0} all-gather-done(%op)",
            ),
            0,
        ),
        (
            (
                "%op = (f32[8,256]{1,0}, f32[8,256]{1,0}, u32[]{:S(2)}, u32[]{:S(2)}) "
                "collective-permute-start(%a), source_target_pairs={{0,1},{1,0}}",
                "%done = f32[8,256]{1,0} collective-permute-done(%op)",
            ),
            0,
        ),
    ],
)
def test_the_start_and_the_end_of_an_operation(lines, rows):
    assert moved(entry(*lines)) == rows * ROW and moved(entry(*lines), "done") == 0


NESTED_SLICE = """%inner (q: f32[8,256], j: s32[]) -> f32[1,256] {
  %q = f32[8,256]{1,0:T(8,128)} parameter(0)
  %j = s32[] parameter(1)
  %zero = s32[] constant(0)
  %same = f32[8,256]{1,0:T(8,128)} bitcast(%q)
  ROOT %row = f32[1,256]{1,0:T(8,128)} dynamic-slice(%same, %j, %zero), dynamic_slice_sizes={1,256}
}

%fused (p: f32[8,256], k: s32[]) -> f32[1,256] {
  %p = f32[8,256]{1,0:T(8,128)} parameter(0)
  %k = s32[] parameter(1)
  %sliced = f32[1,256]{1,0:T(8,128)} fusion(%p, %k), kind=kLoop, calls=%inner
  ROOT %twice = f32[1,256]{1,0:T(8,128)} add(%sliced, %sliced)
}

"""


@pytest.mark.parametrize(
    "results, root, rows",
    [
        # It reads and writes the slice; and, in the second case, reads and writes all 8 rows too.
        ("f32[2,256]{1,0}", "ROOT %s = f32[2,256]{1,0} dynamic-slice(%p, %q, %q)", 2 + 2),
        (
            "(f32[2,256]{1,0}, f32[8,256]{1,0})",
            "%s = f32[2,256]{1,0} dynamic-slice(%p, %q, %q)\n"
            "  %n = f32[8,256]{1,0} negate(%p)\n"
            "  ROOT %t = (f32[2,256]{1,0}, f32[8,256]{1,0}) tuple(%s, %n)",
            8 + 2 + 8,
        ),
    ],
)
def test_a_fusion_that_runs_beside_others(results, root, rows):
    """As in programs for GPUs: its -start has its operands and a context in its result."""
    program = "\n".join(
        [
            "%fused (p: f32[8,256], q: s32[]) -> f32[2,256] {",
            "  %p = f32[8,256]{1,0} parameter(0)",
            "  %q = s32[] parameter(1)",
            f"  {root}",
            "}",
            "",
            entry(
                f"%op = ((f32[8,256]{{1,0}}, s32[]), {results}, u32[]) fusion-start(%a, %i), "
                "kind=kLoop, calls=%fused",
                f"%done = {results} fusion-done(%op)",
            ),
        ]
    )
    assert moved(program) == rows * ROW and moved(program, "done") == 0


def test_a_slice_in_a_nested_fusion():
    """One row of eight is read, one is written."""
    line = "%op = f32[1,256]{1,0:T(8,128)} fusion(%a, %i), kind=kLoop, calls=%fused"
    assert moved(NESTED_SLICE + entry(line)) == (1 + 1) * ROW
    # The index may be in HBM: it is no slice of a row.
    lines = "%n = s32[] add(%i, %i)", line.replace("%i", "%n")
    assert moved(NESTED_SLICE + entry(*lines)) == (1 + 1) * ROW


def test_the_operands_of_a_product_are_read_through_a_bitcast():
    """As the compiler writes them, each in its own fusion: 8 x 256 and 256 x 4 in, 8 x 4 out."""
    text = """%as_is (x: f32[8,256]) -> f32[8,256] {
  %x = f32[8,256]{1,0} parameter(0)
  ROOT %same = f32[8,256]{1,0} bitcast(%x)
}

%fused (p: f32[8,256], q: f32[256,4]) -> f32[8,4] {
  %p = f32[8,256]{1,0} parameter(0)
  %left = f32[8,256]{1,0} fusion(%p), kind=kLoop, calls=%as_is
  %q = f32[256,4]{1,0} parameter(1)
  ROOT %product = f32[8,4]{1,0} convolution(%left, %q), dim_labels=bf_io->bf
}

"""
    lines = (
        "%w = f32[256,4]{1,0} constant({...})",
        "%op = f32[8,4]{1,0} fusion(%a, %w), kind=kOutput, calls=%fused",
    )
    assert moved(text + entry(*lines)) == 4 * (8 * 256 + 256 * 4 + 8 * 4)


def test_a_fusion_that_only_bitcasts_is_a_copy_unless_it_is_in_place():
    text = """%fused (p: f32[8,256]) -> f32[256,8] {
  %p = f32[8,256]{1,0} parameter(0)
  ROOT %turned = f32[256,8]{0,1} bitcast(%p)
}

"""
    line = "%op = f32[256,8]{0,1} fusion(%a), kind=kLoop, calls=%fused"
    assert moved(text + entry(line)) == (8 + 8) * ROW
    assert moved(text + entry(line + ", output_to_operand_aliasing={{}: (0, {})}")) == 0
    assert moved(text + entry(line.replace("%a", "%v"))) == 8 * ROW  # from the chip to HBM
    assert moved(text + entry(line.replace("0,1}", "0,1:S(1)}"))) == 8 * ROW  # to the chip


UPDATE = """%fused (buffer: f32[8,256], update: f32[2,256], j: s32[]) -> f32[8,256] {
  %buffer = f32[8,256]{1,0:T(8,128)} parameter(0)
  %update = f32[2,256]{1,0:T(8,128)} parameter(1)
  %j = s32[]{:T(128)} parameter(2)
  %zero = s32[]{:T(128)} constant(0)
  %twice = f32[2,256]{1,0:T(8,128)} add(%update, %update)
  ROOT %new = f32[8,256]{1,0:T(8,128)} dynamic-update-slice(%buffer, %twice, %j, %zero)
}

"""


@pytest.mark.parametrize(
    "update, result, rows",
    [
        ("f32[2,256]{1,0:T(8,128)}", "%a, %u", 2 + 2),  # the update is read, and written once
        ("f32[2,256]{1,0:T(8,128)S(1)}", "%a, %u", 2),  # it is on the chip: only written
        ("f32[2,256]{1,0:T(8,128)}", "%v, %u", 2),  # it is written on the chip: only read
        ("f32[2,256]{1,0:T(8,128)S(1)}", "%v, %u", 0),
    ],
)
def test_an_update_in_place(update, result, rows):
    """Alone, and at the end of a fusion."""
    space = "S(1)" if "%v" in result else ""
    fill = f"%u = {update} broadcast(%i), dimensions={{}}"
    out = f"%op = f32[8,256]{{1,0:T(8,128){space}}}"
    alone = f"{out} dynamic-update-slice({result}, %i, %i)"
    fused = f"{out} fusion({result}, %i), kind=kLoop, calls=%fused"
    assert moved(entry(fill, alone)) == rows * ROW
    assert moved(UPDATE + entry(fill, fused)) == rows * ROW


def test_what_is_not_in_place():
    """A new array, and one that goes from the chip to HBM, are written completely."""
    new = UPDATE.replace("-slice(%buffer, ", "-slice(%zeros, ").replace(
        "  %twice", "  %zeros = f32[8,256]{1,0:T(8,128)} broadcast(%zero), dimensions={}\n  %twice"
    )
    fill = "%u = f32[2,256]{1,0:T(8,128)S(1)} broadcast(%i), dimensions={}"
    line = "%op = f32[8,256]{1,0:T(8,128)} fusion(%a, %u, %i), kind=kLoop, calls=%fused"
    assert moved(new + entry(fill, line)) == 8 * ROW
    assert moved(UPDATE + entry(fill, line.replace("%a", "%v"))) == 8 * ROW


def test_an_update_of_what_the_fusion_also_reads():
    """A row of the buffer is read, doubled and written back. If all of it is summed, it is read."""
    text = """%fused (buffer: f32[8,256], j: s32[]) -> f32[8,256] {
  %buffer = f32[8,256]{1,0} parameter(0)
  %j = s32[] parameter(1)
  %zero = s32[] constant(0)
  %row = f32[1,256]{1,0} dynamic-slice(%buffer, %j, %zero), dynamic_slice_sizes={1,256}
  %twice = f32[1,256]{1,0} add(%row, %row)
  ROOT %new = f32[8,256]{1,0} dynamic-update-slice(%buffer, %twice, %j, %zero)
}

"""
    line = "%op = f32[8,256]{1,0} fusion(%a, %i), kind=kLoop, calls=%fused"
    assert moved(text + entry(line)) == (1 + 1) * ROW
    summed = text.replace(
        "  %twice",
        "  %sum = f32[256]{0} reduce(%buffer, %zero), dimensions={0}, to_apply=%add\n"
        "  %wide = f32[1,256]{1,0} bitcast(%sum)\n  %twice",
    ).replace("add(%row, %row)", "add(%row, %wide)")
    assert moved(summed + entry(line)) == (8 + 1) * ROW


THREE = """%inner (q: f32[8,256], x: f32[4,256], j: s32[]) -> f32[8,256] {
  %q = f32[8,256]{1,0} parameter(0)
  %x = f32[4,256]{1,0} parameter(1)
  %j = s32[] parameter(2)
  %nil = s32[] constant(0)
  ROOT %deep = f32[8,256]{1,0} dynamic-update-slice(%q, %x, %j, %nil)
}

%fused (p0: f32[8,256], p1: f32[8,256], p2: f32[8,256], u1: f32[1,256], u2: f32[2,256], \
u4: f32[4,256], k: s32[]) -> (f32[8,256], f32[8,256], f32[8,256], f32[8,256]) {
  %p0 = f32[8,256]{1,0} parameter(0)
  %p1 = f32[8,256]{1,0} parameter(1)
  %p2 = f32[8,256]{1,0} parameter(2)
  %u1 = f32[1,256]{1,0} parameter(3)
  %u2 = f32[2,256]{1,0} parameter(4)
  %u4 = f32[4,256]{1,0} parameter(5)
  %k = s32[] parameter(6)
  %zero = s32[] constant(0)
  %n0 = f32[8,256]{1,0} dynamic-update-slice(%p0, %u1, %k, %zero)
  %n1 = f32[8,256]{1,0} dynamic-update-slice(%p1, %u2, %k, %zero)
  %again = f32[8,256]{1,0} dynamic-update-slice(%n1, %u1, %k, %zero)
  %n2 = f32[8,256]{1,0} fusion(%p2, %u4, %k), kind=kLoop, calls=%inner
  %new = f32[8,256]{1,0} broadcast(%u1), dimensions={0,1}
  ROOT %all = (f32[8,256]{1,0}, f32[8,256]{1,0}, f32[8,256]{1,0}, f32[8,256]{1,0}) tuple(%n2, \
%new, %again, %n0)
}

"""


@pytest.mark.parametrize("space, rows", [("", (1 + 2 + 4) + (4 + 8 + 3 + 1)), ("S(1)", 16)])
def test_several_updates_of_arrays_of_one_size(space, rows):
    """They read updates of 1, 2 and 4 rows, unless these are on the chip. They write, in the order
    of the results: 4 rows, a new array of 8, 2 + 1 rows, 1 row."""
    lines = [
        f"%u{n} = f32[{n},256]{{1,0:{space}}} broadcast(%i), dimensions={{}}" for n in (1, 2, 4)
    ]
    lines.append("%c = f32[8,256]{1,0} copy(%b)")
    results = ", ".join(["f32[8,256]{1,0}"] * 4)
    lines.append(
        f"%op = ({results}) fusion(%a, %b, %c, %u1, %u2, %u4, %i), kind=kLoop, calls=%fused"
    )
    assert moved(THREE + entry(*lines)) == rows * ROW


def test_a_gather_reads_the_rows_that_it_takes():
    """3 of 8 rows, and 3 indices of 4 bytes; alone and in a fusion. It writes on the chip."""
    gather = (
        "f32[3,256]{1,0:S(1)} gather(%a, %rows), offset_dims={1}, collapsed_slice_dims={0}, "
        "start_index_map={0}, index_vector_dim=1, slice_sizes={1,256}"
    )
    rows = "%rows = s32[3,1]{1,0} constant({...})"
    assert moved(entry(rows, f"%op = {gather}")) == 3 * ROW + 3 * 4
    text = f"""%fused (a: f32[8,256], rows: s32[3,1]) -> f32[3,256] {{
  %a = f32[8,256]{{1,0}} parameter(0)
  %rows = s32[3,1]{{1,0}} parameter(1)
  %taken = {gather}
  ROOT %negated = f32[3,256]{{1,0}} negate(%taken)
}}

"""
    line = "%op = f32[3,256]{1,0:S(1)} fusion(%a, %rows), kind=kCustom, calls=%fused"
    assert moved(text + entry(rows, line)) == 3 * ROW + 3 * 4


COMBINE = """%combine (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %z = f32[] add(%x, %y)
}

"""


def test_a_scatter_in_place():
    """It reads 3 rows of updates and the 3 rows that they are added to, and writes 3."""
    lines = (
        "%rows = s32[3,1]{1,0:S(1)} constant({...})",
        "%u = f32[3,256]{1,0} broadcast(%i), dimensions={}",
        "%op = f32[8,256]{1,0} scatter(%a, %rows, %u), update_window_dims={1}, "
        "inserted_window_dims={0}, scatter_dims_to_operand_dims={0}, index_vector_dim=1, "
        "to_apply=%combine",
    )
    assert moved(COMBINE + entry(*lines)) == (3 + 3 + 3) * ROW
    # Into two arrays at once: these, the indices, and the updates of each.
    two = lines[2].replace("f32[8,256]{1,0} scatter", "(f32[8,256]{1,0}, f32[8,256]{1,0}) scatter")
    two = two.replace("(%a, %rows, %u)", "(%a, %b, %rows, %u, %u)")
    assert moved(COMBINE + entry(*lines[:2], two)) == 2 * (3 + 3 + 3) * ROW
    replaced = COMBINE.replace("\n  ROOT %z = f32[] add(%x, %y)", "").replace("%y =", "ROOT %y =")
    assert moved(replaced + entry(*lines)) == (3 + 3) * ROW
