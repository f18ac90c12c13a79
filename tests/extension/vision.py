"""Classifies small images with a network with batch statistics."""

from bigjax import config


def get_config(variant=""):
    c = config.new_config()
    c.model = dict(name="my_lab.vision.Network")
    c.task = dict(name="my_lab.vision.Classify")
    c.data = dict(name="my_lab.vision.Squares")
    c.evals = dict(valid=dict(kind="loss", every=10))
    c.optim.learning_rate = 1e-2
    c.train.steps, c.train.batch_size, c.train.ema = 40, 16, 0.8
    c.checkpoint.every, c.log.every, c.log.tensorboard = 10, 5, False
    return c
