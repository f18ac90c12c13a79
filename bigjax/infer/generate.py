"""Decoding with any family's Decoder: tokens in chunks, each one compiled call.

Prompts, the room of a row and the chunk have a few sizes (models.rung); how to draw and how many
tokens are data. So a server or a person who tries settings compiles once.
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

CHUNK = 32  # tokens a call at most


@dataclasses.dataclass(frozen=True)
class Options:
    """How to draw: see sampling.sample. eos_id: where a row ends (-1: nowhere)."""

    max_new_tokens: int = 64
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    eos_id: int = -1

    def __post_init__(self):
        for name, ok, want in (
            ("max_new_tokens", self.max_new_tokens >= 1, "at least 1"),
            ("temperature", 0 <= self.temperature < np.inf, "0 (greedy) or more"),
            ("top_k", self.top_k >= 0, "0 (all) or more"),
            ("top_p", 0 < self.top_p <= 1, "in (0, 1]"),
        ):
            if not ok:
                raise UserError(f"{name} is {getattr(self, name)}; it must be {want}.")


class Rows(NamedTuple):
    """Rows that are being decoded; leaves [B, ...].

    state: the Decoder's. token: the last one. keys: of each row's draws; drawn: how many there
    were. running: False where a row has ended.
    """

    state: Any
    token: jax.Array
    keys: jax.Array
    drawn: jax.Array
    running: jax.Array


class Chunk(NamedTuple):
    """New tokens int [B, n], the model's log-probability of each as float32 [B, n], and of which
    they are: bool [B, n], False after a row's end. The end token itself is not among them."""

    tokens: np.ndarray
    log_p: np.ndarray
    real: np.ndarray


class Generator:
    """Decodes with one model and one set of parameters."""

    def __init__(self, decoder: Decoder, params: Any):
        """params: in the scanned form or unrolled."""
        self.decoder = decoder
        # One array a layer: a scan would copy each every token.
        self.params = jax.jit(params_lib.unrolled)(params) if _is_scanned(params) else params

    def __call__(
        self, prompts: Sequence[Sequence[int]], options: Options, seed: int = 0
    ) -> list[list[int]]:
        """The new tokens of each prompt (1 or more token ids), the end token left out.

        Raises UserError if a prompt is empty or leaves no room below the model's max_len.
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
    ) -> Iterator[Chunk]:
        """The new tokens in chunks of at_once or fewer. `send` a bool [B] to end rows where it is
        False. Raises UserError as `__call__`."""
        self.check(prompts, options.max_new_tokens)
        rows = self.begin(prompts, options.max_new_tokens, seed)
        left = options.max_new_tokens
        while left > 0:
            n = min(left, at_once, CHUNK)
            rows, chunk = self.advance(rows, options, n)
            left -= n
            keep = yield chunk
            running = np.asarray(rows.running) & (True if keep is None else keep)
            if not running.any():
                return
            rows = rows._replace(running=jnp.asarray(running))

    def check(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> None:
        """Refuses what has no room, or no tokens."""
        longest = max(len(p) for p in prompts)
        if min(len(p) for p in prompts) == 0:
            raise UserError("A prompt has no tokens: begin it with the tokenizer's bos_id.")
        if self.taken(prompts) + max_new_tokens > self.decoder.max_len:
            raise UserError(
                f"A prompt of {longest} tokens and {max_new_tokens} new ones are "
                f"more than model.max_len={self.decoder.max_len}."
            )

    def taken(self, prompts: Sequence[Sequence[int]]) -> int:
        """The tokens of a row that are not there for new ones."""
        return max(map(len, prompts)) if self.decoder.continues else 1

    def slots(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> int:
        """The room of a row that a program is compiled for."""
        return min(rung(self.taken(prompts) + max_new_tokens), self.decoder.max_len)

    def begin(self, prompts: Sequence[Sequence[int]], max_new_tokens: int, seed: int) -> Rows:
        """Rows that have read all of their prompts but the last token."""
        context, first = self.decoder.context(prompts)
        state = _begin(self.decoder, self.slots(prompts, max_new_tokens), self.params, context)
        B = len(prompts)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), jnp.arange(B))
        return Rows(state, jnp.asarray(first), keys, jnp.zeros(B, jnp.int32), jnp.ones(B, bool))

    def advance(self, rows: Rows, options: Options, n: int) -> tuple[Rows, Chunk]:
        """n more tokens of each row that runs, at most CHUNK."""
        temperature = positive(options.temperature)
        how = (temperature, options.top_k, options.top_p, options.eos_id)
        rows, out = _advance(self.decoder, self.params, rows, how, n)
        return rows, Chunk(*(np.asarray(x)[:, :n] for x in out))


def _is_scanned(tree) -> bool:
    return isinstance(tree, dict) and ("layers" in tree or any(map(_is_scanned, tree.values())))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _begin(decoder: Decoder, slots: int, params, context):
    return decoder.begin(params, context, slots)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=2)
def _advance(decoder: Decoder, params, rows: Rows, how, n):
    """(rows, (tokens, log_p, real) [B, CHUNK])."""
    temperature, top_k, top_p, eos_id = how
    B = len(rows.token)
    empty = (
        jnp.zeros((B, CHUNK), jnp.int32),
        jnp.zeros((B, CHUNK)),
        jnp.zeros((B, CHUNK), bool),
    )

    def step(carry):
        i, rows, (tokens, log_p, real) = carry
        logits, state = decoder.step(params, rows.state, rows.token)
        keys = jax.vmap(jax.random.fold_in)(rows.keys, rows.drawn)
        new = sample(logits, keys, temperature, top_k, top_p)
        logits = logits.astype(jnp.float32)
        chosen = jnp.take_along_axis(logits, new[:, None], axis=-1)[:, 0]
        running = rows.running & (new != eos_id)
        out = (
            tokens.at[:, i].set(new),
            log_p.at[:, i].set(chosen - jax.nn.logsumexp(logits, axis=-1)),
            real.at[:, i].set(running),
        )
        # A row that has ended steps on with the others; nobody looks at it.
        return i + 1, Rows(state, new, rows.keys, rows.drawn + 1, running), out

    more = lambda carry: (carry[0] < n) & carry[1].running.any()
    _, rows, out = jax.lax.while_loop(more, step, (jnp.int32(0), rows, empty))
    return rows, out
