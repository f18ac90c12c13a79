"""Texts from tokens as they are generated: in pieces, up to stop texts."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from bigjax.data.examples import check_lengths
from bigjax.infer import batch
from bigjax.infer.batch import Search
from bigjax.infer.generate import CHUNK, Generator, Options
from bigjax.models import Decoder


def prompt_ids(tokenizer, prompts: Sequence[str], decoder: Decoder) -> list[list[int]]:
    """Texts as token ids: after the tokenizer's leading_ids for a decoder that continues them, else
    a source with its eos_id. An empty text without leading_ids is bos_id."""
    ids = [t.tolist() for t in tokenizer.encode_batch(list(prompts))]
    if decoder.continues:
        return [[*tokenizer.leading_ids, *row] or [tokenizer.bos_id] for row in ids]
    return [[*row, tokenizer.eos_id] for row in ids]


def stream(
    generator: Generator,
    tokenizer,
    ids: Sequence[Sequence[int]],
    options: Options,
    *,
    seed: int = 0,
    stop: Sequence[str] = (),
    at_once: int = 8,
    samples: Sequence[tuple[int, int]] | None = None,
) -> Iterator[tuple[int, str]]:
    """(row, piece of text) as they are generated.

    ids: of each prompt, by `prompt_ids`. A row's pieces, joined, are its text after the prompt, up
    to the first of the stop texts, which may start and end inside a token. A piece never splits a
    character. options, seed, at_once, samples: see Generator.stream.
    """
    rows = [_Row(tokenizer, row if generator.decoder.continues else [], stop) for row in ids]
    chunks = generator.stream(ids, options, seed, at_once, samples)
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
    return of_ids(
        generator, tokenizer, prompt_ids(tokenizer, prompts, generator.decoder), options, **more
    )


def of_ids(
    generator: Generator,
    tokenizer,
    ids: Sequence[Sequence[int]],
    options: Options,
    *,
    seed: int = 0,
    stop: Sequence[str] = (),
    samples: Sequence[tuple[int, int]] | None = None,
) -> list[str]:
    """As `texts`, of prompts as token ids by `prompt_ids`."""
    results = [""] * len(ids)
    more = dict(seed=seed, stop=stop, at_once=CHUNK, samples=samples)
    for i, piece in stream(generator, tokenizer, ids, options, **more):
        results[i] += piece
    return results


def fitting(
    ids: list[list[int]],
    names: Sequence[str],
    limit: int,
    truncate: bool,
    log: Callable[[str], None] = print,
) -> list[list[int]]:
    """Token ids of sources of at most `limit` tokens: longer ones are truncated, but for the last
    token, if `truncate`. Raises UserError for them otherwise. names: where each is from."""
    lengths = np.array([len(row) for row in ids])
    rows = [{"where": name} for name in names]
    if line := check_lengths(lengths, rows, limit, truncate, "source"):
        log(line)
    return [row if len(row) <= limit else [*row[: limit - 1], row[-1]] for row in ids]


def search(
    generator: Generator,
    tokenizer,
    ids: Sequence[Sequence[int]],
    options: Options,
    search: Search,
    names: Sequence[str],
) -> list[list[tuple[str, float]]]:
    """The best texts of each prompt by beam search, best first, with their scores.

    ids: of each prompt, by `prompt_ids`. Only options.max_new_tokens and eos_id are used. names: of
    the prompts, for errors.
    """
    decoder = generator.decoder
    generator.check(ids, options.max_new_tokens)
    ends = dict(end_id=options.eos_id, pad_id=tokenizer.pad_id)
    n = options.max_new_tokens
    results = batch.search(decoder, generator.variables, ids, n, search, names=names, **ends)
    return [
        [(decoded(tokenizer, decoder, prompt, text.ids), text.score) for text in texts]
        for prompt, texts in zip(ids, results)
    ]


def decoded(tokenizer, decoder: Decoder, prompt: Sequence[int], ids: list[int]) -> str:
    """The text of new token ids after those of a prompt."""
    row = _Row(tokenizer, [*prompt] if decoder.continues else [], ())
    return row.push(ids) + row.rest()


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
