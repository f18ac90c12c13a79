"""A kind of data, a CSV of numbers, with its model, task and evaluation."""

import csv
import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from bigjax import modules, tasks
from bigjax.bounds import SHARE, at_least
from bigjax.data.arrays import ArrayData
from bigjax.errors import UserError
from bigjax.layers import params as params_lib
from bigjax.layers.basic import Dense
from bigjax.parallel import sharding


class Numbers(ArrayData):
    """config.data: rows of a CSV with a header; its last column is the target."""

    @dataclasses.dataclass(frozen=True)
    class Config:
        path: str = ""
        valid_fraction: float = 0.2  # of the rows, the last ones

        RANGES = {"valid_fraction": SHARE}
        DATA_PATHS = ("path",)
        MAY_CHANGE = ("path",)

    def __init__(self, path: str, valid_fraction: float):
        try:
            with open(path, newline="") as file:
                rows = np.array([*csv.reader(file)][1:], np.float32)
        except (OSError, ValueError) as e:
            raise UserError(f"config.data.path={path!r} is not a CSV of numbers: {e}") from e
        weights = np.ones(len(rows), np.float32)
        arrays = {"x": rows[:, :-1], "y": rows[:, -1], "weights": weights}
        n = round(len(rows) * (1 - valid_fraction))
        train = {name: x[:n] for name, x in arrays.items()}
        super().__init__({"train": train, "valid": {name: x[n:] for name, x in arrays.items()}})


class Network:
    """config.model: two dense layers."""

    @dataclasses.dataclass(frozen=True)
    class Config:
        inputs: int = 2
        d_model: int = 16

        RANGES = dict.fromkeys(("inputs", "d_model"), at_least(1))

    class Model(nn.Module):
        config: "Network.Config"

        @nn.compact
        def __call__(self, x):
            c = self.config
            h = jnp.tanh(Dense((c.d_model,), (None,), ("mlp",), init_std=0.5, name="in")(x))
            return Dense((1,), ("mlp",), (None,), name="out")(h)[:, 0]


class Regress:
    """config.task: the squared error."""

    @staticmethod
    def build(config, options):
        c = modules.options(config, "model")
        model = modules.of(config, "model").Model(c)
        example = jnp.zeros((1, c.inputs))
        boxed = jax.eval_shape(model.init, jax.random.key(0), example)

        def loss(params, extras, frozen, batch, rng, train):
            error = jnp.square(model.apply({"params": params}, batch["x"]) - batch["y"])
            total = (error * batch["weights"]).sum(), batch["weights"].sum()
            return total, ({}, extras)

        def load_data(log, tokenizer=None, splits=None):
            return modules.of(config, "data")(config.data.path, config.data.valid_fraction)

        return tasks.Task(
            init=lambda rng: params_lib.unbox(model.init(rng, example)),
            axes=params_lib.logical_axes(boxed),
            loss=loss,
            load_data=load_data,
            batch_shapes=lambda n, step: tasks.array_shapes(
                {}, {"x": (n, c.inputs), "y": (n,), "weights": (n,)}
            ),
            model=model,
            model_config=c,
        )


class AbsoluteError:
    """config.evals.NAME: the mean absolute error on the validation rows."""

    @staticmethod
    def build(name, options, context):
        n = context.config.train.batch_size
        data = context.corpus.split("valid", n, shuffle=False)
        rows = sharding.local_rows(context.mesh, n)

        @jax.jit
        def sums(params, batch):
            error = context.task.model.apply({"params": params}, batch["x"]) - batch["y"]
            return (jnp.abs(error) * batch["weights"]).sum(), batch["weights"].sum()

        def evaluate(params, extras, step):
            total = weight = 0.0
            for i in range(data.n_batches):
                batch = sharding.put_batch(context.mesh, data.batch_at(i, rows), rows, n)
                error, w = sums(params, batch)
                total, weight = total + float(error), weight + float(w)
            return {"mae": total / weight}

        evaluate.metrics = ("mae",)
        return evaluate
