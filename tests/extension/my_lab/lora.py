"""A GPT with LoRA (https://arxiv.org/abs/2106.09685): parameters added to chosen layers."""

import dataclasses
import functools
import re

import flax.linen as nn

from bigjax.bounds import at_least
from bigjax.layers import params as params_lib
from bigjax.layers.basic import Dense, Output
from bigjax.models import gpt


@dataclasses.dataclass(frozen=True)
class Config(gpt.Config):
    rank: int = 4
    chosen: str = "attention/(query|value)$|mlp/down$"  # regex over the paths of layers

    RANGES = {**gpt.Config.RANGES, "rank": at_least(1)}


def lora(c, call, arguments, keywords, context):
    """Adds (x a) b to the output of chosen Dense layers."""
    y, dense = call(*arguments, **keywords), context.module
    is_dense = isinstance(dense, Dense) and context.method_name == "__call__"
    if not is_dense or not re.search(c.chosen, "/".join(dense.path)):
        return y
    (x,) = arguments
    n = len(dense.in_axes)
    lead, inputs = x.shape[:-n], x.shape[-n:]
    normal, zeros = nn.initializers.normal(0.02), nn.initializers.zeros
    shapes = (*inputs, c.rank), (c.rank, *dense.features)
    a = params_lib.param(dense, "lora_a", normal, shapes[0], (*dense.in_axes, None))
    b = params_lib.param(dense, "lora_b", zeros, shapes[1], (None, *dense.out_axes))
    low_rank, b = x.reshape(*lead, -1) @ a.reshape(-1, c.rank), b.reshape(c.rank, -1)
    if isinstance(dense, Output):  # not multiplied yet
        return y.plus(low_rank, b)
    return y + (low_rank @ b).reshape(y.shape)


def with_lora(c, function):
    """The function, with LoRA in the models that it calls."""

    def call(*arguments, **keywords):
        with nn.intercept_methods(functools.partial(lora, c)):
            return function(*arguments, **keywords)

    return call


class Model(gpt.Model):
    def __call__(self, *inputs, **options):
        return with_lora(self.config, super().__call__)(*inputs, **options)


@functools.cache
def decoder(c):
    plain = gpt.decoder(c)
    return plain._replace(begin=with_lora(c, plain.begin), step=with_lora(c, plain.step))
