"""A conversation with a model: its history, and answers as they are generated."""

from collections.abc import Callable, Iterator
import dataclasses
from typing import Any

from bigjax.data.chat_template import ChatTemplate
from bigjax.errors import UserError
from bigjax.infer import texts
from bigjax.infer.generate import Generator, Options

_LEAST = 4  # 1/4 of the model's length is left for an answer, if --max_tokens allows more


class Chat:
    """A conversation with a decoder that continues texts.

    messages: the turns so far, in the form of templates, the system prompt first if there is one.
    """

    def __init__(
        self,
        generator: Generator,
        template: ChatTemplate,
        options: Options,
        system: str = "",
        seed: int = 0,
        log: Callable[[str], None] = print,
    ) -> None:
        """options: their end tokens are those of the template. log: gets a line when the oldest
        turns no longer fit."""
        ends = template.end_ids
        self._options = dataclasses.replace(options, eos_id=ends[0], end_ids=ends[1:])
        self._generator, self._template, self._log = generator, template, log
        self._system = [{"role": "system", "content": system}] if system else []
        self._seed, self._n_answers, self._dropped = seed, 0, 0
        self.messages: list[dict[str, Any]] = [*self._system]

    def clear(self) -> None:
        """Forgets all turns but the system prompt."""
        self.messages, self._dropped = [*self._system], 0

    def answer(self, question: str) -> Iterator[str]:
        """The pieces of the answer to a user's next message, as they are generated.

        The message and what was generated are added to the history, also if the iterator is closed
        before its end; a message without any answer is not. Raises UserError for a message that the
        template refuses, or that does not fit in the model's length by itself.
        """
        turns = [*self.messages[len(self._system) :], {"role": "user", "content": question}]
        ids, turns = self._fitting(turns)
        self.messages = [*self._system, *turns[:-1]]
        room = self._generator.decoder.max_len - len(ids)
        options = dataclasses.replace(
            self._options, max_new_tokens=min(self._options.max_new_tokens, room)
        )
        seed, answer = self._seed + self._n_answers, ""
        self._n_answers += 1
        tokenizer = self._template.tokenizer
        try:
            for _, piece in texts.stream(self._generator, tokenizer, [ids], options, seed=seed):
                new = piece if answer else piece.lstrip()
                answer += new
                if new:
                    yield new
        finally:
            if answer.strip():
                message = {"role": "assistant", "content": answer.rstrip()}
                self.messages = [*self._system, *turns, message]

    def _fitting(self, turns: list[dict[str, Any]]) -> tuple[list[int], list[dict[str, Any]]]:
        """(the prompt's token ids, the turns in it): without the oldest ones if they do not fit."""
        decoder, n_dropped = self._generator.decoder, 0
        least = min(self._options.max_new_tokens, max(1, decoder.max_len // _LEAST))
        while True:
            ids = self._template.prompt([*self._system, *turns])
            if len(ids) + least <= decoder.max_len:
                break
            later = [i for i, turn in enumerate(turns) if i and turn["role"] == "user"]
            if not later:
                raise UserError(
                    f"The message has {len(ids):,} tokens with the system prompt and the template, "
                    f"and at most {decoder.max_len - least:,} are allowed with "
                    f"{decoder.limit}={decoder.max_len}. Shorten it."
                )
            n_dropped += later[0]
            turns = turns[later[0] :]
        if n_dropped:
            self._dropped += n_dropped
            self._log(
                f"note: the oldest {self._dropped} turns are left out: {decoder.limit}="
                f"{decoder.max_len}"
            )
        return ids, turns
