"""Full fine-tuning beside LoRA, adapters, prefix tuning and BitFit: scores, sizes and times.

    python benchmarks/adaptation.py --config=CONFIG --base=FOLDER --metric=eval/test/accuracy \
        [--json] [--seeds 3] [--methods full,lora] [--config.KEY=VALUE]

Every method trains the same config over the same base (a run's work folder or a Hugging Face
folder), each run in a process of its own, seed by seed in turns. The learning rate of each method
is in METHODS; full fine-tuning has the config's own. Of each method:

- the metric at the end, mean and sample standard deviation over the seeds
- the parameters that are trained
- bytes of a checkpoint's parameters and optimizer state
- the peak of a process's resident memory, in GiB
- seconds of training: the whole process, with reading data, compiling and evaluations

"ours" is LoRA's mean score and "theirs" that of full fine-tuning. Seconds and memory need an
otherwise idle machine.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

METHODS = {  # keys of config.peft, and the learning rate
    "full": ({}, None),
    "lora": (dict(name="lora", rank=8, alpha=16.0), 2e-3),
    "adapter": (dict(name="adapter", width=32), 2e-3),
    "prefix": (dict(name="prefix", length=16), 1e-2),
    "bitfit": (dict(name="bitfit"), 5e-3),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", required=True, help="FILE[:VARIANT] of `bigjax train`")
    parser.add_argument("--base", required=True, help="a run, or a Hugging Face folder")
    parser.add_argument("--metric", required=True, help="its last value in metrics.jsonl")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    args, overrides = parser.parse_known_args()
    methods = args.methods.split(",")
    runs: dict[str, list[dict]] = {name: [] for name in methods}
    for seed in range(args.seeds):
        for name in methods:
            runs[name].append(one_run(args, name, seed, overrides))
            print(f"seed {seed}  {name:<8} {line(runs[name][-1:])}", flush=True)
    print(f"\n{'method':<9} {'score':>17} {'trained':>11} {'state MB':>9} {'GiB':>6} {'s':>6}")
    for name in methods:
        print(f"{name:<9} {line(runs[name])}")
    if args.json:
        score = lambda name: statistics.mean(run["score"] for run in runs[name])
        ours, theirs = score("lora"), score("full")
        result = dict(name="adaptation", ours=ours, theirs=theirs, ratio=ours / theirs)
        print(json.dumps({**result, "unit": args.metric, "runs": runs}))


def one_run(args: argparse.Namespace, method: str, seed: int, overrides: list[str]) -> dict:
    """What one run of `bigjax train` needed and reached."""
    peft, rate = METHODS[method]
    keys = {"seed": seed, "log.tensorboard": False}
    if peft:
        keys |= {f"peft.{key}": value for key, value in peft.items()}
        keys |= {"peft.base": args.base, "init_from": "", "optim.learning_rate": rate}
        keys["optim.weight_decay"] = 0.0
    else:
        keys |= {"peft.name": "", "init_from": args.base}
    # Later flags win: the user's before the method's, but for a learning rate by method.
    flags = [f"--config={args.config}", *overrides]
    flags += [f"--config.{key}={value}" for key, value in sorted(keys.items(), key=order)]
    with tempfile.TemporaryDirectory() as folder:
        start = time.monotonic()
        process = subprocess.Popen(
            [sys.executable, "-m", "bigjax.main", "train", f"--workdir={folder}", *flags],
            stdout=subprocess.PIPE,
            text=True,
        )
        printed = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.monotonic() - start
        if code := os.waitstatus_to_exitcode(status):
            sys.exit(f"{method}, seed {seed}: code {code}\n{printed}")
        lines = pathlib.Path(folder, "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        scores = [json.loads(x)[args.metric] for x in lines if args.metric in json.loads(x)]
        last = max(pathlib.Path(folder, "checkpoints").iterdir(), key=lambda p: int(p.name))
        of = lambda item: sum(p.stat().st_size for p in (last / item).rglob("*") if p.is_file())
        count = next(x for x in printed.splitlines() if " parameters" in x and "Compiling" in x)
    return {
        "score": scores[-1],
        "trained": int(count.split(" parameters")[0].replace(",", "")),
        "state_bytes": of("params") + of("opt_state"),
        "seconds": seconds,
        "gib": usage.ru_maxrss / 2**20,
    }


def order(pair: tuple) -> tuple:
    """peft.name first: the other keys of config.peft follow from it."""
    return pair[0] != "peft.name", pair[0]


def line(runs: list[dict]) -> str:
    mean = lambda key: statistics.mean(run[key] for run in runs)
    spread = statistics.stdev(run["score"] for run in runs) if len(runs) > 1 else 0.0
    return (
        f"{mean('score'):9.4f} ± {spread:.4f} {runs[0]['trained']:11,} "
        f"{mean('state_bytes') / 1e6:9.1f} {mean('gib'):6.2f} {mean('seconds'):6.0f}"
    )


if __name__ == "__main__":
    main()
