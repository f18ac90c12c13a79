"""Labelled data: from the config section `data` to batches of rows that hold whole examples."""

from collections.abc import Callable, Sequence
import dataclasses
import hashlib
import json
import math
import time
from typing import Any

import numpy as np

from bigjax.bounds import SHARE, at_least
from bigjax.data import tokenizer as tokenizers
from bigjax.data import unknown
from bigjax.data.examples import Examples, encode_rows, texts_of, unknown_warning
from bigjax.data.files import LOCAL_CACHE
from bigjax.data.order import Order, SequentialOrder, batch_indices
from bigjax.data.rows import label_counts, label_names, read_parts, read_rows
from bigjax.data.store import SPLITS
from bigjax.data.values import missing_warning
from bigjax.errors import UserError

__all__ = [
    "Labelled",
    "LabelledData",
    "encode_rows",
    "label_counts",
    "label_names",
    "load_labelled",
    "read_rows",
]

_OPEN_ROWS = 512  # rows that may still get an example while a plan is made
_FULL = 0.95  # rows filled so far are not worth another plan
_TRAIN_CHARS = 4_000_000  # how much text a tokenizer is trained on: more changes little
_FORMAT = 1  # raise it when the same rows would give other examples


@dataclasses.dataclass(frozen=True)
class Columns:
    """What a file calls its columns; a number, from 0, where it has no header."""

    text: str = "text"
    pair: str = ""  # the second text; '' = there is none
    label: str = "label"
    question: str = "question"  # of task 'answer', as the next two
    context: str = "context"
    answers: str = "answers"
    tokens: str = "tokens"  # of task 'tag', as the next
    tags: str = "tags"


@dataclasses.dataclass(frozen=True)
class Config:
    """The section `data` where its name is 'labelled': examples with labels, in rows of tokens."""

    train: str = ""  # FILE, tfds:NAME, docstrings:library, docstrings:title
    valid: str = ""  # '' cuts it from train, by a hash of the text
    test: str = ""
    columns: Columns = Columns()
    tokenizer: tokenizers.TokenizerConfig = tokenizers.TokenizerConfig()
    seq_len: int = 256  # tokens of a row
    packing: bool = True  # short examples share rows
    truncate: bool = False  # cut texts that are longer than seq_len, else refuse them
    doc_stride: int = 128  # tokens between windows over a long context
    valid_fraction: float = 0.01  # of the rows, where they are cut from train
    test_fraction: float = 0.01
    cache_dir: str = LOCAL_CACHE  # trained tokenizers

    RANGES = {
        "seq_len": at_least(1),
        "doc_stride": at_least(1),
        "valid_fraction": SHARE,
        "test_fraction": SHARE,
    }
    MAY_CHANGE = ("cache_dir", "train", "valid", "test", "tokenizer.path")
    PATHS = ("tokenizer.path",)
    DATA_PATHS = ("train", "valid", "test")


class LabelledData:
    """The examples of one split as batches of `batch_size` rows of `seq_len` tokens.

    With packing a row holds up to K whole examples, told apart by their segment_ids; which ones
    is planned once. K follows from their lengths (`plan_packed`). Without, it holds one.

    - shuffle=True (training): endless; every epoch has each example once, the plan is made on
      shuffled examples, and its rows come in another order each epoch.
    - shuffle=False (evaluation): each example once, about in the order of the file; the last
      batch is filled up with empty rows.

    Attributes: `examples` and `n_examples`; `n_rows` of the plan; `epoch_steps`, the batches in
    an epoch (a float when training); `n_batches`, its whole batches, in evaluation all;
    `max_examples`, K; `padding`, the fraction of the plan's token slots that hold none.
    """

    def __init__(
        self,
        examples: Examples,
        pad_id: int,
        seq_len: int,
        batch_size: int,
        seed: int = 0,
        packing: bool = True,
        shuffle: bool = True,
        name: str = "train",
    ) -> None:
        """`name` is for messages and `examples_at`. UserError for less than a batch of data."""
        self.examples, self.n_examples, self.name = examples, len(examples), name
        self.seq_len, self.batch_size = int(seq_len), int(batch_size)
        self.packing, self.shuffle = packing, shuffle
        self._pad_id, self._lengths = pad_id, examples.lengths
        self._check()
        order = _shuffled(self.n_examples, seed) if shuffle else np.arange(self.n_examples)
        if packing:
            self._plan, self._row_offsets, self.max_examples = plan_packed(
                self._lengths, order, self.seq_len
            )
        else:
            self.max_examples = 1
            self._plan, self._row_offsets = plan_rows(self._lengths, order, self.seq_len, 1)
        self.n_rows = len(self._row_offsets) - 1
        if shuffle:
            self._check_enough()
            self.epoch_steps: float = self.n_rows / self.batch_size
            self.n_batches = self.n_rows // self.batch_size
            self._order = Order([self.n_rows], [1.0], seed)
        else:
            self.epoch_steps = self.n_batches = math.ceil(self.n_rows / self.batch_size)
            self._order = SequentialOrder([self.n_rows])
        self.padding = 1.0 - float(self._lengths.sum()) / (self.n_rows * self.seq_len)

    def batch_at(self, step: int, rows: slice | None = None) -> dict[str, np.ndarray]:
        """Batch `step`, or its `rows`: a contiguous slice of the global batch for one host.

        With B rows, T = seq_len and K = max_examples:
        - tokens, types, segment_ids (1, 2, ... along the row, 0 on padding) and positions (from 0
          in each example), int32 [B, T];
        - first int32 [B, K], the column of each example's [CLS]; example int32 [B, K], its index
          in `examples`, -1 where there is none; weights float32 [B, K], 1 where there is one;
        - if the examples have labels: label int32 (classify) or float32 (regress) [B, K];
          token_labels int32 [B, T] (tag), -1 where there is none; start and end int32 [B, K]
          (answer), columns of the row.

        A function of (seed, step) and O(1) in both and in the size of the data. Raises UserError
        for rows outside the batch, a negative step, or in evaluation one from `n_batches` on.
        """
        at = batch_indices(step, rows, self.batch_size, None if self.shuffle else self.n_batches)
        return self._assemble(self._order(at)[1], len(at))

    def examples_at(self, step: int) -> list[str]:
        """Which examples batch `step` holds, as SPLIT:INDEX, in order."""
        rows = self._order(range(step * self.batch_size, (step + 1) * self.batch_size))[1]
        return [
            f"{self.name}:{i}"
            for row in rows
            for i in self._plan[self._row_offsets[row] : self._row_offsets[row + 1]]
        ]

    def _assemble(self, rows: np.ndarray, n_rows: int) -> dict[str, np.ndarray]:
        begins = self._row_offsets[rows]
        counts = self._row_offsets[rows + 1] - begins
        row = np.repeat(np.arange(len(rows)), counts)  # of each example
        slot = _counted(counts)
        which = self._plan[np.repeat(begins, counts) + slot]
        lengths = self._lengths[which]
        before = np.cumsum(lengths) - lengths
        row_starts = np.minimum(np.cumsum(counts) - counts, len(which) - 1)
        column = before - (np.repeat(before[row_starts], counts) if len(which) else 0)
        inside = _counted(lengths)  # of each token
        at = np.repeat(row, lengths), np.repeat(column, lengths) + inside
        source = np.repeat(self.examples.offsets[which], lengths) + inside
        is_second = inside >= np.repeat(self.examples.second[which], lengths)
        wide, narrow = (n_rows, self.seq_len), (n_rows, self.max_examples)
        batch = {
            "tokens": _filled(wide, self._pad_id, at, self.examples.tokens[source]),
            "types": _filled(wide, 0, at, is_second),
            "segment_ids": _filled(wide, 0, at, np.repeat(slot + 1, lengths)),
            "positions": _filled(wide, 0, at, inside),
            "first": _filled(narrow, 0, (row, slot), column),
            "example": _filled(narrow, -1, (row, slot), which),
            "weights": _filled(narrow, 0, (row, slot), 1, np.float32),
        }
        if self.examples.label is not None:
            label = self.examples.label
            batch["label"] = _filled(narrow, 0, (row, slot), label[which], label.dtype)
        if self.examples.token_labels is not None:
            batch["token_labels"] = _filled(wide, -1, at, self.examples.token_labels[source])
        if self.examples.start is not None:
            for key in ("start", "end"):
                place = getattr(self.examples, key)[which] + column
                batch[key] = _filled(narrow, 0, (row, slot), place)
        return batch

    def _check(self) -> None:
        if self.batch_size < 1:
            raise UserError(f"the batch size is {self.batch_size}; it has to be at least 1.")
        if not self.n_examples:
            raise UserError(f"the {self.name} data has no examples. Give it at least one row.")
        if self._lengths.max() > self.seq_len:
            raise UserError(
                f"the {self.name} data has an example of {self._lengths.max()} tokens; "
                f"data.seq_len is {self.seq_len}. Encode it with the same seq_len."
            )

    def _check_enough(self) -> None:
        if self.n_rows < self.batch_size:
            packed = f" (packed: {self.n_examples:,} examples)" if self.packing else ""
            raise UserError(
                f"too little data for one batch: the {self.name} data makes {self.n_rows:,} rows "
                f"of {self.seq_len} tokens{packed}, and a batch takes {self.batch_size:,}. Lower "
                "train.batch_size to that"
                + (", lower data.seq_len or set data.packing=False" if self.packing else "")
                + ", or give more data."
            )


class Labelled:
    """Labelled data read by `load_labelled`: `tokenizer`, `kind`, `labels`, `fingerprint`.

    `fingerprint` changes with the rows of any split that was read, which ones those are, the
    tokenizer, the labels and data.seq_len: compare results only between runs where it is equal.
    """

    def __init__(
        self,
        tokenizer: tokenizers.Tokenizer,
        kind: str,
        labels: Sequence[str],
        rows: dict[str, list],
        examples: dict[str, Examples],
        seq_len: int,
        packing: bool,
    ) -> None:
        self.tokenizer, self.kind, self.labels = tokenizer, kind, list(labels)
        self.seq_len, self.packing = seq_len, packing
        self._rows, self._examples = rows, examples
        self.fingerprint = _fingerprint(
            [_FORMAT, kind, self.labels, tokenizer.fingerprint, seq_len], examples
        )

    def split(
        self, name: str, batch_size: int, seed: int = 0, shuffle: bool | None = None
    ) -> LabelledData:
        """The batches of 'train', 'valid' or 'test', `batch_size` rows each (see LabelledData).

        `shuffle` defaults to True for 'train', which is then endless, and False for the others,
        which then give each example once. UserError if there is too little data.
        """
        rows = self.rows(name)
        if not rows:
            remedy = (
                "Lower data.valid_fraction and data.test_fraction"
                if name == "train"
                else f"Raise data.{name}_fraction, set data.{name} to data of its own"
            )
            raise UserError(
                f"the {name} data is empty: no row fell into it. {remedy}, or give more rows."
            )
        return LabelledData(
            self._examples[name],
            self.tokenizer.pad_id,
            self.seq_len,
            batch_size,
            seed,
            self.packing,
            name == "train" if shuffle is None else shuffle,
            name,
        )

    def rows(self, name: str) -> list[dict[str, Any]]:
        """The rows of a split, as `rows.read_rows` gives them; Examples.row counts in them."""
        if name in SPLITS and name not in self._rows:
            raise UserError(
                f"the {name} data was not read, only {', '.join(self._rows)}. Give "
                "its name to load_labelled."
            )
        if name not in self._rows:
            raise UserError(f"there is no split {name!r}; labelled data has {', '.join(SPLITS)}.")
        return self._rows[name]

    def summary(self) -> str:
        """Rows, tokens, lengths and labels of each split, one line each."""
        lines = []
        for name, examples in self._examples.items():
            lengths = examples.lengths
            line = (
                f"data: {name:5s} {len(self._rows[name]):9,} rows {len(examples):9,} examples "
                f"{len(examples.tokens):12,} tokens"
            )
            if len(examples):
                line += f"  mean {lengths.mean():.1f}, longest {lengths.max()}"
                line += unknown.share(self.tokenizer, examples.n_unknown, examples.n_text)
            if self.kind == "classify" and len(examples):
                counts = np.bincount(examples.label, minlength=len(self.labels))
                most = int(counts.argmax())
                line += (
                    f"; {len(self.labels)} labels, most often {self.labels[most]} "
                    f"({counts[most] / len(examples):.1%})"
                )
            lines.append(line)
        return "\n".join(lines)


def load_labelled(
    data: Any,
    kind: str,
    labels: Sequence[str],
    *,
    tokenizer: tokenizers.Tokenizer | None = None,
    log: Callable[[str], None] = print,
    names: Sequence[str] = SPLITS,
) -> Labelled:
    """Reads and encodes `data.train`, `data.valid` and `data.test`, or those of them in `names`.

    Args:
      data: the config section `data`.
      kind: "classify", "regress", "tag" or "answer".
      labels: the names of the classes or tags, as `label_names` gives them.
      tokenizer: used instead of the config's (a trained model has its own); that one is trained
        on the training rows, and cached, where its path is empty.
      log: takes a few lines for people.
      names: the splits that will be asked for. Of others nothing is read but what it takes to
        know these: a split without data of its own is cut from the training rows, which are read
        without a tokenizer too, to train one.

    Raises UserError for anything wrong with the config, the rows (see `encode_rows`), or the
    tokenizer.
    """
    begun = time.monotonic()
    if others := set(names) - set(SPLITS):
        raise UserError(
            f"there is no split {min(others)!r}; labelled data has {', '.join(SPLITS)}."
        )
    names = [name for name in SPLITS if name in names]
    needed = [name for name in SPLITS if name in names or name == "train" and tokenizer is None]
    rows = read_parts(data, kind, needed)
    if tokenizer is None:
        sample = _sample(rows["train"])
        content = hashlib.sha256("\0".join(sample).encode()).hexdigest()[:16]
        tokenizer = tokenizers.build(
            data.tokenizer, data.cache_dir, lambda: iter(sample), f"labelled {content}", log
        )
    examples = {
        name: encode_rows(rows[name], data, kind, labels, tokenizer, with_labels=True)
        for name in names
    }
    labelled = Labelled(
        tokenizer,
        kind,
        labels,
        {name: rows[name] for name in names},
        examples,
        data.seq_len,
        data.packing,
    )
    log(labelled.summary())
    looked_at = ("label", "tags", "text", "pair", "question", "context")
    for line in missing_warning((row for name in names for row in rows[name]), looked_at):
        log(line)
    for name in names:
        if examples[name].n_cut:
            log(f"data: {name}: {examples[name].cut}")
        what = f"the {name} data ({data[name] or data.train})"
        for line in unknown_warning(examples[name], rows[name], tokenizer, what):
            log(line)
    log(
        f"data: tokenizer {tokenizer.kind} of {tokenizer.vocab_size:,} ids; fingerprint "
        f"{labelled.fingerprint}; {time.monotonic() - begun:.1f} s"
    )
    return labelled


def plan_packed(
    lengths: np.ndarray, order: np.ndarray, seq_len: int
) -> tuple[np.ndarray, np.ndarray, int]:
    """`plan_rows` with as many examples a row as these lengths (at least one) need, and that
    number: half as much again as fill a row on average, more if that leaves rows unfilled.
    """
    bound = max(1, min(seq_len // 3, seq_len // int(lengths.min())))
    most = min(bound, math.ceil(1.5 * seq_len / float(lengths.mean())))
    plan, row_offsets = plan_rows(lengths, order, seq_len, most)
    while most < bound and float(lengths.sum()) < _FULL * (len(row_offsets) - 1) * seq_len:
        more = min(bound, 2 * most)
        other = plan_rows(lengths, order, seq_len, more)
        if len(other[1]) > 0.99 * len(row_offsets):
            break
        (plan, row_offsets), most = other, more
    return plan, row_offsets, most


def plan_rows(
    lengths: np.ndarray, order: np.ndarray, seq_len: int, max_examples: int
) -> tuple[np.ndarray, np.ndarray]:
    """Which examples share a row: best fit, in `order`, over a bounded number of open rows.

    Args:
      lengths: int [n], at most seq_len; order: a permutation of n.
      max_examples: of a row.

    Returns: int64 [n], the examples of row 0, of row 1, ...; int64 [rows + 1], where each begins.
    """
    if max_examples == 1:
        return order.astype(np.int64), np.arange(len(order) + 1)
    rows: list[list[int]] = []
    with_room: list[list[list[int]]] = [[] for _ in range(seq_len + 1)]  # open rows by free slots
    rooms, n_open = 0, 0  # bit r of rooms: a row with r free slots is open
    least = int(lengths.min()) if len(lengths) else 0
    for i, length in zip(order.tolist(), lengths[order].tolist()):
        fits = rooms >> length
        if fits:
            room = length + (fits & -fits).bit_length() - 1
            row = with_room[room].pop()
            rooms ^= 0 if with_room[room] else 1 << room
            n_open -= 1
        else:
            row, room = [], seq_len
            rows.append(row)
        row.append(i)
        room -= length
        if room >= least and len(row) < max_examples:
            with_room[room].append(row)
            rooms |= 1 << room
            n_open += 1
        if n_open > _OPEN_ROWS:  # the fullest one is closed
            room = (rooms & -rooms).bit_length() - 1
            with_room[room].pop()
            rooms ^= 0 if with_room[room] else 1 << room
            n_open -= 1
    return (
        np.array([i for row in rows for i in row], np.int64),
        np.cumsum([0, *map(len, rows)], dtype=np.int64),
    )


def _shuffled(n: int, seed: int) -> np.ndarray:
    # RandomState, and not a Generator: numpy has promised never to change what it gives.
    mixed = np.random.SeedSequence([seed % 2**64, 1]).generate_state(4)
    return np.random.RandomState(mixed).permutation(n)


def _counted(counts: np.ndarray) -> np.ndarray:
    """[0 .. c - 1] for each c of `counts`, one behind the other."""
    return np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)


def _filled(
    shape: tuple[int, int], empty: int, at: tuple, values: Any, dtype: Any = np.int32
) -> np.ndarray:
    array = np.full(shape, empty, dtype)
    array[at] = values
    return array


def _sample(rows: list[dict[str, Any]]) -> list[str]:
    """Texts to train a tokenizer on, evenly spaced."""
    texts = list(dict.fromkeys(text for row in rows for text in texts_of(row)))
    return texts[:: max(1, round(sum(map(len, texts)) / _TRAIN_CHARS))]


def _fingerprint(settings: Any, examples: dict[str, Examples]) -> str:
    digest = hashlib.sha256(json.dumps(settings).encode())
    for name, part in examples.items():
        digest.update(f"{name} {len(part)}".encode())
        for array in (
            part.tokens,
            part.offsets,
            part.label,
            part.token_labels,
            part.start,
            part.end,
        ):
            digest.update(b"" if array is None else np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]
