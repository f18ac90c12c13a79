"""Llama 2 in two sizes (:7b, :70b) with the published recipe, for a pod.

Text of your own is required. Measured on the full size: nothing. `:tiny`, 20 steps on the
docstrings of installed packages: 7.41 bits per byte on validation from 8.07, 34 seconds of CPU
time.
"""

# https://arxiv.org/abs/2307.09288, section 2.2: 2 trillion tokens in batches of 4 million.

from bigjax import config

SIZES = {  # learning rate, tensor parallelism
    "7b": (3e-4, 1),
    "70b": (1.5e-4, 8),
}


def get_config(variant=""):
    c = config.new_config()
    size = "7b" if variant in ("", "tiny") else variant
    learning_rate, tensor = config.variants(size, **SIZES, tiny=None)

    c.model = dict(
        name="gpt",
        preset=f"llama2-{size}",
        dtype="bfloat16",
        remat="full",
    )

    c.data = dict(
        name="text",
        sources=dict(text=dict(kind="jsonl", path="set data.sources.text.path")),
        tokenizer=dict(
            kind="sentencepiece",
            path="set data.tokenizer.path",  # a .model file of 32,000 pieces
            vocab_size=32000,
        ),
        seq_len=4096,
        packing=False,
    )

    c.optim.name = "adamw"
    c.optim.learning_rate = learning_rate
    c.optim.schedule = "cosine"
    c.optim.warmup_steps = 2000
    c.optim.final_fraction = 0.1
    c.optim.b2 = 0.95
    c.optim.eps = 1e-5
    c.optim.weight_decay = 0.1
    c.optim.clip_norm = 1.0

    c.train.batch_size = 1024
    c.train.steps = 480_000

    c.mesh.data = 1
    c.mesh.fsdp = -1
    c.mesh.tensor = tensor

    c.checkpoint.every = 1000
    c.log.every = 50
    c.evals = dict(valid=dict(kind="loss", every=1000, batches=20))

    if variant == "tiny":
        config.laptop_size(c, dict(kind="bytes"), vocab_size=264, n_kv_heads=4)
    return c
