"""How fast a GPT trains on this machine's CPU: bigjax against PyTorch.

    python benchmarks/train_cpu.py [--json] [--rounds 7] [--devices N] [--packed]
        [--attention auto|einsum|blocked] [--unrolled]

6 layers, 6 heads, width 384, context 256, batch 32, 65 tokens, float32: learned positions,
LayerNorm, tanh GELU, biases, tied embeddings, no dropout; AdamW, gradients clipped to norm 1. Both
have the same number of parameters, which is checked. Speeds are tokens per second of complete
training steps (forward, backward, clipping, update) on a batch that is already in memory.

Ours is what `bigjax train` runs: its task, optimizer, step and mesh, and its setting of the
allocator. Theirs is eager PyTorch as one would write it: scaled_dot_product_attention with
is_causal, torch.optim.AdamW, clip_grad_norm_, PyTorch's own number of threads. Both have the
allocator's settings of bigjax/cpu.py. With --packed our side gets segment ids (several documents in
an example) and theirs runs without. Needs `pip install -e '.[bench]'`.
"""

import argparse
import json
import math

import sides

LAYERS, HEADS, WIDTH, CONTEXT, BATCH, VOCABULARY = 6, 6, 384, 256, 32, 65
LEARNING_RATE, B1, B2, WEIGHT_DECAY, CLIP_NORM = 1e-3, 0.9, 0.95, 0.1, 1.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    parser.add_argument("--rounds", type=int, default=7, help="steps of each side")
    parser.add_argument(
        "--devices",
        type=int,
        default=0,
        help="virtual CPU devices of ours (default: as `bigjax train` chooses)",
    )
    parser.add_argument("--packed", action="store_true", help="segment ids on our side")
    parser.add_argument("--attention", default="auto", help="config.model.attention of ours")
    parser.add_argument("--unrolled", action="store_true", help="config.model.scan=False on ours")
    parser.add_argument("--side", choices=("ours", "theirs"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        return theirs() if args.side == "theirs" else ours(args)
    print(sides.load())
    with sides.Side("theirs") as their_side, sides.Side("ours") as our_side:
        both = [their_side, our_side]
        _check([side.about for side in both])
        for side in both:
            print(f"{side.name:6s} {side.about['what']}")
        sides.take_turns(both, 1)  # allocators need a few steps to warm up
        seconds = sides.take_turns(both, args.rounds, warm=True)
    result = {"name": "train_cpu", "unit": "tokens/s"}
    for name in ("ours", "theirs"):
        result[name], text = sides.speeds(BATCH * CONTEXT, seconds[name])
        print(f"{name:6s} {text} tokens/s")
    result["ratio"] = result["ours"] / result["theirs"]
    print(f"ratio  {result['ratio']:.3f}")
    if args.json:
        print(json.dumps({key: result[key] for key in ("name", "ours", "theirs", "ratio", "unit")}))


def _check(abouts: list[dict]) -> None:
    """Both sides must do the same work."""
    if len({about["parameters"] for about in abouts}) > 1:
        raise SystemExit(f"The models differ: {abouts}")
    for about in abouts:  # the loss of an untrained model is that of guessing
        if abs(about["loss"] - math.log(VOCABULARY)) > 0.5:
            raise SystemExit(f"The first loss is not near {math.log(VOCABULARY):.2f}: {about}")


def ours(args: argparse.Namespace) -> None:
    sides.serve_training(
        _config(args), lambda: _batch(args.packed), ", packed" if args.packed else ""
    )


def _config(args: argparse.Namespace):
    """The config that `bigjax train` would get."""
    from bigjax import config

    c = config.new_config()
    c.model = dict(
        name="gpt",
        vocab_size=VOCABULARY,
        max_len=CONTEXT,
        d_model=WIDTH,
        n_layers=LAYERS,
        n_heads=HEADS,
        attention=args.attention,
        scan=not args.unrolled,
    )
    c.data = dict(name="text", seq_len=CONTEXT)
    sides.use_adamw(c, LEARNING_RATE, B1, B2, WEIGHT_DECAY, CLIP_NORM)
    c.train.batch_size = BATCH
    if args.devices:
        c.mesh.data = args.devices
    return c


def _batch(packed: bool) -> dict:
    """A batch as from bigjax.data; packed: documents of a hundred tokens."""
    import numpy as np

    batch = sides.text_batch(*sides.random_tokens(BATCH, CONTEXT, VOCABULARY))
    if packed:
        place = np.broadcast_to(np.arange(CONTEXT, dtype=np.int32), (BATCH, CONTEXT))
        batch |= {"segment_ids": place // 100 + 1, "positions": place % 100}
    return batch


def theirs() -> None:
    from bigjax import cpu  # imports no jax

    cpu.keep_freed_memory()  # as our side
    import torch
    from torch import nn
    import torch_gpt

    torch.manual_seed(0)
    model = torch_gpt.GPT(LAYERS, HEADS, WIDTH, CONTEXT, VOCABULARY)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=LEARNING_RATE, betas=(B1, B2), weight_decay=WEIGHT_DECAY
    )
    tokens = sides.random_tokens(BATCH, CONTEXT, VOCABULARY)
    inputs, targets = (torch.from_numpy(x.copy()) for x in tokens)

    def repeat(_: str) -> dict:
        optimizer.zero_grad(set_to_none=True)
        loss = torch_gpt.loss(model(inputs), targets)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
        optimizer.step()
        return {"loss": loss.item()}

    first = repeat("")["loss"]
    repeat("")
    sides.serve(
        {
            "parameters": sum(p.numel() for p in model.parameters()),
            "loss": first,
            "what": f"torch {torch.__version__}, {torch.get_num_threads()} threads",
        },
        repeat,
    )


if __name__ == "__main__":
    main()
