"""benchmarks/attention_blocks.py, on a schedule in the compiler's form; nothing is compiled."""

import importlib
import pathlib

import pytest

from bigjax.plan import chips

BENCHMARKS = pathlib.Path(__file__).parents[2] / "benchmarks"
# Two steps before the loop; nine per step, two of a row's start, five of a pair, three of its end.
SCHEDULE = """= control target key start
LB: loop body
     0   :  { %s1 = smov 0 }
   0x1   :  { %s2 = smov 0 } /* Start region 1 */
   0x2 LB: > { %s3 = sphi %s2, %s4 }
   0x3   : > { %10 = sbr.rel (%p1) target = $region9 }
   0x4   : > { %11 = sbr.rel (%p2) target = $region3  ;;  %s5 = smov 1 } /* Start region 2 */
   0x5   : > { %12 = vst [vmem:[#allocation2] sm:$0xff] %v1 }
   0x6   : > { %13 = vst [vmem:[#allocation3] sm:$0xff] %v1 } /* End region 2 */
   0x7 PF: > { %s6 = sld [smem:[#allocation4]] } /* Start/End empty region 3 :: Start region 4 */
   0x8   : > { %14 = sbr.rel (!%p3) target = $region6 }
   0x9   : > { %15 = vmatmul.bf16.gmra.mxu0 %v1 } /* a comment
over two lines */
   0xa   : > { %16 = vmatmul.bf16.gmra.mxu1 %v1 }
   0xb   : > { %v2 = vpop.f32.mrf.mxu0 }
   0xc   : > { %v3 = vpop.f32.mrf.mxu1 }
   0xd   : > { %17 = vst [vmem:[#allocation5] sm:$0xff] %v3 }
   0xe PF: > { %p4 = scmp.ne.s32 %s1, 3 } /* Start/End empty region 6 :: Start region 7 */
   0xf   : > { %18 = sbr.rel (%p4) target = $region8 }
  0x10   : > { %19 = vst [vmem:[#allocation6] sm:$0xff] %v3 }
  0x11   : > { %20 = vst [vmem:[#allocation7] sm:$0xff] %v3 }
  0x12   : > { %21 = vst [vmem:[#allocation8] sm:$0xff] %v3 }
  0x13 PF: > { %s7 = smov 3 } /* Start/End empty region 8 :: Start region 5 */
  0x14 PF: > { %22 = sbr.rel (!%p5) target = $region20 } /* Start/End empty region 9 */
  0x15   :  { %23 = sfence }
"""


@pytest.fixture
def script(monkeypatch):
    monkeypatch.setattr(chips, "before_jax", lambda: None)  # it sets variables of the process
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("attention_blocks")


def test_bundles_of_the_parts_of_a_kernel(script):
    assert script.read_bundles(SCHEDULE) == script.Bundles(pair=5, start=2, end=3, step=9)


def test_cycles_of_a_kernel(script):
    blocks = script.Blocks(512, 512, 512)
    bundles = script.Bundles(pair=2000, start=10, end=20, step=100)
    # 10 of 16 pairs of blocks are needed; a pair's products alone take 1022 cycles at the peak.
    assert script.cost("v5e", "fwd", 128, blocks, bundles, 2048).cycles == pytest.approx(
        10 * 2000 + 4 * 30 + 16 * 100
    )
    few = script.cost("v5e", "fwd", 128, blocks, bundles._replace(pair=1), 2048)
    assert few.cycles == pytest.approx(10 * 1022 + 4 * 30 + 16 * 100, rel=1e-3)
    assert few.seconds == few.hbm / 819e9  # longer than the cycles
    assert few.share == pytest.approx(10 * 1022 / (few.seconds * 1.5e9), rel=1e-3)


def test_the_fused_kernel_leaves_gradients_of_queries_to_sum(script):
    """One of each of four blocks of keys is read, and their sum is written; both cores of a v4
    have half of the bandwidth."""
    blocks, bundles = script.Blocks(512, 512, 512), script.Bundles(2000, 10, 20, 100)
    summed = (4 + 1) * 2 * 2048 * 128
    for chip, bandwidth in (("v5e", 819e9), ("v4", 1228e9 / 2)):
        cost = script.cost(chip, "fused", 128, blocks, bundles, 2048)
        kernel = script.hbm_bytes("fused", 2048, 128, blocks, 10)
        assert cost.hbm == kernel + summed
        seconds = max(cost.cycles / (chips.CHIPS[chip].clock * 1e9), kernel / bandwidth)
        assert cost.seconds == pytest.approx(seconds + summed / bandwidth)


def test_bundles_and_scores_of_short_rows(script):
    """Of the schedule above, all its bundles; 197 keys are padded to 256, queries to 200."""
    short_rows = importlib.import_module("short_rows")
    assert short_rows.count(SCHEDULE) == 22
    assert short_rows.padded(197) == 200 * 256 and short_rows.padded(257) == 264 * 384
