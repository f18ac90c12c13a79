"""The layers of Transformers with an encoder and a decoder (https://arxiv.org/abs/1706.03762).

A family's Config c gives their sizes and options: d_model, n_heads, head_dim, d_ff, activation,
bias, key_bias, norm, norm_eps, post_norm, scale_scores, the rates of dropout, dtype and attention.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax

from bigjax.layers.attention import Attention, Cache, Memory, Span
from bigjax.layers.basic import MLP, Norm, dropout
from bigjax.layers.mask import Causal, Full, Mask
from bigjax.layers.remat import kept
from bigjax.parallel.sharding import constrain

ENCODER_MASK, DECODER_MASK, CROSS_MASK = Full(), Causal(), Full()


class Shared(NamedTuple):
    """What all layers of a stack read. bias: of the relative positions, or None. memory: the
    encoder's output [B, S, D], with its segments; None in the encoder and while decoding, where
    each layer has a Memory."""

    span: Span
    bias: jax.Array | None
    memory: jax.Array | None = None
    memory_segments: jax.Array | None = None


def _residual(c, x: jax.Array, name: str, layer, rng) -> tuple[jax.Array, object]:
    """(x plus layer(x) -> (y, more), more), with the norm of this name before the layer or after
    the sum."""
    norm = Norm(c.norm, c.bias, c.norm_eps, c.dtype, name=name)
    y, more = layer(x if c.post_norm else norm(x))
    x = x + dropout(y, c.dropout, rng)
    return norm(x) if c.post_norm else x, more


def _attention(c, mask: Mask, name: str) -> Attention:
    inner = c.n_heads * c.head_dim
    return Attention(
        c.n_heads,
        c.n_heads,
        c.head_dim,
        mask,
        use_bias=c.bias,
        key_bias=c.key_bias,
        scale=None if c.scale_scores else 1.0,
        kernel=c.attention,
        init_std=c.d_model**-0.5,
        query_std=(c.d_model if c.scale_scores else c.d_model * c.head_dim) ** -0.5,
        out_std=inner**-0.5,
        dropout=c.attention_dropout,
        dtype=c.dtype,
        name=name,
    )


def _mlp(c, rng):
    """The layer of `_residual`."""
    options = dict(init_std=c.d_model**-0.5, out_std=c.d_ff**-0.5, dropout=c.mlp_dropout)
    mlp = MLP(c.d_ff, c.activation, c.bias, **options, dtype=c.dtype, name="mlp")
    return lambda h: (mlp(h, rng), None)


def layer_keys(rng, i, n: int) -> list:
    """n keys of layer i, or None each."""
    return [None] * n if rng is None else [*jax.random.split(jax.random.fold_in(rng, i), n)]


class EncoderBlock(nn.Module):
    config: Any

    @nn.compact
    def __call__(self, x_BSD, i, shared: Shared, cache: None, rng):
        c = self.config
        keys = layer_keys(rng, i, 4)
        attention, mlp = _attention(c, ENCODER_MASK, "attention"), _mlp(c, keys[3])
        attend = lambda h: attention(h, shared.span, rng=keys[0], bias=shared.bias)
        x_BSD = kept(x_BSD, "input")
        x_BSD, _ = _residual(c, x_BSD, "norm_1", attend, keys[1])
        x_BSD, _ = _residual(c, kept(x_BSD, "residual"), "norm_2", mlp, keys[2])
        return constrain(x_BSD, "batch", "residual_length", "act_embed"), (cache, {})


class DecoderBlock(nn.Module):
    """Self-attention, attention to the source, MLP."""

    config: Any

    @nn.compact
    def __call__(self, x_BTD, i, shared: Shared, cache: tuple[Cache, Memory | None] | None, rng):
        """cache: of self-attention, and the source's keys and values, None if they are computed
        from shared.memory."""
        c = self.config
        keys = layer_keys(rng, i, 6)
        own, source = cache or (None, None)
        self_attention = _attention(c, DECODER_MASK, "attention")
        cross_attention = _attention(c, CROSS_MASK, "cross_attention")
        attend = lambda h: self_attention(h, shared.span, own, keys[0], bias=shared.bias)
        read = lambda h: cross_attention(
            h,
            shared.span,
            rng=keys[2],
            memory=shared.memory if source is None else source,
            memory_segments=shared.memory_segments,
        )
        x_BTD = kept(x_BTD, "input")
        x_BTD, own = _residual(c, x_BTD, "norm_1", attend, keys[1])
        x_BTD, source = _residual(c, x_BTD, "norm_2", read, keys[3])
        x_BTD, _ = _residual(c, kept(x_BTD, "residual"), "norm_3", _mlp(c, keys[5]), keys[4])
        x_BTD = constrain(x_BTD, "batch", "residual_length", "act_embed")
        return x_BTD, (cache and (own, source), {})
