"""The training speed of SeqGAN on this machine's CPU: bigjax against PyTorch.

    python benchmarks/seqgan.py [--json] [--rounds 3] [--tasks sampling,mle,...]

The sizes are those of SeqGAN's oracle experiment (https://arxiv.org/abs/1609.05473) and of
configs/seqgan/oracle.py:paper: 5,000 words, sequences of 20, an LSTM of 32, the paper's CNN,
batches of 64. The benchmark checks that both networks have the same number of parameters on both
sides (PyTorch's LSTM has two biases, which count once). The tasks:

- sampling: 10,000 sequences from the generator.
- mle: an epoch of maximum likelihood over 10,000 sequences, 157 updates.
- discriminator: an epoch over 10,000 real and 10,000 generated sequences, 313 updates of 32 + 32.
  Ours includes sampling the generated ones; theirs uses random sequences made before.
- generator: one adversarial update of 64 sequences, with 16 rollouts after each token.

Theirs is benchmarks/seqgan_torch.py. Ours is what `bigjax train` runs, on the mesh of that config:
the tasks are rounds of bigjax/projects/seqgan/train_step.py, and sequences are sampled as in
oracle_eval.py. Ours rounds up to full batches: it samples 10,240 sequences and trains on 10,048;
it also clips gradients, which theirs does not. `ours` and `theirs` are generator updates per
second; ratios are of times. Needs `pip install -e '.[bench]'`.
"""

import argparse
import json
import math
import pathlib
import statistics

import sides

CONFIG = f"{pathlib.Path(__file__).parent.parent}/configs/seqgan/oracle.py:paper"
SEQUENCES, EPOCH_UPDATES, JUDGE_UPDATES = 10_000, 157, 313
WARM_UPS = 3  # calls: the first ones are slower
BARS = {"sampling": 30, "mle": 2, "discriminator": 2, "generator": 8}  # minimum ratio by task


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    parser.add_argument("--rounds", type=int, default=3, help="rounds per side and task")
    parser.add_argument(
        "--tasks", default=",".join(BARS), help="a comma-separated selection (default: all)"
    )
    parser.add_argument("--side", choices=("ours", "theirs"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    tasks = args.tasks.split(",")
    if not set(tasks) <= set(BARS):
        parser.error(f"--tasks is {args.tasks!r}; allowed: {', '.join(BARS)}.")
    if args.json and set(tasks) != set(BARS):
        parser.error("--json needs all tasks: leave --tasks out.")
    if args.side:
        return theirs() if args.side == "theirs" else ours(tasks)
    print(sides.load())
    with sides.Side("theirs") as their_side, sides.Side("ours") as our_side:
        running = [their_side, our_side]
        for side in running:
            print(f"{side.name:8s} {side.about['what']}")
        _check([side.about for side in running])
        seconds = {task: _measure(running, task, args.rounds) for task in tasks}
    if args.json:
        _print_json(seconds)


def _measure(running: list[sides.Side], task: str, rounds: int) -> dict[str, float]:
    """The median seconds of a task by side."""
    for side in running:  # an untimed call; theirs has had none before
        _check_losses(side.name, task, side(task))
    seconds = sides.take_turns(running, rounds, task)
    median = {name: statistics.median(times) for name, times in seconds.items()}
    for name, times in seconds.items():
        print(
            f"{task:13s} {name:8s} {median[name]:8.3f} s (of {rounds}: {min(times):.3f} to "
            f"{max(times):.3f})"
        )
    print(f"{task:13s} ratio {_ratio(median):.2f} (bar {BARS[task]})", flush=True)
    return median


def _ratio(median: dict[str, float]) -> float:
    return median["theirs"] / median["ours"]


def _print_json(seconds: dict[str, dict[str, float]]) -> None:
    ours, theirs = (1 / seconds["generator"][name] for name in ("ours", "theirs"))
    print(
        json.dumps(
            {
                "name": "seqgan",
                "ours": ours,
                "theirs": theirs,
                "ratio": ours / theirs,
                "unit": "generator updates/s",
                **{
                    f"ratio_{task}": _ratio(seconds[task])
                    for task in ("sampling", "mle", "discriminator")
                },
            }
        )
    )


def _check(abouts: list[dict]) -> None:
    """Checks that both sides do the same work."""
    for name in ("generator_parameters", "discriminator_parameters"):
        if len({about[name] for about in abouts}) > 1:
            raise SystemExit(f"The models differ: {abouts}")


def _check_losses(side: str, task: str, answer: dict) -> None:
    """The sequences are random words: the loss stays near that of a uniform guess."""
    guess = math.log(5000)
    if task == "mle" and abs(answer["loss"] - guess) > 0.5:
        raise SystemExit(f"The loss of {side} in {task} is not near {guess:.2f}: {answer}")
    if task == "generator" and not 0 < answer["reward"] < 1:
        raise SystemExit(f"The reward of {side} is not a probability: {answer}")


def ours(tasks: list[str]) -> None:
    from bigjax import cpu

    cpu.keep_freed_memory()  # before jax is imported, as in bigjax/main.py
    import jax

    from bigjax import tasks as tasks_lib
    from bigjax.parallel import mesh as mesh_lib
    from bigjax.trees import count

    c = _config()
    mesh = mesh_lib.start(c.mesh, c.train.batch_size)
    task = tasks_lib.build(c)
    repeat = _repeat(c, mesh, task)
    for name in tasks:
        for _ in range(WARM_UPS):  # the first compiles
            repeat(name)
    params = jax.eval_shape(task.init, jax.random.key(0))["params"]
    sides.serve(
        {
            "generator_parameters": count(params["generator"]),
            "discriminator_parameters": count(params["discriminator"]),
            "what": f"bigjax, jax {jax.__version__}, {mesh.size} device(s)",
        },
        repeat,
    )


def _config():
    """oracle.py:paper with the rounds of the benchmark."""
    from bigjax.arguments import Arguments

    config, _ = Arguments(
        [
            f"--config={CONFIG}",
            f"--config.task.mle_updates={EPOCH_UPDATES}",
            f"--config.task.pretrain_updates={JUDGE_UPDATES}",
            "--config.task.discriminator_updates=0",
        ]
    ).config()  # in adversarial rounds
    return config


def _repeat(c, mesh, task):
    """repeat(task name) -> its losses. The state is kept from one call to the next."""
    import jax
    import numpy as np

    from bigjax.parallel import sharding
    from bigjax.projects.seqgan.gan import empty_context, sample_texts
    from bigjax.projects.seqgan.oracle_eval import SAMPLE_ROWS
    from bigjax.train import program as program_lib
    from bigjax.train.step import unpack

    n, T, options = c.train.batch_size, c.data.seq_len, task.gan.options
    program = program_lib.make(c, task, mesh)
    state = program.init()
    rows = -(-SAMPLE_ROWS // n) * n
    draw = jax.jit(
        lambda params, key: sharding.constrain(
            sample_texts(task.gan, params, empty_context(rows), key), "batch", "length"
        )
    )

    def batch_of(step: int) -> dict:
        """The batch of a round, with random words: the speed does not depend on them."""
        phase, batches, _ = options.round(step)
        tokens = np.random.default_rng(0).integers(0, c.model.vocab_size, (n, batches, T), np.int32)
        arrays = {"tokens": tokens, "weights": np.ones(tokens.shape, np.float32)}
        return sharding.put_batch(mesh, {phase: arrays}, slice(0, n), n)

    before_adversarial = options.mle_rounds + options.discriminator_rounds
    batches = {
        "mle": batch_of(0),
        "discriminator": batch_of(options.mle_rounds),
        "generator": batch_of(before_adversarial),
    }

    def repeat(name: str) -> dict:
        nonlocal state
        if name == "sampling":
            keys = jax.random.split(jax.random.key(0), -(-SEQUENCES // rows))
            texts = [draw(state.params["generator"], key) for key in keys]
            return {"sequences": sum(map(len, jax.device_get(texts)))}
        state, metrics = program.step(state, None, batches[name])
        values = unpack(jax.device_get(jax.block_until_ready((state, metrics))[1]))
        assert not state.halted, values
        network = "discriminator" if name == "discriminator" else "generator"
        return {
            k: values[f"{network}/{k}"] for k in ("loss", "reward") if f"{network}/{k}" in values
        }

    return repeat


def theirs() -> None:
    from bigjax import cpu  # imports no jax

    cpu.keep_freed_memory()  # as our side
    import seqgan_torch

    about, repeat = seqgan_torch.theirs()
    about["generator_parameters"] -= 4 * seqgan_torch.WIDTH  # LSTMCell adds two biases
    sides.serve(about, repeat)


if __name__ == "__main__":
    main()
