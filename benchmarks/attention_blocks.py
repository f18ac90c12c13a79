"""Blocks of splash attention for each chip, by the length of the schedule, without a TPU.

    pip install -e '.[plan]'
    python benchmarks/attention_blocks.py --chips=v5e --widths=128

Compiles one kernel at a time for causal attention with segments in bfloat16, and reads from the
compiler's dump how many bundles (cycles) run per pair of blocks, at the ends of a row of blocks
and per step of the grid. Blocks that the compiler refuses, for lack of memory on the chip, are left
out. What is read is kept in ~/.cache/bigjax/attention_blocks.
"""

import argparse
import atexit
import functools
import importlib.metadata
import json
import os
import pathlib
import re
import shutil
import tempfile
from typing import NamedTuple

from bigjax.plan import chips

chips.before_jax()

import jax  # noqa: E402
from jax.experimental.pallas.ops.tpu.splash_attention import (  # noqa: E402
    splash_attention_kernel as library,
)
from jax.experimental.pallas.ops.tpu.splash_attention import (  # noqa: E402
    splash_attention_mask as masks,
)
import jax.numpy as jnp  # noqa: E402
from jax.sharding import SingleDeviceSharding  # noqa: E402

from bigjax.data.files import LOCAL_CACHE, cache_folder, write_cached  # noqa: E402
from bigjax.layers import mask as mask_lib  # noqa: E402
from bigjax.layers.kernels import splash  # noqa: E402
from bigjax.layers.mask import Causal  # noqa: E402
from bigjax.train.program import OPTIONS  # noqa: E402

PRODUCTS = {"fwd": 2, "dq": 3, "dkv": 4, "fused": 5}  # of queries x keys
CORES = {"v4": 2, "v5p": 2}  # of a device: they share the rows of a kernel
# Gradients of queries, keys and values that a kernel computes.
WANTED = {"dq": slice(0, 1), "dkv": slice(1, 3), "fused": slice(0, 3)}
ROWS, HEADS, LENGTH = 2, 8, 8192  # of the compiled kernel: so large that its arrays are in HBM


class Blocks(NamedTuple):
    """Queries and keys of a block, and the keys that are processed at once."""

    q: int
    kv: int
    compute: int


class Bundles(NamedTuple):
    """Bundles of a kernel, one a cycle: per pair of blocks, at the start and at the end of a row of
    blocks, and per step of the grid, also of one that the mask skips."""

    pair: int
    start: int
    end: int
    step: int


@functools.cache
def dump_folder() -> pathlib.Path:
    """Where the compiler writes schedules. To be called before the compiler is loaded."""
    folder = tempfile.mkdtemp(prefix="attention_blocks")
    os.environ["LIBTPU_INIT_ARGS"] = (
        f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true"
        " --xla_jf_dump_llo_pass_label_regex=final_bundles"
    )
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return pathlib.Path(folder)


@functools.cache
def device(chip: str):
    flat = chips.CHIPS[chip].dims == 2
    return chips.devices(f"{chip}:{'1x1' if flat else '1x1x1'}")[0]


def compile_kernel(chip: str, kernel: str, D: int, blocks: Blocks) -> None:
    """Compiles one kernel as bigjax calls it, over rows with jax.vmap."""
    attend = library.make_splash_mha(
        masks.MultiHeadMask([masks.CausalMask((LENGTH, LENGTH))] * HEADS),
        block_sizes=splash.block_sizes(*blocks, kernel == "fused"),
        head_shards=1,
        q_seq_shards=1,
    )
    rows = jax.vmap(lambda q, k, v, ids: attend(q, k, v, library.SegmentIds(ids, ids)))
    forward = lambda q, k, v, ids: jax.vjp(lambda *qkv: rows(*qkv, ids), q, k, v)
    place = SingleDeviceSharding(device(chip))
    placed = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place)
    x = placed(jax.ShapeDtypeStruct((ROWS, HEADS, LENGTH, D), jnp.bfloat16))
    ids = placed(jax.ShapeDtypeStruct((ROWS, LENGTH), jnp.int32))
    with jax.set_mesh(jax.make_mesh((1,), ("x",), devices=[device(chip)])):
        if kernel == "fwd":
            lowered = jax.jit(forward).lower(x, x, x, ids)
        else:
            _, backward = jax.eval_shape(forward, x, x, x, ids)
            lowered = jax.jit(lambda backward, g: backward(g)[WANTED[kernel]]).lower(
                jax.tree.map(placed, backward), x
            )
        lowered.compile(compiler_options=OPTIONS.get(device(chip).device_kind))


def read_bundles(text: str) -> Bundles:
    """The bundles of a kernel from its dumped schedule.

    The loop over the grid has three branches that hold no other branch: for the first pair of a row
    of blocks, for a pair that the mask needs, which alone has products, and for the last.
    """
    address, begins, branches = 0, None, []
    products, ends = [], {}
    for line in text.splitlines():
        bundle = re.match(r" *(0x[0-9a-f]+|0) ([A-Z ]*):", line)
        if not bundle:
            continue
        address = int(bundle[1], 16)
        if "LB" in bundle[2]:
            begins = address  # of the innermost loop
        if "vmatmul" in line:
            products.append(address)
        for region in re.findall(r"Start(?:/End empty)? region (\d+)", line):
            ends[region] = address
        branch = re.search(r"sbr\.rel \(!?%\w+\) target = \$region(\d+)", line)
        if branch and begins is not None:
            branches.append((address, branch[1]))
    last = branches.pop()[0]  # back to the begin
    regions = [(at, ends[region]) for at, region in branches if ends.get(region, 0) > at]
    leaves = [(at, end) for at, end in regions if not any(at < other < end for other, _ in regions)]
    sizes = [end - at - 1 for at, end in leaves]
    (pair,) = [
        i for i, (at, end) in enumerate(leaves) if any(at < product < end for product in products)
    ]
    start, end = sum(sizes[:pair]), sum(sizes[pair + 1 :])
    return Bundles(sizes[pair], start, end, last - begins + 1 - sum(sizes))


def measure(chip: str, kernel: str, D: int, blocks: Blocks) -> Bundles | str:
    """Its bundles, or why the compiler refuses it. Kept on disk."""
    name = f"{chip}-{kernel}-{D}-{'-'.join(map(str, blocks))}.json"
    version = importlib.metadata.version("libtpu")
    kept = cache_folder(LOCAL_CACHE, "attention_blocks", version) / name
    if not kept.exists():
        folder = dump_folder()
        for old in folder.glob("*"):
            old.unlink()
        try:
            compile_kernel(chip, kernel, D, blocks)
            phase = "dkv" if kernel == "fused" else kernel
            (dump,) = folder.glob(f"*splash_mha_{phase}*-final_bundles.txt")
            result = read_bundles(dump.read_text())
        except jax.errors.JaxRuntimeError as e:
            result = str(e).splitlines()[0]
        write_cached(kept, json.dumps(result).encode())
    result = json.loads(kept.read_text())
    return result if isinstance(result, str) else Bundles(*result)


def hbm_bytes(kernel: str, T: int, D: int, blocks: Blocks, pairs: int) -> int:
    """Bytes that a kernel moves per head, as its blocks are loaded and stored. bfloat16; segments,
    positions and sums of exponentials have 4 bytes, in 128 columns where they belong to rows."""
    array, column, keys = 2 * T * D, 4 * 128 * T, 2 * blocks.kv * D
    if kernel == "fwd":  # queries, result; segments, positions, sums; keys, values, segments
        return 2 * array + 3 * column + pairs * (2 * keys + 32 * blocks.kv)
    if kernel == "dq":
        return 3 * array + 2 * column + pairs * (2 * keys + 32 * blocks.kv)
    # Keys, values and their gradients; queries, gradients of the result, four rows of numbers.
    loaded = 4 * array + pairs * (4 * blocks.q * D + 4 * 32 * blocks.q)
    if kernel == "dkv":
        return loaded
    # The gradients of queries: one for each block of keys, also of those that the mask skips.
    return loaded + T // blocks.kv * array


@functools.cache
def computed_scores(T: int, q: int, kv: int) -> int:
    return mask_lib.pairs(Causal(), T, range(T), (q, kv))


class Cost(NamedTuple):
    """Per head and row of tokens, on one core: cycles, bytes of HBM, seconds; and the share of the
    peak that the products reach, those of all scores in the pairs of blocks that are computed."""

    cycles: float
    hbm: float
    seconds: float
    share: float


def cost(chip: str, kernel: str, D: int, blocks: Blocks, bundles: Bundles, T: int) -> Cost:
    """A pair takes its bundles, or the cycles of its products at the peak if these are more: the
    matrix units queue them, and a head of 64 takes as long as one of 128. Loads and stores overlap
    with it, except the sum over the gradients of queries after the fused kernel, which XLA
    computes."""
    figures = chips.CHIPS[chip]
    scores = computed_scores(T, blocks.q, blocks.kv)
    pairs = scores // (blocks.q * blocks.kv)
    per_cycle = figures.peak * 1e3 / figures.clock / CORES.get(chip, 1)  # FLOPs of a core
    flops = 2 * PRODUCTS[kernel] * D * scores
    along_rows = T // (blocks.kv if kernel in ("dkv", "fused") else blocks.q)
    cycles = (
        max(pairs * bundles.pair, flops * max(D, 128) / D / per_cycle)
        + along_rows * (bundles.start + bundles.end)
        + T // blocks.q * (T // blocks.kv) * bundles.step
    )
    moved = hbm_bytes(kernel, T, D, blocks, pairs)
    bandwidth = figures.hbm * 1e9 / CORES.get(chip, 1)
    seconds = max(cycles / (figures.clock * 1e9), moved / bandwidth)
    if kernel == "fused" and T > blocks.kv:
        summed = (T // blocks.kv + 1) * 2 * T * D
        moved, seconds = moved + summed, seconds + summed / bandwidth
    return Cost(cycles, moved, seconds, flops / (seconds * per_cycle * figures.clock * 1e9))


def costs(chip: str, kernel: str, D: int, T: int, candidates: list[Blocks]) -> dict:
    """The Cost of each of the blocks that fit T tokens and the memory on the chip."""
    by_blocks = {}
    for blocks in candidates:
        if T % blocks.q or T % blocks.kv:
            continue
        bundles = measure(chip, kernel, D, blocks)
        if isinstance(bundles, str):
            print(f"  {kernel} {named(blocks)}: the compiler refuses it: {bundles}")
        else:
            by_blocks[blocks] = cost(chip, kernel, D, blocks, bundles, T)
    return by_blocks


def named(blocks: Blocks) -> str:
    return "x".join(map(str, blocks))


def chosen(chip: str, D: int, T: int) -> dict[str, Blocks]:
    """The kernels and blocks that layers/kernels/splash.py chooses."""
    limit = splash.largest(D, jnp.bfloat16, device(chip).device_kind)
    q, kv = splash.blocks(Causal(), T, T, 1, limit)
    kernels = ("fwd", "fused") if splash.is_fused(T, kv) else ("fwd", "dq", "dkv")
    return dict.fromkeys(kernels, Blocks(q, kv, splash.at_once(kv)))


def compare(chip: str, D: int, T: int, candidates: list[Blocks]) -> tuple[float, float] | None:
    """Prints the kernels with all blocks; two backward kernels only with the first blocks. Returns
    the microseconds of bigjax's choice and of the first blocks with two backward kernels."""
    first = candidates[0]
    table = {
        kernel: costs(chip, kernel, D, T, [first] if kernel in ("dq", "dkv") else candidates)
        for kernel in PRODUCTS
    }
    print(f"{chip}, heads of {D}, {T} tokens: us per head and row, share of the peak, MB of HBM")
    for kernel, by_blocks in table.items():
        for blocks, x in by_blocks.items():
            print(
                f"  {kernel:6}{named(blocks):16}{x.seconds * 1e6:9.2f}"
                f"{x.share:8.1%}{x.hbm / 1e6:9.2f}"
            )
    choices = {
        f"two backward kernels, {named(first)}": dict.fromkeys(("fwd", "dq", "dkv"), first),
        "bigjax": chosen(chip, D, T),
        "best": {
            kernel: min(table[kernel], key=lambda blocks: table[kernel][blocks].seconds)
            for kernel in ("fwd", "fused")
            if table[kernel]
        },
    }
    us = {}
    for name, choice in choices.items():
        parts = [table[kernel].get(blocks) for kernel, blocks in choice.items()]
        if None in parts or not parts:
            print(f"  {name}: not among the blocks that were compiled")
            continue
        us[name] = sum(x.seconds for x in parts) * 1e6
        share = sum(x.share * x.seconds for x in parts) / sum(x.seconds for x in parts)
        print(f"  {name:40}{us[name]:9.2f}{share:8.1%}")
    theirs, ours = (us.get(name) for name in [*choices][:2])
    return (ours, theirs) if ours and theirs else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--chips", default="v4,v5e,v5p,v6e,tpu7x")
    parser.add_argument("--widths", default="64,128,256", help="of a head")
    parser.add_argument("--lengths", default="1024,2048,4096,8192", help="tokens in a row")
    parser.add_argument(
        "--blocks",
        default="512x512x512,1024x1024x512",
        help="queries x keys x keys at once, separated by commas",
    )
    parser.add_argument("--json", action="store_true", help="end with one line for machines")
    args = parser.parse_args()
    numbers = lambda text: [int(n) for n in text.split(",")]
    candidates = [Blocks(*map(int, x.split("x"))) for x in args.blocks.split(",")]
    pairs = [
        compare(chip, D, T, candidates)
        for chip in args.chips.split(",")
        for D in numbers(args.widths)
        for T in numbers(args.lengths)
    ]
    if args.json and all(pairs):
        ours, theirs = (len(pairs) * 1e6 / sum(us) for us in zip(*pairs))
        report = {
            "name": "attention_blocks",
            "ours": ours,
            "theirs": theirs,
            "ratio": ours / theirs,
            "unit": "rows/s of a head, by schedule: bigjax's blocks, the first with two kernels",
        }
        print(json.dumps(report))


if __name__ == "__main__":
    main()
