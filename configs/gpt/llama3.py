"""Llama 3 in two sizes (:8b, :70b) with the published recipe, for a pod.

Text of your own is required. Measured on the full size: nothing. `:tiny`, 20 steps on the
docstrings of installed packages: 7.45 bits per byte on validation from 8.06, 16 seconds of CPU
time.
"""

# https://arxiv.org/abs/2407.21783, section 3.4 and table 3: 15 trillion tokens, rows of 8,192. The
# batch grows from 4 to 16 million tokens; here it is constant, the 8 million of the second phase.

from bigjax import config

SIZES = {  # learning rate, tensor parallelism
    "8b": (3e-4, 1),
    "70b": (1.5e-4, 8),
}


def get_config(variant=""):
    c = config.new_config()
    size = "8b" if variant in ("", "tiny") else variant
    learning_rate, tensor = config.variants(size, **SIZES, tiny=None)

    c.model = dict(
        name="gpt",
        preset=f"llama3-{size}",
        dtype="bfloat16",
        remat="full",
    )

    c.data = dict(
        name="text",
        sources=dict(text=dict(kind="jsonl", path="set data.sources.text.path")),
        tokenizer=dict(
            kind="tokenizer_json",
            path="set data.tokenizer.path",  # a folder with tokenizer.json, as published
            vocab_size=128256,
        ),
        seq_len=8192,
        packing=True,  # documents of a row do not attend to each other, as published
    )

    c.optim.name = "adamw"
    c.optim.learning_rate = learning_rate
    c.optim.schedule = "cosine"
    c.optim.warmup_steps = 8000
    c.optim.final_fraction = 0.01
    c.optim.b2 = 0.95
    c.optim.weight_decay = 0.1
    c.optim.clip_norm = 1.0

    c.train.batch_size = 1024
    c.train.steps = 1_800_000

    c.mesh.data = 1
    c.mesh.fsdp = -1
    c.mesh.tensor = tensor

    c.checkpoint.every = 1000
    c.log.every = 50
    c.evals = dict(valid=dict(kind="loss", every=1000, batches=20))

    if variant == "tiny":
        config.laptop_size(c, dict(kind="bytes"), vocab_size=264, n_kv_heads=2)
    return c
