"""GPT-2 in four sizes (:124m, :355m, :774m, :1.5b), for a pod or GPUs.

Text of your own is required. Measured on the full size: nothing. `:tiny`, 20 steps on the
docstrings of installed packages: 6.94 bits per byte on validation from 7.99, 44 seconds of CPU
time.
"""

# Architecture, vocabulary, context and batch size as published (Radford et al. 2019); the paper
# does not give learning rates and the schedule: these are GPT-3's for the nearest size.

from bigjax import config

SIZES = {  # preset, learning rate
    "124m": ("gpt2-124m", 6e-4),
    "355m": ("gpt2-355m", 3e-4),
    "774m": ("gpt2-774m", 2.5e-4),
    "1.5b": ("gpt2-1.5b", 2e-4),
}


def get_config(variant=""):
    c = config.new_config()
    preset, learning_rate = config.variants(variant or "124m", **SIZES, tiny=SIZES["124m"])

    c.model = dict(
        name="gpt",
        preset=preset,
        dropout=0.1,
        dtype="bfloat16",
        remat="dots",
    )

    c.data = dict(
        name="text",
        sources=dict(text=dict(kind="jsonl", path="set data.sources.text.path")),
        tokenizer=dict(
            kind="bpe",
            path="set data.tokenizer.path",  # a folder with vocab.json and merges.txt
        ),
        seq_len=1024,
        packing=False,  # GPT-2 attends across documents
    )

    c.optim.name = "adamw"
    c.optim.learning_rate = learning_rate
    c.optim.schedule = "cosine"
    c.optim.warmup_steps = 2000
    c.optim.final_fraction = 0.1
    c.optim.b2 = 0.95
    c.optim.weight_decay = 0.1

    c.train.steps = 100_000
    c.train.batch_size = 512

    c.mesh.data = 1
    c.mesh.fsdp = -1

    c.checkpoint.every = 1000
    c.log.every = 50
    c.evals = dict(valid=dict(kind="loss", every=1000, batches=20))

    if variant == "tiny":
        config.laptop_size(c, dict(kind="bytes"), vocab_size=264, n_kv_heads=4)
    return c
