"""Recurrent encoder-decoders with attention, LSTM or GRU.

The encoder reads the source in both directions (https://arxiv.org/abs/1409.0473). The decoder
attends after its recurrence, without feeding the result back (https://arxiv.org/abs/1508.04025), so
that training computes the attention of all tokens at once.
"""

from collections.abc import Sequence
import dataclasses
import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from bigjax.bounds import FRACTION, POSITIVE, at_least, check_ranges
from bigjax.errors import UserError
from bigjax.layers.basic import Dense, Embed, dropout
from bigjax.layers.params import param
from bigjax.layers.recurrent import CELLS, N_GATES, Recurrent
from bigjax.models import (
    Decoder,
    Fixed,
    ModelOutput,
    check_fields,
    check_start,
    source_context,
)

PACKING = False  # a row is one pair: a recurrent state would carry over into the next one
NEVER = -1e9  # the score of padding; finite, since 0 * infinity is NaN


@dataclasses.dataclass(frozen=True)
class Config:
    vocab_size: int = 4096
    max_len: int = 256  # tokens of the longest source, and of the longest target
    d_model: int = 256  # of embeddings, of the decoder, and of both directions of the encoder
    n_layers: int = 1  # of the encoder
    n_decoder_layers: int = 0  # 0 = n_layers
    cell: str = "lstm"  # lstm, gru, rnn
    score: str = "additive"  # of attention: additive (tanh of a sum), dot (of a projected query)
    copy: bool = False  # may also copy source tokens (https://arxiv.org/abs/1704.04368)
    start_id: int = 0  # the token before the first one of a target
    dropout: float = 0.1  # of embeddings, and of the outputs of encoder and decoder
    init_std: float = 0.1
    dtype: str = "float32"  # of the computation: float32, bfloat16
    param_dtype: str = "float32"  # of loaded and exported weights; training uses float32

    MAY_CHANGE = ("*dropout", "dtype", "param_dtype")
    RANGES = {
        **dict.fromkeys(("vocab_size", "max_len", "n_layers"), at_least(1)),
        "d_model": at_least(2),
        **dict.fromkeys(("n_decoder_layers", "start_id"), at_least(0)),
        "dropout": FRACTION,
        "init_std": POSITIVE,
    }

    def __post_init__(self):
        check_ranges("model", self)
        if not self.n_decoder_layers:
            object.__setattr__(self, "n_decoder_layers", self.n_layers)
        if self.d_model % 2:
            raise UserError(
                f"model.d_model is {self.d_model}; it must be even, since each direction of the "
                "encoder has half of it."
            )
        check_start(self)
        check_fields(self, {"cell": CELLS, "score": ("additive", "dot")})


class Source(NamedTuple):
    """What the decoder reads of a source: memory [B, S, D], its keys [B, S, D], which tokens are
    real [B, S], and their ids [B, S]."""

    memory: jax.Array
    keys: jax.Array
    real: jax.Array
    ids: jax.Array


class Model(nn.Module):
    """A source, and the tokens of its target, to the logits of each next token."""

    config: Config

    def setup(self):
        c = self.config
        types = dict(init_std=c.init_std, dtype=c.dtype)
        dense = lambda n, **more: Dense((n,), ("embed",), (None,), **types, **more)
        self.embed = Embed(c.vocab_size, c.d_model, **types)
        self.encoder = Recurrent(c.cell, c.d_model // 2, c.n_layers, bidirectional=True, **types)
        self.initial = dense(c.d_model * self.n_states)
        self.decoder = Recurrent(c.cell, c.d_model, c.n_decoder_layers, **types)
        self.query = dense(c.d_model, use_bias=False)
        self.key = dense(c.d_model, use_bias=False)
        if c.score == "additive":
            self.energy = dense(1, use_bias=False, out_dtype="float32")
        self.mix = dense(c.d_model)
        self.bias = param(self, "bias", nn.initializers.zeros, (c.vocab_size,), ("vocab",))
        if c.copy:
            self.gate = dense(1, out_dtype="float32")

    @property
    def n_states(self) -> int:
        """The number of arrays of the decoder's state."""
        c = self.config
        return c.n_decoder_layers * (2 if c.cell == "lstm" else 1)

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
        """With logits [B, T, V].

        inputs: start_id, and the target without its last token. source_segments: 0 = padding (by
        default nothing is). The other segments and positions have no effect: a row has one pair.
        rng: for dropout; None turns it off.
        """
        del source_positions_BS, segments_BT, positions_BT
        rate = self.config.dropout
        keys = (None,) * 3 if rng is None else jax.random.split(rng, 3)
        source, cells = self.encode(source_BS, source_segments_BS, keys[0])
        h_BTD, _ = self.decoder(dropout(self.embed(inputs_BT), rate, keys[1]), state=cells)
        return self._output(h_BTD, source, keys[2])[0]

    def encode(self, source_BS, segments_BS=None, rng=None) -> tuple[Source, tuple]:
        """(what the decoder reads, the state of its recurrence before the first token)."""
        c = self.config
        real = jnp.ones_like(source_BS) > 0 if segments_BS is None else segments_BS > 0
        keys = (None, None) if rng is None else jax.random.split(rng)
        x = dropout(self.embed(source_BS), c.dropout, keys[0])
        memory = dropout(self.encoder(x, real)[0], c.dropout, keys[1])
        n = jnp.maximum(real.sum(1, keepdims=True), 1).astype(memory.dtype)
        mean = (memory * real[..., None]).sum(1) / n
        parts = jnp.split(jnp.tanh(self.initial(mean)), self.n_states, axis=-1)
        cells = tuple(zip(parts[::2], parts[1::2]) if c.cell == "lstm" else parts)
        return Source(memory, self.key(memory), real, source_BS), cells

    def step(self, tokens_B, cells, source: Source):
        """(logits float32 [B, V], cells, attention float32 [B, S]) after one more token per row.

        There may be several rows of tokens, consecutive ones, for each row of the source.
        """
        h_BD, cells = self.decoder.step(self.embed(tokens_B), cells)
        h = h_BD.reshape(len(source.memory), -1, h_BD.shape[-1])
        out, share = self._output(h, source, None)
        flat = lambda x: x.reshape(len(h_BD), -1)
        return flat(out.logits), cells, flat(share)

    def _output(self, h_BTD, source: Source, rng) -> tuple[ModelOutput, jax.Array]:
        """(the output of each h, its attention to the source [B, T, S])."""
        c = self.config
        query = self.query(h_BTD)
        if c.score == "additive":
            sums = query[:, :, None] + source.keys[:, None]
            scores = self.energy(jnp.tanh(sums))[..., 0]
        else:
            scores = jnp.einsum(
                "BTD,BSD->BTS", query, source.keys, preferred_element_type=jnp.float32
            )
        real = source.real[:, None]
        share = jax.nn.softmax(jnp.where(real, scores, NEVER)) * real
        read = jnp.einsum("BTS,BSD->BTD", share.astype(h_BTD.dtype), source.memory)
        y = jnp.tanh(self.mix(jnp.concatenate([read, h_BTD], axis=-1)))
        y = dropout(y, c.dropout, rng)
        linear = self.embed.output(y, self.bias)
        if not c.copy:
            return ModelOutput(linear), share
        copied = jax.nn.sigmoid(self.gate(y))
        p = (1 - copied) * jax.nn.softmax(linear.product())
        rows = jnp.arange(len(p))[:, None]
        p = p.at[rows, :, source.ids].add((copied * share).swapaxes(1, 2))
        return ModelOutput(log_probs=jnp.log(jnp.maximum(p, 1e-20))), share


@functools.cache
def decoder(c: Config) -> Decoder:
    """Writes targets for the token ids of sources, each with its end token."""
    model = Model(c)

    def context(ids: Sequence[Sequence[int]]) -> tuple[dict, np.ndarray]:
        return source_context(ids, c.max_len), np.full(len(ids), c.start_id, np.int32)

    def begin(variables, context, slots):
        del slots  # the state does not grow
        arrays = context["source"], context["segments"]
        source, cells = model.apply(variables, *arrays, method="encode")
        return cells, Fixed(source)

    def advance(variables, state, tokens_B):
        cells, source = state
        return model.apply(variables, tokens_B, cells, source.value, method="step")

    def step(variables, state, tokens_B) -> tuple[jax.Array, Any]:
        logits, cells, _ = advance(variables, state, tokens_B)
        return logits, (cells, state[1])

    def attention(variables, state, tokens_B):
        return advance(variables, state, tokens_B)[2]

    return Decoder(context, begin, step, c.max_len, continues=False, attention=attention)


def flops_per_pair(c: Config, source_len: int, target_len: int) -> float:
    """Floating-point operations of training on a source and a target of these lengths, forward and
    backward: 6 per weight of a matrix product, and those of the attention."""
    D, gates = c.d_model, N_GATES[c.cell]
    half = D // 2
    encoder = c.n_layers * 2 * gates * half * (D + half)
    decoder = c.n_decoder_layers * gates * D * 2 * D
    of_token = decoder + D * D + 2 * D * D + c.vocab_size * D
    pairs = source_len * target_len * D * 2
    return 6.0 * (source_len * (encoder + D * D) + target_len * of_token + pairs)


PRESETS = {
    # https://arxiv.org/abs/1508.04025, section 4.1: four layers of 1000, dropout 0.2
    "luong": dict(d_model=1000, n_layers=4, score="dot", dropout=0.2, vocab_size=50000),
}
