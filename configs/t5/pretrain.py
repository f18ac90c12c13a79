"""T5 in small, pre-trained by span corruption on docstrings: three minutes on two cores.

After 1,500 steps eval/valid/loss is 3.85 nats per token of the hidden spans, from 8.55, and 33% of
these tokens are right.
"""

from bigjax import config


def get_config(variant: str = ""):
    c = config.new_config()
    c.model = dict(
        name="t5",
        vocab_size=2176,  # 2,048 pieces, 100 sentinels, rounded up to a multiple of 128
        max_len=128,
        d_model=128,
        n_layers=2,
        n_heads=4,
        d_ff=384,
        activation="geglu",
        dropout=0.0,
        attention_dropout=0.0,
        mlp_dropout=0.0,
    )
    c.task = dict(name="span_corruption", edges="uniform")
    c.data = dict(
        name="text",
        sources=dict(docstrings=dict(kind="docstrings")),
        tokenizer=dict(kind="sentencepiece", vocab_size=2048, sentinels=100),
        seq_len=128,
        packing=False,  # windows run over documents
    )
    c.optim.name = "adafactor"  # for the rates of docstrings.py
    c.optim.learning_rate, c.optim.warmup_steps, c.optim.weight_decay = 0.03, 100, 0.0
    c.optim.schedule, c.optim.clip_norm = "cosine", 0.0
    c.train.steps, c.train.batch_size = 1500, 16
    c.checkpoint.every, c.log.every = 750, 100
    c.evals = dict(valid=dict(kind="loss", every=500, batches=20))
    if config.variants(variant, tiny=True):
        c.train.steps, c.log.every, c.optim.warmup_steps = 20, 10, 5
        c.evals = dict(valid=dict(kind="loss", every=10, batches=4))
    return c
