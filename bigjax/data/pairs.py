"""Examples for masked language modelling: pieces of documents in pairs, with masks.

A document of n tokens gives ceil(n / room) windows of `room` tokens that cover it evenly; shorter
ones give one. A window is divided in two near the end of a sentence. For next-sentence prediction
half of the windows get the second part of another document's window instead of their own. Each row
draws such another window, and the second part is truncated to the shorter of the two, so that
lengths do not reveal which one it is.
"""

from collections.abc import Mapping
import dataclasses

import numpy as np

from bigjax.data import masking
from bigjax.data.batches import ExampleBatches, Rows
from bigjax.data.masking import uniform
from bigjax.data.store import Stream
from bigjax.data.tokenizers.base import Tokenizer
from bigjax.errors import UserError

PAIRS = ("nsp", "sop", "none")
_SENTENCE_ENDS = {b".", b"!", b"?", b";", b"\xe3\x80\x82", b"\xef\xbc\x81", b"\xef\xbc\x9f"}
_PAIR, _MASK = 0, 1  # purposes of random numbers
_CANDIDATES = 8  # windows from which the second part of another document is chosen


@dataclasses.dataclass(frozen=True)
class Options:
    """Fields as in tasks/mlm_nsp.py."""

    pairs: str
    mask_rate: float
    mask_unit: str
    max_predictions: int
    dynamic: bool
    short_fraction: float


class PairBatches(ExampleBatches):
    """One split as batches of masked examples.

    Without options.dynamic, and in evaluation, an example always has the same pair and masks.

    Batches: tokens, types, segment_ids (1, and 0 on padding) int32 [B, T]; masked_positions,
    targets int32 and weights float32 [B, M] as in masking.Masked; and unless pairs is 'none'
    next_label int32 [B, 1] (0: the second part follows; 1: it does not, or for 'sop' the two are
    swapped) and next_weight float32 [B, 1].
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
        self.seq_len, self._options, self._tokenizer = seq_len, options, tokenizer
        _check(tokenizer, seq_len, options)
        self._room = seq_len - (2 if options.pairs == "none" else 3)
        shortest = 1 if options.pairs == "none" else 2
        lengths = self._room, shortest, len(tokenizer.leading_ids)
        windows = {source: _Windows(s, *lengths) for source, s in streams.items()}
        _check_sources(windows, options, shuffle)
        sizes = {source: w.n for source, w in windows.items()}
        self._windows = list(windows.values())
        self._offsets = np.cumsum([0, *sizes.values()])
        self._ends_sentence = np.array([p in _SENTENCE_ENDS for p in tokenizer.pieces])
        super().__init__(
            sizes,
            batch_size,
            seed,
            shuffle,
            name,
            weights=weights,
            fill={"tokens": tokenizer.pad_id},
            unit=f"examples of up to {seq_len} tokens",
            remedy="Lower train.batch_size, raise the fraction of this split, or give more text in "
            "data.sources.",
        )

    def assemble(self, rows: Rows) -> dict[str, np.ndarray]:
        n, T = len(rows.index), self.seq_len
        tokens = np.full((n, T), self._tokenizer.pad_id, np.int32)
        types, segments = np.zeros((n, T), np.int32), np.zeros((n, T), np.int32)
        label, lengths = np.zeros((n, 1), np.int32), np.zeros(n, int)
        draws = uniform(*self._random_key(_PAIR, rows), 3 + _CANDIDATES)
        for i in range(n):
            parts, label[i] = self._parts(rows.source[i], rows.index[i], draws[i])
            line = [self._tokenizer.bos_id]
            for k, part in enumerate(parts):
                types[i, len(line) : len(line) + len(part) + 1] = k
                line += [*part.tolist(), self._tokenizer.eos_id]
            lengths[i] = len(line)
            tokens[i, : len(line)] = line
            segments[i, : len(line)] = 1
        masked = self._mask(tokens, segments, lengths, rows)
        batch = {
            "tokens": masked.tokens,
            "types": types,
            "segment_ids": segments,
            "masked_positions": masked.masked_positions,
            "targets": masked.targets,
            "weights": masked.weights,
        }
        if self._options.pairs != "none":
            batch["next_label"] = label
            batch["next_weight"] = np.ones((n, 1), np.float32)
        return batch

    def _parts(self, source: int, example: int, u: np.ndarray) -> tuple[list[np.ndarray], int]:
        """The one or two parts of a row, and its label; u: its random numbers."""
        windows, o = self._windows[source], self._options
        limit = self._room
        if u[0] < o.short_fraction:  # some as short as texts in fine-tuning
            limit = 2 + int(u[0] / o.short_fraction * (limit - 1))
        own = windows.tokens(example, limit)
        if o.pairs == "none":
            return [own], 0
        a, b = self._cut(own, 0.2 + 0.6 * u[1])
        changed = u[2] < 0.5
        if o.pairs == "sop":
            return [b, a] if changed else [a, b], int(changed)
        other = windows.tokens(windows.another(example, u[3:]), limit)
        other = self._cut(other, 0.2 + 0.6 * u[1])[1]
        n = min(len(b), len(other), limit - len(a))  # in both cases, not to reveal the label
        return [a, (other if changed else b)[:n]], int(changed)

    def _cut(self, tokens: np.ndarray, fraction: float) -> tuple[np.ndarray, np.ndarray]:
        """Two parts, divided at the end of a sentence nearest to a fraction, if one is near."""
        n = len(tokens)
        at = min(max(round(fraction * n), 1), n - 1)
        ends = np.flatnonzero(self._ends_sentence[tokens[:-1]]) + 1
        if len(ends):
            nearest = ends[np.abs(ends - at).argmin()]
            at = nearest if abs(nearest - at) <= max(8, n // 8) else at
        return tokens[:at], tokens[at:]

    def _mask(self, tokens, segments, lengths, rows: Rows) -> masking.Masked:
        o, t = self._options, self._tokenizer
        special = (tokens == t.bos_id) | (tokens == t.eos_id)
        return masking.mask(
            tokens,
            (segments > 0) & ~special,
            ~t.is_continuation[tokens],
            lengths,
            *self._random_key(_MASK, rows),
            rate=o.mask_rate,
            max_predictions=o.max_predictions,
            unit=o.mask_unit,
            mask_id=t.mask_id,
            vocab_size=t.vocab_size,
        )

    def _random_key(self, purpose: int, rows: Rows) -> tuple[tuple[int, ...], np.ndarray]:
        """The key and row numbers of random numbers: by step and row, or by example if not
        dynamic, and in evaluation."""
        if self._options.dynamic and self.shuffle:
            return (self.seed, purpose, rows.step), rows.first + np.arange(len(rows.index))
        return (self.seed, purpose), (self._offsets[rows.source] + rows.index).astype(np.uint64)


def _check_sources(windows: Mapping[str, "_Windows"], options: Options, shuffle: bool) -> None:
    for name, source in windows.items():
        if shuffle and not source.n:
            raise UserError(
                f"source {name!r} has no document of two tokens or more. Give it "
                "more text, or remove it from data.sources."
            )
        if options.pairs == "nsp" and source.n and source.n_documents < 2:
            raise UserError(
                f"next-sentence prediction needs parts of other documents, but source {name!r} "
                "has only one document in this split. Give it more, or set task.pairs='sop'."
            )


def most_common_token(stream: Stream, tokenizer: Tokenizer, n: int = 1 << 21) -> tuple[str, float]:
    """The most common of a stream's first n tokens, and its share: the accuracy of always guessing
    it."""
    counts = np.bincount(stream.window(0, min(n, stream.n_tokens)), minlength=tokenizer.vocab_size)
    counts[[tokenizer.bos_id, tokenizer.eos_id]] = 0
    best = int(counts.argmax())
    return tokenizer.decode([best]), float(counts[best] / max(counts.sum(), 1))


class _Windows:
    """The windows of a stream's documents that have at least `shortest` tokens."""

    def __init__(self, stream: Stream, room: int, shortest: int, n_leading: int) -> None:
        bounds = stream.bounds()
        length = np.diff(bounds) - n_leading - 1  # without leading ids and eos
        keep = length >= shortest
        self._stream, self._room = stream, room
        self._begin, self._length = bounds[:-1][keep] + n_leading, length[keep]
        self._first = np.cumsum([0, *-(-self._length // room)])  # example a document begins with
        self.n, self.n_documents = int(self._first[-1]), len(self._length)

    def tokens(self, example: int, limit: int) -> np.ndarray:
        """int32 [at most limit]: the window's tokens."""
        d = int(np.searchsorted(self._first, example, "right")) - 1
        n, count = int(self._length[d]), int(self._first[d + 1] - self._first[d])
        size = min(n, self._room)
        place = 0 if count == 1 else (n - size) * (example - int(self._first[d])) // (count - 1)
        return self._stream.window(int(self._begin[d]) + place, min(size, limit))

    def another(self, example: int, u: np.ndarray) -> int:
        """An example of another document: among those that the numbers u [n] in [0, 1) select, the
        one with the most similar length, so that lengths do not reveal the label."""
        d = int(np.searchsorted(self._first, example, "right")) - 1
        low, high = int(self._first[d]), int(self._first[d + 1])
        others = (u * (self.n - (high - low))).astype(int)
        others += np.where(others < low, 0, high - low)
        documents = np.searchsorted(self._first, others, "right") - 1
        sizes = np.minimum(self._length[documents], self._room)
        return int(others[np.abs(sizes - min(self._length[d], self._room)).argmin()])


def _check(tokenizer: Tokenizer, seq_len: int, options: Options) -> None:
    if not hasattr(tokenizer, "mask_id"):
        raise UserError(
            f"masked language modelling needs a tokenizer with [MASK]; "
            f"data.tokenizer.kind is {tokenizer.kind!r}. Set it to 'wordpiece'."
        )
    for key, value, allowed in (
        ("pairs", options.pairs, PAIRS),
        ("mask_unit", options.mask_unit, masking.UNITS),
    ):
        if value not in allowed:
            raise UserError(f"task.{key} is {value!r}; allowed: {', '.join(allowed)}.")
    if not 0 < options.mask_rate < 1 or not 0 <= options.short_fraction <= 1:
        raise UserError(
            f"task.mask_rate={options.mask_rate} must be between 0 and 1, and "
            f"task.short_fraction={options.short_fraction} from 0 to 1."
        )
    if not 1 <= options.max_predictions <= seq_len or seq_len < 8:
        raise UserError(
            f"task.max_predictions={options.max_predictions} must be from 1 to "
            f"data.seq_len={seq_len}, and that at least 8."
        )
