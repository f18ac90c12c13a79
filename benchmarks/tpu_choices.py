"""What choices of a step for TPUs cost, by plans: rematerialisation, and how much memory on the
chip the compiler gives an operation; without a TPU.

    pip install -e '.[plan]'
    python benchmarks/tpu_choices.py [--json]

It prints the tables of docs/train.md (Llama 2 7B with each `model.remat`) and docs/benchmarks.md
(memory on the chip). A compilation takes one to ten minutes, and is cached. The line of JSON has
the work of `full` as `theirs` and that of `dots` as `ours`.
"""

import argparse
import dataclasses
import json
import sys

from bigjax.plan import chips

chips.before_jax()

import published_runs  # noqa: E402
import published_steps  # noqa: E402
from tpu_models import MODELS, OFF, Layout, our_config  # noqa: E402
import tpu_sides  # noqa: E402

from bigjax.errors import RunError, UserError  # noqa: E402
from bigjax.train.program import SCOPED_VMEM  # noqa: E402

REMATS = ("none", "dots", "attention", "query,key,value", "full", "input:host")
LIMITS = {  # MiB; the last is bigjax's
    "1.3b, v6e:4x4": (32, 64, 96),
    "1.3b, tpu7x:2x2x2": (32, 48, 60),
    "Llama 3.1 8B, v6e:2x4": (32, 48, 96),
}


def limited(name: str, mib: int):
    """(config, topology) of one of LIMITS."""
    model, topology = name.split(", ")
    limit = {SCOPED_VMEM: str(1024 * mib)}
    if model in MODELS:
        options = {**OFF, **limit}
        return our_config(MODELS[model], Layout({"fsdp": 16}, "dots"), options), topology
    run = next(r for r in published_runs.RUNS if (r.name, r.topology) == (model, topology))
    run = dataclasses.replace(run, options={**run.options, **limit})
    return published_steps.config_of(run), topology


def rematerialised(remat: str):
    """(config, topology) of Llama 2 7B with one of REMATS."""
    model = MODELS["7b"]
    mesh = {"data": 8, "fsdp": 16, "tensor": 2}
    return our_config(model, Layout(mesh, remat), OFF), model.topology


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    args = parser.parse_args()
    work = {}
    try:
        print("| `model.remat` | work without kernels, s | kernels, s | HBM, GiB |")
        print("| --- | --- | --- | --- |")
        for remat in REMATS:
            config, topology = rematerialised(remat)
            step = tpu_sides.ours(config, topology, log=_quiet)
            if step.text is None:
                print(f"| `{remat}` | does not fit | | |", flush=True)
                continue
            costs = step.costs(topology)
            work[remat] = costs.seconds
            gib = step.peak_bytes / chips.GIB
            cells = f"`{remat}`", f"{work[remat]:.3f}", f"{costs.kernel_seconds:.3f}", f"{gib:.2f}"
            print(f"| {' | '.join(cells)} |", flush=True)
        print("\n| model and slice | MiB: work without kernels, s |\n| --- | --- |")
        for name, limits in LIMITS.items():
            seconds = []
            for mib in limits:
                config, topology = limited(name, mib)
                costs = tpu_sides.ours(config, topology, log=_quiet).costs(topology)
                seconds.append(f"{mib}: {costs.seconds:.4g}")
            print(f"| {name} | {'; '.join(seconds)} |", flush=True)
    except (RunError, UserError) as e:
        print(e, file=sys.stderr)
        sys.exit(e.exit_code)
    if args.json:
        ours, theirs = 1 / work["dots"], 1 / work["full"]
        result = {"name": "tpu_choices", "ours": ours, "theirs": theirs, "ratio": ours / theirs}
        print(json.dumps(result | {"unit": "steps/s of work without kernels: 7b, dots and full"}))


def _quiet(*_, **__) -> None:
    """Tables are printed without what is compiled."""


if __name__ == "__main__":
    main()
