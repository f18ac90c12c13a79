"""Decoding with a key-value cache: prefill and all steps in one compiled call."""

from collections.abc import Sequence
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bigjax.errors import UserError
from bigjax.infer.sampling import sample
from bigjax.layers.params import unstack_layers

PROMPT_STEP = 16  # prompts are padded to a multiple of this, so that few lengths are compiled


@dataclasses.dataclass(frozen=True)
class Options:
    """How to draw: see sampling.sample. eos_id: where a row ends (-1: nowhere)."""

    max_new: int = 64
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    eos_id: int = -1

    def __post_init__(self):
        for name, ok, want in (
            ("max_new", self.max_new >= 1, "at least 1"),
            ("temperature", 0 <= self.temperature < np.inf, "0 (greedy) or more"),
            ("top_k", self.top_k >= 0, "0 (all) or more"),
            ("top_p", 0 < self.top_p <= 1, "in (0, 1]"),
        ):
            if not ok:
                raise UserError(f"{name} is {getattr(self, name)}; it must be {want}.")


class Generator:
    """Decodes with one model and one set of parameters."""

    def __init__(self, family, config, params: Any):
        """family: a module of bigjax.models with Model and empty_cache; config: its Config."""
        if not hasattr(family, "empty_cache"):
            raise UserError("Only decoders write text (model.name='gpt'); this is an encoder.")
        self.config = dataclasses.replace(config, scan=False, remat="none")
        self._family = family
        if "layers" in params["stack"]:  # one array a layer: a scan would copy each every token
            params = {**params, "stack": jax.jit(unstack_layers)(params["stack"])}
        self.params = params

    def __call__(
        self, prompts: Sequence[Sequence[int]], options: Options, seed: int = 0
    ) -> list[list[int]]:
        """The new tokens of each prompt (1 or more token ids), the end token left out.

        Raises UserError if a prompt is empty or leaves no room below the model's max_len.
        """
        longest = max(len(p) for p in prompts)
        if min(len(p) for p in prompts) == 0:
            raise UserError("A prompt has no tokens: begin it with the tokenizer's bos_id.")
        if longest + options.max_new > self.config.max_len:
            raise UserError(
                f"A prompt of {longest} tokens and {options.max_new} new ones are "
                f"more than model.max_len={self.config.max_len}."
            )
        T = min(-(-longest // PROMPT_STEP) * PROMPT_STEP, self.config.max_len - options.max_new)
        tokens = np.zeros((len(prompts), T), np.int32)
        real = np.zeros((len(prompts), T), np.int32)
        for row, prompt in enumerate(prompts):  # padded on the left: all rows end together
            tokens[row, T - len(prompt) :] = prompt
            real[row, T - len(prompt) :] = 1
        out = np.asarray(
            _decode(
                self._family, self.config, options, self.params, tokens, real, jax.random.key(seed)
            )
        )
        return [until(row.tolist(), options.eos_id) for row in out]


def continuation(tokenizer, prompt: Sequence[int], new: Sequence[int]) -> str:
    """The text of the new tokens, as it reads after the prompt.

    Some tokenizers drop a space at the start of what they decode, so both are decoded together.
    """
    before = tokenizer.decode(prompt)
    whole = tokenizer.decode([*prompt, *new])
    return whole[len(before) :] if whole.startswith(before) else tokenizer.decode(new)


def until(tokens: list[int], eos_id: int) -> list[int]:
    """What stands before the end token."""
    return tokens[: tokens.index(eos_id)] if eos_id in tokens else tokens


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _decode(family, config, options: Options, params, tokens_BT, real_BT, rng):
    """New tokens, int32 [B, max_new]; after the end token a row repeats it."""
    model = family.Model(config)
    B, T = tokens_BT.shape
    draw = functools.partial(
        sample, temperature=options.temperature, top_k=options.top_k, top_p=options.top_p
    )
    cache = family.empty_cache(config, B, T + options.max_new)
    positions = jnp.maximum(jnp.cumsum(real_BT, axis=1) - 1, 0)
    logits, cache = model.apply(
        {"params": params}, tokens_BT, positions, real_BT, cache=cache, last_only=True
    )
    token = draw(logits[:, -1], jax.random.fold_in(rng, 0))
    out = jnp.full((B, options.max_new), options.eos_id, jnp.int32).at[:, 0].set(token)

    def more(carry):
        i, token, _, _, out = carry
        running = (out != options.eos_id) | (jnp.arange(options.max_new) >= i)
        return (i < options.max_new) & running.all(axis=1).any()

    def step(carry):
        i, token, position, cache, out = carry
        logits, cache = model.apply(
            {"params": params},
            token[:, None],
            position[:, None],
            jnp.ones((B, 1), jnp.int32),
            cache=cache,
        )
        new = draw(logits[:, -1], jax.random.fold_in(rng, i))
        new = jnp.where(token == options.eos_id, options.eos_id, new)
        return i + 1, new, position + 1, cache, out.at[:, i].set(new)

    carry = (jnp.int32(1), token, positions[:, -1] + 1, cache, out)
    return jax.lax.while_loop(more, step, carry)[4]
