"""Whisper (https://arxiv.org/abs/2212.04356): from audio to text, an encoder-decoder.

`features` computes log-mel features of audio on the device, and a Model reads these: a task may
mask them in between. An input of `decoder` is audio itself.
"""

from collections.abc import Collection, Mapping, Sequence
import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from bigjax.bounds import FRACTION, POSITIVE, at_least, check_ranges
from bigjax.errors import UserError
from bigjax.interop import whisper as hugging_face
from bigjax.layers.attention import Cache, Memory, Span
from bigjax.layers.audio import log_mel
from bigjax.layers.basic import ACTIVATIONS, Embed, Norm, dropout
from bigjax.layers.conv import Conv
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
from bigjax.layers.positions import sinusoids
from bigjax.layers.stack import Stack, add_sums
from bigjax.models import (
    OF_A_RUN,
    Adapted,
    Decoder,
    Fixed,
    ModelOutput,
    PlanSizes,
    check_attention,
    check_fields,
    check_heads,
    check_start,
    cross_decoder,
    rung,
)
from bigjax.parallel.sharding import constrain

HUGGING_FACE = (hugging_face.FAMILY,)


@dataclasses.dataclass(frozen=True)
class Config:
    vocab_size: int = 51865
    sample_rate: int = 16000  # of audio, in Hz
    n_fft: int = 400  # samples of a frame's Fourier transform
    hop: int = 160  # samples from frame to frame
    n_mels: int = 80  # features of a frame
    max_seconds: float = 30.0  # of the longest audio; a decoder pads all to this length
    max_len: int = 448  # tokens of the longest text, with those before it
    d_model: int = 512
    n_layers: int = 6  # of the encoder
    n_decoder_layers: int = 0  # 0 = n_layers
    n_heads: int = 8
    d_ff: int = 0  # 0 = 4 d_model
    start_id: int = 50258  # the token before a text: <|startoftranscript|>
    dropout: float = 0.0  # of embeddings and residual branches
    attention_dropout: float = 0.0
    mlp_dropout: float = 0.0  # between the layers of an MLP
    dtype: str = "float32"  # of the computation: float32, bfloat16
    param_dtype: str = "float32"  # of imported, loaded and exported weights; training uses float32
    attention: str = "auto"  # auto (by backend), or a name of layers/kernels.KERNELS
    scan: bool = True  # layers scanned, or unrolled
    remat: str = "none"  # what the backward pass recomputes: none, dots, ...; layers/remat.py

    MAY_CHANGE = OF_A_RUN
    _COUNTS = ("sample_rate", "hop", "n_mels", "max_len", "d_model", "n_layers", "n_heads")
    RANGES = {
        **dict.fromkeys(("vocab_size", *_COUNTS), at_least(1)),
        **dict.fromkeys(("n_decoder_layers", "d_ff", "start_id"), at_least(0)),
        "n_fft": at_least(2),
        "max_seconds": POSITIVE,
        **dict.fromkeys(("dropout", "attention_dropout", "mlp_dropout"), FRACTION),
    }

    # What the layers read and all sizes share
    norm, norm_eps, post_norm = "layernorm", 1e-5, False
    bias, key_bias, scale_scores, activation = True, False, True, "gelu_exact"

    def __post_init__(self):
        check_ranges("model", self)
        check_heads(self)
        for name, value in (("n_decoder_layers", self.n_layers), ("d_ff", 4 * self.d_model)):
            if not getattr(self, name):
                object.__setattr__(self, name, value)
        if self.d_model % 2:
            raise UserError(
                f"model.d_model is {self.d_model}; sinusoidal positions need an even number."
            )
        if not self.n_positions:
            raise UserError(
                f"model.max_seconds is {self.max_seconds}, less than 2 * model.hop samples at "
                f"model.sample_rate={self.sample_rate}; the encoder reads two frames at a time."
            )
        check_start(self)
        check_fields(self, {})

    @property
    def head_dim(self) -> int:
        return self.d_model // self.n_heads

    @property
    def n_positions(self) -> int:
        """Of the encoder: one for two frames."""
        return round(self.max_seconds * self.sample_rate) // (2 * self.hop)

    @property
    def n_samples(self) -> int:
        """Of the longest audio: 2 * hop for each position."""
        return 2 * self.hop * self.n_positions


def features(c: Config, audio_BN: jax.Array) -> jax.Array:
    """Log-mel features, float32 [B, N // hop, n_mels], of int16 or floating audio; see log_mel."""
    return log_mel(audio_BN, sample_rate=c.sample_rate, n_fft=c.n_fft, hop=c.hop, n_mels=c.n_mels)


class Encoder(nn.Module):
    """Two convolutions, of which the second halves the number of frames, positions and layers."""

    config: Config

    @nn.compact
    def __call__(self, mel_BFM, rng=None):
        """(features [B, ceil(F / 2), D], sums)."""
        c = self.config
        act, x = ACTIVATIONS[c.activation], mel_BFM
        for i in (1, 2):
            options = dict(stride=i, padding=1, init_std=(3 * x.shape[-1]) ** -0.5, axis="filters")
            x = act(Conv(c.d_model, 3, dtype=c.dtype, **options, name=f"conv_{i}")(x))
        B, S, D = x.shape
        if S > c.n_positions:
            raise UserError(
                f"The audio has {mel_BFM.shape[1]} frames, but model.max_seconds={c.max_seconds} "
                f"allows {2 * c.n_positions}. Shorten the audio or set model.max_seconds."
            )
        # A parameter, since published weights have it, rounded to float16; it is never trained.
        table = lambda *_: jnp.asarray(sinusoids(c.n_positions, D, halves=True, inclusive=True))
        positions = param(self, "position", table, (c.n_positions, D), ("position", None))
        x = x + jax.lax.stop_gradient(positions)[:S].astype(c.dtype)
        (key,) = layer_keys(rng, c.n_layers, 1)
        x = dropout(constrain(x, "batch", "residual_length", "act_embed"), c.dropout, key)
        span = Span(jnp.broadcast_to(jnp.arange(S), (B, S)))
        stack = Stack((EncoderBlock,), c, c.n_layers, c.scan, c.remat, name="stack")
        x, _, sums = stack(x, Shared(span, None), None, rng)
        x = Norm(c.norm, c.bias, c.norm_eps, c.dtype, name="final_norm")(x)
        return constrain(x, "batch", "length", "act_embed"), sums


class TextDecoder(nn.Module):
    """Embedded tokens, with positions and layers."""

    config: Config

    @nn.compact
    def __call__(self, x_BTD, shared: Shared, cache=None, rng=None):
        """(features [B, T, D], cache, sums)."""
        c = self.config
        table = Embed(c.max_len, c.d_model, axis="position", dtype=c.dtype, name="position")
        x = x_BTD + table(shared.span.positions)
        (key,) = layer_keys(rng, c.n_decoder_layers, 1)
        x = dropout(constrain(x, "batch", "residual_length", "act_embed"), c.dropout, key)
        stack = Stack((DecoderBlock,), c, c.n_decoder_layers, c.scan, c.remat, name="stack")
        x, cache, sums = stack(x, shared, cache, rng)
        x = Norm(c.norm, c.bias, c.norm_eps, c.dtype, name="final_norm")(x)
        return constrain(x, "batch", "length", "act_embed"), cache, sums


class Model(nn.Module):
    """Log-mel features of audio, and the tokens of its text, to the logits of each next token."""

    config: Config

    def setup(self):
        c = self.config
        self.embed = Embed(c.vocab_size, c.d_model, init_std=c.d_model**-0.5, dtype=c.dtype)
        self.encoder, self.decoder = Encoder(c), TextDecoder(c)

    def __call__(
        self,
        mel_BFM: jax.Array,
        inputs_BT: jax.Array,
        *,
        segments_BT: jax.Array | None = None,
        rng: jax.Array | None = None,
    ) -> ModelOutput:
        """With logits [B, T, V] and sums.

        mel: as of `features`, of at most max_seconds; as in the paper, silence is not masked.
        inputs: start_id and what follows, such as a language, or before it the previous text; and
        the text without its last token. segments: 0 = padding, which other tokens do not see;
        padding after a text needs none. rng: for dropout; None turns it off.
        """
        keys = (None, None) if rng is None else jax.random.split(rng)
        memory, encoder_sums = self.encode(mel_BFM, keys[0])
        positions = jnp.broadcast_to(jnp.arange(inputs_BT.shape[1]), inputs_BT.shape)
        shared = Shared(Span(positions, segments_BT), None, memory)
        x, _, sums = self.decoder(self.embed(inputs_BT), shared, None, keys[1])
        sums, output = add_sums(encoder_sums, sums), self.embed.output
        return ModelOutput(output(x), sums, source=output(memory))

    def encode(self, mel_BFM, rng=None):
        """(features [B, ceil(F / 2), D] of the audio, sums)."""
        return self.encoder(mel_BFM, rng)

    def begin(self, mel_BFM, tokens_BT, caches: list[Cache]):
        """(caches with these tokens, the Memory of each layer of the decoder). T: at least 1."""
        memory, _ = self.encode(mel_BFM)
        positions = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1]), tokens_BT.shape)
        shared = Shared(Span(positions), None, memory)
        _, caches, _ = self.decoder(self.embed(tokens_BT), shared, [(x, None) for x in caches])
        return [own for own, _ in caches], [source for _, source in caches]

    def step(self, tokens_B, caches: list[Cache], memories: list[Memory]):
        """(the output layer of one more token per row, caches)."""
        shared = Shared(Span(caches[0].next[:, None]), None)
        x = self.embed(tokens_B[:, None])
        x, caches, _ = self.decoder(x, shared, [*zip(caches, memories)])
        return self.embed.output(x), [own for own, _ in caches]


@functools.cache
def decoder(c: Config) -> Decoder:
    """Writes the text of audio; variables in the form of scan=False.

    An input is the audio, int16 or floating, [N] at c.sample_rate, of at most c.max_seconds; or
    (audio, ids): the tokens that the text continues, by default [c.start_id], which need slots of
    their own. They and the text have at most c.max_len tokens: later logits are NaN.
    """
    c = dataclasses.replace(c, scan=False, remat="none")
    model = Model(c)

    def context(inputs: Sequence[Any]) -> tuple[dict, np.ndarray]:
        rows = [x if isinstance(x, tuple) else (x, [c.start_id]) for x in inputs]
        return _audio_context(c, [audio for audio, _ in rows]) | _text_context(
            c, [ids[:-1] for _, ids in rows]
        ), np.array([ids[-1] for _, ids in rows], np.int32)

    def begin(variables, context, slots):
        tokens, lengths = context["tokens"], context["lengths"]
        B, P = tokens.shape
        if not P:  # overwritten by the first token
            tokens = jnp.full((B, 1), c.start_id)
        empty = lambda: Cache.empty(B, slots + P, c.n_heads, c.head_dim, c.dtype)
        caches = [empty() for _ in range(c.n_decoder_layers)]
        inputs = features(c, context["audio"]), tokens, caches
        caches, memories = model.apply(variables, *inputs, method="begin")
        return [x._replace(next=lengths) for x in caches], Fixed(memories)

    return cross_decoder(model, c, context, begin)


def _audio_context(c: Config, rows: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """audio, padded with zeros to [B, n_samples]: int16, or float32 if any row is floating; and
    segments int32 [B, n_positions]: 1, or 0 for padding."""
    rows = [np.asarray(row) for row in rows]
    for row in rows:
        if row.dtype != np.int16 and not np.issubdtype(row.dtype, np.floating) or row.ndim != 1:
            raise UserError(
                f"Audio is an array {row.dtype} of shape {row.shape}; it must be int16, or "
                "floating between -1 and 1, with one dimension: mix channels before."
            )
        if not 0 < len(row) <= c.n_samples:
            raise UserError(
                f"Audio has {len(row)} samples; allowed: 1 to {c.n_samples}, which is "
                f"model.max_seconds={c.max_seconds} at {c.sample_rate} Hz. Cut it into parts."
            )
    dtype = np.int16 if all(row.dtype == np.int16 for row in rows) else np.float32
    audio = np.zeros((len(rows), c.n_samples), dtype)
    for out, row in zip(audio, rows):
        out[: len(row)] = row if row.dtype == dtype else _as_float(row)
    lengths = np.array([len(row) for row in rows])[:, None]
    real = np.arange(c.n_positions) * 2 * c.hop < lengths
    return {"audio": audio, "segments": real.astype(np.int32)}


def _as_float(audio: np.ndarray) -> np.ndarray:
    """float32, between -1 and 1."""
    scale = 2.0**-15 if audio.dtype == np.int16 else 1.0
    return (audio * scale).astype(np.float32)


def _text_context(c: Config, rows: Sequence[Sequence[int]]) -> dict[str, np.ndarray]:
    """tokens before the last given one, padded, int32 [B, P], and their lengths [B]."""
    lengths = np.array([len(row) for row in rows], np.int32)
    if (longest := int(lengths.max())) >= c.max_len:
        raise UserError(
            f"{longest + 1} tokens before a text leave no room for it in model.max_len="
            f"{c.max_len}. Give fewer of the previous text."
        )
    tokens = np.zeros((len(rows), min(rung(longest), c.max_len - 1)), np.int32)
    for out, row in zip(tokens, rows):
        out[: len(row)] = row
    return {"tokens": tokens, "lengths": lengths}


def adapt(theirs: Mapping[str, Any], c: Config, names: Collection[str]) -> dict[str, Adapted]:
    """How the encoder's positions of another max_seconds become those of this model: the first of
    theirs, or where there are fewer, sinusoids. theirs: config.model. names: of parameters that are
    loaded."""
    rate = theirs.get("sample_rate", c.sample_rate), theirs.get("hop", c.hop)
    seconds = theirs.get("max_seconds", c.max_seconds)
    before = round(seconds * rate[0]) // (2 * rate[1])
    if "encoder/position" not in names or before == c.n_positions:
        return {}

    def change(table: np.ndarray) -> np.ndarray:
        whole = sinusoids(c.n_positions, c.d_model, halves=True, inclusive=True).copy()
        n = min(len(table), len(whole))
        whole[:n] = table[:n]
        return whole

    return {"encoder/position": Adapted((c.n_positions, c.d_model), change)}


def flops_per_pair(c: Config, source_len: int, target_len: int) -> float:
    """Floating-point operations of training on source_len frames of features and a text of
    target_len tokens, forward and backward: 6 per weight of a matrix product, plus 12 * layers *
    width for each key that a token sees. The features themselves, less than 1%, are not counted."""
    d, S = c.d_model, -(-source_len // 2)
    attention, mlp = 2 * d * d, 2 * d * c.d_ff  # queries and outputs, or keys and values
    keys = lambda mask, n: 2 * d * mean_keys(mask, n)
    of_source = 3 * d * d + c.n_layers * (2 * attention + mlp + keys(ENCODER_MASK, S))
    of_source += c.n_decoder_layers * attention  # keys and values for the decoder
    of_target = c.n_decoder_layers * (
        3 * attention + mlp + keys(DECODER_MASK, target_len) + 2 * d * S
    )
    of_target += c.vocab_size * d
    return 6.0 * (source_len * 3 * c.n_mels * d + S * of_source + target_len * of_target)


check_mesh = check_attention


def plan_sizes(c: Config) -> PlanSizes:
    layers = c.n_layers + c.n_decoder_layers
    return PlanSizes(layers, c.d_model, c.d_ff, c.d_model, 2 * c.d_model, c.vocab_size)


def _whisper(n_layers, d_model, **more):
    return dict(n_layers=n_layers, d_model=d_model, n_heads=d_model // 64, **more)


# https://arxiv.org/abs/2212.04356, table 1, for several languages. large-v2 has the sizes of large.
PRESETS = {
    "tiny": _whisper(4, 384),
    "base": _whisper(6, 512),
    "small": _whisper(12, 768),
    "medium": _whisper(24, 1024),
    "large": _whisper(32, 1280),
    "large-v3": _whisper(32, 1280, n_mels=128, vocab_size=51866),
}
