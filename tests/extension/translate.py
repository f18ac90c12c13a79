"""Translates text to text with an encoder-decoder: set data.path."""

from bigjax import config


def get_config(variant=""):
    c = config.new_config()
    c.model = dict(name="my_lab.translate")
    c.task = dict(name="my_lab.translate.Translate")
    c.data = dict(name="my_lab.translate.Pairs", path="set me")
    c.evals = dict(valid=dict(kind="loss", every=20))
    c.optim.learning_rate = 5e-3
    c.train.steps, c.train.batch_size = 40, 16
    c.checkpoint.every, c.log.every, c.log.tensorboard = 10, 5, False
    return c
