"""Encoder-decoders: T5 (https://arxiv.org/abs/1910.10683), its version 1.1, and by options the
Transformer (https://arxiv.org/abs/1706.03762), with its norms after or before the layers."""

from collections.abc import Sequence
import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from bigjax.bounds import FRACTION, POSITIVE, at_least, check_ranges
from bigjax.errors import UserError
from bigjax.interop import marian
from bigjax.interop import t5 as hugging_face
from bigjax.layers.attention import Cache, Memory, Span
from bigjax.layers.basic import ACTIVATIONS, GATES, Embed, Norm, Output, dropout
from bigjax.layers.encoder_decoder import (
    DECODER_MASK,
    ENCODER_MASK,
    DecoderBlock,
    EncoderBlock,
    Shared,
    layer_keys,
)
from bigjax.layers.mask import mean_keys
from bigjax.layers.params import param
from bigjax.layers.positions import RelativeBias, sinusoids
from bigjax.layers.stack import Stack, add_sums
from bigjax.models import (
    OF_A_RUN,
    Decoder,
    Fixed,
    ModelOutput,
    PlanSizes,
    check_attention,
    check_fields,
    check_start,
    cross_decoder,
    source_context,
)
from bigjax.parallel.sharding import constrain

HUGGING_FACE = (hugging_face.FAMILY, marian.FAMILY)
POSITIONS = ("relative", "sinusoidal", "sinusoidal_halves", "learned")


@dataclasses.dataclass(frozen=True)
class Config:
    vocab_size: int = 32128
    max_len: int = 512  # tokens of the longest source, and of the longest target
    d_model: int = 512
    n_layers: int = 6  # of the encoder
    n_decoder_layers: int = 0  # 0 = n_layers
    n_heads: int = 8
    head_dim: int = 0  # 0 = d_model // n_heads
    d_ff: int = 0  # 0 = 4 d_model
    # relative: T5's buckets; sinusoidal: sine and cosine alternate, as in the paper; or
    # sinusoidal_halves: all sines first; learned: a table of max_len
    position: str = "relative"
    relative_buckets: int = 32
    relative_distance: int = 128  # all positions farther apart share a bucket
    norm: str = "rmsnorm"  # rmsnorm, layernorm
    norm_eps: float = 1e-6
    post_norm: bool = False  # norms after the residual sums, as of 2017; else before the layers
    activation: str = "relu"  # relu, gelu_exact, gelu (tanh form), silu, swiglu, geglu
    bias: bool = False  # in dense layers and LayerNorm
    key_bias: bool = True  # with bias: of keys too
    scale_scores: bool = (
        False  # of attention, by 1 / sqrt(head_dim); T5 has it in its initial values
    )
    scale_embeddings: bool = False  # by sqrt(d_model)
    tie_embeddings: bool = True  # output layer = token embedding, which source and target share
    scale_logits: bool = True  # by 1 / sqrt(d_model), of a tied output layer
    output_bias: bool = False  # of the logits
    start_id: int = 0  # the token before the first one of a target: T5's is that of padding
    dropout: float = 0.1  # of embeddings and residual branches
    attention_dropout: float = 0.1
    mlp_dropout: float = 0.1  # between the layers of an MLP
    dtype: str = "float32"  # of the computation: float32, bfloat16
    param_dtype: str = "float32"  # of imported, loaded and exported weights; training uses float32
    attention: str = "auto"  # auto (by backend), or a name of layers/kernels.KERNELS
    scan: bool = True  # layers scanned, or unrolled
    remat: str = "none"  # what the backward pass recomputes: none, dots, ...; layers/remat.py

    MAY_CHANGE = OF_A_RUN
    RANGES = {
        **dict.fromkeys(("vocab_size", "max_len", "d_model", "n_layers", "n_heads"), at_least(1)),
        **dict.fromkeys(("n_decoder_layers", "head_dim", "d_ff", "start_id"), at_least(0)),
        "relative_buckets": at_least(4),
        "relative_distance": at_least(2),
        "norm_eps": POSITIVE,
        **dict.fromkeys(("dropout", "attention_dropout", "mlp_dropout"), FRACTION),
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
        fill("n_decoder_layers", self.n_layers)
        fill("head_dim", self.d_model // self.n_heads)
        fill("d_ff", 4 * self.d_model)
        if self.position.startswith("sinusoidal") and self.d_model % 2:
            raise UserError(
                f"model.d_model is {self.d_model}; sinusoidal positions need an even number."
            )
        if self.relative_buckets % 4 or self.relative_buckets // 2 >= self.relative_distance:
            raise UserError(
                f"model.relative_buckets is {self.relative_buckets}; it must be a multiple of 4, "
                f"and half of it less than model.relative_distance={self.relative_distance}."
            )
        check_start(self)
        check_fields(
            self,
            {
                "position": POSITIONS,
                "norm": ("rmsnorm", "layernorm"),
                "activation": ACTIVATIONS,
            },
        )


class Side(nn.Module):
    """The encoder or the decoder: embedded tokens to features, with positions and dropout."""

    config: Config
    block: type[nn.Module]
    n_layers: int

    @nn.compact
    def __call__(self, x_BTD, shared: Shared, cache=None, rng=None):
        """(features [B, T, D], cache, sums). shared: its `bias` is computed here."""
        c, T = self.config, x_BTD.shape[1]
        positions = shared.span.positions
        if c.scale_embeddings:
            x_BTD = x_BTD * c.d_model**0.5
        if c.position == "learned":
            table = Embed(c.max_len, c.d_model, axis="position", dtype=c.dtype, name="position")
            x_BTD = x_BTD + table(positions)
        elif c.position != "relative":
            table = sinusoids(c.max_len, c.d_model, c.position == "sinusoidal_halves")
            x_BTD = x_BTD + jnp.asarray(table, c.dtype)[positions]
        else:
            # Of segments in a row only distances count: the row's own places have the same ones.
            places, S = (positions, cache[0][0].slots) if cache else (jnp.arange(T), T)
            both = self.block is EncoderBlock
            std, sizes = c.d_model**-0.5, (c.n_heads, c.relative_buckets, c.relative_distance)
            bias = RelativeBias(*sizes, bidirectional=both, init_std=std, name="relative")(
                places, S
            )
            shared = shared._replace(bias=bias)
        keys = layer_keys(rng, c.n_layers + c.n_decoder_layers, 2)
        x_BTD = constrain(x_BTD, "batch", "residual_length", "act_embed")
        x_BTD = dropout(x_BTD, c.dropout, keys[0])
        x_BTD, cache, sums = Stack((self.block,), c, self.n_layers, c.scan, c.remat, name="stack")(
            x_BTD, shared, cache, rng
        )
        if not c.post_norm:
            x_BTD = Norm(c.norm, c.bias, c.norm_eps, c.dtype, name="final_norm")(x_BTD)
            x_BTD = dropout(x_BTD, c.dropout, keys[1])
        return constrain(x_BTD, "batch", "length", "act_embed"), cache, sums


class Model(nn.Module):
    """A source, and the tokens of its target, to the logits of each next token."""

    config: Config

    def setup(self):
        c = self.config
        scaled = c.scale_embeddings or c.tie_embeddings and not c.scale_logits
        std = c.d_model**-0.5 if scaled else 1.0
        self.embed = Embed(c.vocab_size, c.d_model, init_std=std, dtype=c.dtype)
        self.encoder = Side(c, EncoderBlock, c.n_layers)
        self.decoder = Side(c, DecoderBlock, c.n_decoder_layers)
        if not c.tie_embeddings:
            options = dict(init_std=c.d_model**-0.5, dtype=c.dtype)
            self.head = Output((c.vocab_size,), ("embed",), ("vocab",), False, **options)
        if c.output_bias:
            self.bias = param(self, "bias", nn.initializers.zeros, (c.vocab_size,), ("vocab",))

    def __call__(
        self,
        source_BS: jax.Array,
        inputs_BT: jax.Array,
        *,
        source_segments_BS: jax.Array | None = None,
        source_positions_BS: jax.Array | None = None,
        segments_BT: jax.Array | None = None,
        positions_BT: jax.Array | None = None,
        rng: jax.Array | None = None,
    ) -> ModelOutput:
        """With logits [B, T, V] and sums.

        inputs: start_id, and the target without its last token. segments: tokens attend within
        their segment, those of the target to the source's of the same segment (0 = padding; by
        default all are 1). positions: of each token in its segment (default 0..T-1). rng: for
        dropout; None turns it off.
        """
        keys = (None, None) if rng is None else jax.random.split(rng)
        memory, encoder_sums = self.encode(
            source_BS, source_segments_BS, source_positions_BS, keys[0]
        )
        x = self.embed(inputs_BT)
        shared = Shared(
            Span(_positions(inputs_BT, positions_BT), segments_BT), None, memory, source_segments_BS
        )
        x, _, sums = self.decoder(x, shared, None, keys[1])
        return ModelOutput(self._logits(x), add_sums(encoder_sums, sums))

    def encode(self, source_BS, segments_BS=None, positions_BS=None, rng=None):
        """(features [B, S, D] of the source, sums)."""
        span = Span(_positions(source_BS, positions_BS), segments_BS)
        x, _, sums = self.encoder(self.embed(source_BS), Shared(span, None), None, rng)
        return x, sums

    def begin(self, source_BS, segments_BS, caches: list[Cache]):
        """The Memory of each layer of the decoder. caches: empty, for one token each."""
        memory, _ = self.encode(source_BS, segments_BS)
        first = jnp.full((len(source_BS), 1), self.config.start_id)
        shared = Shared(Span(jnp.zeros_like(first)), None, memory, segments_BS)
        _, caches, _ = self.decoder(self.embed(first), shared, [(x, None) for x in caches])
        return [source for _, source in caches]

    def step(self, tokens_B, caches: list[Cache], memories: list[Memory]):
        """(the output layer of one more token per row, caches)."""
        tokens = tokens_B[:, None]
        shared = Shared(Span(caches[0].next[:, None]), None)
        x, caches, _ = self.decoder(self.embed(tokens), shared, [*zip(caches, memories)])
        return self._logits(x), [own for own, _ in caches]

    def _logits(self, x):
        c = self.config
        if not c.tie_embeddings:
            linear = self.head(x)
        else:
            linear = self.embed.output(x * c.d_model**-0.5 if c.scale_logits else x)
        return linear._replace(bias=self.bias) if c.output_bias else linear


def _positions(tokens_BT, positions_BT) -> jax.Array:
    if positions_BT is not None:
        return positions_BT
    return jnp.broadcast_to(jnp.arange(tokens_BT.shape[1]), tokens_BT.shape)


@functools.cache
def decoder(c: Config) -> Decoder:
    """Writes targets for the token ids of sources, each with its end token; variables in the form
    of scan=False."""
    c = dataclasses.replace(c, scan=False, remat="none")
    model = Model(c)

    def context(ids: Sequence[Sequence[int]]) -> tuple[dict, np.ndarray]:
        return source_context(ids, c.max_len), np.full(len(ids), c.start_id, np.int32)

    def caches(batch, slots):
        empty = lambda: Cache.empty(batch, slots, c.n_heads, c.head_dim, c.dtype)
        return [empty() for _ in range(c.n_decoder_layers)]

    def begin(variables, context, slots):
        batch = len(context["source"])
        arrays = context["source"], context["segments"], caches(batch, 1)
        return caches(batch, slots), Fixed(model.apply(variables, *arrays, method="begin"))

    return cross_decoder(model, c, context, begin)


def flops_per_pair(c: Config, source_len: int, target_len: int) -> float:
    """Floating-point operations of training on a source and a target of these lengths, forward and
    backward: 6 per weight of a matrix product, plus 12 * layers * width for each key that a token
    sees."""
    inner = c.n_heads * c.head_dim
    attention = 2 * c.d_model * inner  # queries and outputs, or keys and values
    mlp = c.d_model * c.d_ff * (3 if c.activation in GATES else 2)
    keys = lambda mask, n: 2 * inner * mean_keys(mask, n)
    of_source = c.n_layers * (2 * attention + mlp + keys(ENCODER_MASK, source_len))
    of_source += c.n_decoder_layers * attention  # keys and values for the decoder
    of_target = c.n_decoder_layers * (
        3 * attention + mlp + keys(DECODER_MASK, target_len) + 2 * inner * source_len
    )
    of_target += c.vocab_size * c.d_model
    return 6.0 * (source_len * of_source + target_len * of_target)


check_mesh = check_attention


def plan_sizes(c: Config) -> PlanSizes:
    inner = c.d_ff * (2 if c.activation in GATES else 1)
    heads = c.n_heads * c.head_dim
    layers = c.n_layers + c.n_decoder_layers
    return PlanSizes(layers, c.d_model, inner, heads, 2 * heads, c.vocab_size)


def _t5(n_layers, d_model, n_heads, d_ff, head_dim=64, **more):
    sizes = dict(n_layers=n_layers, d_model=d_model, n_heads=n_heads, d_ff=d_ff)
    return dict(**sizes, head_dim=head_dim, **more)


_V1_1 = dict(activation="geglu", tie_embeddings=False, scale_logits=False)
_2017 = dict(
    vocab_size=37000,
    max_len=1024,
    position="sinusoidal",
    norm="layernorm",
    norm_eps=1e-6,
    post_norm=True,
    bias=True,
    scale_scores=True,
    scale_embeddings=True,
    scale_logits=False,
    attention_dropout=0.0,
    mlp_dropout=0.0,
)

# T5: https://arxiv.org/abs/1910.10683, section 3.7; sizes of the published weights, with a
# vocabulary of 32,000 pieces and 100 sentinels, padded. Version 1.1: the same authors' release
# notes. Transformer: https://arxiv.org/abs/1706.03762, table 3, with a shared vocabulary of 37,000.
PRESETS = {
    "small": _t5(6, 512, 8, 2048),
    "base": _t5(12, 768, 12, 3072),
    "large": _t5(24, 1024, 16, 4096),
    "3b": _t5(24, 1024, 32, 16384, 128),
    "11b": _t5(24, 1024, 128, 65536, 128),
    "v1.1-small": _t5(8, 512, 6, 1024, **_V1_1),
    "v1.1-base": _t5(12, 768, 12, 2048, **_V1_1),
    "v1.1-large": _t5(24, 1024, 16, 2816, **_V1_1),
    "v1.1-xl": _t5(24, 2048, 32, 5120, **_V1_1),
    "v1.1-xxl": _t5(24, 4096, 64, 10240, **_V1_1),
    "transformer-base": _t5(6, 512, 8, 2048, **_2017),
    "transformer-big": _t5(6, 1024, 16, 4096, dropout=0.3, **_2017),
}
