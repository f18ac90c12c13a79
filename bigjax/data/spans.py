"""Examples of span corruption (https://arxiv.org/abs/1910.10683, section 3.1.4): hidden spans of a
text, each replaced by a sentinel, and what they were."""

from collections.abc import Mapping
import dataclasses
from typing import NamedTuple

import numpy as np

from bigjax.data.batches import ExampleBatches, Rows, empty_split
from bigjax.data.masking import uniform
from bigjax.data.store import Stream
from bigjax.data.tokenizers.base import Tokenizer
from bigjax.errors import UserError

EDGES = ("published", "uniform")
_KEPT, _HIDDEN, _TURN = 0, 1, 2  # purposes of random numbers


class Sizes(NamedTuple):
    """window: tokens of text per example. noise: those that are hidden. spans: in how many.
    target_len: tokens of a target with its end token."""

    window: int
    noise: int
    spans: int
    target_len: int


@dataclasses.dataclass(frozen=True)
class Options:
    """Fields as in tasks/span_corruption.py."""

    noise: float
    mean_span: float
    edges: str
    dynamic: bool

    @property
    def extra(self) -> int:
        """The number of spans that a turned mask may have more."""
        return int(self.edges == "uniform")


def counts(window: int, options: Options) -> tuple[int, int]:
    """(hidden tokens, spans) of a window, as published."""
    noise = min(max(round(window * options.noise), 1), window - 1)
    return noise, min(max(round(noise / options.mean_span), 1), noise, window - noise)


def sizes(seq_len: int, options: Options) -> Sizes:
    """The longest window whose source, with sentinels and end token, has at most seq_len tokens.

    Raises UserError if there is none.
    """

    def source_len(window):
        noise, spans = counts(window, options)
        return window - noise + spans + options.extra + 1

    if seq_len < source_len(2):
        raise UserError(
            f"data.seq_len={seq_len} is too short for span corruption: it needs at least "
            f"{source_len(2)}."
        )
    window = 2
    while source_len(window + 1) <= seq_len:
        window += 1
    noise, spans = counts(window, options)
    return Sizes(window, noise, spans, noise + spans + options.extra + 1)


def segment_starts(u: np.ndarray, n: int, parts: int) -> np.ndarray:
    """int [b, parts]: where each of `parts` segments of n begins, none empty: random cuts by the
    numbers u [b, n - 1]."""
    cuts = np.sort(np.argsort(u, axis=1, kind="stable")[:, : parts - 1], axis=1) + 1
    return np.pad(cuts, ((0, 0), (1, 0)))


def hidden(key: tuple[int, ...], rows: np.ndarray, window: int, options: Options) -> np.ndarray:
    """bool [b, window]: the tokens that are hidden, a pure function of key and row.

    Segments of kept and of hidden tokens alternate; their number and their sum are fixed, and all
    divisions into lengths are equally likely. A published mask begins with kept tokens and ends
    with hidden ones, so the first token is never hidden and the last one always. A 'uniform' one
    is turned by a random number of tokens, after which each is hidden equally often; a span that is
    cut by the turn counts as two.
    """
    noise, spans = counts(window, options)
    parts = (_KEPT, window - noise), (_HIDDEN, noise)
    starts = [
        segment_starts(uniform((*key, purpose), rows, n - 1), n, spans) for purpose, n in parts
    ]
    mask = np.zeros((len(rows), window), bool)
    # A kept segment begins after the kept and the hidden ones before it; a hidden one follows it.
    ends_kept = np.concatenate([starts[0][:, 1:], np.full((len(rows), 1), window - noise)], axis=1)
    first = ends_kept + starts[1]
    ends_hidden = np.concatenate([starts[1][:, 1:], np.full((len(rows), 1), noise)], axis=1)
    last = ends_kept + ends_hidden
    change = np.zeros((len(rows), window + 1), np.int8)
    np.put_along_axis(change, first, 1, axis=1)
    np.put_along_axis(change, last, -1, axis=1)  # never where another span begins
    mask = np.cumsum(change, axis=1)[:, :-1] > 0
    if options.edges == "uniform":
        turn = (uniform((*key, _TURN), rows, 1) * window).astype(int)
        mask = np.take_along_axis(mask, (np.arange(window) + turn) % window, axis=1)
    return mask


def corrupt(tokens, mask, sentinels, end_id: int, pad_id: int, width: int) -> np.ndarray:
    """int32 [b, width]: the tokens [b, n] with one sentinel for each run of mask, the end token,
    and padding. For the source mask is what is hidden; for the target what is not."""
    b, n = tokens.shape
    begins = _begins(mask)
    number = np.minimum(np.cumsum(begins, axis=1) - 1, len(sentinels) - 1)
    values = np.where(begins, np.asarray(sentinels)[np.maximum(number, 0)], tokens)
    kept = begins | ~mask
    out = np.full((b, width), pad_id, np.int32)
    lengths = kept.sum(1)
    row, _ = np.nonzero(kept)
    column = np.arange(len(row)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    out[row, column] = values[kept]
    out[np.arange(b), lengths] = end_id
    return out


class SpanBatches(ExampleBatches):
    """One split as batches of corrupted windows of its concatenated documents.

    Window i of a source is tokens i * n to (i + 1) * n of its text, without the tokens before and
    after each document, as those of T5; a last, shorter one is left out. Without
    options.dynamic, and in evaluation, a window always has the same mask.

    Batches: source and source_segment_ids (1, and 0 on padding) int32 [B, S]; targets and
    segment_ids int32 [B, T]; weights float32 [B, T], 1 on the tokens of targets.
    """

    def __init__(
        self,
        streams: Mapping[str, Stream],
        tokenizer: Tokenizer,
        seq_len: int,
        batch_size: int,
        seed: int,
        shuffle: bool,
        weights: Mapping[str, float],
        options: Options,
        name: str = "train",
    ) -> None:
        self.seq_len, self.sizes, self._options = seq_len, sizes(seq_len, options), options
        self._tokenizer = tokenizer
        check_sentinels(tokenizer, self.sizes.spans + options.extra)
        n_leading = len(tokenizer.leading_ids)
        texts = {source: _Text(stream, n_leading) for source, stream in streams.items()}
        n = {source: text.n_tokens // self.sizes.window for source, text in texts.items()}
        if not sum(n.values()):
            raise empty_split(name, f"window of {self.sizes.window} token")
        if shuffle:
            for source in (source for source, windows in n.items() if not windows):
                raise UserError(
                    f"the {name} split of source {source!r} has {texts[source].n_tokens:,} "
                    f"tokens, and one example has {self.sizes.window:,} (data.seq_len={seq_len}). "
                    "Lower data.seq_len, give the source more text, or remove it."
                )
        n = {source: windows for source, windows in n.items() if windows}
        self._texts = [texts[source] for source in n]
        self._offsets = np.cumsum([0, *n.values()])
        super().__init__(
            n,
            batch_size,
            seed,
            shuffle,
            name,
            weights=weights,
            fill={"source": tokenizer.pad_id, "targets": tokenizer.pad_id},
            unit=f"windows of {self.sizes.window} tokens",
            remedy="Lower train.batch_size or data.seq_len, or give more text in data.sources.",
        )

    def assemble(self, rows: Rows) -> dict[str, np.ndarray]:
        tokens = np.zeros((len(rows.index), self.sizes.window), np.int32)
        for i in np.unique(rows.source):
            at = np.flatnonzero(rows.source == i)
            starts = rows.index[at] * self.sizes.window
            tokens[at] = self._texts[i].windows(starts, self.sizes.window)
        if self._options.dynamic and self.shuffle:  # by step and row, else by example
            key, numbers = (self.seed, rows.step), rows.first + np.arange(len(tokens))
        else:
            key, numbers = (self.seed,), self._offsets[rows.source] + rows.index
        mask = hidden(key, numbers, self.sizes.window, self._options)
        t = self._tokenizer
        ids = t.sentinel_ids, t.eos_id, t.pad_id
        # With a kept token before the text, each hidden span of a target follows the sentinel that
        # stands for it in the source, also one that begins the text.
        before = lambda x: np.pad(x, ((0, 0), (1, 0)))
        kept = ~before(mask)
        source = corrupt(tokens, mask, *ids, self.seq_len)
        targets = corrupt(before(tokens), kept, *ids, self.sizes.target_len)
        real = lambda x, hide: np.arange(x.shape[1]) < _length(hide)[:, None]
        segments, of_target = real(source, mask), real(targets, kept)
        return {
            "source": source,
            "source_segment_ids": segments.astype(np.int32),
            "targets": targets,
            "segment_ids": of_target.astype(np.int32),
            "weights": of_target.astype(np.float32),
        }


class _Text:
    """The tokens of a stream's text, without leading ids and eos of its documents, with random
    access."""

    def __init__(self, stream: Stream, n_leading: int) -> None:
        self._stream, self._n_leading, self._n_around = stream, n_leading, n_leading + 1
        others = self._n_around * np.arange(stream.n_documents)
        self._first = stream.bounds()[:-1] - others  # of each document, among those of text
        self.n_tokens = stream.n_tokens - self._n_around * stream.n_documents

    def windows(self, starts: np.ndarray, length: int) -> np.ndarray:
        """int32 [n, length]: the tokens from each of `starts` [n]."""
        document = lambda at: np.searchsorted(self._first, at, "right") - 1
        firsts, lasts = document(starts), document(starts + length - 1)
        out = np.empty((len(starts), length), np.int32)
        for row, (start, first, last) in enumerate(zip(starts, firsts, lasts)):
            begin = start + self._n_around * first + self._n_leading
            n = length + self._n_around * (last - first)
            (tokens,), (is_first,) = self._stream.windows(np.array([begin]), n)
            is_text = np.append(~is_first[1:], True)  # eos is before another document
            for i in range(self._n_leading):
                is_text[i:] &= ~is_first[: n - i]
            out[row] = tokens[is_text]
        return out


def _begins(mask: np.ndarray) -> np.ndarray:
    """bool [b, n]: where a run of the mask begins."""
    return mask & ~np.pad(mask, ((0, 0), (1, 0)))[:, :-1]


def _length(mask: np.ndarray) -> np.ndarray:
    """int [b]: tokens that `corrupt` makes of each row, with the end token."""
    return (_begins(mask) | ~mask).sum(1) + 1


def check_sentinels(tokenizer: Tokenizer, n: int) -> None:
    """Raises UserError if a tokenizer has fewer than n sentinels."""
    if len(tokenizer.sentinel_ids) < n:
        raise UserError(
            f"span corruption needs {n} sentinels in an example; the tokenizer ({tokenizer.name}) "
            f"has {len(tokenizer.sentinel_ids)}. Set data.tokenizer.sentinels={max(100, n)} (kind "
            "'sentencepiece'), or lower data.seq_len."
        )
