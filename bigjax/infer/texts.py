"""Texts from tokens as they are generated: in pieces, up to stop texts."""

from collections.abc import Iterator, Sequence

import jax
import numpy as np

from bigjax.infer import beam_search
from bigjax.infer.generate import Generator, Options, padded_rows
from bigjax.models import rung


def prompt_ids(tokenizer, prompts: Sequence[str]) -> list[list[int]]:
    """Texts as token ids, each after bos_id."""
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
    """(row, piece of text) as they are generated.

    A row's pieces, joined, are its text after the prompt, up to the first of the stop texts, which
    may start and end inside a token. A piece never splits a character. options, seed, at_once: see
    Generator.stream.
    """
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
    """The complete text of each prompt; see `stream`."""
    results = [""] * len(prompts)
    for i, piece in stream(generator, tokenizer, prompts, options, **more):
        results[i] += piece
    return results


def search(
    generator: Generator, tokenizer, prompts: Sequence[str], options: Options, width: int
) -> list[list[tuple[str, float]]]:
    """The `width` best texts of each prompt by beam search, best first, with the mean
    log-probability of their tokens. Only options.max_new_tokens and eos_id are used."""
    decoder = generator.decoder
    ids = prompt_ids(tokenizer, prompts)
    generator.check(ids, options.max_new_tokens)
    n = options.max_new_tokens
    context, first = decoder.context(padded_rows(ids))
    tokens, scores = jax.device_get(
        beam_search.search(
            decoder,
            generator.variables,
            context,
            first,
            width=width,
            size=rung(n),
            n=n,
            end_id=options.eos_id,
            pad_id=tokenizer.pad_id,
            slots=generator.slots(ids, n),
        )
    )
    results = []
    for i, row in enumerate(ids):
        candidates = []
        for j, new in enumerate(tokens[i, :, :n].tolist()):
            out = _Row(tokenizer, row if decoder.continues else [], ())
            end = new.index(options.eos_id) if options.eos_id in new else len(new)
            candidates.append((out.push(new[:end]) + out.rest(), float(scores[i, j])))
        results.append(candidates)
    return results


class _Row:
    """One row's text; a piece is returned once no later token can change it."""

    def __init__(self, tokenizer, prompt: list[int], stop: Sequence[str]):
        self._tokenizer, self._prompt, self._stop = tokenizer, prompt, [s for s in stop if s]
        # Decode with the prompt: some tokenizers drop a space at the start.
        self._before = tokenizer.decode(prompt) if prompt else ""
        self._ids: list[int] = []
        self._text, self._returned = "", 0
        self.stopped = False

    def push(self, ids: list[int]) -> str:
        """Adds tokens and returns the next piece."""
        if self.stopped or not ids:
            return ""
        self._ids += ids
        text = self._tokenizer.decode([*self._prompt, *self._ids])
        if text.startswith(self._before):
            self._text = text[len(self._before) :]
        else:
            self._text = self._tokenizer.decode(self._ids)
        stops = [(at + len(s), at) for s in self._stop if (at := self._text.find(s)) >= 0]
        if stops:  # the one that is complete first, whatever the sizes of chunks
            self._text, self.stopped = self._text[: min(stops)[1]], True
            return self.rest()
        return self._take(len(self._text) - self._held_back())

    def rest(self) -> str:
        """The last piece: the text that was held back."""
        return self._take(len(self._text))

    def _take(self, end: int) -> str:
        piece = self._text[self._returned : end]
        self._returned = max(self._returned, end)
        return piece

    def _held_back(self) -> int:
        """The number of characters at the end that later tokens may change: incomplete UTF-8, and
        the start of a stop text."""
        text = self._text
        incomplete = len(text) - len(text.rstrip("\ufffd"))
        partial_stop = max(
            (n for s in self._stop for n in range(1, len(s)) if text.endswith(s[:n])), default=0
        )
        return max(incomplete, partial_stop)
