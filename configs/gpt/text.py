"""A byte-level GPT on your own text.

Set --config.data.sources.text.path=FILE_OR_GLOB. What it reaches depends on the text. `:tiny`, 20
steps on the docstrings of installed packages: 6.43 bits per byte on validation from 7.99, 38
seconds of CPU time.
"""

from bigjax import config


def get_config(variant=""):
    c = config.new_config()

    c.model = dict(
        name="gpt",
        vocab_size=264,  # bytes and special tokens
        max_len=256,
        d_model=384,
        n_layers=6,
        n_heads=6,
        dropout=0.1,
        scan=False,  # few layers: unrolled is faster on a CPU
    )

    c.data = dict(
        name="text",
        sources=dict(text=dict(kind="text", path="set data.sources.text.path")),
        tokenizer=dict(kind="bytes"),
        seq_len=256,
        valid_fraction=0.05,
        test_fraction=0.05,
    )

    c.optim.name = "adamw"
    c.optim.learning_rate = 1e-3
    c.optim.schedule = "cosine"
    c.optim.warmup_steps = 100
    c.optim.final_fraction = 0.1
    c.optim.b2 = 0.99
    c.optim.weight_decay = 0.1

    c.train.steps = 2000
    c.train.batch_size = 32
    c.train.early_stop.metric = "eval/valid/loss"
    c.train.early_stop.patience = 5

    c.checkpoint.every = 200
    c.checkpoint.best = "eval/valid/loss"
    c.log.every = 10
    c.evals = dict(
        valid=dict(kind="loss", every=200),
        sample=dict(kind="sample", every=1000, max_new_tokens=200),
    )

    if config.variants(variant, tiny=True):
        config.laptop_size(c, dict(kind="bytes"), vocab_size=264, n_kv_heads=4)
    return c
