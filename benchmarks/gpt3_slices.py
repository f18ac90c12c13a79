"""The smallest v5p slice that fits each size of GPT-3 with its published batch, without a TPU.

    pip install -e '.[plan]'
    python benchmarks/gpt3_slices.py

It also plans BERT-large with LAMB at a batch of 32,768. A compilation takes one or two minutes;
plans are cached, so a second run is fast.
"""

import argparse
import math

from bigjax.plan import chips

chips.before_jax()

from bigjax import config as config_lib  # noqa: E402
from bigjax import modules  # noqa: E402
from bigjax.plan import compile as compile_lib  # noqa: E402

GPT = "configs/gpt/gpt3.py:"
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
    print(f"{'config':<36}{'slice':<11}{'HBM GiB':>9}{'of':>7}{'seconds per step':>18}{'MFU':>16}")
    for size in SIZES:
        for topology in SLICES:
            plan = small(GPT + size, topology)
            if plan and plan.fits:
                break
    report(
        "configs/bert/large_lamb.py:phase2",
        "v5e:16x16",
        planned("configs/bert/large_lamb.py:phase2", "v5e:16x16", {}),
    )


def small(spec: str, topology: str):
    """The plan with parameters sharded over all chips, full rematerialisation and small
    micro-batches; None if a chip cannot even hold its parameters, their moments and gradients."""
    config = config_lib.load_file(spec)
    name, sizes = chips.parse(topology)
    rows = config.train.batch_size // math.prod(sizes)
    billions = float(spec.rpartition(":")[2][:-1]) / (1000 if spec.endswith("m") else 1)
    if 16e9 * billions / math.prod(sizes) > chips.CHIPS[name].limit * chips.GIB:
        return None
    plan = planned(
        spec,
        topology,
        {
            "mesh.data": 1,
            "mesh.fsdp": -1,
            "mesh.tensor": 1,
            "model.remat": "full",
            "train.accumulate": max(1, rows // ROWS_AT_ONCE),
        },
    )
    report(spec, topology, plan)
    return plan


def report(spec: str, topology: str, plan) -> None:
    if not plan.fits:
        print(f"{spec:<36}{topology:<11} does not fit", flush=True)
        return
    share = plan.model_flops / (plan.devices * chips.CHIPS[chips.parse(topology)[0]].peak * 1e12)
    low, high = plan.step_seconds
    print(
        f"{spec:<36}{topology:<11}{plan.peak_bytes / chips.GIB:>9.2f}"
        f"{plan.limit_bytes / chips.GIB:>7.2f}{f'{low:.2f} to {high:.2f}':>18}"
        f"{f'{share / high:.1%} to {share / low:.1%}':>16}",
        flush=True,
    )


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    fits()


if __name__ == "__main__":
    main()
