"""How fast GPT-2 124M trains on one GPU: bigjax against PyTorch, and against transformers.

    python benchmarks/train_gpu.py [--json] [--rounds 11] [--steps 5] [--accumulate N]
        [--unrolled] [--tiny]

GPT-2 124M with its vocabulary of 50,257, batch 32 x 1,024, no dropout. All sides compute in
bfloat16 and keep parameters and the moments of AdamW in float32; gradients are clipped to norm 1.
Speeds are tokens per second of complete training steps (forward, backward, clipping, update) on a
batch that is already on the GPU; a round is --steps of them, with one wait at its end.

`ours` is what `bigjax train` runs: its task, optimizer and step, with cuDNN's attention. `theirs`
is PyTorch: torch.compile, autocast, scaled_dot_product_attention by its flash kernel, fused AdamW.
`transformers` is GPT2LMHeadModel with attn_implementation="sdpa", trained in the same way. Each of
these two alternates with ours, one after the other, so that the memory of two sides is enough.
--accumulate splits the batch of every side into micro-batches, for a GPU with less memory.

The sides must have the same number of parameters and the same first loss. Beside the speeds it
prints the peak memory of each side, as its allocator counts it, and what `bigjax plan` says of
ours. --tiny has a tiny model, also without a GPU, and its speeds mean nothing. Needs
`pip install -e '.[bench]'`.
"""

import argparse
import json
import math
import os
from typing import NamedTuple

import sides

LEARNING_RATE, B1, B2, EPS, WEIGHT_DECAY, CLIP_NORM = 6e-4, 0.9, 0.95, 1e-8, 0.1, 1.0
PLANNED = "h100:1"


class Sizes(NamedTuple):
    layers: int
    heads: int
    width: int
    context: int
    vocabulary: int
    batch: int


GPT2 = Sizes(12, 12, 768, 1024, 50257, 32)
TINY = Sizes(2, 4, 64, 32, 97, 8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    parser.add_argument("--rounds", type=int, default=11, help="of each side")
    parser.add_argument("--steps", type=int, default=5, help="in a round")
    parser.add_argument("--accumulate", type=int, default=1, help="micro-batches of all sides")
    parser.add_argument("--unrolled", action="store_true", help="config.model.scan=False on ours")
    parser.add_argument("--tiny", action="store_true", help="a tiny model, also without a GPU")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        return SIDES[args.side](args)
    print(sides.load())
    result = {"name": "train_gpu", "unit": "tokens/s", "peak_bytes": {}}
    with sides.Side("ours") as our_side:
        _check([our_side.about], args)
        with sides.Side("plan") as side:
            planned = side.about
        for name in ("theirs", "transformers"):
            _compare(our_side, name, args, result)
    result["peak_bytes"]["plan"] = planned["peak_bytes"]
    print(f"bigjax plan says {_gib(planned['peak_bytes'])} for ours: {planned['what']}")
    if args.json:
        print(json.dumps(result))


def _compare(our_side: sides.Side, name: str, args: argparse.Namespace, result: dict) -> None:
    """Runs ours and another side in turns, prints both, and adds them to the result."""
    with sides.Side(name) as other:
        running = [other, our_side]
        _check([side.about for side in running], args)
        for side in running:
            print(f"{side.name:12s} {side.about['what']}")
        sides.take_turns(running, 2, str(args.steps))
        seconds = sides.take_turns(running, args.rounds, str(args.steps))
        peaks = {side.name: side("1")["peak_bytes"] for side in running}
    sizes, speed = _sizes(args), {}
    for side in seconds:
        speed[side], text = sides.speeds(args.steps * sizes.batch * sizes.context, seconds[side])
        print(f"{side:12s} {text} tokens/s, peak memory {_gib(peaks[side])}")
    ratio = speed["ours"] / speed[name]
    print(f"ratio of ours to {name}: {ratio:.3f}", flush=True)
    if name == "theirs":
        result |= {**speed, "ratio": ratio}
    else:
        result |= {name: speed[name], f"ratio_{name}": ratio}
    result["peak_bytes"] |= peaks


def _gib(n: float | None) -> str:
    return "not counted" if n is None else f"{n / 2**30:.2f} GiB"


def _check(abouts: list[dict], args: argparse.Namespace) -> None:
    """The sides must do the same work on the same kind of device."""
    if len({(about["device"] == "cpu", about["parameters"]) for about in abouts}) > 1:
        raise SystemExit(f"The devices or the models differ: {abouts}")
    guess = math.log(_sizes(args).vocabulary)  # the loss of an untrained model
    losses = [about["loss"] for about in abouts]
    near = all(abs(loss - guess) <= 0.5 for loss in losses)  # not for NaN
    if not near or max(losses) - min(losses) > 0.1:
        raise SystemExit(f"The first losses are not the same, or not near {guess:.2f}: {abouts}")


def _check_device(device: str, args: argparse.Namespace) -> None:
    """Before anything slow is done on it."""
    if device == "cpu" and not args.tiny:
        raise SystemExit("A side finds no GPU. --tiny runs a tiny model without one.")


def _sizes(args: argparse.Namespace) -> Sizes:
    return TINY if args.tiny else GPT2


def _tokens(sizes: Sizes) -> tuple:
    return sides.random_tokens(sizes.batch, sizes.context, sizes.vocabulary)


# --- bigjax ------------------------------------------------------------------------------------


def _config(args: argparse.Namespace):
    """The config that `bigjax train` would get."""
    from bigjax import config

    sizes, c = _sizes(args), config.new_config()
    c.model = dict(
        name="gpt",
        vocab_size=sizes.vocabulary,
        max_len=sizes.context,
        d_model=sizes.width,
        n_layers=sizes.layers,
        n_heads=sizes.heads,
        dtype="bfloat16",
        scan=not args.unrolled,
    )
    c.data = dict(name="text", seq_len=sizes.context, packing=False)
    sides.use_adamw(c, LEARNING_RATE, B1, B2, WEIGHT_DECAY, CLIP_NORM)
    c.optim.eps = EPS
    c.train.batch_size, c.train.accumulate = sizes.batch, args.accumulate
    c.mesh.data = 1
    return c


def ours(args: argparse.Namespace) -> None:
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # the other side is on the same GPU
    import jax

    _check_device(jax.default_backend(), args)
    sides.serve_training(_config(args), lambda: sides.text_batch(*_tokens(_sizes(args))), "")


def plan(args: argparse.Namespace) -> None:
    """Reports the memory of our step by `bigjax plan`, or why there is no plan."""
    from bigjax.plan import chips

    chips.before_jax()
    from bigjax import modules
    from bigjax.errors import RunError, UserError
    from bigjax.plan import compile as compile_lib

    c = _config(args)
    modules.fill(c)
    try:
        (made,) = compile_lib.plans(c, PLANNED)
        about = {"peak_bytes": made.peak_bytes, "what": f"for {PLANNED}"}
    except (RunError, UserError) as e:
        about = {"peak_bytes": None, "what": f"no plan: {e}"}
    sides.serve(about, lambda _: None)


# --- PyTorch -----------------------------------------------------------------------------------


def theirs(args: argparse.Namespace) -> None:
    import torch
    import torch_gpt

    sizes = _sizes(args)
    model = torch_gpt.GPT(sizes.layers, sizes.heads, sizes.width, sizes.context, sizes.vocabulary)
    flash = lambda: torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.FLASH_ATTENTION)
    _serve_torch(args, model, model, flash, "flash attention")


def transformers(args: argparse.Namespace) -> None:
    import contextlib

    import transformers as library

    sizes = _sizes(args)
    config = library.GPT2Config(
        vocab_size=sizes.vocabulary,
        n_positions=sizes.context,
        n_embd=sizes.width,
        n_layer=sizes.layers,
        n_head=sizes.heads,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        use_cache=False,
        attn_implementation="sdpa",
    )
    model = library.GPT2LMHeadModel(config).train()
    logits = lambda tokens: model(input_ids=tokens).logits
    what = f"transformers {library.__version__}, sdpa"
    _serve_torch(args, model, logits, contextlib.nullcontext, what)


def _serve_torch(args: argparse.Namespace, model, logits, attention, what: str) -> None:
    """Trains a PyTorch model. logits(tokens), by the model; attention(): a context that selects the
    kernel."""
    import torch
    import torch_gpt

    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    _check_device(device, args)
    model = model.to(device)
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=LEARNING_RATE,
        betas=(B1, B2),
        eps=EPS,
        weight_decay=WEIGHT_DECAY,
        fused=True,
    )
    loss_of = torch.compile(lambda x, y: torch_gpt.loss(logits(x), y))
    inputs, targets = (
        torch.from_numpy(x.copy()).to(device).chunk(args.accumulate) for x in _tokens(_sizes(args))
    )

    def step():
        total = torch.zeros((), device=device)
        for x, y in zip(inputs, targets):
            with attention(), torch.autocast(device, torch.bfloat16):
                loss = loss_of(x, y) / args.accumulate
            loss.backward()
            total += loss.detach()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return total

    def repeat(task: str) -> dict:
        for _ in range(int(task or 1)):
            loss = step()
        on_gpu = device == "cuda"
        return {
            "loss": loss.item(),  # waits for the device
            "peak_bytes": torch.cuda.max_memory_allocated() if on_gpu else None,
        }

    first = repeat("")["loss"]
    repeat("")
    name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    sides.serve(
        {
            "parameters": sum(p.numel() for p in model.parameters()),
            "loss": first,
            "device": name,
            "what": f"torch {torch.__version__}, {name}, torch.compile, {what}",
        },
        repeat,
    )


SIDES = {"ours": ours, "theirs": theirs, "transformers": transformers, "plan": plan}

if __name__ == "__main__":
    main()
