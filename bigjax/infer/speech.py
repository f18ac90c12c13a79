"""Whisper's rules of decoding (https://arxiv.org/abs/2212.04356, section 4.5), around a Decoder.

What the rules forbid gets the logit -infinity in each step, so that sampling and beam search need
to know nothing about them.
"""

from collections.abc import Sequence
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bigjax.errors import UserError
from bigjax.models import Decoder


class Rules(NamedTuple):
    """Ids of Whisper's tokenizer, and what may be written.

    start_id: <|startoftranscript|>, whose step predicts the language and no_speech_id. end_id: of a
    text; all ids before it are text. suppressed: never written; suppressed_first: not as the first.
    timestamps: whether texts have times, by the rules of `apply`. first_timestamp: the id of
    <|0.00|>; all ids from it on are times. no_timestamps_id: not written among times. max_first:
    steps of 0.02 s that the first time may be after 0; None for any number.
    """

    start_id: int
    end_id: int
    no_speech_id: int
    no_timestamps_id: int
    first_timestamp: int
    suppressed: tuple[int, ...] = ()
    suppressed_first: tuple[int, ...] = ()
    timestamps: bool = False
    max_first: int | None = 50


def rules_of(tokenizer: Any, *, timestamps: bool = False) -> Rules:
    """The published rules, for a tokenizer of data.tokenizers.whisper."""
    return Rules(
        start_id=tokenizer.special["<|startoftranscript|>"],
        end_id=tokenizer.eos_id,
        no_speech_id=tokenizer.no_speech_id,
        no_timestamps_id=tokenizer.special["<|notimestamps|>"],
        first_timestamp=tokenizer.first_timestamp,
        suppressed=tokenizer.suppressed,
        suppressed_first=tokenizer.suppressed_first,
        timestamps=timestamps,
    )


class History(NamedTuple):
    """What the rules need to know of a text so far; int32 [B] each.

    n: the number of its tokens. last, before: its last two tokens, 0 for none. time: its last
    timestamp, 0 for none.
    """

    n: jax.Array
    last: jax.Array
    before: jax.Array
    time: jax.Array

    @classmethod
    def empty(cls, batch: int) -> "History":
        return cls(*[jnp.zeros(batch, jnp.int32)] * 4)

    def with_token(self, rules: Rules, tokens_B: jax.Array) -> "History":
        """After one more token in each row."""
        time = jnp.where(tokens_B >= rules.first_timestamp, tokens_B, self.time)
        return History(self.n + 1, tokens_B, self.last, time)


def apply(rules: Rules, history: History, logits_BV: jax.Array) -> jax.Array:
    """The logits, float32 [B, V], -infinity for tokens that the rules forbid.

    With rules.timestamps a text begins with a time, of at most max_first. Times stand in pairs, the
    end of a part and the beginning of the next, except before the end. They do not decrease, and no
    part is empty. Where times together are more likely than each other token, a time is written.
    """
    logits = logits_BV.astype(jnp.float32)
    never = np.zeros((2, logits.shape[-1]), bool)
    never[:, [*rules.suppressed]] = True
    never[0, [*rules.suppressed_first]] = True
    begins = (history.n == 0)[:, None]
    forbidden = jnp.where(begins, never[0], never[1])
    if not rules.timestamps:
        return jnp.where(forbidden, -jnp.inf, logits)
    ids, start = jnp.arange(logits.shape[-1]), rules.first_timestamp
    is_time = ids >= start
    forbidden |= ids == rules.no_timestamps_id
    after_time = ((history.n > 0) & (history.last >= start))[:, None]
    after_pair = after_time & ((history.n < 2) | (history.before >= start))[:, None]
    after_end = after_time & ~after_pair  # of a part: a time or the end of the text follows
    forbidden |= after_pair & is_time | after_end & (ids < rules.end_id)
    earliest = history.time[:, None] + jnp.where(after_end, 0, 1)
    forbidden |= is_time & (history.time > 0)[:, None] & (ids < earliest)
    forbidden |= begins & ~is_time
    if rules.max_first is not None:
        forbidden |= begins & (ids > start + rules.max_first)
    logits = jnp.where(forbidden, -jnp.inf, logits)
    of_times = jax.nn.logsumexp(logits, axis=-1, where=is_time[None], keepdims=True)
    of_others = jnp.where(is_time, -jnp.inf, logits).max(-1, keepdims=True)
    return jnp.where(~is_time & (of_times > of_others), -jnp.inf, logits)


class State(NamedTuple):
    """Of a Decoder with rules. inner: of the Decoder without. no_speech: float32 [B], the
    probability that the audio has no speech. room: int32 [B], the tokens that a text may have."""

    inner: Any
    history: History
    no_speech: jax.Array
    room: jax.Array


@functools.cache
def ruled(decoder: Decoder, rules: Rules) -> Decoder:
    """The decoder of models.whisper with these rules; its state is a State.

    An input is audio, or (audio, ids): ids with rules.start_id, and after it, in each row as many,
    the language, the task and <|notimestamps|>; before it perhaps the previous text. Raises
    UserError for others. A text ends where it and these ids fill the decoder's max_len.
    """

    def context(inputs: Sequence[Any]) -> tuple[dict, np.ndarray]:
        rows = [x if isinstance(x, tuple) else (x, [rules.start_id]) for x in inputs]
        ends = [_end_of_start(ids, rules.start_id) for _, ids in rows]
        given = [list(ids[end:]) for (_, ids), end in zip(rows, ends)]
        if len({*map(len, given)}) > 1:
            raise UserError(
                f"Rows have {sorted({*map(len, given)})} ids after the start token {rules.start_id}"
                "; all rows of a batch must have as many. Decode others in another batch."
            )
        room = np.array([decoder.max_len - len(ids) for _, ids in rows], np.int32)
        if room.min() < 1:
            raise UserError(
                f"{decoder.max_len - room.min()} ids before a text leave no room for it in "
                f"model.max_len={decoder.max_len}. Give fewer of the previous text."
            )
        heads = [(audio, ids[:end]) for (audio, ids), end in zip(rows, ends)]
        inner, first = decoder.context(heads)
        last = [ids[-1] for _, ids in rows]
        more = {"given": np.array(given, np.int32), "room": room}
        return {**inner, **more}, np.array(last, first.dtype)

    def begin(variables, context, slots):
        given = context["given"]
        B, n = given.shape
        state = decoder.begin(variables, context, slots + n)
        start = jnp.full(B, rules.start_id, jnp.int32)
        logits, after = decoder.step(variables, state, start)
        no_speech = jax.nn.softmax(logits.astype(jnp.float32))[:, rules.no_speech_id]
        state = after if n else state  # else that step is the first one
        for tokens in given.T[:-1]:
            _, state = decoder.step(variables, state, tokens)
        # The first step reads a token before the text.
        history = History.empty(B)._replace(n=jnp.full(B, -1))
        return State(state, history, no_speech, context["room"])

    def step(variables, state, tokens_B):
        logits, inner = decoder.step(variables, state.inner, tokens_B)
        before = state.history.n < 0
        history = jax.tree_util.tree_map(
            lambda a, b: jnp.where(before, a, b),
            History.empty(len(tokens_B)),
            state.history.with_token(rules, tokens_B),
        )
        full = (history.n >= state.room)[:, None]  # the model has no position for a next token
        end = jnp.where(jnp.arange(logits.shape[-1]) == rules.end_id, 0.0, -jnp.inf)
        logits = jnp.where(full, end, apply(rules, history, logits))
        return logits, state._replace(inner=inner, history=history)

    def attention(variables, state, tokens_B):
        return decoder.attention(variables, state.inner, tokens_B)

    return decoder._replace(
        context=context, begin=begin, step=step, attention=decoder.attention and attention
    )


def _end_of_start(ids: Sequence[int], start_id: int) -> int:
    """The number of ids up to the last start_id."""
    ends = [i + 1 for i, x in enumerate(ids) if x == start_id]
    if not ends:
        raise UserError(
            f"The ids before a text lack the start token {start_id}; they are {list(ids)[:20]}. "
            "Use those of the tokenizer's `start`."
        )
    return ends[-1]


@functools.partial(jax.jit, static_argnums=0)
def start_probabilities(decoder: Decoder, variables, context, first_B) -> jax.Array:
    """float32 [B, V]: what follows the start token, such as a language (tokenizer.languages).

    decoder: of models.whisper; context, first: of its inputs, audio alone.
    """
    logits, _ = decoder.step(variables, decoder.begin(variables, context, 1), first_B)
    return jax.nn.softmax(logits.astype(jnp.float32))
