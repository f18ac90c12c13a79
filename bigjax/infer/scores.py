"""Rewards of texts by a trained reward model, on the host."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from bigjax.data.chat_template import ChatTemplate
from bigjax.errors import UserError
from bigjax.models import rung
from bigjax.parallel import sharding


class RewardModel:
    """A reward model as a function: model(prompts, completions) -> float32 [n].

    Programs are compiled for few lengths and one number of rows, `batch_size`. train.reward_model
    opens one from a work folder.
    """

    def __init__(
        self,
        task: Any,
        mesh: Any,
        variables: tuple[Any, Any, Any],
        template: ChatTemplate,
        seq_len: int,
        batch_size: int,
        log: Callable[[str], None] = print,
    ) -> None:
        """task: of tasks.reward. variables: its params, extras and frozen parts. seq_len: tokens of
        a conversation. batch_size: divides over the mesh. log: gets a line about the first
        completion that is cut."""
        self._template, self._seq_len, self._size = template, seq_len, batch_size
        self._mesh, self._variables, self._log = mesh, variables, log
        self._outputs = jax.jit(task.outputs, out_shardings=sharding.replicated(mesh))
        self._warned = False

    def __call__(
        self, prompts: Sequence[Sequence[Mapping[str, Any]]], completions: Sequence[str]
    ) -> np.ndarray:
        """The rewards float32 [n] of n completions, each the answer to its prompt.

        prompts: messages, as of conversations. A completion that does not fit in seq_len tokens is
        cut at its end, with one warning. Raises UserError for a prompt that leaves no room for an
        answer, and for numbers of prompts and completions that differ.
        """
        if len(prompts) != len(completions):
            raise UserError(
                f"There are {len(prompts)} prompts and {len(completions)} completions; a reward "
                "needs one completion for each prompt."
            )
        answers = [{"role": "assistant", "content": text} for text in completions]
        rows = [
            {"messages": [*prompt, answer], "where": f"completion {i + 1}"}
            for i, (prompt, answer) in enumerate(zip(prompts, answers))
        ]
        ids = [self._fitting(i, *one) for i, one in enumerate(self._template.encode(rows, "last"))]
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        rewards = np.zeros(len(ids), np.float32)
        for start in range(0, len(order), self._size):
            which = order[start : start + self._size]
            rewards[which] = self._score([ids[i] for i in which])
        return rewards

    def _fitting(self, i: int, ids: np.ndarray, learned: np.ndarray) -> np.ndarray:
        if len(ids) <= self._seq_len:
            return ids
        begin = int(np.argmax(learned[1:])) + 1
        if begin >= self._seq_len:
            raise UserError(
                f"The prompt of completion {i + 1} has {begin:,} tokens, and the reward model was "
                f"trained with data.seq_len={self._seq_len}: there is no room for an answer. "
                "Shorten it, or train a reward model with a larger data.seq_len."
            )
        if not self._warned:
            self._warned = True
            self._log(
                f"warning: a completion of {len(ids) - begin:,} tokens is cut to "
                f"{self._seq_len - begin:,} for the reward model (its data.seq_len is "
                f"{self._seq_len}); more of them are cut without a warning"
            )
        return ids[: self._seq_len]

    def _score(self, rows: list[np.ndarray]) -> np.ndarray:
        width = min(rung(max(map(len, rows))), self._seq_len)
        inputs = np.full((self._size, width), self._template.tokenizer.pad_id, np.int32)
        lengths = np.zeros(self._size, np.int32)
        for i, row in enumerate(rows):
            inputs[i, : len(row)], lengths[i] = row, len(row)
        batch = {"inputs": inputs, "lengths": lengths}
        batch = sharding.put_batch(self._mesh, batch, slice(0, self._size), self._size)
        return np.asarray(jax.device_get(self._outputs(*self._variables, batch)))[: len(rows)]
