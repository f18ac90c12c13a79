"""A run of seconds on a text file, for tests: set data.sources.text.path."""

from bigjax import config


def get_config(variant=""):
    c = config.new_config()
    c.model = dict(
        name="gpt", vocab_size=264, max_len=64, d_model=32, n_layers=2, n_heads=4, dropout=0.1
    )
    c.data.sources = dict(text=config.text_source("text", "set me"))
    c.data.tokenizer.kind = "bytes"
    c.data.seq_len = 32
    c.data.valid_fraction = 0.1
    c.data.test_fraction = 0.1
    c.optim.learning_rate = 1e-2
    c.optim.warmup_steps = 2
    c.optim.weight_decay = 0.1
    c.train.steps = 40
    c.train.batch_size = 8
    c.checkpoint.every = 10
    c.log.every = 5
    c.log.tensorboard = False
    c.evals = dict(
        valid=config.evaluation("loss", every=10, batches=2),
        zest=config.evaluation("loss", split="test", every=10, batches=1),
    )
    return c
