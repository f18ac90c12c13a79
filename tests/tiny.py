"""A run of seconds on a text file, for tests: set data.sources.text.path."""

from bigjax import config


def get_config(variant=""):
    c = config.new_config()
    c.model = dict(
        name="gpt", vocab_size=264, max_len=64, d_model=32, n_layers=2, n_heads=4, dropout=0.1
    )
    c.data = dict(
        name="text",
        sources=dict(text=dict(kind="text", path="set me")),
        tokenizer=dict(kind="bytes"),
        seq_len=32,
        valid_fraction=0.1,
        test_fraction=0.1,
    )
    c.optim.learning_rate = 1e-2
    c.optim.warmup_steps = 2
    c.optim.weight_decay = 0.1
    c.train.steps = 40
    c.train.batch_size = 8
    c.checkpoint.every = 10
    c.log.every = 5
    c.log.tensorboard = False
    c.evals = dict(
        valid=dict(kind="loss", every=10, batches=2),
        zest=dict(kind="loss", split="test", every=10, batches=1),
    )
    return c
