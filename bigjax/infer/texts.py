"""Texts from tokens while they are drawn: in pieces, up to stop texts."""

from collections.abc import Iterator, Sequence
import functools

import jax
import numpy as np

from bigjax.infer.beam_search import beam_search
from bigjax.infer.generate import Generator, Options


def prompt_ids(tokenizer, prompts: Sequence[str]) -> list[list[int]]:
    """Texts as token ids, each after the token that begins a text."""
    return [[tokenizer.bos_id, *t.tolist()] for t in tokenizer.encode_batch(list(prompts))]


def stream(
    generator: Generator,
    tokenizer,
    prompts: Sequence[str],
    options: Options,
    *,
    seed: int = 0,
    stop: Sequence[str] = (),
    at_once: int = 8,
) -> Iterator[tuple[int, str]]:
    """(row, piece of text) as they are written. A row's pieces joined are its text after the
    prompt, up to the first of the stop texts, which may end within a token."""
    ids = prompt_ids(tokenizer, prompts)
    rows = [_Row(tokenizer, row if generator.decoder.continues else [], stop) for row in ids]
    chunks = generator.stream(ids, options, seed, at_once)
    keep = None
    while True:
        try:
            chunk = chunks.send(keep)
        except StopIteration:
            break
        for i, row in enumerate(rows):
            if piece := row.push(chunk.tokens[i][chunk.real[i]].tolist()):
                yield i, piece
        keep = np.array([not row.stopped for row in rows])
    for i, row in enumerate(rows):
        if piece := row.rest():
            yield i, piece


def texts(generator: Generator, tokenizer, prompts, options: Options, **more) -> list[str]:
    """The whole text of each prompt; see `stream`."""
    whole = [""] * len(prompts)
    for i, piece in stream(generator, tokenizer, prompts, options, **more):
        whole[i] += piece
    return whole


def search(
    generator: Generator, tokenizer, prompts: Sequence[str], options: Options, width: int
) -> list[list[tuple[str, float]]]:
    """The `width` likeliest texts of each prompt by beam search, best first, and the mean
    log-probability of their tokens. Of options max_new_tokens and eos_id count."""
    decoder = generator.decoder
    ids = prompt_ids(tokenizer, prompts)
    generator.check(ids, options.max_new_tokens)
    context, first = decoder.context(ids)
    run = jax.jit(
        functools.partial(
            beam_search,
            decoder,
            width=width,
            n=options.max_new_tokens,
            end_id=options.eos_id,
            pad_id=tokenizer.pad_id,
            slots=generator.slots(ids, options.max_new_tokens),
        )
    )
    tokens, scores = jax.device_get(run(generator.params, context, first))
    results = []
    for i, row in enumerate(ids):
        candidates = []
        for j, new in enumerate(tokens[i].tolist()):
            out = _Row(tokenizer, row if decoder.continues else [], ())
            end = new.index(options.eos_id) if options.eos_id in new else len(new)
            candidates.append((out.push(new[:end]) + out.rest(), float(scores[i, j])))
        results.append(candidates)
    return results


class _Row:
    """One row's text, of which pieces are given away once no later token can change them."""

    def __init__(self, tokenizer, prompt: list[int], stop: Sequence[str]):
        self._tokenizer, self._prompt, self._stop = tokenizer, prompt, [s for s in stop if s]
        # Some tokenizers drop a space at the start of what they decode: so with the prompt.
        self._before = tokenizer.decode(prompt) if prompt else ""
        self._ids: list[int] = []
        self._text, self._given = "", 0
        self.stopped = False

    def push(self, ids: list[int]) -> str:
        if self.stopped or not ids:
            return ""
        self._ids += ids
        whole = self._tokenizer.decode([*self._prompt, *self._ids])
        if whole.startswith(self._before):
            self._text = whole[len(self._before) :]
        else:
            self._text = self._tokenizer.decode(self._ids)
        ends = [at for s in self._stop if (at := self._text.find(s)) >= 0]
        if ends:
            self._text, self.stopped = self._text[: min(ends)], True
            return self.rest()
        return self._give(len(self._text) - self._held_back())

    def rest(self) -> str:
        """What was held back."""
        return self._give(len(self._text))

    def _give(self, end: int) -> str:
        piece = self._text[self._given : end]
        self._given = max(self._given, end)
        return piece

    def _held_back(self) -> int:
        """Characters at the end that may become another text: the bytes of one that is not whole,
        and the beginning of a stop text."""
        text = self._text
        incomplete = len(text) - len(text.rstrip("\ufffd"))
        begun = max(
            (n for s in self._stop for n in range(1, len(s)) if text.endswith(s[:n])), default=0
        )
        return max(incomplete, begun)
