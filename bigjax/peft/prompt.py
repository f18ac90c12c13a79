"""Prompt tuning (https://arxiv.org/abs/2104.08691): trained vectors before the tokens of a row, as
the layers of a stack see them. What the layers give for them is dropped.

A token's position stays what it was: those of the vectors come before 0. Rows of one segment only:
a vector that several packed examples share would carry one into the other. Every token sees the
vectors: masks that hide some tokens of a row, such as a sliding window, would hide them too.
"""

import dataclasses
import re
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from bigjax.bounds import POSITIVE, at_least
from bigjax.errors import UserError
from bigjax.layers.attention import Attention, Cache, Span
from bigjax.layers.mask import Causal, Full
from bigjax.layers.params import param
from bigjax.layers.stack import Stack
from bigjax.peft import Layer, Method, Options, Seen, check_targets


@dataclasses.dataclass(frozen=True)
class Config(Options):
    length: int = 16  # vectors
    targets: str = "^(encoder/)?stack$"  # regex over the paths of stacks of layers
    init_std: float = 0.02

    RANGES = {"length": at_least(1), "init_std": POSITIVE}


def build(options: Config) -> Method:
    prompts: list = []  # keys and values by layer, of the stack that is running on a cache
    lengthened: list = []  # the stack that is running on rows with the vectors

    def added(layer: Layer):
        layer_names = [n for n in layer.module.path if n.startswith("layer_")]
        return prompts[-1][int(layer_names[-1][6:])] if prompts else None

    def layer(layer: Layer):
        if lengthened and isinstance(layer.module, Attention):
            _check_mask(layer)
        return _prompted(options, prompts, lengthened, layer)

    return Method(
        layer=layer,
        added=added,
        check=lambda seen: _check(options, seen),
        packs=False,
    )


def _prompted(c: Config, prompts: list, lengthened: list, layer: Layer):
    stack = layer.module
    if not isinstance(stack, Stack):
        return layer.run()
    if not layer.has("prompt", re.search(c.targets, layer.path) is not None):
        return layer.run()
    x, shared, *rest = layer.arguments
    cache = rest[0] if rest else None
    shape, init = (c.length, x.shape[-1]), nn.initializers.normal(c.init_std)
    prompt = param(stack, "prompt", init, shape, (None, "embed")).astype(x.dtype)
    if cache is not None:
        prompts.append(_keys(stack, prompt, shared, cache))
        try:
            return layer.run()
        finally:
            prompts.pop()
    P = c.length
    x = jnp.concatenate([jnp.broadcast_to(prompt, (len(x), *prompt.shape)), x], axis=1)
    lengthened.append(layer.path)
    try:
        y, *more = layer.run(x, _lengthened(shared, P), *rest)
    finally:
        lengthened.pop()
    return y[:, P:], *more


def _check_mask(layer: Layer) -> None:
    """Raises UserError for a layer whose queries do not see all vectors before them: with a cache
    they do, so that it would not decode as it was trained."""
    assert isinstance(layer.module, Attention)
    if layer.module.mask not in (Causal(), Full()):
        raise UserError(
            f"config.peft.name='prompt' does not support the mask {layer.module.mask} of "
            f"{layer.path!r}: it hides the vectors before a row from its later tokens. Use a model "
            "without a sliding window or rows (data.seq_len) that with peft.length are not longer "
            "than it, or peft.name='prefix', whose keys all tokens see."
        )


def _keys(stack: Stack, prompt: jax.Array, shared: Any, cache: list[Cache]) -> list[tuple]:
    """The keys and values [P, K, D] of the prompt in each layer. They do not depend on later
    tokens, since a mask with a cache is causal."""
    P = len(prompt)
    empty = [
        Cache.empty(1, P, layer.key.shape[1], layer.key.shape[-1], layer.key.dtype)
        for layer in cache
    ]
    own = {"params": {k: v for k, v in stack.variables["params"].items() if k != "prompt"}}
    span = Span(jnp.arange(-P, 0)[None])
    plain = stack.clone(parent=None, name=None)
    _, filled, _ = plain.apply(own, prompt[None], span, empty, None)
    return [(layer.key[0].swapaxes(0, 1), layer.value[0].swapaxes(0, 1)) for layer in filled]


def _lengthened(shared: Any, P: int) -> Any:
    """What the layers share, for rows with P vectors before their tokens."""
    if not isinstance(shared, Span):
        if not hasattr(shared, "span"):
            return shared
        bias = shared.bias
        if bias is not None:  # of relative positions: none for the vectors
            bias = jnp.pad(bias, ((0, 0), (0, 0), (P, 0), (P, 0)))
        return shared._replace(span=_lengthened(shared.span, P), bias=bias)
    before = jnp.broadcast_to(jnp.arange(-P, 0), (len(shared.positions), P))
    positions = jnp.concatenate([before, shared.positions], axis=1)
    segments = shared.segments
    if segments is not None:
        first = jnp.pad(segments, ((0, 0), (P, 0)), constant_values=1)
        segments = first
    return Span(positions, segments)


def _check(c: Config, seen: Seen) -> None:
    check_targets(c.targets, seen.of(Stack), "stack of layers")
