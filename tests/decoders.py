"""Small decoders of bytes, whose texts are known."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from bigjax.linear import Linear
from bigjax.models import Decoder, Fixed, source_context

V = 259  # the vocabulary of data/tokenizers/bytes.py


def copying_decoder(max_len=32, vocab_size=V) -> Decoder:
    """Its target is the source. It has read source[at] when it writes it; beams share the source.
    Its only variable is the logit of the next token, all others have 0."""

    def begin(sure, context, slots):
        return jnp.zeros(len(context["source"]), jnp.int32), Fixed(context["source"])

    def step(sure, state, tokens):
        at, source = state
        rows = jnp.arange(len(at)) * len(source.value) // len(at)  # of the beams
        token = source.value[rows, at]
        return sure * jax.nn.one_hot(token, vocab_size), (at + 1, source)

    def attention(sure, state, tokens):
        at, source = state
        return jax.nn.one_hot(at, source.value.shape[1])

    context = lambda ids: (source_context(ids, max_len), np.zeros(len(ids), np.int32))
    return Decoder(context, begin, step, max_len, continues=False, attention=attention)


@functools.cache
def continuing_decoder(max_len=32) -> Decoder:
    """It writes letters: the last one again and again, or with the variable 0 any."""
    letters = jnp.isin(jnp.arange(V), jnp.arange(ord("a"), ord("z") + 1))

    def step(sure, state, tokens):
        return sure * jax.nn.one_hot(tokens, V) + jnp.where(letters, 0, -50), state

    def score(sure, tokens):
        return Linear(sure * jax.nn.one_hot(tokens, V), jnp.eye(V), jnp.where(letters, 0.0, -50.0))

    context = lambda ids: (np.zeros(len(ids), np.int32), np.array([row[-1] for row in ids]))
    return Decoder(context, lambda sure, context, slots: context, step, max_len, score=score)
