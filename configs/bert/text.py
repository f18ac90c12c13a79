"""A small BERT pre-trained on your own text: half an hour on two CPU cores.

Single sentences of up to 64 tokens. Set data.sources.text.path to files or a glob, or set another
source. What it reaches depends on the text. `:tiny`, 20 steps on the docstrings of installed
packages: validation loss 6.91 nats per masked token from 7.60, 36 seconds of CPU time.
"""

from bigjax import config


def get_config(variant=""):
    c = config.new_config()

    c.model = dict(
        name="bert",
        preset="tiny",
        vocab_size=8192,
        max_len=128,
        dropout=0.0,  # a few epochs of a small model: no overfitting
        attention_dropout=0.0,
        scan=False,  # few layers: unrolled is faster on a CPU
    )
    c.task = dict(name="mlm_nsp", pairs="none", max_predictions=10)

    c.data = dict(
        name="text",
        sources=dict(text=dict(kind="text", path="set data.sources.text.path")),
        tokenizer=dict(kind="wordpiece", vocab_size=8192),
        seq_len=64,
    )

    c.optim.name = "adamw"
    c.optim.learning_rate = 2e-3
    c.optim.schedule = "linear"
    c.optim.warmup_steps = 500
    c.optim.b2 = 0.99
    c.optim.weight_decay = 0.01

    c.train.steps = 20000
    c.train.batch_size = 32

    c.checkpoint.every = 1000
    c.log.every = 100
    c.evals = dict(valid=dict(kind="loss", every=2000, batches=20))

    if config.variants(variant, tiny=True):  # under a minute, on docstrings
        config.laptop_size(c, dict(kind="wordpiece", vocab_size=2048), vocab_size=2048)
        c.task.max_predictions = 8
    return c
