"""Published step times on TPUs, and what `bigjax plan` predicts for them; without a TPU.

    pip install -e '.[plan]'
    python benchmarks/published_steps.py [--json] [--runs=3,4]

published_runs.py has the runs: dense decoders that MaxText trained in bfloat16. bigjax compiles the
same model for the same chips, mesh, batch, rematerialisation and kind of attention, and the walker
of `bigjax plan` reads the program. A compilation takes minutes, and is cached. What is read is kept
in published_steps.json, from which the errors in docs/plan.md and in `bigjax plan` are computed.

The differences that are left: bigjax's layers, loss and kernels are its own, and the compiler is of
today; some runs set flags that are not set here, or wrote activations to host memory.
"""

import argparse
import json
import sys

from bigjax.plan import chips

chips.before_jax()

import published_runs  # noqa: E402
from published_runs import READINGS, RUNS, Run  # noqa: E402
import tpu_sides  # noqa: E402

from bigjax import config as config_lib  # noqa: E402
from bigjax import modules  # noqa: E402
from bigjax.errors import RunError, UserError  # noqa: E402


def config_of(run: Run):
    """Our config nearest to a published run."""
    config = config_lib.load_file("configs/gpt/llama2.py:7b")
    changes = {
        **{f"mesh.{axis}": run.mesh.get(axis, 1) for axis in config.mesh},
        "data.seq_len": run.tokens,
        "data.tokenizer.vocab_size": run.model["vocab_size"],
        "train.batch_size": run.rows * run.devices,
        "train.accumulate": 1,
        "train.compiler_options": run.compiler_options,
    }
    with config.unlocked():
        config.model = {
            **{"name": "gpt", "dtype": "bfloat16", "max_len": run.tokens},
            **{"remat": run.remat, "attention": run.attention},
            **run.model,
        }
        config.update_from_flattened_dict(changes)
    modules.fill(config)
    return config


def read(run: Run) -> dict | None:
    """What the walker reads in the compiled step of a run; None if it does not fit."""
    step = tpu_sides.ours(config_of(run), run.topology)
    if step.text is None:
        print("  does not fit as bigjax trains it", flush=True)
        return None
    costs = step.costs(run.topology)
    kept = [e for e in costs.schedule if e.part == "recomputed" and e.layer in run.kept]
    kernels = sum(e.seconds for e in kept if e.kind == "kernel")
    return {
        "run": run.name,
        "topology": run.topology,
        "fingerprint": run.fingerprint,
        "hbm_gib": step.peak_bytes / chips.GIB,
        "flops": costs.flops,
        "kernel_flops": costs.kernel_flops,
        "seconds": costs.seconds,
        "communication": costs.communication,
        "kept_seconds": sum(e.seconds for e in kept if e.kind not in ("kernel", "collective")),
        "kept_kernels": kernels / costs.kernel_seconds if kernels else 0.0,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    parser.add_argument("--runs", help=f"numbers of runs, of 0 to {len(RUNS) - 1}; default: all")
    args = parser.parse_args()
    numbers = args.runs.split(",") if args.runs else [*map(str, range(len(RUNS)))]
    if wrong := [x for x in numbers if not x.isdecimal() or int(x) >= len(RUNS)]:
        parser.error(f"--runs: {', '.join(wrong)} is not a number of 0 to {len(RUNS) - 1}")
    runs = [*map(int, numbers)]
    readings = json.loads(READINGS.read_text(encoding="utf-8")) if READINGS.exists() else []
    readings += [None] * (len(RUNS) - len(readings))
    try:
        for i in runs:
            print(f"{i}: {RUNS[i].name}, {RUNS[i].topology}", flush=True)
            readings[i] = read(RUNS[i])
            READINGS.write_text(json.dumps(readings, indent=1) + "\n", encoding="utf-8")
    except (RunError, UserError) as e:
        print(e, file=sys.stderr)
        sys.exit(e.exit_code)
    results = published_runs.predictions(readings)
    print(f"\n{published_runs.table(results)}\n\n{published_runs.summary(results)}.")
    print(published_runs.left_out(results))
    if args.json:
        print(json.dumps(published_runs.result(results)))


if __name__ == "__main__":
    main()
