"""Pairs of texts: from the config section `data` to batches of sources and targets."""

from collections.abc import Callable, Iterator, Sequence
import dataclasses
import time
from typing import Any

import numpy as np

from bigjax.bounds import SHARE, at_least
from bigjax.data import tokenizers, unknown
from bigjax.data.batches import ExampleBatches, Rows
from bigjax.data.examples import check_lengths, joined, offsets_of
from bigjax.data.files import LOCAL_CACHE
from bigjax.data.kinds import Column, RowKind
from bigjax.data.labelled_batches import ranges, scatter
from bigjax.data.row_data import RowData, build_tokenizer, check_names, finish_line, log_warnings
from bigjax.data.row_plan import plan_packed, plan_rows, shuffled
from bigjax.data.rows import read_parts
from bigjax.data.store import SPLITS
from bigjax.errors import UserError

_FORMAT = 1  # raise it when the same rows would give other examples


class Pair(RowKind):
    """A source and its target; optionally a text before the source."""

    name = "learn a target from a source"
    inputs = {"source": Column("text"), "prefix": Column("optional", "", optional=True)}
    targets = {"target": Column("text")}

    def texts(self, row):
        return [row[key] for key in ("source", "target", "prefix") if row.get(key)]


KIND = Pair()


@dataclasses.dataclass(frozen=True)
class Columns:
    """The names of columns in a file, or features of TFDS; '' = it has no such column."""

    source: str = "source"
    target: str = "target"
    prefix: str = ""  # a text before the source and a space, such as "to German:"


@dataclasses.dataclass(frozen=True)
class Config:
    """The section `data` if its name is 'text_to_text'."""

    train: str = ""  # FILE, tfds:NAME, docstrings:summary, dates
    valid: str = ""  # '' = a fraction of train, by a hash of the source
    test: str = ""
    columns: Columns = Columns()
    prefix: str = ""  # a text before every source, such as "summarize: "
    tokenizer: tokenizers.Section = tokenizers.Section()
    seq_len: int = 256  # tokens of a source with its end token; of a row, if packed
    target_len: int = 64  # likewise of a target
    packing: bool = True  # short pairs share rows
    truncate: bool = False  # truncate longer texts, else refuse them
    valid_fraction: float = 0.01  # of the rows of train, without data of its own
    test_fraction: float = 0.01
    cache_dir: str = LOCAL_CACHE  # trained tokenizers

    RANGES = {
        "seq_len": at_least(2),
        "target_len": at_least(2),
        "valid_fraction": SHARE,
        "test_fraction": SHARE,
    }
    MAY_CHANGE = ("cache_dir", "train", "valid", "test")
    DATA_PATHS = ("train", "valid", "test")


def for_model(model: dict[str, Any]) -> dict[str, Any]:
    """Fields of config.data that `bigjax import` writes for a model of these fields."""
    most = min(model.get("max_len", 512), 512)
    return {"seq_len": most, "target_len": most}


@dataclasses.dataclass
class Pairs:
    """n pairs; sources are concatenated, N tokens in all, and so are targets, M tokens. Each ends
    with the tokenizer's eos_id."""

    source: np.ndarray  # int32 [N]
    source_offsets: np.ndarray  # int64 [n + 1]
    target: np.ndarray  # int32 [M]
    target_offsets: np.ndarray  # int64 [n + 1]
    truncated: list[str]  # lines for people about truncated texts
    n_unknown: int = 0  # tokens of text that the tokenizer does not know
    n_text: int = 0  # tokens without special ones

    def __len__(self) -> int:
        return len(self.source_offsets) - 1

    def source_of(self, i: int) -> list[int]:
        return self.source[self.source_offsets[i] : self.source_offsets[i + 1]].tolist()


class PairBatches(ExampleBatches):
    """The pairs of one split in batches of rows.

    With packing a row holds several pairs, distinguished by their segments; which ones is planned
    once, in training on shuffled pairs. Without it a row holds one.

    Batches, with B rows, S = seq_len and T = target_len: source, source_segment_ids and
    source_positions int32 [B, S]; targets, segment_ids and positions int32 [B, T]; weights float32
    [B, T], 1 on the tokens of targets. Segments are 1, 2, ... along the row, and 0 on padding, and
    a source has the segment of its target. Positions are from 0 on in each text.

    Attributes: `padding`, the fraction of the tokens of sources and targets that is padding; and as
    all ExampleBatches.
    """

    def __init__(
        self,
        pairs: Pairs,
        pad_id: int,
        seq_len: int,
        target_len: int,
        batch_size: int,
        seed: int = 0,
        packing: bool = True,
        shuffle: bool = True,
        name: str = "train",
    ) -> None:
        """Raises UserError for less than a batch of data."""
        self.pairs, self.seq_len, self.target_len, self._pad_id = pairs, seq_len, target_len, pad_id
        n = len(pairs)
        self._lengths = np.diff(pairs.source_offsets), np.diff(pairs.target_offsets)
        order = shuffled(n, seed) if shuffle else np.arange(n)
        # A pair takes up the larger one of its shares of the two rows.
        scaled = -(-self._lengths[1] * seq_len // target_len)
        sizes = np.maximum(self._lengths[0], scaled)
        if packing and n:
            self._plan, self._row_offsets, _ = plan_packed(sizes, order, seq_len)
        else:
            self._plan, self._row_offsets = plan_rows(sizes, order, seq_len, 1)
        n_rows = len(self._row_offsets) - 1
        packed = f" (packed: {n:,} pairs)" if packing else ""
        super().__init__(
            n_rows,
            batch_size,
            seed,
            shuffle,
            name,
            fill=dict.fromkeys(("source", "targets"), pad_id),
            unit=f"rows of {seq_len} and {target_len} tokens{packed}",
            remedy="Lower train.batch_size to that, "
            + ("lower data.seq_len or set data.packing=False, " if packing else "")
            + "or give more data.",
        )
        self.n_examples = n
        real = sum(int(x.sum()) for x in self._lengths)
        self.padding = 1.0 - real / (n_rows * (seq_len + target_len))
        self.note = f"{self.padding:.1%} of the tokens are padding"

    def examples_in(self, index: int) -> np.ndarray:
        return self._plan[self._row_offsets[index] : self._row_offsets[index + 1]]

    def assemble(self, rows: Rows) -> dict[str, np.ndarray]:
        begins = self._row_offsets[rows.index]
        counts = self._row_offsets[rows.index + 1] - begins
        row = np.repeat(np.arange(len(counts)), counts)  # of each pair
        slot = ranges(counts)
        which = self._plan[np.repeat(begins, counts) + slot]
        where = row, slot, which, np.cumsum(counts) - counts
        p, names = self.pairs, ("source_segment_ids", "source_positions")
        source = self._side(p.source, p.source_offsets, self._lengths[0], self.seq_len, *where)
        target = self._side(p.target, p.target_offsets, self._lengths[1], self.target_len, *where)
        return {
            **dict(zip(("source", *names), source)),
            **dict(zip(("targets", "segment_ids", "positions"), target)),
            "weights": (target[1] > 0).astype(np.float32),
        }

    def _side(self, tokens, offsets, lengths, width, row, slot, which, row_starts):
        """(tokens, segments, positions) [rows, width] of the sources or targets of some pairs.

        row, slot, which: of each pair, its row, its place there and its index. row_starts: of each
        row, how many pairs are before it.
        """
        lengths = lengths[which]
        before = np.cumsum(lengths) - lengths
        first = np.append(before, 0)[row_starts]
        inside = ranges(lengths)
        at = np.repeat(row, lengths), np.repeat(before - first[row], lengths) + inside
        shape = len(row_starts), width
        return (
            scatter(shape, self._pad_id, at, tokens[np.repeat(offsets[which], lengths) + inside]),
            scatter(shape, 0, at, np.repeat(slot + 1, lengths)),
            scatter(shape, 0, at, inside),
        )


class PairData(RowData):
    """Pairs read by `load_pairs`, and as all RowData."""

    def __init__(self, tokenizer, rows, examples: dict[str, Pairs], data: Any) -> None:
        self._data = data
        settings = [_FORMAT, tokenizer.fingerprint, data.seq_len, data.target_len, data.prefix]
        arrays = lambda p: (p.source, p.source_offsets, p.target, p.target_offsets)
        super().__init__(tokenizer, rows, examples, settings, arrays)

    def batches(self, name: str, **options: Any) -> PairBatches:
        d, pairs = self._data, self.examples[name]
        sizes = self.tokenizer.pad_id, d.seq_len, d.target_len
        return PairBatches(pairs, *sizes, packing=d.packing, name=name, **options)

    def inputs(self, name: str) -> list[list[int]]:
        """The token ids of each source of a split, in the order of `rows`: what a Decoder reads."""
        self.check_split(name)
        pairs = self.examples[name]
        return [pairs.source_of(i) for i in range(len(pairs))]

    def references(self, name: str) -> list[str]:
        """The target of each row of a split."""
        return [row["target"] for row in self.rows(name)]

    def summary(self) -> str:
        """Pairs and tokens of each split, one line each."""
        lines = []
        for name, p in self.examples.items():
            line = f"data: {name:5s} {len(p):9,} pairs"
            for what, offsets in (("source", p.source_offsets), ("target", p.target_offsets)):
                lengths = np.diff(offsets)
                if len(p):
                    line += f"; {what}: mean {lengths.mean():.1f}, longest {lengths.max()} tokens"
            lines.append(line + unknown.share(self.tokenizer, p.n_unknown, p.n_text))
        return "\n".join(lines)


def load_pairs(
    data: Any,
    *,
    tokenizer: tokenizers.Tokenizer | None = None,
    log: Callable[[str], None] = print,
    names: Sequence[str] = SPLITS,
    python_path: str = "",
) -> PairData:
    """Reads and encodes the splits `names` of `data.train`, `data.valid` and `data.test`.

    Args:
      data: the config section `data`.
      tokenizer: used instead of the config's (a trained model has its own); that one is trained
        on the training rows, and cached, if its path is empty.
      log: gets a few lines for people.
      names: the splits to load.
      python_path: of the config, for a tokenizer of one's own.

    Raises UserError for anything wrong with the config, the rows or the tokenizer.
    """
    start = time.monotonic()
    names = check_names(names)
    needed = [name for name in SPLITS if name in names or name == "train" and tokenizer is None]
    rows = read_parts(data, KIND, needed)
    if tokenizer is None:
        texts = (text for row in rows["train"] for text in [data.prefix, *KIND.texts(row)])
        tokenizer = build_tokenizer(data, texts, "text_to_text", log, python_path)
    rows = {name: rows[name] for name in names}
    examples = {name: encode(part, data, tokenizer) for name, part in rows.items()}
    loaded = PairData(tokenizer, rows, examples, data)
    log(loaded.summary())
    texts_of = lambda part: (text for row in part for text in KIND.texts(row))
    log_warnings(data, loaded, ["source", "target"], lambda p: p.truncated, texts_of, log)
    log(f"data: {finish_line(loaded, time.monotonic() - start)}")
    return loaded


def encode(rows: Sequence[dict[str, Any]], data: Any, tokenizer: tokenizers.Tokenizer) -> Pairs:
    """The pairs of rows, as `rows.read_rows` gives them for KIND.

    Raises UserError, with the row's file and line, for a source of more than data.seq_len tokens
    and a target of more than data.target_len, unless data.truncate.
    """
    sources, long_sources = _encoded(rows, [*source_texts(rows, data)], data, "source", tokenizer)
    targets, long_targets = _encoded(
        rows, [row["target"] for row in rows], data, "target", tokenizer
    )
    tokens = joined(sources), joined(targets)
    counts = (unknown.count(tokenizer, ids) for ids in tokens)
    return Pairs(
        tokens[0],
        offsets_of([*map(len, sources)]),
        tokens[1],
        offsets_of([*map(len, targets)]),
        [line for line in (long_sources, long_targets) if line],
        *map(sum, zip(*counts)),
    )


def source_texts(rows: Sequence[dict[str, Any]], data: Any) -> Iterator[str]:
    """The text of each source with what is before it."""
    return (source_text(data.prefix, row.get("prefix"), row["source"]) for row in rows)


def source_text(prefix: str, of_row: str | None, source: str) -> str:
    """A source after data.prefix and the row's own prefix, which a space follows."""
    return f"{prefix}{f'{of_row} ' if of_row else ''}{source}"


def _encoded(
    rows, texts: list[str], data: Any, what: str, tokenizer: tokenizers.Tokenizer
) -> tuple[list[np.ndarray], str]:
    """(token ids of each text with the end token, a line for people about truncated ones)."""
    key = "seq_len" if what == "source" else "target_len"
    limit, end = data[key], np.array([tokenizer.eos_id], np.int32)
    ids = tokenizer.encode_batch(texts)
    for row, x in zip(rows, ids):
        if not len(x):
            raise UserError(
                f"{row['where']}: the {what} has no tokens: the tokenizer ({tokenizer.name}) gives "
                "none for its text. Correct the row, or remove it."
            )
    lengths = np.array([len(x) + 1 for x in ids], np.int64)
    line = check_lengths(lengths, rows, limit, data.truncate, what, f"data.{key}")
    return [np.concatenate([x[: limit - 1], end]) for x in ids], line
