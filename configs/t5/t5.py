"""T5 in five sizes (:small, :base, :large, :3b, :11b) pre-trained as published, for a pod.

Text of your own is required. Measured on the full size: nothing. Expected by `bigjax plan`: :base
on v5e:2x4, 6.1 of 15.75 GiB, 0.114 seconds per step, MFU 30.3%; :11b on v5p:4x4x4, 49.0 of 95.7
GiB, 2.50 seconds per step, MFU 63.3%, or 57.6% if no communication overlaps with computation.
"""

# https://arxiv.org/abs/1910.10683: section 3.1 for the baseline of :base's size (2^19 steps of 128
# rows of 512 tokens), section 3.7 for the larger ones (a million steps of 2048 rows). Adafactor
# with the rate 1 / sqrt(max(step, 10^4)), times the root mean square of each parameter, and the
# z-loss of the authors' code. Dropout of 0.1, except of attention weights, which no kernel
# supports, and for the larger ones none at all, as the authors advise since version 1.1: text that
# is not repeated needs none, and random numbers for 65,536 activations per token and layer take a
# sixth of a step.

from bigjax import config

ROWS = {"small": 128, "base": 128, "large": 2048, "3b": 2048, "11b": 2048}


def get_config(variant=""):
    c = config.new_config()
    size = "base" if variant in ("", "tiny") else variant
    rows = config.variants(size, **ROWS, tiny=None)

    large = rows > 128
    c.model = dict(
        name="t5",
        preset=size,
        dropout=0.0 if large else 0.1,
        attention_dropout=0.0,
        mlp_dropout=0.0 if large else 0.1,
        dtype="bfloat16",
        remat="attention" if large else "none",
    )
    c.task = dict(name="span_corruption", z_loss=1e-4)
    c.data = dict(
        name="text",
        sources=dict(text=dict(kind="jsonl", path="set data.sources.text.path")),
        tokenizer=dict(
            kind="sentencepiece",
            path="set data.tokenizer.path",  # T5's spiece.model
            sentinels=100,
        ),
        seq_len=512,
        packing=False,  # windows run over documents
    )

    c.optim.name = "adafactor"
    c.optim.learning_rate = 0.01
    c.optim.schedule = "flat_rsqrt"
    c.optim.warmup_steps = 10_000
    c.optim.weight_decay = 0.0
    c.optim.clip_norm = 0.0

    c.train.steps = 2**20 if large else 2**19
    c.train.batch_size, c.train.accumulate = rows, 2 if large else 1

    c.mesh.data = 1
    c.mesh.fsdp = -1

    c.checkpoint.every = 5000
    c.log.every = 100
    c.evals = dict(valid=dict(kind="loss", every=5000, batches=20))

    if variant == "tiny":
        tokenizer = dict(kind="sentencepiece", vocab_size=2048, sentinels=100)
        config.laptop_size(c, tokenizer, vocab_size=2176, head_dim=16)
    return c
