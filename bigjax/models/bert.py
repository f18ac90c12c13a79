"""BERT-style encoders with heads for pre-training and fine-tuning."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from bigjax.bounds import FRACTION, POSITIVE, at_least, check_ranges
from bigjax.interop import bert as hugging_face
from bigjax.layers.attention import Attention, Span
from bigjax.layers.basic import ACTIVATIONS, GATES, MLP, Dense, Embed, Norm, dropout
from bigjax.layers.mask import Full, mean_keys
from bigjax.layers.params import param
from bigjax.layers.remat import kept
from bigjax.layers.stack import Stack
from bigjax.linear import Linear
from bigjax.models import (
    OF_A_RUN,
    ModelOutput,
    PlanSizes,
    check_attention,
    check_fields,
    check_heads,
)
from bigjax.parallel.sharding import constrain

HUGGING_FACE = (hugging_face.FAMILY,)
MASK = Full()
HEADS = ("mlm", "nsp", "classifier", "tagger", "span")
POOLED = ("nsp", "classifier")  # heads on the first token, through the pooler


@dataclasses.dataclass(frozen=True)
class Config:
    vocab_size: int = 30522
    max_len: int = 512  # number of positions, and the longest sequence
    n_types: int = 2  # token types: first and second text
    d_model: int = 768
    n_layers: int = 12
    n_heads: int = 12
    d_ff: int = 0  # 0 = 4 d_model
    activation: str = "gelu_exact"  # gelu_exact, gelu (tanh form), relu, silu
    norm_eps: float = 1e-12
    dropout: float = 0.1  # of embeddings, residual branches and the inputs of heads
    attention_dropout: float = 0.1
    dtype: str = "float32"  # of the computation: float32, bfloat16
    param_dtype: str = "float32"  # of imported, loaded and exported weights; training uses float32
    attention: str = "auto"  # auto (by backend), or a name of layers/kernels.KERNELS
    scan: bool = True  # layers scanned, or unrolled
    remat: str = "none"  # what the backward pass recomputes: none, dots, ...; layers/remat.py

    MAY_CHANGE = OF_A_RUN
    RANGES = {
        **dict.fromkeys(("vocab_size", "max_len", "n_types", "d_model"), at_least(1)),
        **dict.fromkeys(("n_layers", "n_heads"), at_least(1)),
        "d_ff": at_least(0),
        "norm_eps": POSITIVE,
        **dict.fromkeys(("dropout", "attention_dropout"), FRACTION),
    }

    def __post_init__(self):
        check_ranges("model", self)
        if not self.d_ff:
            object.__setattr__(self, "d_ff", 4 * self.d_model)
        check_fields(self, {"activation": [a for a in ACTIVATIONS if a not in GATES]})
        check_heads(self)

    @property
    def head_dim(self) -> int:
        return self.d_model // self.n_heads


class Block(nn.Module):
    """Attention, residual, norm; MLP, residual, norm (post-norm)."""

    config: Config

    @nn.compact
    def __call__(self, x_BTD, i, span: Span, cache: None, rng):
        c = self.config
        types = dict(dtype=c.dtype)
        keys = [None] * 3
        if rng is not None:
            keys = jax.random.split(jax.random.fold_in(rng, i), 3)
        x_BTD = kept(x_BTD, "input")
        a, _ = Attention(
            c.n_heads,
            c.n_heads,
            c.head_dim,
            MASK,
            kernel=c.attention,
            dropout=c.attention_dropout,
            **types,
            name="attention",
        )(x_BTD, span, rng=keys[0])
        norm = lambda name: Norm(eps=c.norm_eps, **types, name=name)
        x_BTD = norm("norm_1")(kept(x_BTD + dropout(a, c.dropout, keys[1]), "residual"))
        m = MLP(c.d_ff, c.activation, **types, name="mlp")(x_BTD)
        x_BTD = norm("norm_2")(kept(x_BTD + dropout(m, c.dropout, keys[2]), "residual"))
        return constrain(x_BTD, "batch", "residual_length", "act_embed"), (cache, {})


class MlmHead(nn.Module):
    """Dense, activation, norm, then an output layer tied to the token embedding."""

    config: Config

    @nn.compact
    def __call__(self, x_BMD: jax.Array, embed: Embed) -> Linear:
        c = self.config
        types = dict(dtype=c.dtype)
        # Its outputs are not sharded: only the kernels of the stack are large enough.
        h = Dense((c.d_model,), ("embed",), ("norm",), **types, name="dense")(x_BMD)
        h = Norm(eps=c.norm_eps, **types, name="norm")(ACTIVATIONS[c.activation](h))
        bias = param(self, "bias", nn.initializers.zeros, (c.vocab_size,), ("vocab",))
        return embed.output(h, bias)


class Model(nn.Module):
    """Tokens to the outputs of each of `heads` (https://arxiv.org/abs/1810.04805).

    n_labels: outputs of the classifier and the tagger.
    """

    config: Config
    heads: tuple[str, ...] = ("mlm", "nsp")
    n_labels: int = 2

    @nn.compact
    def __call__(
        self,
        tokens_BT: jax.Array,
        types_BT: jax.Array | None = None,
        segments_BT: jax.Array | None = None,
        positions_BT: jax.Array | None = None,
        *,
        masked_positions_BM: jax.Array | None = None,
        first_BK: jax.Array | None = None,
        rng: jax.Array | None = None,
    ) -> ModelOutput:
        """With logits [B, M, V] of mlm, sums, and heads: nsp [B, K, 2], classifier [B, K,
        n_labels], tagger [B, T, n_labels], span [B, T, 2] (start, end).

        types: 0 in the first text, 1 in the second. segments: tokens attend within their segment
        (0 = padding). positions: of each token in its segment (default 0..T-1). masked_positions:
        columns that mlm predicts (default all). first: columns of the [CLS] tokens (default
        column 0).
        rng: for dropout; None turns it off.
        """
        c = self.config
        types = dict(dtype=c.dtype)
        zeros = jnp.zeros_like(tokens_BT)
        if positions_BT is None:
            positions_BT = zeros + jnp.arange(tokens_BT.shape[1])
        table = lambda n, name: Embed(n, c.d_model, axis="position", **types, name=name)
        embed = Embed(c.vocab_size, c.d_model, **types, name="embed")
        x = (
            embed(tokens_BT)
            + table(c.max_len, "position")(positions_BT)
            + table(c.n_types, "token_type")(zeros if types_BT is None else types_BT)
        )
        x = Norm(eps=c.norm_eps, **types, name="embed_norm")(x)
        key = lambda i: None if rng is None else jax.random.fold_in(rng, c.n_layers + i)
        x = constrain(dropout(x, c.dropout, key(0)), "batch", "residual_length", "act_embed")
        x, _, sums = Stack((Block,), c, c.n_layers, c.scan, c.remat, name="stack")(
            x, Span(positions_BT, segments_BT), None, rng
        )

        dense = lambda n, name: Dense(
            (n,), ("embed",), (None,), **types, out_dtype="float32", name=name
        )
        linear, out = None, {}
        if "mlm" in self.heads:
            masked = x if masked_positions_BM is None else _rows(x, masked_positions_BM)
            linear = MlmHead(c, name="mlm")(masked, embed)
        if set(POOLED) & set(self.heads):
            first = x[:, :1] if first_BK is None else _rows(x, first_BK)
            pooled = jnp.tanh(
                Dense((c.d_model,), ("embed",), ("norm",), **types, name="pooler")(first)
            )
        if "nsp" in self.heads:
            out["nsp"] = dense(2, "nsp")(pooled)
        if "classifier" in self.heads:
            out["classifier"] = dense(self.n_labels, "classifier")(
                dropout(pooled, c.dropout, key(1))
            )
        if "tagger" in self.heads:
            out["tagger"] = dense(self.n_labels, "tagger")(dropout(x, c.dropout, key(1)))
        if "span" in self.heads:
            out["span"] = dense(2, "span")(x)
        return ModelOutput(linear, sums, out)


def _rows(x_BTD: jax.Array, columns_BN: jax.Array) -> jax.Array:
    """[B, N, D]: x at these columns."""
    return jnp.take_along_axis(x_BTD, columns_BN[..., None], axis=1)


check_mesh = check_attention


def plan_sizes(c: Config) -> PlanSizes:
    return PlanSizes(c.n_layers, c.d_model, c.d_ff, c.d_model, 2 * c.d_model, c.vocab_size)


def flops_per_token(c: Config, seq_len: int) -> float:
    """Floating-point operations of training the encoder on one token, forward and backward.

    6 per weight of a matrix product, plus 12 * layers * width for each key that a token sees. Heads
    are not counted; see `head_flops` for the large one.
    """
    weights = c.n_layers * (4 * c.d_model**2 + 2 * c.d_model * c.d_ff)
    return 6.0 * weights + 12.0 * c.n_layers * c.d_model * mean_keys(MASK, seq_len)


def head_flops(c: Config) -> float:
    """Floating-point operations of training the mlm head on one masked token."""
    return 6.0 * (c.d_model**2 + c.vocab_size * c.d_model)


def _bert(n_layers, d_model):
    return dict(n_layers=n_layers, d_model=d_model, n_heads=d_model // 64)


# base and large: https://arxiv.org/abs/1810.04805; the others: https://arxiv.org/abs/1908.08962.
# All use the uncased vocabulary of 30,522.
PRESETS = {
    "tiny": _bert(2, 128),
    "mini": _bert(4, 256),
    "small": _bert(4, 512),
    "medium": _bert(8, 512),
    "base": _bert(12, 768),
    "large": _bert(24, 1024),
}
