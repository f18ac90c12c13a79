"""GPT-style decoders: GPT-2, GPT-3, Llama and PaLM as options of one model."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from bigjax.bounds import FRACTION, POSITIVE, at_least, check_ranges
from bigjax.errors import UserError
from bigjax.interop import gpt2, llama
from bigjax.layers.attention import Attention, Cache, Span
from bigjax.layers.basic import ACTIVATIONS, GATES, MLP, Embed, Norm, Output, dropout
from bigjax.layers.mask import Causal, mean_keys
from bigjax.layers.remat import kept, named
from bigjax.layers.stack import Stack
from bigjax.models import (
    OF_A_RUN,
    Decoder,
    ModelOutput,
    PlanSizes,
    check_attention,
    check_fields,
    prefix_context,
)
from bigjax.parallel.sharding import constrain

HUGGING_FACE = (gpt2.FAMILY, llama.FAMILY)
MASK = Causal()


@dataclasses.dataclass(frozen=True)
class Config:
    vocab_size: int = 50257
    max_len: int = 1024  # number of positions, and the longest sequence
    d_model: int = 768
    n_layers: int = 12
    n_heads: int = 12
    n_kv_heads: int = 0  # fewer than n_heads: grouped-query; 1: multi-query; 0 = n_heads
    head_dim: int = 0  # 0 = d_model // n_heads
    d_ff: int = 0  # 0 = 4 d_model
    position: str = "learned"  # learned, rotary
    rope_theta: float = 10000.0
    norm: str = "layernorm"  # layernorm, rmsnorm
    norm_eps: float = 1e-5
    activation: str = "gelu"  # gelu (tanh form), gelu_exact, relu, silu, swiglu, geglu
    bias: bool = True  # in dense layers and LayerNorm
    parallel_block: bool = False  # attention and MLP side by side (PaLM)
    tie_embeddings: bool = True  # output layer = token embedding
    dropout: float = 0.0  # of embeddings and residual branches
    dtype: str = "float32"  # of the computation: float32, bfloat16
    param_dtype: str = "float32"  # of imported, loaded and exported weights; training uses float32
    attention: str = "auto"  # auto (by backend), or a name of layers/kernels.KERNELS
    scan: bool = True  # layers scanned, or unrolled
    remat: str = "none"  # what the backward pass recomputes: none, dots, ...; layers/remat.py

    MAY_CHANGE = OF_A_RUN
    RANGES = {
        **dict.fromkeys(("vocab_size", "max_len", "d_model", "n_layers", "n_heads"), at_least(1)),
        **dict.fromkeys(("n_kv_heads", "head_dim", "d_ff"), at_least(0)),
        **dict.fromkeys(("rope_theta", "norm_eps"), POSITIVE),
        "dropout": FRACTION,
    }

    def __post_init__(self):
        check_ranges("model", self)

        def fill(name, value):  # fields whose 0 means a value derived from others
            if not getattr(self, name):
                object.__setattr__(self, name, value)

        if not self.head_dim and self.d_model % self.n_heads:
            raise UserError(
                f"model.d_model={self.d_model} does not divide into model.n_heads="
                f"{self.n_heads} heads; set model.head_dim to choose their width."
            )
        fill("n_kv_heads", self.n_heads)
        fill("head_dim", self.d_model // self.n_heads)
        fill("d_ff", 4 * self.d_model)
        if self.n_heads % self.n_kv_heads:
            raise UserError(
                f"model.n_heads={self.n_heads} is not a multiple of model.n_kv_heads="
                f"{self.n_kv_heads}."
            )
        if self.position == "rotary" and self.head_dim % 2:
            raise UserError(
                f"model.head_dim is {self.head_dim}; rotary positions need an even number."
            )
        if self.parallel_block and "residual" in named(self.remat):
            raise UserError(
                f"model.remat is {self.remat!r}, but with model.parallel_block=True a layer has no "
                "'residual': its MLP reads the layer's input, not a sum. Leave that name out."
            )
        check_fields(
            self,
            {
                "position": ("learned", "rotary"),
                "norm": ("layernorm", "rmsnorm"),
                "activation": ACTIVATIONS,
            },
        )


class Block(nn.Module):
    """Norm, attention, residual; norm, MLP, residual. parallel_block: both after one norm."""

    config: Config

    @nn.compact
    def __call__(self, x_BTD, i, span: Span, cache: Cache | None, rng):
        c = self.config
        types = dict(use_bias=c.bias, dtype=c.dtype)
        out_std = 0.02 / (2 * c.n_layers) ** 0.5  # residual branches add up (GPT-2)
        norm = lambda name: Norm(c.norm, eps=c.norm_eps, **types, name=name)
        attention = Attention(
            c.n_heads,
            c.n_kv_heads,
            c.head_dim,
            MASK,
            rope_theta=c.rope_theta if c.position == "rotary" else 0.0,
            kernel=c.attention,
            out_std=out_std,
            **types,
            name="attention",
        )
        mlp = MLP(c.d_ff, c.activation, out_std=out_std, **types, name="mlp")
        keys = [None, None]
        if rng is not None and c.dropout:
            keys = jax.random.split(jax.random.fold_in(rng, i))

        x_BTD = kept(x_BTD, "input")
        h = norm("norm_1")(x_BTD)
        a, cache = attention(h, span, cache)
        a = dropout(a, c.dropout, keys[0])
        if c.parallel_block:
            x_BTD = x_BTD + a + dropout(mlp(h), c.dropout, keys[1])
        else:
            x_BTD = kept(x_BTD + a, "residual")
            x_BTD = x_BTD + dropout(mlp(norm("norm_2")(x_BTD)), c.dropout, keys[1])
        return constrain(x_BTD, "batch", "residual_length", "act_embed"), (cache, {})


class Model(nn.Module):
    """Tokens to the logits of the next token."""

    config: Config

    @nn.compact
    def __call__(
        self,
        tokens_BT: jax.Array,
        positions_BT: jax.Array | None = None,
        segments_BT: jax.Array | None = None,
        cache: list[Cache] | None = None,
        rng: jax.Array | None = None,
    ) -> ModelOutput:
        """With logits [B, T, V], sums and cache.

        positions: of each token in its document (default 0..T-1, after the tokens in the cache).
        segments: tokens attend within their segment. rng: for dropout; None turns it off. cache:
        one per layer, see `empty_cache`.
        """
        c = self.config
        types = dict(dtype=c.dtype)
        if positions_BT is None:
            first = cache[0].next[:, None] if cache else 0
            positions_BT = jnp.broadcast_to(first + jnp.arange(tokens_BT.shape[1]), tokens_BT.shape)
        embed = Embed(c.vocab_size, c.d_model, **types, name="embed")
        x = embed(tokens_BT)
        if c.position == "learned":
            x = x + Embed(c.max_len, c.d_model, axis="position", **types, name="position")(
                positions_BT
            )
        if rng is not None:
            x = dropout(x, c.dropout, jax.random.fold_in(rng, c.n_layers))
        x = constrain(x, "batch", "residual_length", "act_embed")
        x, cache, sums = Stack((Block,), c, c.n_layers, c.scan, c.remat, name="stack")(
            x, Span(positions_BT, segments_BT), cache, rng
        )
        x = Norm(c.norm, c.bias, c.norm_eps, **types, name="final_norm")(x)
        x = constrain(x, "batch", "length", "act_embed")
        if c.tie_embeddings:
            linear = embed.output(x)
        else:
            head = Output((c.vocab_size,), ("embed",), ("vocab",), False, **types, name="head")
            linear = head(x)
        return ModelOutput(linear, sums, cache=cache)


def empty_cache(c: Config, batch: int, slots: int) -> list[Cache]:
    """A cache for `slots` tokens per row; the model must have scan=False."""
    return [Cache.empty(batch, slots, c.n_kv_heads, c.head_dim, c.dtype) for _ in range(c.n_layers)]


@functools.cache
def decoder(c: Config) -> Decoder:
    """Continues a prompt, with a key-value cache; variables in the form of scan=False."""
    c = dataclasses.replace(c, scan=False, remat="none")
    model = Model(c)

    def begin(variables, context, slots):
        tokens, lengths = context["tokens"][:, :slots], context["lengths"]
        cache = empty_cache(c, len(tokens), slots)
        if tokens.shape[1]:
            cache = model.apply(variables, tokens, cache=cache).cache
        # Keys written after a row's end are overwritten before any query sees them.
        return [layer._replace(next=lengths) for layer in cache]

    def step(variables, state, tokens_B):
        out = model.apply(variables, tokens_B[:, None], cache=state)
        return out.logits[:, 0], out.cache

    return Decoder(prefix_context, begin, step, c.max_len)


def flops_per_token(c: Config, seq_len: int) -> float:
    """Floating-point operations of training on one token, forward and backward.

    6 per weight of a matrix product, plus 12 * layers * width for each key that a token sees. PaLM
    (https://arxiv.org/abs/2204.02311, appendix B) counts all seq_len keys, about twice as many.
    """
    heads = c.n_heads * c.head_dim
    attention = c.d_model * c.head_dim * 2 * (c.n_heads + c.n_kv_heads)
    mlp = c.d_model * c.d_ff * (3 if c.activation in GATES else 2)
    weights = c.n_layers * (attention + mlp) + c.vocab_size * c.d_model
    return 6.0 * weights + 12.0 * c.n_layers * heads * mean_keys(MASK, seq_len)


check_mesh = check_attention


def plan_sizes(c: Config) -> PlanSizes:
    inner = c.d_ff * (2 if c.activation in GATES else 1)
    heads, keys = c.n_heads * c.head_dim, 2 * c.n_kv_heads * c.head_dim
    return PlanSizes(c.n_layers, c.d_model, inner, heads, keys, c.vocab_size)


def _gpt(n_layers, d_model, n_heads, max_len=2048, **more):
    return dict(n_layers=n_layers, d_model=d_model, n_heads=n_heads, max_len=max_len, **more)


_LLAMA = dict(
    vocab_size=32000,
    position="rotary",
    norm="rmsnorm",
    activation="swiglu",
    bias=False,
    tie_embeddings=False,
)
_PALM = dict(
    vocab_size=256000,
    position="rotary",
    activation="swiglu",
    bias=False,
    head_dim=256,
    n_kv_heads=1,
    parallel_block=True,
)

# GPT-2: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners"; sizes and
# counts as of the published weights. GPT-3, Llama 2, PaLM:
# https://arxiv.org/abs/2005.14165: the counts of its table D.1 fix two sizes that its table 2.1
# prints otherwise: 16 heads (not 24) in 1.3B, width 5120 (not 5140) in 13B.
# https://arxiv.org/abs/2307.09288, https://arxiv.org/abs/2204.02311
PRESETS = {
    "gpt2-124m": _gpt(12, 768, 12, 1024),
    "gpt2-355m": _gpt(24, 1024, 16, 1024),
    "gpt2-774m": _gpt(36, 1280, 20, 1024),
    "gpt2-1.5b": _gpt(48, 1600, 25, 1024),
    "gpt3-125m": _gpt(12, 768, 12, 2048),
    "gpt3-350m": _gpt(24, 1024, 16, 2048),
    "gpt3-760m": _gpt(24, 1536, 16, 2048),
    "gpt3-1.3b": _gpt(24, 2048, 16, 2048),
    "gpt3-2.7b": _gpt(32, 2560, 32, 2048),
    "gpt3-6.7b": _gpt(32, 4096, 32, 2048),
    "gpt3-13b": _gpt(40, 5120, 40, 2048),
    "gpt3-175b": _gpt(96, 12288, 96, 2048),
    "llama2-7b": _gpt(32, 4096, 32, 4096, d_ff=11008, **_LLAMA),
    "llama2-70b": _gpt(80, 8192, 64, 4096, d_ff=28672, n_kv_heads=8, **_LLAMA),
    "palm-8b": _gpt(32, 4096, 16, d_ff=16384, **_PALM),
    "palm-62b": _gpt(64, 8192, 32, d_ff=32768, **_PALM),
    "palm-540b": _gpt(118, 18432, 48, d_ff=73728, **_PALM),
}
