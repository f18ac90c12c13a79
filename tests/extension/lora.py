"""Trains the added parameters of a GPT: set init_from and data.sources.text.path."""

from bigjax import config


def get_config(variant=""):
    c = config.new_config()
    sizes = dict(vocab_size=264, max_len=256, d_model=64, n_layers=2, n_heads=2)  # the teacher's
    c.model = dict(name="my_lab.lora", **sizes, rank=4)
    c.task = dict(name="causal_lm")
    c.data = dict(
        name="text",
        sources=dict(text=dict(kind="text", path="set me")),
        tokenizer=dict(kind="bytes"),
        seq_len=32,
        valid_fraction=0.1,
    )
    c.evals = dict(valid=dict(kind="loss", every=20, batches=2))
    c.optim.freeze = "^(?!.*lora_)"  # all but the added parameters
    c.optim.learning_rate = 1e-2
    c.train.steps, c.train.batch_size = 40, 8
    c.checkpoint.every, c.log.every, c.log.tensorboard = 10, 5, False
    return c
