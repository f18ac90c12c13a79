"""Predicts the last column of a CSV of numbers: set data.path."""

from bigjax import config


def get_config(variant=""):
    c = config.new_config()
    c.model = dict(name="my_lab.table.Network", d_model=8)
    c.task = dict(name="my_lab.table.Regress")
    c.data = dict(name="my_lab.table.Numbers", path="set me")
    c.evals = dict(
        valid=dict(kind="loss", every=10), error=dict(kind="my_lab.table.AbsoluteError", every=10)
    )
    c.optim.learning_rate = 3e-2
    c.train.steps, c.train.batch_size = 40, 16
    c.checkpoint.every, c.log.every, c.log.tensorboard = 10, 5, False
    return c
