"""How fast a GPT-2 of 124M generates on this machine's CPU: bigjax against transformers.

    python benchmarks/decode_cpu.py [--json] [--rounds 5] [--devices N]

Greedy decoding of 64 tokens after a prompt of 16, random weights of GPT-2's shapes, at batch sizes
1 and 8. Speeds are new tokens per second over the batch, with the prompt, without compilation. Ours
is bigjax.infer.generate.Generator on the mesh that `bigjax generate` would choose. Theirs is
GPT2LMHeadModel.generate with its key-value cache and PyTorch's own number of threads. Both are in
float32, which `bigjax generate` uses on every CPU, and have the same number of parameters, which is
checked. The line of JSON is for the batch size with the lower ratio. Needs
`pip install -e '.[bench]'`.
"""

import argparse
import json

import sides

BATCHES = (1, 8)
PROMPT, NEW, VOCABULARY = 16, 64, 50257


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    parser.add_argument("--rounds", type=int, default=5, help="texts of each side and batch size")
    parser.add_argument(
        "--devices",
        type=int,
        default=0,
        help="virtual CPU devices of ours (default: as `bigjax generate` chooses)",
    )
    parser.add_argument("--side", choices=("ours", "theirs"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        return theirs() if args.side == "theirs" else ours(args.devices)
    print(sides.load())
    with sides.Side("theirs") as their_side, sides.Side("ours") as our_side:
        all_sides = [their_side, our_side]
        if len({side.about["parameters"] for side in all_sides}) > 1:
            raise SystemExit(f"The models differ: {[side.about for side in all_sides]}")
        for side in all_sides:
            print(f"{side.name:6s} {side.about['what']}")
        results = [_compare(all_sides, batch, args.rounds) for batch in BATCHES]
    if args.json:
        print(json.dumps(min(results, key=lambda result: result["ratio"])))


def _compare(all_sides: list[sides.Side], batch: int, rounds: int) -> dict:
    sides.take_turns(all_sides, 2, str(batch))  # compile, and warm up the allocators
    seconds = sides.take_turns(all_sides, rounds, str(batch))
    speed = {}
    for name in ("ours", "theirs"):
        speed[name], text = sides.speeds(batch * NEW, seconds[name])
        print(f"batch {batch}, {name:6s} {text} tokens/s")
    result = {
        "name": "decode_cpu",
        "ours": speed["ours"],
        "theirs": speed["theirs"],
        "ratio": speed["ours"] / speed["theirs"],
        "unit": f"tokens/s at batch {batch}",
    }
    print(f"batch {batch}, ratio {result['ratio']:.3f}")
    return result


def _prompts(batch: int) -> list[list[int]]:
    import numpy as np

    return np.random.default_rng(0).integers(0, VOCABULARY, (batch, PROMPT)).tolist()


def ours(devices: int) -> None:
    from bigjax import cpu

    cpu.keep_freed_memory()  # as bigjax/main.py does, before jax is imported
    import jax

    from bigjax import config, modules, tasks
    from bigjax.infer.generate import Generator, Options
    from bigjax.parallel import mesh as mesh_lib
    from bigjax.parallel import sharding
    from bigjax.trees import count

    c = config.new_config()
    c.model = dict(name="gpt", preset="gpt2-124m", dtype="float32")
    if devices:
        c.mesh.data = devices
    modules.fill(c)
    mesh = mesh_lib.start(c.mesh, batch_size=None)  # as `bigjax generate` does
    task = tasks.build(c)
    init = lambda: task.init(jax.random.key(0))["params"]
    place = sharding.of_params(mesh, jax.eval_shape(init), task.axes["params"])
    params = jax.jit(init, out_shardings=place)()
    generator = Generator(modules.of(c, "model").decoder(task.model_config), {"params": params})
    options = Options(max_new_tokens=NEW, temperature=0)

    def repeat(task_line: str) -> None:
        new = generator(_prompts(int(task_line)), options)
        assert [len(row) for row in new] == [NEW] * int(task_line)

    sides.serve(
        {
            "parameters": count(generator.variables),
            "what": f"bigjax, jax {jax.__version__}, {mesh.size} device(s)",
        },
        repeat,
    )


def theirs() -> None:
    from bigjax import cpu  # imports no jax

    cpu.keep_freed_memory()  # as our side
    import torch
    import transformers

    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config()).eval()

    def repeat(task_line: str) -> None:
        prompt = torch.tensor(_prompts(int(task_line)))
        with torch.no_grad():
            out = model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                do_sample=False,
                use_cache=True,
                max_new_tokens=NEW,
                min_new_tokens=NEW,
                pad_token_id=0,
            )
        assert out.shape == (int(task_line), PROMPT + NEW)

    sides.serve(
        {
            "parameters": sum(p.numel() for p in model.parameters()),
            "what": f"transformers {transformers.__version__}, torch {torch.__version__}, "
            f"{torch.get_num_threads()} threads, {model.dtype}",
        },
        repeat,
    )


if __name__ == "__main__":
    main()
