"""The smallest v5p slice that fits each size of GPT-3 with its published batch, without a TPU.

    pip install -e '.[plan]'
    python benchmarks/gpt3_slices.py

It also plans BERT-large with LAMB at a batch of 32,768, and ends with the table of docs/plan.md. A
compilation takes one to four minutes; plans are cached, so a second run is fast.
"""

import argparse
import math

from bigjax.plan import chips

chips.before_jax()

from bigjax import config as config_lib  # noqa: E402
from bigjax import modules  # noqa: E402
from bigjax.plan import compile as compile_lib  # noqa: E402
from bigjax.plan import predict  # noqa: E402

GPT = "configs/gpt/gpt3.py:"
BERT = "configs/bert/large_lamb.py:phase2"
SIZES = ("125m", "350m", "760m", "1.3b", "2.7b", "6.7b", "13b", "175b")
SLICES = [f"v5p:{shape}" for shape in (*chips.SMALL_CUBES, "4x4x4", "4x4x8", "4x8x8", "8x8x8")]
ROWS_AT_ONCE = 4  # of 2,048 tokens, per device


def planned(spec: str, topology: str, changes: dict):
    """The plan of a config file with changes."""
    config = config_lib.load_file(spec)
    with config.unlocked():
        config.update_from_flattened_dict(changes)
    modules.fill(config)
    (plan,) = compile_lib.plans(config, topology)
    return plan


def fits() -> None:
    """Prints the smallest slice that fits each size of GPT-3 with its published batch, and the plan
    of BERT-large with LAMB at a batch of 32,768 on 256 chips of v5e."""
    rows = []
    for size in SIZES:
        for topology in SLICES:
            plan = small(GPT + size, topology)
            if plan and plan.fits:
                rows.append(row(GPT + size, topology, plan))
                break
            print(f"{GPT}{size} does not fit {topology}", flush=True)
    rows.append(row(BERT, "v5e:16x16", planned(BERT, "v5e:16x16", {})))
    print(
        "\n| config | slice | HBM, GiB | step, s | if all communication overlaps, if none | MFU |"
    )
    print("| --- |" + " --- |" * 5)
    print("\n".join(rows))


def small(spec: str, topology: str):
    """The plan with parameters sharded over all chips, full rematerialisation and small
    micro-batches; None if a chip cannot even hold its parameters, their moments and gradients."""
    config = config_lib.load_file(spec)
    name, sizes = chips.parse(topology)
    rows = config.train.batch_size // math.prod(sizes)
    billions = float(spec.rpartition(":")[2][:-1]) / (1000 if spec.endswith("m") else 1)
    if 16e9 * billions / math.prod(sizes) > chips.CHIPS[name].limit * chips.GIB:
        return None
    changes = {
        "mesh.data": 1,
        "mesh.fsdp": -1,
        "mesh.tensor": 1,
        "model.remat": "full",
        "train.accumulate": max(1, rows // ROWS_AT_ONCE),
    }
    return planned(spec, topology, changes)


def row(spec: str, topology: str, plan) -> str:
    """A row of the table, in Markdown."""
    chip, expected = chips.figures(topology), predict.expected(plan.step_seconds)
    low, high = plan.step_seconds
    cells = (
        f"`{spec.removeprefix('configs/')}`",
        topology,
        f"{plan.peak_bytes / chips.GIB:.2f} of {plan.limit_bytes / chips.GIB:.2f}",
        f"{expected:.2f}",
        f"{low:.2f}, {high:.2f}",
        f"{plan.model_flops / (plan.devices * chip.peak * 1e12) / expected:.1%}",
    )
    line = "| " + " | ".join(cells) + " |"
    print(line, flush=True)
    return line


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    fits()


if __name__ == "__main__":
    main()
