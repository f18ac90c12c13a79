"""Adapters (https://arxiv.org/abs/1902.00751): a small residual MLP after attention and MLP."""

import dataclasses
import re

import flax.linen as nn
import jax

from bigjax.bounds import FRACTION, at_least
from bigjax.errors import UserError
from bigjax.layers.attention import Attention
from bigjax.layers.basic import ACTIVATIONS, GATES, MLP, Dense, dropout
from bigjax.peft import Layer, Method, Options, Seen, check_targets


@dataclasses.dataclass(frozen=True)
class Config(Options):
    width: int = 64  # of the hidden layer
    targets: str = "(attention|mlp)$"  # regex over the paths of attention and MLP layers
    activation: str = "gelu"
    dropout: float = 0.0  # of the hidden layer

    RANGES = {"width": at_least(1), "dropout": FRACTION}

    def __post_init__(self):
        super().__post_init__()
        allowed = [name for name in ACTIVATIONS if name not in GATES]
        if self.activation not in allowed:
            raise UserError(
                f"peft.activation is {self.activation!r}; allowed: {', '.join(allowed)}."
            )


def build(options: Config) -> Method:
    return Method(
        layer=lambda layer: _adapted(options, layer),
        check=lambda seen: _check(options, seen),
    )


class Bottleneck(nn.Module):
    """x plus a narrow MLP of it, which starts at 0."""

    config: Config
    dtype: str

    @nn.compact
    def __call__(self, x: jax.Array, rng: jax.Array | None) -> jax.Array:
        c = self.config
        down = Dense((c.width,), ("embed",), (None,), dtype=self.dtype, name="down")
        up = Dense((x.shape[-1],), (None,), ("embed",), init_std=0.0, dtype=self.dtype, name="up")
        return x + up(dropout(ACTIVATIONS[c.activation](down(x)), c.dropout, rng))


def _adapted(c: Config, layer: Layer):
    module = layer.module
    if not isinstance(module, Attention | MLP):
        return layer.run()
    if not layer.has("adapter", re.search(c.targets, layer.path) is not None):
        return layer.run()
    y = layer.run()
    adapter = Bottleneck(c, module.dtype, name="adapter")
    if isinstance(module, MLP):
        return adapter(y, layer.rng)
    return adapter(y[0], layer.rng), *y[1:]


def _check(c: Config, seen: Seen) -> None:
    check_targets(c.targets, seen.of(Attention, MLP), "attention or MLP layer")
