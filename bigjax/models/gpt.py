"""GPT-style decoders: GPT-2 and GPT-3, Llama, Mistral, Qwen, Gemma, Phi, OLMo, GPT-NeoX and PaLM as
options of one model."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from bigjax.bounds import FRACTION, POSITIVE, Range, at_least, check_ranges
from bigjax.errors import UserError
from bigjax.interop import gemma, gpt2, gpt_neox, llama, mistral, olmo2, phi3, qwen
from bigjax.layers.attention import Attention, Cache, Span
from bigjax.layers.basic import ACTIVATIONS, GATES, MLP, Embed, Norm, Output, dropout
from bigjax.layers.mask import Causal, Mask, Window, mean_keys
from bigjax.layers.remat import kept, named
from bigjax.layers.rotary import Scaling
from bigjax.layers.stack import Stack
from bigjax.models import (
    OF_A_RUN,
    Decoder,
    ModelOutput,
    PlanSizes,
    _gpt_presets,
    check_attention,
    check_fields,
    prefix_context,
)
from bigjax.parallel.sharding import constrain

HUGGING_FACE = (
    *(gpt2.FAMILY, llama.FAMILY, mistral.FAMILY, qwen.QWEN2, qwen.QWEN3, gemma.GEMMA2),
    *(gemma.GEMMA3, phi3.FAMILY, olmo2.FAMILY, gpt_neox.FAMILY),
)
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
    rope_share: float = 1.0  # the share of a head that rotates, its first dimensions
    rope_scaling: str = ""  # for long contexts: '', linear, llama3, longrope; layers/rotary.py
    rope_factor: float = 1.0  # of linear and llama3
    rope_low_factor: float = 1.0  # of llama3
    rope_high_factor: float = 4.0  # of llama3
    rope_original_len: int = 0  # of llama3 and longrope
    rope_short: tuple[float, ...] = ()  # of longrope, for rows of at most rope_original_len tokens
    rope_long: tuple[float, ...] = ()  # of longrope, for longer rows
    rope_attention_factor: float = 1.0  # of longrope
    window: int = 0  # how many keys a token sees, itself included; 0 = all before it
    global_every: int = 0  # of so many layers the last has no window; 0 = all layers have it
    local_rope_theta: float = 0.0  # of layers with the window, unscaled; 0 = as the others
    norm: str = "layernorm"  # layernorm, rmsnorm
    norm_eps: float = 1e-5
    norm_place: str = "pre"  # of a layer's branches: pre (before each), post (after), both
    norm_offset: bool = False  # norms multiply by 1 + scale (Gemma)
    qk_norm: str = ""  # RMSNorm of queries and keys: head (of each), width (of all together)
    activation: str = "gelu"  # gelu (tanh form), gelu_exact, relu, silu, swiglu, geglu
    bias: bool = True  # in dense layers and LayerNorm
    qkv_bias: bool = False  # without bias: queries, keys and values have one
    parallel_block: bool = False  # attention and MLP side by side (PaLM)
    parallel_norm: bool = False  # in a parallel_block the MLP has a norm of its own (GPT-NeoX)
    query_scale: float = 0.0  # of attention scores; 0 = 1 / sqrt(head_dim)
    attention_softcap: float = 0.0  # scores become cap * tanh(score / cap); 0 = unchanged
    logit_softcap: float = 0.0  # the same for the logits of the output layer
    embed_scale: bool = False  # token embeddings are multiplied by sqrt(d_model)
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
        **dict.fromkeys(("rope_theta", "norm_eps", "rope_factor", "rope_low_factor"), POSITIVE),
        **dict.fromkeys(("rope_high_factor", "rope_attention_factor"), POSITIVE),
        **dict.fromkeys(("rope_short", "rope_long"), POSITIVE),
        **dict.fromkeys(("rope_original_len", "window", "global_every"), at_least(0)),
        **dict.fromkeys(("local_rope_theta", "query_scale"), at_least(0)),
        **dict.fromkeys(("attention_softcap", "logit_softcap"), at_least(0)),
        "rope_share": Range(0, 1, open_low=True),
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
        self._check_options()
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
                "norm_place": ("pre", "post", "both"),
                "qk_norm": ("", "head", "width"),
                "rope_scaling": ("", "linear", "llama3", "longrope"),
                "activation": ACTIVATIONS,
            },
        )

    def _check_options(self):
        """Raises UserError for options that do not go together."""
        needs = [  # key, whether it is set, the key that it needs, whether that is set
            ("qkv_bias", self.qkv_bias, "bias=False", not self.bias),
            ("parallel_norm", self.parallel_norm, "parallel_block=True", self.parallel_block),
            ("parallel_block", self.parallel_block, "norm_place='pre'", self.norm_place == "pre"),
            ("global_every", self.global_every, "window above 0", self.window),
            ("local_rope_theta", self.local_rope_theta, "window above 0", self.window),
        ]
        rotary = ("rope_scaling", "local_rope_theta")
        needs += [
            (key, getattr(self, key), "position='rotary'", self.position == "rotary")
            for key in rotary
        ]
        needs += [
            ("rope_share", self.rope_share < 1, "position='rotary'", self.position == "rotary")
        ]
        for key, is_set, needed, has in needs:
            if is_set and not has:
                raise UserError(
                    f"model.{key} is {getattr(self, key)!r}, which needs model.{needed}."
                )
        if self.position == "rotary" and (self.rope_dims % 2 or not self.rope_dims):
            raise UserError(
                f"model.rope_share={self.rope_share} of model.head_dim={self.head_dim} are "
                f"{self.rope_dims} dimensions; rotary positions need an even number, at least 2."
            )
        if self.rope_scaling in ("llama3", "longrope") and not self.rope_original_len:
            raise UserError(
                f"model.rope_scaling={self.rope_scaling!r} needs model.rope_original_len, the "
                "length of the contexts of the first training."
            )
        if self.rope_scaling == "llama3" and self.rope_low_factor >= self.rope_high_factor:
            raise UserError(
                f"model.rope_low_factor={self.rope_low_factor} must be less than "
                f"model.rope_high_factor={self.rope_high_factor}."
            )
        for key in ("rope_short", "rope_long") if self.rope_scaling == "longrope" else ():
            if len(getattr(self, key)) != self.rope_dims // 2:
                raise UserError(
                    f"model.{key} has {len(getattr(self, key))} numbers; it needs one for each "
                    f"pair of the {self.rope_dims} dimensions that rotate: {self.rope_dims // 2}."
                )

    @property
    def rope_dims(self) -> int:
        """How many dimensions of a head rotate."""
        return int(self.head_dim * self.rope_share)

    def rope(self, local: bool) -> tuple[float, Scaling | None]:
        """(theta, scaling) of layers with the window, or of the others."""
        if self.position != "rotary":
            return 0.0, None
        if local and self.local_rope_theta:
            return self.local_rope_theta, None
        if not self.rope_scaling:
            return self.rope_theta, None
        names = ("factor", "low_factor", "high_factor", "original_len", "short", "long")
        options = {name: getattr(self, f"rope_{name}") for name in (*names, "attention_factor")}
        return self.rope_theta, Scaling(self.rope_scaling, **options)

    def mask(self, local: bool, T: int | None = None) -> Mask:
        """Which keys a token sees in layers with the window, or in the others. T: the length of
        complete rows, if they are; a window that they do not exceed has no effect."""
        if not local or T is not None and self.window >= T:
            return MASK
        return MASK & Window(self.window - 1)

    @property
    def n_local(self) -> int:
        """How many layers have the window."""
        if not self.window:
            return 0
        return self.n_layers - (self.n_layers // self.global_every if self.global_every else 0)

    @property
    def blocks(self) -> tuple[type[nn.Module], ...]:
        """The kinds of layers, which alternate."""
        if not self.window:
            return (Block,)
        return (LocalBlock,) * ((self.global_every or 2) - 1) + (Block,) * bool(self.global_every)


class Block(nn.Module):
    """Norm, attention, residual; norm, MLP, residual. parallel_block: both after one norm, or with
    parallel_norm one each. norm_place: the norms may also be after a branch, before its residual.
    local: whether tokens see the keys of the window alone."""

    config: Config
    local = False  # of the class

    @nn.compact
    def __call__(self, x_BTD, i, span: Span, cache: Cache | None, rng):
        c = self.config
        types = dict(use_bias=c.bias, dtype=c.dtype)
        out_std = 0.02 / (2 * c.n_layers) ** 0.5  # residual branches add up (GPT-2)
        norm = lambda name: Norm(c.norm, eps=c.norm_eps, offset=c.norm_offset, **types, name=name)
        before = norm if c.norm_place != "post" else lambda name: lambda y: y
        after = norm if c.norm_place != "pre" else lambda name: lambda y: y
        theta, scaling = c.rope(self.local)
        attention = Attention(
            c.n_heads,
            c.n_kv_heads,
            c.head_dim,
            c.mask(self.local, x_BTD.shape[1] if cache is None else None),
            use_bias=c.bias or c.qkv_bias,
            out_bias=c.bias,
            rope_theta=theta,
            rope_dims=c.rope_dims,
            rope_scaling=scaling,
            scale=c.query_scale or None,
            softcap=c.attention_softcap,
            qk_norm=c.qk_norm,
            norm_eps=c.norm_eps,
            norm_offset=c.norm_offset,
            kernel=c.attention,
            out_std=out_std,
            dtype=c.dtype,
            name="attention",
        )
        mlp = MLP(c.d_ff, c.activation, out_std=out_std, **types, name="mlp")
        keys = [None, None]
        if rng is not None and c.dropout:
            keys = jax.random.split(jax.random.fold_in(rng, i))

        x_BTD = kept(x_BTD, "input")
        h = before("norm_1")(x_BTD)
        a, cache = attention(h, span, cache)
        a = dropout(after("post_norm_1")(a), c.dropout, keys[0])
        if c.parallel_block:
            h = norm("norm_2")(x_BTD) if c.parallel_norm else h
            x_BTD = x_BTD + a + dropout(mlp(h), c.dropout, keys[1])
        else:
            x_BTD = kept(x_BTD + a, "residual")
            m = after("post_norm_2")(mlp(before("norm_2")(x_BTD)))
            x_BTD = x_BTD + dropout(m, c.dropout, keys[1])
        return constrain(x_BTD, "batch", "residual_length", "act_embed"), (cache, {})


class LocalBlock(Block):
    """A layer with the window."""

    local = True


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
        if c.embed_scale:
            x = x * jnp.asarray(c.d_model**0.5, x.dtype)
        if c.position == "learned":
            x = x + Embed(c.max_len, c.d_model, axis="position", **types, name="position")(
                positions_BT
            )
        if rng is not None:
            x = dropout(x, c.dropout, jax.random.fold_in(rng, c.n_layers))
        x = constrain(x, "batch", "residual_length", "act_embed")
        x, cache, sums = Stack(c.blocks, c, c.n_layers, c.scan, c.remat, name="stack")(
            x, Span(positions_BT, segments_BT), cache, rng
        )
        x = Norm(c.norm, c.bias, c.norm_eps, **types, offset=c.norm_offset, name="final_norm")(x)
        x = constrain(x, "batch", "length", "act_embed")
        if c.tie_embeddings:
            linear = embed.output(x)
        else:
            head = Output((c.vocab_size,), ("embed",), ("vocab",), False, **types, name="head")
            linear = head(x)
        if c.logit_softcap:
            linear = linear._replace(softcap=jnp.float32(c.logit_softcap))
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

    def score(variables, tokens):
        return model.apply(variables, tokens).linear

    if c.rope_scaling == "longrope" and c.rope_original_len < c.max_len:
        # With more tokens the first ones would need other frequencies than the later ones.
        limit = "model.rope_original_len"
        max_len = c.rope_original_len
        return Decoder(prefix_context, begin, step, max_len, limit=limit, score=score)
    return Decoder(prefix_context, begin, step, c.max_len, score=score)


def flops_per_token(c: Config, seq_len: int) -> float:
    """Floating-point operations of training on one token, forward and backward.

    6 per weight of a matrix product, plus 12 * width for each key that a token sees in a layer.
    PaLM (https://arxiv.org/abs/2204.02311, appendix B) counts all seq_len keys, about twice as
    many for a causal mask without a window.
    """
    heads = c.n_heads * c.head_dim
    attention = c.d_model * c.head_dim * 2 * (c.n_heads + c.n_kv_heads)
    mlp = c.d_model * c.d_ff * (3 if c.activation in GATES else 2)
    weights = c.n_layers * (attention + mlp) + c.vocab_size * c.d_model
    local, every = (mean_keys(c.mask(is_local, seq_len), seq_len) for is_local in (True, False))
    keys = c.n_local * local + (c.n_layers - c.n_local) * every
    return 6.0 * weights + 12.0 * heads * keys


check_mesh = check_attention


def plan_sizes(c: Config) -> PlanSizes:
    inner = c.d_ff * (2 if c.activation in GATES else 1)
    heads, keys = c.n_heads * c.head_dim, 2 * c.n_kv_heads * c.head_dim
    return PlanSizes(c.n_layers, c.d_model, inner, heads, keys, c.vocab_size)


PRESETS = _gpt_presets.PRESETS
