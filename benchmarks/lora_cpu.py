"""How fast LoRA tunes GPT-2 on this machine's CPU: bigjax against peft on PyTorch.

    python benchmarks/lora_cpu.py [--json] [--rounds 5] [--devices N] [--rank 8]

The shapes of GPT-2 124M, rows of 128 tokens, batch 4, float32, no dropout; factors of rank 8 on
queries and values (for peft on c_attn, which holds both and the keys), AdamW, gradients clipped to
norm 1. Speeds are tokens per second of complete training steps (forward, backward, clipping,
update) on a batch that is already in memory.

Three sides: `theirs` is transformers' GPT2LMHeadModel under peft on eager PyTorch with
torch.optim.AdamW and PyTorch's own number of threads. `ours` is what `bigjax train` runs with
config.peft, and `full` the same without it, where every parameter is trained. `step` is the time
of a step of `ours` over that of `full`; `state` the bytes of parameters, gradients and optimizer
state over those of `full`, and `checkpoint` those of what is saved.

All sides start with the allocator's settings of bigjax/cpu.py. Needs `pip install -e '.[bench]'`
and peft.
"""

import argparse
import json
import statistics

import sides

LENGTH, BATCH, VOCABULARY = 128, 4, 50_257
LEARNING_RATE, B1, B2, WEIGHT_DECAY, CLIP_NORM = 1e-4, 0.9, 0.999, 0.0, 1.0
BARS = {
    "ratio": (">=", 1.2),
    "step": ("<=", 0.75),
    "state": ("<=", 0.05),
    "checkpoint": ("<=", 0.02),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    parser.add_argument("--rounds", type=int, default=5, help="steps of each side")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument(
        "--devices",
        type=int,
        default=0,
        help="virtual CPU devices of ours (default: as `bigjax train` chooses)",
    )
    parser.add_argument("--side", choices=("ours", "full", "theirs"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        return theirs(args) if args.side == "theirs" else ours(args)
    print(sides.load())
    with (
        sides.Side("theirs") as their_side,
        sides.Side("full") as full_side,
        sides.Side("ours") as our_side,
    ):
        running = [their_side, full_side, our_side]
        for side in running:
            print(f"{side.name:8s} {side.about['what']}, {side.about['parameters']:,} trained")
        sides.take_turns(running, 1)  # allocators need a few steps to warm up
        seconds = sides.take_turns(running, args.rounds, warm=True)
        _report(seconds, our_side.about, full_side.about, args.json)


def _report(seconds: dict[str, list[float]], own: dict, full: dict, as_json: bool) -> None:
    speed = {}
    for name in seconds:
        speed[name], text = sides.speeds(BATCH * LENGTH, seconds[name])
        print(f"{name:8s} {text} tokens/s")
    median = {name: statistics.median(x) for name, x in seconds.items()}
    result = {
        "name": "lora_cpu",
        "ours": speed["ours"],
        "theirs": speed["theirs"],
        "ratio": speed["ours"] / speed["theirs"],
        "unit": "tokens/s",
        "step": median["ours"] / median["full"],
        "state": own["trained_bytes"] / full["trained_bytes"],
        "checkpoint": own["saved_bytes"] / full["saved_bytes"],
    }
    for name, (sign, bar) in BARS.items():
        print(f"{name} {result[name]:.4f} (bar {sign} {bar})")
    if as_json:
        print(json.dumps(result))


def ours(args: argparse.Namespace) -> None:
    from bigjax import config

    c = config.new_config()
    c.model = dict(name="gpt", preset="gpt2-124m")
    c.data = dict(name="text", seq_len=LENGTH, packing=False)
    sides.use_adamw(c, LEARNING_RATE, B1, B2, WEIGHT_DECAY, CLIP_NORM)
    c.train.batch_size = BATCH
    what = ", every parameter"
    if args.side == "ours":
        c.peft = dict(name="lora", base="random", rank=args.rank)
        what = f", LoRA of rank {args.rank}"
    if args.devices:
        c.mesh.data = args.devices
    sides.serve_training(
        c, lambda: sides.text_batch(*sides.random_tokens(BATCH, LENGTH, VOCABULARY)), what
    )


def theirs(args: argparse.Namespace) -> None:
    from bigjax import cpu  # imports no jax

    cpu.keep_freed_memory()  # as our side
    import peft
    import torch
    import transformers

    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    )
    options = dict(target_modules=["c_attn"], fan_in_fan_out=True, task_type="CAUSAL_LM")
    model = peft.get_peft_model(model, peft.LoraConfig(r=args.rank, lora_alpha=16, **options))
    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        trained, lr=LEARNING_RATE, betas=(B1, B2), weight_decay=WEIGHT_DECAY
    )
    tokens, targets = sides.random_tokens(BATCH, LENGTH, VOCABULARY)
    tokens, targets = torch.from_numpy(tokens.copy()), torch.from_numpy(targets.copy())

    def repeat(_: str) -> dict:
        optimizer.zero_grad(set_to_none=True)
        logits = model(input_ids=tokens).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, CLIP_NORM)
        optimizer.step()
        return {"loss": loss.item()}

    repeat("")
    repeat("")
    sides.serve(
        {
            "parameters": sum(p.numel() for p in trained),
            "what": f"peft {peft.__version__}, transformers {transformers.__version__}, "
            f"torch {torch.__version__}, {torch.get_num_threads()} threads",
        },
        repeat,
    )


if __name__ == "__main__":
    main()
