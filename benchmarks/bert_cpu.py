"""How fast BERT pre-trains on this machine's CPU: bigjax against transformers on PyTorch.

    python benchmarks/bert_cpu.py [--json] [--rounds 7] [--devices N] [--unrolled | --scan]
        [--attention auto|einsum|blocked]

The shapes of BERT-small: 4 layers, 8 heads, width 512, 30,522 tokens; sequences of 128, batch 32,
float32, no dropout; AdamW, gradients clipped to norm 1. The loss is that of masked tokens, 20 in
each row (15%), and of the next sentence. Both have the same number of parameters, which is
checked. Speeds are tokens per second of complete training steps (forward, backward, clipping,
update) on a batch that is already in memory.

Three sides: `theirs` is transformers' BertForPreTraining on eager PyTorch with torch.optim.AdamW,
clip_grad_norm_ and PyTorch's own number of threads; it computes the logits of every position,
which is its only way. `ours` is what `bigjax train` runs: the task mlm_nsp, which computes the
logits of masked positions only. `ours_all` is the same with the logits of every position. `ratio`
is that of `ours`, `ratio_all_positions` that of `ours_all`.

All get a mask of padding (there is none), and the allocator's settings of bigjax/cpu.py. Needs
`pip install -e '.[bench]'`.
"""

import argparse
import json
import math

import sides

LAYERS, HEADS, WIDTH, LENGTH, BATCH, VOCABULARY, POSITIONS = 4, 8, 512, 128, 32, 30_522, 512
MASKED = 20  # per row
LEARNING_RATE, B1, B2, WEIGHT_DECAY, CLIP_NORM = 1e-4, 0.9, 0.999, 0.01, 1.0
BARS = {"ratio": 1.4, "ratio_all_positions": 0.95}


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
    parser.add_argument("--attention", default="auto", help="config.model.attention of ours")
    layers = parser.add_mutually_exclusive_group()
    layers.add_argument("--unrolled", action="store_true", help="config.model.scan=False on ours")
    layers.add_argument(
        "--scan",
        dest="unrolled",
        action="store_false",
        help="config.model.scan=True on ours (the default)",
    )
    parser.add_argument("--side", choices=("ours", "ours_all", "theirs"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        return theirs() if args.side == "theirs" else ours(args)
    print(sides.load())
    with (
        sides.Side("theirs") as their_side,
        sides.Side("ours_all") as all_side,
        sides.Side("ours") as our_side,
    ):
        running = [their_side, all_side, our_side]
        _check([side.about for side in running])
        for side in running:
            print(f"{side.name:8s} {side.about['what']}")
        sides.take_turns(running, 1)  # allocators need a few steps to warm up
        seconds = sides.take_turns(running, args.rounds, warm=True)
    _report(seconds, args.json)


def _report(seconds: dict[str, list[float]], as_json: bool) -> None:
    speed = {}
    for name in seconds:
        speed[name], text = sides.speeds(BATCH * LENGTH, seconds[name])
        print(f"{name:8s} {text} tokens/s")
    result = {
        "name": "bert_cpu",
        "ours": speed["ours"],
        "theirs": speed["theirs"],
        "ratio": speed["ours"] / speed["theirs"],
        "unit": "tokens/s",
        "ratio_all_positions": speed["ours_all"] / speed["theirs"],
    }
    for name, bar in BARS.items():
        print(f"{name} {result[name]:.3f} (bar {bar})")
    if as_json:
        print(json.dumps(result))


def _check(abouts: list[dict]) -> None:
    """All sides must do the same work."""
    if len({about["parameters"] for about in abouts}) > 1:
        raise SystemExit(f"The models differ: {abouts}")
    guess = math.log(VOCABULARY) + math.log(2)
    for about in abouts:  # the loss of an untrained model is that of guessing
        if abs(about["loss"] - guess) > 0.5:
            raise SystemExit(f"The first loss is not near {guess:.2f}: {about}")


def _examples():
    """Random tokens and what was masked, tokens and types [BATCH, LENGTH], columns and targets
    [BATCH, MASKED], next_label [BATCH]: the speed does not depend on them."""
    import numpy as np

    rng = np.random.default_rng(0)
    tokens = rng.integers(0, VOCABULARY, (BATCH, LENGTH))
    types = np.broadcast_to(np.arange(LENGTH) >= LENGTH // 2, tokens.shape).astype(np.int64)
    columns = np.sort(rng.permuted(np.tile(np.arange(1, LENGTH), (BATCH, 1)), axis=1)[:, :MASKED])
    return (
        tokens,
        types,
        columns,
        rng.integers(0, VOCABULARY, (BATCH, MASKED)),
        rng.integers(0, 2, BATCH),
    )


def ours(args: argparse.Namespace) -> None:
    everywhere = args.side == "ours_all"
    sides.serve_training(
        _config(args),
        lambda: _batch(everywhere),
        f", logits {'everywhere' if everywhere else 'of masked tokens'}",
    )


def _config(args: argparse.Namespace):
    """The config that `bigjax train` would get."""
    from bigjax import config

    c = config.new_config()
    c.model = dict(
        name="bert",
        vocab_size=VOCABULARY,
        max_len=POSITIONS,
        d_model=WIDTH,
        n_layers=LAYERS,
        n_heads=HEADS,
        dropout=0.0,
        attention_dropout=0.0,
        attention=args.attention,
        scan=not args.unrolled,
    )
    c.task = dict(name="mlm_nsp", max_predictions=MASKED)
    c.data = dict(name="text", seq_len=LENGTH)
    sides.use_adamw(c, LEARNING_RATE, B1, B2, WEIGHT_DECAY, CLIP_NORM)
    c.train.batch_size = BATCH
    if args.devices:
        c.mesh.data = args.devices
    return c


def _batch(everywhere: bool) -> dict:
    """A batch as from bigjax.data; everywhere: without masked positions."""
    import numpy as np

    tokens, types, columns, targets, next_label = _examples()
    weights = np.ones((BATCH, MASKED), np.float32)
    batch = {"masked_positions": columns.astype(np.int32)}
    if everywhere:
        targets, weights = _spread(columns, targets, 0), _spread(columns, weights, 0)
        batch = {"masked_positions": None}
    return batch | {
        "tokens": tokens.astype(np.int32),
        "types": types.astype(np.int32),
        "segment_ids": np.ones((BATCH, LENGTH), np.int32),
        "targets": targets.astype(np.int32),
        "weights": weights,
        "next_label": next_label.astype(np.int32)[:, None],
        "next_weight": np.ones((BATCH, 1), np.float32),
    }


def _spread(columns, values, rest):
    """values [BATCH, MASKED] at their columns of [BATCH, LENGTH], `rest` elsewhere."""
    import numpy as np

    out = np.full((BATCH, LENGTH), rest, values.dtype)
    np.put_along_axis(out, columns, values, axis=1)
    return out


def theirs() -> None:
    from bigjax import cpu  # imports no jax

    cpu.keep_freed_memory()  # as our side
    import torch
    import transformers

    torch.manual_seed(0)
    model = transformers.BertForPreTraining(
        transformers.BertConfig(
            vocab_size=VOCABULARY,
            max_position_embeddings=POSITIONS,
            hidden_size=WIDTH,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            intermediate_size=4 * WIDTH,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
    ).train()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=LEARNING_RATE, betas=(B1, B2), weight_decay=WEIGHT_DECAY
    )
    tokens, types, columns, targets, next_label = _examples()
    inputs = {
        "input_ids": tokens,
        "token_type_ids": types,
        "attention_mask": tokens * 0 + 1,
        "labels": _spread(columns, targets, -100),
        "next_sentence_label": next_label,
    }
    inputs = {name: torch.from_numpy(x) for name, x in inputs.items()}

    def repeat(_: str) -> dict:
        optimizer.zero_grad(set_to_none=True)
        loss = model(**inputs).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
        optimizer.step()
        return {"loss": loss.item()}

    first = repeat("")["loss"]
    repeat("")
    sides.serve(
        {
            "parameters": sum(p.numel() for p in model.parameters()),
            "loss": first,
            "what": f"transformers {transformers.__version__}, torch {torch.__version__}, "
            f"{model.config._attn_implementation} attention, "
            f"{torch.get_num_threads()} threads",
        },
        repeat,
    )


if __name__ == "__main__":
    main()
