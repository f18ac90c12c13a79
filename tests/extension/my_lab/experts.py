"""A decoder with experts in every second layer, a router loss, and its own parameter axis."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from bigjax.bounds import at_least
from bigjax.layers import params as params_lib
from bigjax.layers.attention import Attention, Span
from bigjax.layers.basic import MLP, Dense, Embed, Norm
from bigjax.layers.mask import Causal
from bigjax.layers.stack import Stack
from bigjax.models import Decoder, ModelOutput, uncached_decoder
from bigjax.parallel.sharding import Axis, constrain

EXPERT = Axis("expert", "fsdp")  # an axis of this family, over the devices of mesh.fsdp


@dataclasses.dataclass(frozen=True)
class Config:
    vocab_size: int = 264
    max_len: int = 64
    d_model: int = 32
    n_layers: int = 4
    n_heads: int = 4
    n_experts: int = 4
    scan: bool = True
    remat: str = "none"

    RANGES = dict.fromkeys(
        ("vocab_size", "max_len", "d_model", "n_layers", "n_heads", "n_experts"), at_least(1)
    )


class Experts(nn.Module):
    """Each token uses its most likely expert, weighted by its probability
    (https://arxiv.org/abs/2101.03961); all experts are computed. Returns (y, the balance loss)."""

    config: Config

    @nn.compact
    def __call__(self, x_BTD):
        E, D = self.config.n_experts, self.config.d_model
        p = jax.nn.softmax(Dense((E,), ("embed",), (None,), name="router")(x_BTD))
        best = jax.nn.one_hot(p.argmax(-1), E)
        normal = nn.initializers.normal(0.1)
        weight = lambda name, shape, axes: params_lib.weight(
            self, name, normal, shape, axes, "float32"
        )
        up = weight("up", (E, D, 2 * D), (EXPERT, None, "mlp"))
        down = weight("down", (E, 2 * D, D), (EXPERT, "mlp", None))
        h = jax.nn.relu(jnp.einsum("btd,edf->btef", x_BTD, up))
        y = jnp.einsum("btef,efd,bte->btd", h, down, best * p)
        balance = E * (p.mean((0, 1)) * best.mean((0, 1))).sum()
        return constrain(y, "batch", "residual_length", "act_embed"), balance


class Plain(nn.Module):
    config: Config

    @nn.compact
    def __call__(self, x, i, span, cache, rng):
        x = _attended(self.config, x, span)
        return x + MLP(4 * self.config.d_model, name="mlp")(Norm(name="norm_2")(x)), (cache, {})


class Routed(nn.Module):
    config: Config

    @nn.compact
    def __call__(self, x, i, span, cache, rng):
        x = _attended(self.config, x, span)
        y, balance = Experts(self.config, name="experts")(Norm(name="norm_2")(x))
        return x + y, (cache, {"balance": balance})


def _attended(c: Config, x, span):
    attention = Attention(c.n_heads, c.n_heads, c.d_model // c.n_heads, Causal(), name="attention")
    return x + attention(Norm(name="norm_1")(x), span)[0]


class Model(nn.Module):
    config: Config

    @nn.compact
    def __call__(self, tokens_BT, positions_BT=None, segments_BT=None, rng=None):
        c = self.config
        if positions_BT is None:
            positions_BT = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1]), tokens_BT.shape)
        embed = Embed(c.vocab_size, c.d_model, name="embed")
        position = Embed(c.max_len, c.d_model, axis="position", name="position")
        x = embed(tokens_BT) + position(positions_BT)
        stack = Stack((Plain, Routed), c, c.n_layers, c.scan, c.remat, name="stack")
        x, _, sums = stack(x, Span(positions_BT, segments_BT))
        return ModelOutput(embed.output(Norm(name="final_norm")(x)), sums)


def decoder(c: Config) -> Decoder:
    return uncached_decoder(Model(dataclasses.replace(c, scan=False, remat="none")), c.max_len)
