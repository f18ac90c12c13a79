"""A small encoder for tests: pre-training on a text file, or a labelled task on a table."""

from bigjax import config


def get_config(variant=""):
    c = config.new_config()
    c.model = dict(
        name="bert", vocab_size=160, max_len=64, d_model=32, n_layers=2, n_heads=4, dropout=0.1
    )
    c.task = dict(name="mlm_nsp", max_predictions=6)
    c.data = dict(
        name="text",
        sources=dict(text=dict(kind="text", path="set me")),
        tokenizer=dict(kind="wordpiece", vocab_size=110),
        seq_len=32,
        valid_fraction=0.2,
        test_fraction=0.1,
    )
    c.optim.learning_rate = 5e-3
    c.optim.warmup_steps = 2
    c.optim.weight_decay = 0.01
    c.train.steps = 30
    c.train.batch_size = 8
    c.checkpoint.every = 10
    c.log.every = 5
    c.log.tensorboard = False
    c.evals = dict(valid=dict(kind="loss", every=15))
    task = config.variants(variant, labelled="classify", tag="tag", answer="answer")
    if task:
        c.task = dict(name=task)
        c.data.name = "labelled"
        del c.data.sources
        c.evals = dict(valid=dict(kind="metrics", every=15))
    return c
