"""GPT-3 in eight sizes (:125m ... :175b) with the published recipe, for a pod.

Text of your own is required. Measured on the full size: nothing. Expected by `bigjax plan` for the
smallest slice of v5p that fits, with the published batch in micro-batches of four rows and full
rematerialisation: :125m on one chip, 3.1 GiB, 2.5 seconds per step, MFU 38.7%; :1.3b on one chip,
28.2 GiB, 29.7 seconds, MFU 65.2%; :13b on v5p:2x2x1, 70.4 GiB, 130 seconds, MFU 70.1%; :175b on
v5p:4x4x4, 80.3 of 95.7 GiB, 151 seconds, MFU 75.3%. `:tiny`, 20 steps on the docstrings of
installed packages: 6.94 bits per byte on validation from 7.99, 41 seconds of CPU time.
"""

# https://arxiv.org/abs/2005.14165, table 2.1 and appendix B. Every layer has dense attention; the
# paper alternates dense and banded layers. The paper's batch grows at first; here it is constant.

from bigjax import config

CONTEXT = 2048
TOKENS = 300e9
SIZES = {  # learning rate, tokens per batch, tensor parallelism
    "125m": (6.0e-4, 0.5e6, 1),
    "350m": (3.0e-4, 0.5e6, 1),
    "760m": (2.5e-4, 0.5e6, 1),
    "1.3b": (2.0e-4, 1e6, 1),
    "2.7b": (1.6e-4, 1e6, 1),
    "6.7b": (1.2e-4, 2e6, 1),
    "13b": (1.0e-4, 2e6, 1),
    "175b": (0.6e-4, 3.2e6, 8),
}


def get_config(variant=""):
    c = config.new_config()
    size = "125m" if variant in ("", "tiny") else variant
    learning_rate, batch_tokens, tensor = config.variants(size, **SIZES, tiny=None)

    c.model = dict(
        name="gpt",
        preset=f"gpt3-{size}",
        vocab_size=50304,  # the 50,257 of GPT-2, padded to divide over devices
        dtype="bfloat16",
        remat="full" if tensor > 1 else "dots",
    )

    c.data = dict(
        name="text",
        sources=dict(text=dict(kind="jsonl", path="set data.sources.text.path")),
        tokenizer=dict(
            kind="bpe",
            path="set data.tokenizer.path",  # a folder with vocab.json and merges.txt
        ),
        seq_len=CONTEXT,
        packing=False,  # as published: documents follow each other without a mask
    )

    c.train.batch_size = round(batch_tokens / CONTEXT / 256) * 256
    tokens = c.train.batch_size * CONTEXT
    c.train.steps = round(TOKENS / tokens)

    c.optim.name = "adamw"
    c.optim.learning_rate = learning_rate
    c.optim.schedule = "cosine"  # the paper reaches 10% after 260 of 300 billion tokens
    c.optim.warmup_steps = round(375e6 / tokens)
    c.optim.final_fraction = 0.1
    c.optim.b2 = 0.95
    c.optim.eps = 1e-8
    c.optim.weight_decay = 0.1
    c.optim.clip_norm = 1.0

    c.mesh.data = 1
    c.mesh.fsdp = -1
    c.mesh.tensor = tensor

    c.checkpoint.every = 1000
    c.log.every = 50
    c.evals = dict(valid=dict(kind="loss", every=1000, batches=20))

    if variant == "tiny":
        config.laptop_size(c, dict(kind="bytes"), vocab_size=264, n_kv_heads=4)
    return c
