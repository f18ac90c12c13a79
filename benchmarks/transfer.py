"""What pre-training on the digits 0 to 4 is worth for 5, 10 or 25 examples of each of 5 to 9.

    python benchmarks/transfer.py [--json] [--seeds 5] [--shots 5,10,25] [--config.KEY=VALUE]

One small BiT is pre-trained (configs/bit/digits_transfer.py). From it fine-tuning and BiT-HyperRule
start, beside training from scratch, each with the same examples, which the seed draws. The unit is
test accuracy after the last step. In the JSON "ours" is fine-tuning and "theirs" from scratch,
averaged over all. This is no benchmark of speed, so it does not need an idle machine.
"""

import argparse
import contextlib
import io
import json
import statistics
import tempfile

from absl import logging

from bigjax.arguments import Arguments
from bigjax.train import run as run_lib

CONFIG = "configs/bit/digits_transfer.py"
SIDES = {"scratch": "from scratch", "finetune": "fine-tuned", "hyperrule": "BiT-HyperRule"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--shots", default="5,10,25", help="examples of each class")
    args, overrides = parser.parse_known_args()
    logging.set_verbosity(logging.FATAL)
    shots = [int(n) for n in args.shots.split(",")]
    accuracies: dict = {}
    with tempfile.TemporaryDirectory() as folder:
        pretrained = f"{folder}/pretrained"
        print(f"pre-trained: {accuracy('', pretrained, overrides):.4f} on 0 to 4", flush=True)
        for n in shots:
            for side in SIDES:
                for seed in range(args.seeds):
                    flags = [f"--config.data.shots={n}", f"--config.data.shots_seed={seed}"]
                    flags += [f"--config.seed={seed}", *overrides]
                    if side != "scratch":
                        flags.append(f"--config.init_from={pretrained}")
                    value = accuracy(side, f"{folder}/{side}-{n}-{seed}", flags)
                    accuracies.setdefault((side, n), []).append(value)
                values = accuracies[side, n]
                deviation = statistics.stdev(values) if len(values) > 1 else 0.0
                print(
                    f"{n:3} examples  {SIDES[side]:<14} {statistics.mean(values):.4f} "
                    f"+- {deviation:.4f}  ({', '.join(f'{v:.3f}' for v in values)})",
                    flush=True,
                )
    mean = lambda side: statistics.mean(v for n in shots for v in accuracies[side, n])
    ours, theirs = mean("finetune"), mean("scratch")
    if args.json:
        line = {"name": "transfer", "ours": ours, "theirs": theirs, "ratio": ours / theirs}
        line |= {"unit": "test accuracy"}
        line["runs"] = {f"{side}-{n}": values for (side, n), values in accuracies.items()}
        print(json.dumps(line))


def accuracy(variant: str, workdir: str, flags: list[str]) -> float:
    """Test accuracy of one run."""
    spec = f"{CONFIG}:{variant}" if variant else CONFIG
    config, _ = Arguments([f"--config={spec}", "--config.log.tensorboard=false", *flags]).config()
    with contextlib.redirect_stdout(io.StringIO()):
        run_lib.train(config, workdir)
    with open(f"{workdir}/metrics.jsonl", encoding="utf-8") as f:
        lines = [json.loads(line) for line in f]
    return [x["eval/test/accuracy"] for x in lines if "eval/test/accuracy" in x][-1]


if __name__ == "__main__":
    main()
