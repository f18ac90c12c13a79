"""Decoding with any family's Decoder: tokens in chunks, one compiled call per chunk.

Prompts are padded to a few lengths (models.rung) and numbers of rows (padded_rows); sampling
options and the number of tokens are arrays. Other values of these therefore need no compilation.
"""

from collections.abc import Iterator, Sequence
import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bigjax.errors import UserError
from bigjax.infer.sampling import positive, sample
from bigjax.layers import params as params_lib
from bigjax.models import Decoder, rung

CHUNK = 32  # the maximum number of tokens per call


@dataclasses.dataclass(frozen=True)
class Options:
    """Sampling options, see sampling.sample. eos_id: the token that ends a row (-1: none); end_ids:
    more of them. Another number of these needs a compilation."""

    max_new_tokens: int = 64
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    eos_id: int = -1
    end_ids: tuple[int, ...] = ()

    def __post_init__(self):
        for name, ok, allowed in (
            ("max_new_tokens", self.max_new_tokens >= 1, "at least 1"),
            ("temperature", 0 <= self.temperature < np.inf, "0 (greedy) or more"),
            ("top_k", self.top_k >= 0, "0 (all) or more"),
            ("top_p", 0 < self.top_p <= 1, "in (0, 1]"),
        ):
            if not ok:
                raise UserError(f"{name} is {getattr(self, name)}; it must be {allowed}.")
        for field in dataclasses.fields(self):  # an int for a float would need a compilation
            value = type(field.default)(getattr(self, field.name))
            object.__setattr__(self, field.name, value)


class Rows(NamedTuple):
    """Rows that are being decoded; leaves [B, ...].

    state: of the Decoder. token: the last one. keys: the random key of each row; drawn: the number
    of tokens sampled with it. running: False where a row has ended.
    """

    state: Any
    token: jax.Array
    keys: jax.Array
    drawn: jax.Array
    running: jax.Array


class Chunk(NamedTuple):
    """New tokens of each row.

    tokens: int [B, n]. log_p: float32 [B, n], the log-probability of each token under the model,
    log_softmax(logits): before temperature, top_k and top_p. real: bool [B, n], False for the end
    token and after it.
    """

    tokens: np.ndarray
    log_p: np.ndarray
    real: np.ndarray


class Generator:
    """Decodes with one model."""

    def __init__(self, decoder: Decoder, variables: Any):
        """variables: {'params': ...} and other collections, of scan=True or scan=False."""
        self.decoder = decoder
        # One array per layer: a scan would copy them for every token.
        scanned = _is_scanned(variables)
        self.variables = jax.jit(params_lib.unrolled)(variables) if scanned else variables

    def __call__(
        self, prompts: Sequence[Sequence[int]], options: Options, seed: int = 0
    ) -> list[list[int]]:
        """The new tokens of each prompt (1 or more token ids), without the end token.

        Raises UserError if a prompt is empty, or too long for the model's max_len.
        """
        rows: list[list[int]] = [[] for _ in prompts]
        for chunk in self.stream(prompts, options, seed):
            for row, tokens, real in zip(rows, chunk.tokens, chunk.real):
                row += tokens[real].tolist()
        return rows

    def stream(
        self,
        prompts: Sequence[Sequence[int]],
        options: Options,
        seed: int = 0,
        at_once: int = CHUNK,
        samples: Sequence[tuple[int, int]] | None = None,
    ) -> Iterator[Chunk]:
        """The new tokens in chunks of at most at_once. `send` a bool [B] to end the rows where it
        is False. Raises UserError as `__call__`.

        samples: of each prompt, the index of its input and the number of the sample, from which its
        random key follows; by default (0, 0), (1, 0), ...
        """
        self.check(prompts, options.max_new_tokens)
        B = len(prompts)
        rows = self.begin(prompts, options.max_new_tokens, seed, samples)
        left = options.max_new_tokens
        while left > 0:
            n = min(left, at_once, CHUNK)
            rows, chunk = self.advance(rows, options, n)
            left -= n
            keep = yield Chunk(*(x[:B] for x in chunk))
            running = np.array(rows.running)
            running[:B] &= True if keep is None else keep
            if not running.any():
                return
            rows = rows._replace(running=jnp.asarray(running))

    def check(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> None:
        """Raises UserError for a prompt without tokens, or too many tokens for max_len."""
        longest = max(len(p) for p in prompts)
        if min(len(p) for p in prompts) == 0:
            raise UserError("A prompt has no tokens: start it with the tokenizer's bos_id.")
        if taken_by(self.decoder, prompts) + max_new_tokens > self.decoder.max_len:
            raise UserError(
                f"A prompt of {longest} tokens and {max_new_tokens} new ones are "
                f"more than {self.decoder.limit}={self.decoder.max_len}."
            )

    def begin(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        seed: int,
        samples: Sequence[tuple[int, int]] | None = None,
    ) -> Rows:
        """Rows that have read their prompts, except for the last token, and those of padding, which
        have ended. samples: see `stream`."""
        n_prompts, prompts = len(prompts), padded_rows(prompts)
        context, first = self.decoder.context(prompts)
        state = _begin(
            self.decoder, slots_for(self.decoder, prompts, max_new_tokens), self.variables, context
        )
        B = len(prompts)
        which = np.zeros((B, 2), np.uint32)
        which[:n_prompts] = samples or [(i, 0) for i in range(n_prompts)]
        keys = _row_keys(jax.random.key(seed), which)
        running = jnp.arange(B) < n_prompts
        return Rows(state, jnp.asarray(first), keys, jnp.zeros(B, jnp.int32), running)

    def advance(self, rows: Rows, options: Options, n: int) -> tuple[Rows, Chunk]:
        """n more tokens, at most CHUNK, of each running row."""
        temperature = positive(options.temperature)
        ends = np.array([options.eos_id, *options.end_ids], np.int32)
        sampling = (temperature, options.top_k, options.top_p, ends)
        rows, out = _advance(self.decoder, self.variables, rows, sampling, n)
        return rows, Chunk(*(np.asarray(x)[:, :n] for x in out))


def taken_by(decoder: Decoder, inputs: Sequence[Sequence]) -> int:
    """The number of tokens of a row that the inputs take up: none, unless they are continued."""
    return max(map(len, inputs)) if decoder.continues else 0


def slots_for(decoder: Decoder, inputs: Sequence[Sequence], n: int) -> int:
    """The number of tokens per row for which a program is compiled, with n new ones."""
    return min(rung(taken_by(decoder, inputs) + n), decoder.max_len)


def padded_rows(prompts: Sequence[Sequence[int]]) -> list[Sequence[int]]:
    """The prompts, and copies of the first up to a power of 2."""
    n = len(prompts)
    return [*prompts, *[prompts[0]] * ((1 << (n - 1).bit_length()) - n)]


def _is_scanned(tree) -> bool:
    return isinstance(tree, dict) and ("layers" in tree or any(map(_is_scanned, tree.values())))


@jax.jit
def _row_keys(key, samples_B2):
    fold_in = jax.random.fold_in
    return jax.vmap(lambda pair: fold_in(fold_in(key, pair[0]), pair[1]))(samples_B2)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _begin(decoder: Decoder, slots: int, variables, context):
    return decoder.begin(variables, context, slots)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=2)
def _advance(decoder: Decoder, variables, rows: Rows, sampling, n):
    """(rows, (tokens, log_p, real) [B, CHUNK])."""
    temperature, top_k, top_p, ends = sampling
    B = len(rows.token)
    empty = (
        jnp.zeros((B, CHUNK), jnp.int32),
        jnp.zeros((B, CHUNK)),
        jnp.zeros((B, CHUNK), bool),
    )

    def step(carry):
        i, rows, (tokens, log_p, real) = carry
        logits, state = decoder.step(variables, rows.state, rows.token)
        keys = jax.vmap(jax.random.fold_in)(rows.keys, rows.drawn)
        new = sample(logits, keys, temperature, top_k, top_p)
        logits = logits.astype(jnp.float32)
        chosen = jnp.take_along_axis(logits, new[:, None], axis=-1)[:, 0]
        running = rows.running & (new[:, None] != ends).all(-1)
        out = (
            tokens.at[:, i].set(new),
            log_p.at[:, i].set(chosen - jax.nn.logsumexp(logits, axis=-1)),
            real.at[:, i].set(running),
        )
        # A row that has ended is decoded with the others; its tokens are ignored.
        return i + 1, Rows(state, new, rows.keys, rows.drawn + 1, running), out

    more = lambda carry: (carry[0] < n) & carry[1].running.any()
    _, rows, out = jax.lax.while_loop(more, step, (jnp.int32(0), rows, empty))
    return rows, out
