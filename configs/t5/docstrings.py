"""T5 in small, from scratch: from the body of a docstring to its first line.

In three minutes on two cores: ROUGE-L 0.167 on 626 docstrings that were not trained on. The first
sentence of the body, taken as it is, has 0.151.
"""

from bigjax import config


def get_config(variant: str = ""):
    c = config.new_config()
    c.model = dict(
        name="t5",
        vocab_size=2048,
        max_len=64,
        d_model=128,
        n_layers=2,
        n_heads=4,
        d_ff=384,
        activation="geglu",
        dropout=0.0,
        attention_dropout=0.0,
        mlp_dropout=0.0,
    )
    c.task = dict(name="seq2seq")
    c.data = dict(
        name="text_to_text",
        train="docstrings:summary",
        tokenizer=dict(kind="sentencepiece", vocab_size=2048),
        seq_len=64,
        target_len=32,
        truncate=True,
        packing=False,  # most sources fill a row
        valid_fraction=0.02,
        test_fraction=0.05,
    )
    # T5's embeddings have a standard deviation of 1 and its kernels a small one: rates relative to
    # the size of each parameter, as Adafactor's are, suit both. With AdamW the model ignores the
    # source for thousands of steps.
    c.optim.name = "adafactor"
    c.optim.learning_rate, c.optim.warmup_steps, c.optim.weight_decay = 0.03, 100, 0.0
    c.optim.schedule, c.optim.clip_norm = "cosine", 0.0
    c.train.steps, c.train.batch_size = 2250, 16
    c.checkpoint.every, c.log.every = 1000, 100
    c.evals = dict(
        valid=dict(kind="loss", every=750),
        test=dict(kind="generation", split="test", metrics=("rouge",), every=2250),
    )
    if config.variants(variant, tiny=True):
        c.train.steps, c.log.every, c.optim.warmup_steps = 20, 10, 5
        c.evals = dict(valid=dict(kind="loss", every=10, batches=4))
    return c
