"""Headline data: from the config section `data` to batches for a conditional generator.

A headline is written from its article, headlines published before it, what readers clicked, and
a dictionary of hot words: SeqGAN (Yu et al. 2017, https://arxiv.org/abs/1609.05473) with an
encoder. Everything that is learnt here (click statistics, hot words, the history, the
vocabulary) comes from the training split alone.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
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
from bigjax.data.files import LOCAL_CACHE
from bigjax.data.order import Order, SequentialOrder, batch_indices
from bigjax.data.store import SPLITS
from bigjax.data.values import missing_warning
from bigjax.data.wordpiece import WordPiece
from bigjax.errors import UserError
from bigjax.projects.seqgan.headline_rows import ClickRates, History, read_parts
from bigjax.projects.seqgan.hot_words import hot_ids, hot_words_of

_TRAIN_CHARS = 4_000_000  # how much text a tokenizer is trained on: more changes little
_BATCH = 4096  # articles encoded at once: only what is left of them after a cut is kept
_FORMAT = 1  # raise it when the same rows would give other examples


@dataclasses.dataclass(frozen=True)
class Columns:
    """What a file calls its columns; '' = it has none."""

    headline: str = "headline"
    article: str = "article"
    clicks: str = ""
    impressions: str = ""  # how often a headline was shown
    published: str = ""  # a number or a date that orders rows; '' = as they are
    tags: str = "tags"  # subjects


@dataclasses.dataclass(frozen=True)
class Config:
    """The section `data` where its name is 'seqgan.headline_data'."""

    train: str = ""  # FILE or docstrings:headline
    valid: str = ""  # '' cuts it from train, by a hash of the article
    test: str = ""
    columns: Columns = Columns()
    tokenizer: tokenizers.TokenizerConfig = tokenizers.TokenizerConfig(kind="wordpiece")
    seq_len: int = 20  # tokens of a headline
    truncate: bool = False  # cut longer texts, else refuse them
    valid_fraction: float = 0.01  # of the rows, where they are cut from train
    test_fraction: float = 0.01
    cache_dir: str = LOCAL_CACHE

    RANGES = {"seq_len": at_least(1), "valid_fraction": SHARE, "test_fraction": SHARE}
    MAY_CHANGE = ("cache_dir", "train", "valid", "test", "tokenizer.path")
    PATHS = ("tokenizer.path",)
    DATA_PATHS = ("train", "valid", "test")


@dataclasses.dataclass(frozen=True)
class HeadlineOptions:
    """What a headline's example holds, and how much of it. UserError for a size out of range."""

    article_len: int = 128  # S: tokens of the article, its end, and the previous headlines
    headline_len: int = 24  # T: tokens of the headline and its end
    n_history: int = 2  # previous headlines, at most; half of the source, or what else is free
    click_buckets: int = 8  # equal parts of the training rows by click rate; 0: no clicks
    click_smoothing: float = (
        100.0  # impressions at the mean rate that every row has besides its own
    )
    hot_words: int = 200  # words in the dictionary; 0: none
    hot_words_file: str = ""  # a file of them (see read_hot_words); "": found in the training rows
    hot_per_example: int = 8  # K: tokens of hot words that an example has

    def __post_init__(self) -> None:
        least = {
            "article_len": 8,
            "headline_len": 2,
            "n_history": 0,
            "click_buckets": 0,
            "click_smoothing": 0,
            "hot_words": 0,
            "hot_per_example": 0,
        }
        for name, value in least.items():
            if not value <= getattr(self, name) < math.inf:
                raise UserError(f"{name} is {getattr(self, name)}; it has to be at least {value}.")


@dataclasses.dataclass
class HeadlineExamples:
    """n examples; the sources one behind the other, N tokens in all."""

    source: np.ndarray  # int32 [N]: article, [SEP], each previous headline and its [SEP]
    offsets: np.ndarray  # int64 [n + 1]: where each source begins
    history: np.ndarray  # int32 [n]: the column of the source where previous headlines begin
    tokens: np.ndarray  # int32 [n, T]: the headline, [SEP], padding
    n_tokens: np.ndarray  # int32 [n]: of the headline, its end included
    clicks: np.ndarray  # int32 [n]: bucket, 0 unknown
    click_rate: np.ndarray  # float32 [n]
    click_weight: np.ndarray  # float32 [n]
    hot: np.ndarray  # int32 [n, K]
    hot_mask: np.ndarray  # float32 [n, K]
    cut: list[str]  # lines for people: what data.truncate has cut
    n_unknown: int = 0  # tokens that stand for text which the tokenizer does not know
    n_text: int = 0  # tokens without special ones

    def __len__(self) -> int:
        return len(self.n_tokens)


class HeadlineData:
    """The examples of one split in batches; shuffle=True (training) endless, else each once.

    Attributes: `examples`, `n_examples`; `epoch_steps`, the batches in an epoch (a float when
    training); `n_batches`, its whole batches, in evaluation all.
    """

    def __init__(
        self,
        examples: HeadlineExamples,
        pad_id: int,
        article_len: int,
        batch_size: int,
        seed: int = 0,
        shuffle: bool = True,
        name: str = "train",
    ) -> None:
        """`name` is for messages and `examples_at`. UserError for less than a batch of data."""
        self.examples, self.n_examples, self.name = examples, len(examples), name
        self.batch_size, self.shuffle = int(batch_size), shuffle
        self._pad_id, self._article_len = pad_id, article_len
        if self.batch_size < 1:
            raise UserError(f"the batch size is {self.batch_size}; it has to be at least 1.")
        if not self.n_examples:
            raise UserError(f"the {name} data has no examples. Give it at least one row.")
        if shuffle and self.n_examples < self.batch_size:
            raise UserError(
                f"too little data for one batch: the {name} data has {self.n_examples:,} examples, "
                f"and a batch takes {self.batch_size:,}. Lower train.batch_size to that, or give "
                "more data."
            )
        whole = self.n_examples / self.batch_size
        self.epoch_steps: float = whole if shuffle else math.ceil(whole)
        self.n_batches = math.floor(whole) if shuffle else math.ceil(whole)
        self._order = (
            Order([len(examples)], [1.0], seed) if shuffle else SequentialOrder([len(examples)])
        )

    def batch_at(self, step: int, rows: slice | None = None) -> dict[str, np.ndarray]:
        """Batch `step`, or its `rows`: a contiguous slice of the global batch for one host.

        With B rows, S = article_len, T = headline_len and K = hot_per_example:
        - source, source_types (0 article and its [SEP], 1 previous headlines) int32 [B, S],
          source_mask float32 [B, S], 1 where there is a token;
        - tokens int32 [B, T], the headline and its [SEP], weights float32 [B, T], 1 on these;
        - clicks int32 [B] (bucket, 0 unknown), click_rate and click_weight float32 [B] (0 unknown);
        - hot int32 [B, K], ids of hot words, hot_mask float32 [B, K];
        - example int32 [B], the index in `examples`. On rows that only fill up the last batch of
          an evaluation it is -1, and all masks and weights are 0.

        A function of (seed, step) and O(1) in both and in the size of the data. Raises UserError
        for rows outside the batch, a negative step, or in evaluation one from `n_batches` on.
        """
        at = batch_indices(step, rows, self.batch_size, None if self.shuffle else self.n_batches)
        which, n = self._order(at)[1], len(at)
        given = self.examples
        ends = np.arange(given.tokens.shape[1])
        batch = {
            "tokens": _padded(given.tokens[which], n, self._pad_id),
            "weights": _padded(ends < given.n_tokens[which][:, None], n, 0, np.float32),
            "hot": _padded(given.hot[which], n, self._pad_id),
            "example": _padded(which, n, -1, np.int32),
        }
        for name in ("clicks", "click_rate", "click_weight", "hot_mask"):
            batch[name] = _padded(getattr(given, name)[which], n, 0)
        return batch | _padded_sources(
            given.source, given.offsets, given.history, which, n, self._article_len, self._pad_id
        )

    def examples_at(self, step: int) -> list[str]:
        """Which examples batch `step` holds, as SPLIT:INDEX, in order."""
        at = range(step * self.batch_size, (step + 1) * self.batch_size)
        return [f"{self.name}:{i}" for i in self._order(at)[1]]


class Headlines:
    """Headline data read by `load_headlines`.

    Attributes: `tokenizer`; `options`; `hot_words`, {word: weight}, hottest first; `history` and
    `click_rates`, learnt from the training rows; `fingerprint`, which changes with the rows of
    any split that was read, which ones those are, the tokenizer and the options: compare results
    only between runs where it is equal.
    """

    def __init__(
        self,
        tokenizer: WordPiece,
        options: HeadlineOptions,
        hot_words: dict[str, float],
        history: History,
        click_rates: ClickRates,
        rows: dict[str, list],
        examples: dict[str, HeadlineExamples],
    ) -> None:
        self.tokenizer, self.options, self.hot_words = tokenizer, options, hot_words
        self.history, self.click_rates = history, click_rates
        self._rows, self._examples = rows, examples
        digest = hashlib.sha256(
            json.dumps([_FORMAT, dataclasses.astuple(options), tokenizer.fingerprint]).encode()
        )
        for name, part in examples.items():
            digest.update(f"{name} {len(part)}".encode())
            for array in (
                part.source,
                part.offsets,
                part.tokens,
                part.click_rate,
                part.clicks,
                part.hot,
            ):
                digest.update(np.ascontiguousarray(array).tobytes())
        self.fingerprint = digest.hexdigest()[:16]

    def split(
        self, name: str, batch_size: int, seed: int | None = None, shuffle: bool | None = None
    ) -> HeadlineData:
        """The batches of 'train', 'valid' or 'test', `batch_size` rows each.

        `shuffle` (by `seed`, else 0) defaults to True for 'train', which is then endless, and False
        for the others, which then give each example once, in order. UserError if there is too
        little data.
        """
        if not self.rows(name):
            remedy = (
                "Lower data.valid_fraction and data.test_fraction"
                if name == "train"
                else f"Raise data.{name}_fraction, set data.{name} to data of its own"
            )
            raise UserError(
                f"the {name} data is empty: no row fell into it. {remedy}, or give more rows."
            )
        return HeadlineData(
            self._examples[name],
            self.tokenizer.pad_id,
            self.options.article_len,
            batch_size,
            seed or 0,
            name == "train" if shuffle is None else shuffle,
            name,
        )

    def rows(self, name: str) -> list[dict[str, Any]]:
        """The rows of a split, as `read_parts` gives them: headline, article, clicks,
        impressions, ...; a batch's `example` counts in them."""
        if name not in self._rows:
            raise UserError(
                f"there is no split {name!r}; read were {', '.join(self._rows)}, of "
                f"{', '.join(SPLITS)}. Give its name to load_headlines."
            )
        return self._rows[name]

    def summary(self) -> str:
        """Rows, tokens and clicks of each split, one line each."""
        lines = []
        for name, part in self._examples.items():
            line = (
                f"data: {name:5s} {len(part):9,} headlines {int(part.n_tokens.sum()):11,} "
                f"tokens; sources {len(part.source):12,} tokens"
            )
            if len(part):
                with_history = np.diff(part.offsets) > part.history
                line += (
                    f"  mean {len(part.source) / len(part):.1f}; "
                    f"{with_history.mean():.0%} with previous headlines, "
                    f"{part.click_weight.mean():.0%} with clicks"
                    + unknown.share(self.tokenizer, part.n_unknown, part.n_text)
                )
            lines.append(line)
        return "\n".join(lines)


def load_headlines(
    data: Any,
    options: HeadlineOptions,
    log: Callable[[str], None] = print,
    tokenizer: WordPiece | None = None,
    splits: Collection[str] = SPLITS,
) -> Headlines:
    """Reads `data.train`, `data.valid` and `data.test` (`read_parts`) and encodes `splits`.

    Args:
      data: the config section `data`.
      log: takes a few lines for people.
      tokenizer: used instead of the config's (a trained model has its own); that one is trained
        on the training rows, and cached, where its path is empty.

    Raises UserError for anything wrong with the config, the rows or the tokenizer.
    """
    begun = time.monotonic()
    if others := set(splits) - set(SPLITS):
        raise UserError(f"there is no split {min(others)!r}; headlines have {', '.join(SPLITS)}.")
    parts = read_parts(data, options.click_buckets > 0, log)
    train = parts["train"]
    if tokenizer is None:
        sample = _sample(train)
        content = hashlib.sha256("\0".join(sample).encode()).hexdigest()[:16]
        tokenizer = tokenizers.build(
            data.tokenizer, data.cache_dir, lambda: iter(sample), f"headlines {content}", log
        )
    if not isinstance(tokenizer, WordPiece):
        raise UserError(
            f'headlines need data.tokenizer.kind="wordpiece", not "{tokenizer.kind}": '
            "hot words are its words."
        )
    rates = ClickRates(train, options.click_buckets, options.click_smoothing)
    if options.click_buckets and not rates.known:
        raise UserError(
            "clicks are asked for (model.click_buckets), and no training row has any. "
            "Set data.columns.clicks, and .impressions if they are known, or "
            "model.click_buckets=0."
        )
    hot = hot_words_of(train, rates(train)[1], options, tokenizer.lowercase)
    history, names = History(train), [name for name in SPLITS if name in splits]
    examples = {
        name: encode_headlines(parts[name], options, tokenizer, history, rates, hot, data.truncate)
        for name in names
    }
    headlines = Headlines(
        tokenizer, options, hot, history, rates, {name: parts[name] for name in names}, examples
    )
    log(headlines.summary())
    looked_at = ("tags", "headline", "article")
    for line in missing_warning((row for name in names for row in parts[name]), looked_at):
        log(line)
    for name in names:
        for line in examples[name].cut:
            log(f"data: {name}: {line}")
        part, what = examples[name], f"the {name} data ({data[name] or data.train})"
        texts = _texts(parts[name])
        for line in unknown.warning(tokenizer, part.n_unknown, part.n_text, what, texts):
            log(line)
    log(
        f"data: {len(hot)} hot words"
        + (f" ({', '.join([*hot][:8])}, ...)" if hot else "")
        + f"; tokenizer {tokenizer.kind} of {tokenizer.vocab_size:,} ids; fingerprint "
        f"{headlines.fingerprint}; {time.monotonic() - begun:.1f} s"
    )
    return headlines


def encode_headlines(
    rows: Sequence[Mapping[str, Any]],
    options: HeadlineOptions,
    tokenizer: WordPiece,
    history: History,
    rates: ClickRates,
    hot: Collection[str],
    truncate: bool,
) -> HeadlineExamples:
    """The examples of `rows`, as `read_parts` gives them, with `hot` words hottest first.

    Raises UserError, with the row's file and line, for an article or headline that is too long,
    unless `truncate`: then it is cut at its end, and HeadlineExamples.cut says how often.
    """
    previous = [history.before(row, options.n_history) for row in rows]
    source, offsets, starts, cut_articles = _encode_sources(
        rows, previous, options, tokenizer, truncate
    )
    ids = tokenizer.encode_batch([row["headline"] for row in rows])
    lengths = np.array([len(x) + 1 for x in ids], np.int64)
    cut = _check_lengths(lengths, rows, options.headline_len, truncate, "headline", "data.seq_len")
    tokens = np.full((len(rows), options.headline_len), tokenizer.pad_id, np.int32)
    n_tokens = np.minimum(lengths, options.headline_len).astype(np.int32)
    for row, x, n in zip(tokens, ids, n_tokens.tolist()):
        row[: n - 1], row[n - 1] = x[: n - 1], tokenizer.eos_id
    hot_tokens = hot_ids(hot, [row["article"] for row in rows], tokenizer, options.hot_per_example)
    counts = (unknown.count(tokenizer, ids) for ids in (source, tokens))
    return HeadlineExamples(
        source,
        offsets,
        starts,
        tokens,
        n_tokens,
        *rates(rows),
        *hot_tokens,
        [*cut_articles, *cut],
        *map(sum, zip(*counts)),
    )


def encode_articles(
    rows: Sequence[Mapping[str, Any]],
    options: HeadlineOptions,
    tokenizer: WordPiece,
    hot: Collection[str] = (),
    *,
    truncate: bool = True,
) -> tuple[dict[str, np.ndarray], list[str]]:
    """What a generator reads to write a headline for each row: no headline, no clicks needed.

    Args:
      rows: n of them, each with article, a text, and if there are any history, a list of previous
        headlines, best first (`History.before` finds them), and "where" for messages.
      hot: the hot words that the model was trained with, hottest first.
      truncate: False refuses an article that is too long.

    Returns: source, source_types int32 [n, S], source_mask float32 [n, S], hot int32 [n, K] and
    hot_mask float32 [n, K], as in `HeadlineData.batch_at`; and lines for people, as
    HeadlineExamples.cut, and where the tokenizer does not know many of the tokens.
    """
    previous = [row.get("history", [])[: options.n_history] for row in rows]
    source, offsets, starts, cut = _encode_sources(rows, previous, options, tokenizer, truncate)
    cut += unknown.warning(
        tokenizer, *unknown.count(tokenizer, source), "the articles", _texts(rows)
    )
    ids, mask = hot_ids(hot, [row["article"] for row in rows], tokenizer, options.hot_per_example)
    return {"hot": ids, "hot_mask": mask} | _padded_sources(
        source,
        offsets,
        starts,
        np.arange(len(rows)),
        len(rows),
        options.article_len,
        tokenizer.pad_id,
    ), cut


def _encode_sources(
    rows: Sequence[Mapping[str, Any]],
    previous: Sequence[Sequence[str]],
    options: HeadlineOptions,
    tokenizer: WordPiece,
    truncate: bool,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[str]]:
    """source, offsets, history and cut of HeadlineExamples."""
    size, sep = options.article_len, np.array([tokenizer.eos_id], np.int32)
    texts = list(dict.fromkeys(headline for found in previous for headline in found))
    headlines = {
        text: np.concatenate([ids[: options.headline_len - 1], sep])
        for text, ids in zip(texts, tokenizer.encode_batch(texts))
    }
    articles = (
        ids
        for i in range(0, len(rows), _BATCH)
        for ids in tokenizer.encode_batch([row["article"] for row in rows[i : i + _BATCH]])
    )
    parts, starts, lengths, wanted = [np.zeros(0, np.int32)], [], [], []
    for article, found in zip(articles, previous):
        after: list[np.ndarray] = []
        n, most = 0, max(size // 2, size - 1 - len(article))  # the article may need the rest
        for ids in (headlines[text] for text in found):
            if n + len(ids) <= most:
                after.append(ids)
                n += len(ids)
        article_n = min(len(article), size - 1 - n)
        parts += (article[:article_n].copy(), sep, *after)  # a slice would keep the rest alive
        starts.append(article_n + 1)
        lengths.append(article_n + 1 + n)
        wanted.append(len(article) + 1 + n)
    cut = _check_lengths(
        np.array(wanted, np.int64),
        rows,
        size,
        truncate,
        "article",
        "model.article_len",
        ", with the previous headlines,",
    )
    return (
        np.concatenate(parts),
        np.cumsum([0, *lengths], dtype=np.int64),
        np.array(starts, np.int32),
        cut,
    )


def _padded_sources(
    source: np.ndarray,
    offsets: np.ndarray,
    history: np.ndarray,
    which: np.ndarray,
    n: int,
    size: int,
    pad_id: int,
) -> dict[str, np.ndarray]:
    columns = np.arange(size)
    present = columns < np.diff(offsets)[which][:, None]
    tokens = np.full(present.shape, pad_id, np.int32)
    tokens[present] = source[(offsets[which][:, None] + columns)[present]]
    return {
        "source": _padded(tokens, n, pad_id),
        "source_types": _padded(present & (columns >= history[which][:, None]), n, 0, np.int32),
        "source_mask": _padded(present, n, 0, np.float32),
    }


def _padded(array: np.ndarray, n: int, fill: int, dtype: Any = None) -> np.ndarray:
    """`array` with rows of `fill` behind it, n rows in all."""
    whole = np.full((n, *array.shape[1:]), fill, dtype or array.dtype)
    whole[: len(array)] = array
    return whole


def _check_lengths(
    lengths: np.ndarray,
    rows: Sequence[Mapping[str, Any]],
    limit: int,
    truncate: bool,
    what: str,
    key: str,
    remark: str = "",
) -> list[str]:
    """The line of `cut`, if any. UserError if one is too long and truncate is False."""
    over = np.flatnonzero(lengths > limit)
    if len(over) and not truncate:
        i = int(over[0])
        raise UserError(
            f"{rows[i].get('where', f'row {i}')}: the {what}{remark} is {lengths[i]:,} tokens long "
            f"and {limit:,} are allowed, [SEP] included; {len(over):,} of {len(rows):,} are too "
            f"long. Set data.truncate=True to cut them at their end, or raise {key} (the longest "
            f"has {lengths.max():,})."
        )
    return (
        [
            f"{len(over):,} of {len(rows):,} {what}s are cut so that {limit:,} tokens are left "
            f"(data.truncate, {key})"
        ]
        if len(over)
        else []
    )


def _texts(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    return (row[name] for row in rows for name in ("headline", "article") if row.get(name))


def _sample(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Texts to train a tokenizer on, evenly spaced."""
    texts = list(dict.fromkeys(_texts(rows)))
    return texts[:: max(1, round(sum(map(len, texts)) / _TRAIN_CHARS))]
