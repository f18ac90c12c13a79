"""The attention kernel for short rows on each chip, by the length of its schedule, without a TPU.

    pip install -e '.[plan]'
    python benchmarks/short_rows.py --chips=v5e

Compiles both passes of bigjax/layers/kernels/whole.py in bfloat16 for the rows of a few models, and
counts the bundles (cycles) of the compiler's schedule for a row. Per thousand scores, padded as
registers hold them, they are `scores` of a chip in bigjax/plan/chips.py, which holds for ViT-B.
"""

import argparse
import re

import attention_blocks as blocks
import jax
import jax.numpy as jnp
from jax.sharding import SingleDeviceSharding

from bigjax.layers.kernels import whole
from bigjax.plan import chips
from bigjax.train.program import OPTIONS

# name: tokens, heads, width of a head
ROWS = {
    "ViT-B/32": (50, 12, 64),
    "ViT-B/16": (197, 12, 64),
    "ViT-L/14": (257, 16, 64),
    "ViT-H/14": (257, 16, 80),
    "ViT-g/14": (257, 16, 88),
}
BATCH = 64  # rows of the compiled kernel


def count(text: str) -> int:
    """The bundles of a schedule."""
    return len(re.findall(r"^ *(?:0x[0-9a-f]+|0) [A-Z ]*:", text, re.M))


def padded(T: int) -> int:
    """Scores of a head, as registers hold them."""
    return -(-T // 8) * 8 * -(-T // 128) * 128


def measure(chip: str, T: int, H: int, D: int) -> tuple[int, int]:
    """Bundles for a row, of the forward and the backward pass."""
    device, folder = blocks.device(chip), blocks.dump_folder()
    place = SingleDeviceSharding(device)
    x = jax.ShapeDtypeStruct((BATCH, T, H * D), jnp.bfloat16, sharding=place)
    options = whole.Options(D, H, D**-0.5, False, False)
    passes = (
        lambda q, k, v, g: whole._attention(options, q, k, v),
        lambda q, k, v, g: whole._attention_backward(options, (q, k, v, None, None), g),
    )
    bundles = []
    with jax.set_mesh(jax.make_mesh((1,), ("x",), devices=[device])):
        for one_pass, name in zip(passes, whole.PRODUCTS):
            for old in folder.glob("*"):
                old.unlink()
            lowered = jax.jit(one_pass, keep_unused=True).lower(x, x, x, x)
            lowered.compile(compiler_options=OPTIONS.get(device.device_kind))
            (dump,) = folder.glob(f"*{name}*-final_bundles.txt")
            bundles.append(count(dump.read_text()))
    return bundles[0], bundles[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--chips", default="v4,v5e,v5p,v6e,tpu7x")
    args = parser.parse_args()
    blocks.dump_folder()  # before the compiler is loaded
    print(f"{'':<8}{'':<10}{'cycles a row':>15}{'per 1,000 scores':>20}")
    for chip in args.chips.split(","):
        cores = blocks.CORES.get(chip, 1)
        for name, (T, H, D) in ROWS.items():
            cycles = [n / cores for n in measure(chip, T, H, D)]
            each = [n / (H * padded(T) / 1000) for n in cycles]
            print(
                f"{chip:<8}{name:<10}{cycles[0]:>8,.0f}{cycles[1]:>7,.0f}"
                f"{each[0]:>12.1f}{each[1]:>8.1f}",
                flush=True,
            )
        print(f"{'':<8}bigjax/plan/chips.py has {chips.CHIPS[chip].scores}")


if __name__ == "__main__":
    main()
