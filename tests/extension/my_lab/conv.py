"""A decoder of gated causal convolutions (https://arxiv.org/abs/1612.08083)."""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp

from bigjax.bounds import at_least
from bigjax.layers.basic import Embed, Norm
from bigjax.models import ModelOutput, uncached_decoder


@dataclasses.dataclass(frozen=True)
class Config:
    vocab_size: int = 264
    max_len: int = 64
    d_model: int = 32
    n_layers: int = 2
    width: int = 4

    RANGES = dict.fromkeys(("vocab_size", "max_len", "d_model", "n_layers", "width"), at_least(1))


class Model(nn.Module):
    config: Config

    @nn.compact
    def __call__(self, tokens_BT, positions_BT=None, segments_BT=None, rng=None):
        c = self.config
        embed = Embed(c.vocab_size, c.d_model, name="embed")
        x = embed(tokens_BT)
        for i in range(c.n_layers):
            before = [(c.width - 1, 0)]  # each token sees itself and the tokens before it
            conv = nn.Conv(2 * c.d_model, (c.width,), padding=before, name=f"conv_{i}")
            a, gate = jnp.split(conv(Norm(name=f"norm_{i}")(x)), 2, -1)
            x = x + a * nn.sigmoid(gate)
        return ModelOutput(embed.output(Norm(name="final_norm")(x)))


def decoder(c: Config):
    return uncached_decoder(Model(c), c.max_len)
