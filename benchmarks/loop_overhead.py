"""How much the training loop costs in addition to the compiled step.

    python benchmarks/loop_overhead.py [--json] [--rounds 15] [--segment 20] [--devices N]

"ours" is steps per second of the complete loop of `bigjax train` (bigjax.train.run.train): batches
made from a tokenized text and put on the devices, hooks, metrics read and written (JSONL,
TensorBoard and progress lines, at their default cadence). "theirs" is the same compiled step called
over and over on one batch that is on the devices already, its metrics never read. Both alternate
within one run of train(), in segments of a few steps, so on the same mesh, threads and moment: an
extra hook, due after each segment, notes the time, runs the bare segment, and returns to the loop.

The shapes are those of the default run (configs/gpt/docstrings.py), with bytes for tokens;
`--layers=2 --batch=8` makes steps of a third of the time, on which the loop weighs more.

Counted is the steady state. Compilation, starting and the last checkpoint are left out, as are
evaluations and other checkpoints, whose cost a config chooses. A segment of the loop ends with its
step's metrics read, a bare segment with its results awaited, so neither leaves work to the other;
while the bare segment runs, the loader may finish the two batches that it makes ahead. Standard
output goes to a file, as in a job on a cluster; a terminal's live progress line is not measured.
"""

import argparse
import contextlib
import itertools
import json
from pathlib import Path
import statistics
import tempfile
import time
from unittest import mock

from bigjax import cpu

cpu.restart_with_huge_pages()  # as bigjax/main.py does, before jax is imported
cpu.keep_freed_memory()

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import sides  # noqa: E402

from bigjax import config as config_lib  # noqa: E402
from bigjax.train import loop  # noqa: E402
from bigjax.train import run as run_lib  # noqa: E402

CONTEXT, WIDTH, HEADS = 128, 128, 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    parser.add_argument("--rounds", type=int, default=15, help="segments of each side")
    parser.add_argument("--segment", type=int, default=20, help="steps of a segment")
    parser.add_argument("--layers", type=int, default=4, help="of the model")
    parser.add_argument("--batch", type=int, default=16, help="examples per step")
    parser.add_argument(
        "--devices",
        type=int,
        default=0,
        help="virtual CPU devices (default: as `bigjax train` chooses)",
    )
    args = parser.parse_args()
    print(sides.load())
    with tempfile.TemporaryDirectory() as folder:
        gate = _train(Path(folder), args)
    loops, bares = gate.loop[1:], gate.bare[1:]  # the first round compiles and warms up
    print(f"{jax.device_count()} device(s), {len(loops)} segments of {args.segment} steps")
    result = {"name": "loop_overhead", "unit": "steps/s"}
    for name, seconds in (("ours", loops), ("theirs", bares)):
        result[name], text = sides.speeds(args.segment, seconds)
        milliseconds = statistics.median(seconds) / args.segment * 1e3
        print(f"{name:6s} {text} steps/s, {milliseconds:.2f} ms per step")
    result["ratio"] = result["ours"] / result["theirs"]
    pairs = statistics.median(bare / whole for whole, bare in zip(loops, bares))
    print(f"ratio  {result['ratio']:.3f} (median over neighbouring segments {pairs:.3f})")
    if args.json:
        print(json.dumps({key: result[key] for key in ("name", "ours", "theirs", "ratio", "unit")}))


class Gate:
    """A hook that times the loop from each of its calls to the next, and runs the bare step in
    between. loop, bare: seconds of each segment."""

    def __init__(self, segment: int, step_fn, state, batch) -> None:
        self._segment, self._step_fn, self._state, self._batch = segment, step_fn, state, batch
        self.loop, self.bare, self._start = [], [], time.perf_counter()

    def due(self, step: int) -> bool:
        return step % self._segment == 0

    def __call__(self, step: int, state) -> None:
        jax.block_until_ready(state)
        self.loop.append(time.perf_counter() - self._start)
        start = time.perf_counter()
        for _ in range(self._segment):
            self._state, metrics = self._step_fn(self._state, self._batch)
        jax.block_until_ready((self._state, metrics))
        self._start = time.perf_counter()
        self.bare.append(self._start - start)


def _train(folder: Path, args: argparse.Namespace) -> Gate:
    """Runs train() with a Gate among its hooks, and returns the gate."""
    gates = []
    plain_run = loop.run

    def run_with_gate(state, step_fn, batches, *, hooks, **rest):
        first = next(batches)
        placed = jax.tree_util.tree_map(lambda x: x.sharding, state)
        copy = jax.jit(lambda s: jax.tree_util.tree_map(jnp.copy, s), out_shardings=placed)
        gates.append(Gate(args.segment, step_fn, copy(state), first))
        return plain_run(
            state, step_fn, itertools.chain([first], batches), hooks=[*hooks, gates[0]], **rest
        )

    output = folder / "output.txt"
    with (
        mock.patch.object(loop, "run", run_with_gate),
        output.open("w") as out,
        contextlib.redirect_stdout(out),
    ):
        run_lib.train(_config(folder, args), str(folder / "run"))
    return gates[0]


def _config(folder: Path, args: argparse.Namespace):
    text = folder / "text.txt"
    text.write_text(
        "\n\n".join(f"def f{i}(x):\n    return x * {i} + {i * i % 977}" for i in range(50_000))
    )
    c = config_lib.new_config()
    c.model = dict(
        name="gpt",
        vocab_size=259,
        max_len=CONTEXT,
        d_model=WIDTH,
        n_layers=args.layers,
        n_heads=HEADS,
    )
    c.data = dict(
        name="text",
        sources=dict(text=dict(kind="text", path=str(text))),
        tokenizer=dict(kind="bytes"),
        seq_len=CONTEXT,
        cache_dir=str(folder / "cache"),
    )
    c.train.batch_size = args.batch
    c.train.steps = args.segment * (args.rounds + 1)
    c.checkpoint.every = c.train.steps
    if args.devices:
        c.mesh.data = args.devices
    return c


if __name__ == "__main__":
    main()
