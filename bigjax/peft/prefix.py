"""Prefix tuning (https://arxiv.org/abs/2101.00190): trained keys and values that all queries of a
layer see, before those of the tokens.

They have no position. Attention then uses the kernel `einsum`, which holds all scores of a layer.
"""

import dataclasses
import re

import flax.linen as nn
import jax

from bigjax.bounds import POSITIVE, at_least
from bigjax.layers.attention import Attention
from bigjax.layers.params import param
from bigjax.peft import Layer, Method, Options, Seen, check_targets


@dataclasses.dataclass(frozen=True)
class Config(Options):
    length: int = 16  # keys and values of each layer
    targets: str = "(^|/)attention$"  # regex over the paths of attention layers
    init_std: float = 0.02

    RANGES = {"length": at_least(1), "init_std": POSITIVE}


def build(options: Config) -> Method:
    return Method(
        layer=lambda layer: layer.run(),
        added=lambda layer: _added(options, layer),
        check=lambda seen: _check(options, seen),
    )


def _added(c: Config, layer: Layer) -> tuple[jax.Array, jax.Array] | None:
    """The keys and values [P, K, D] of an attention layer."""
    module = layer.module
    assert isinstance(module, Attention)
    if not layer.has("prefix_key", re.search(c.targets, layer.path) is not None):
        return None
    shape = c.length, module.n_kv_heads, module.head_dim
    init, axes = nn.initializers.normal(c.init_std), (None, "kv_heads", "head_dim")
    return tuple(
        param(module, f"prefix_{name}", init, shape, axes).astype(module.dtype)
        for name in ("key", "value")
    )


def _check(c: Config, seen: Seen) -> None:
    check_targets(c.targets, seen.of(Attention), "attention layer")
