"""A language model of letters, on a column of a CSV file: set data.sources.poems.path."""

from bigjax import config


def get_config(variant=""):
    c = config.new_config()
    c.model = dict(name="gpt", vocab_size=64, max_len=32, d_model=32, n_layers=2, n_heads=2)
    c.data = dict(
        name="text",
        sources=dict(poems=dict(kind="my_lab.poems.Column", path="set me", column="line")),
        tokenizer=dict(kind="my_lab.poems.Letters", size=40),
        seq_len=32,
        valid_fraction=0.1,
    )
    c.evals = dict(valid=dict(kind="loss", every=20, batches=2))
    c.optim.learning_rate = 1e-2
    c.train.steps, c.train.batch_size = 40, 8
    c.checkpoint.every, c.log.every, c.log.tensorboard = 10, 5, False
    return c
