"""Headline examples: from rows to token ids, previous headlines, clicks and hot words."""

from collections.abc import Collection, Iterator, Mapping, Sequence
import dataclasses
import math
from typing import Any

import numpy as np

from bigjax.data import unknown
from bigjax.data.examples import check_lengths
from bigjax.data.tokenizers.wordpiece import WordPiece
from bigjax.errors import UserError
from bigjax.projects.seqgan.headline_rows import ClickRates, History
from bigjax.projects.seqgan.hot_words import hot_ids

_CHUNK = 4096  # articles encoded together: of the rest only the truncated tokens are kept


@dataclasses.dataclass(frozen=True)
class HeadlineOptions:
    """The parts of a headline's example and their sizes. Raises UserError for one out of range."""

    article_len: int = 128  # S: tokens of the article, its end, and the previous headlines
    headline_len: int = 24  # T: tokens of the headline and its end
    n_history: int = 2  # previous headlines, at most; they get half of the source, or what is free
    click_buckets: int = 8  # equal parts of the training rows by click rate; 0: no clicks
    click_smoothing: float = 100.0  # impressions at the mean rate, added to those of each row
    hot_words: int = 200  # words in the dictionary; 0: none
    hot_words_file: str = ""  # a file of them (see read_hot_words); "": from the training rows
    hot_per_example: int = 8  # K: tokens of hot words per example

    def __post_init__(self) -> None:
        minimum = {
            "article_len": 8,
            "headline_len": 2,
            "n_history": 0,
            "click_buckets": 0,
            "click_smoothing": 0,
            "hot_words": 0,
            "hot_per_example": 0,
        }
        for name, value in minimum.items():
            if not value <= getattr(self, name) < math.inf:
                raise UserError(f"{name} is {getattr(self, name)}; it has to be at least {value}.")


@dataclasses.dataclass
class HeadlineExamples:
    """n examples; the sources are concatenated, N tokens in all."""

    source: np.ndarray  # int32 [N]: article, [SEP], each previous headline and its [SEP]
    offsets: np.ndarray  # int64 [n + 1]: where each source begins
    history: np.ndarray  # int32 [n]: the column of the source where previous headlines begin
    tokens: np.ndarray  # int32 [n, T]: the headline, [SEP], padding
    n_tokens: np.ndarray  # int32 [n]: of the headline with its [SEP]
    clicks: np.ndarray  # int32 [n]: bucket, 0 unknown
    click_rate: np.ndarray  # float32 [n]
    click_weight: np.ndarray  # float32 [n]
    hot: np.ndarray  # int32 [n, K]
    hot_mask: np.ndarray  # float32 [n, K]
    truncated: list[str]  # lines for people about truncated texts
    n_unknown: int = 0  # tokens of text that the tokenizer does not know
    n_text: int = 0  # tokens without special ones

    def __len__(self) -> int:
        return len(self.n_tokens)


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
    unless `truncate`: then HeadlineExamples.truncated says how many are truncated.
    """
    previous = [history.before(row, options.n_history) for row in rows]
    source, offsets, starts, long_articles = _encode_sources(
        rows, previous, options, tokenizer, truncate
    )
    ids = tokenizer.encode_batch([row["headline"] for row in rows])
    lengths = np.array([len(x) + 1 for x in ids], np.int64)
    long_headlines = check_lengths(lengths, rows, options.headline_len, truncate, "headline")
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
        [line for line in (long_articles, long_headlines) if line],
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
    """The generator's inputs for each row; rows need no headline and no clicks.

    Args:
      rows: n rows, each with article, a text, and optionally history, a list of previous
        headlines, best first (see `History.before`), and "where" for messages.
      hot: the hot words that the model was trained with, hottest first.
      truncate: False refuses an article that is too long.

    Returns: source, source_types int32 [n, S], source_mask float32 [n, S], hot int32 [n, K] and
    hot_mask float32 [n, K], as in `HeadlineBatches`; and lines for people about truncated articles
    and unknown tokens.
    """
    previous = [row.get("history", [])[: options.n_history] for row in rows]
    source, offsets, starts, long = _encode_sources(rows, previous, options, tokenizer, truncate)
    lines = [long] if long else []
    lines += unknown.warning(
        tokenizer, *unknown.count(tokenizer, source), "the articles", texts_of(rows)
    )
    ids, mask = hot_ids(hot, [row["article"] for row in rows], tokenizer, options.hot_per_example)
    return {"hot": ids, "hot_mask": mask} | source_arrays(
        source, offsets, starts, np.arange(len(rows)), options.article_len, tokenizer.pad_id
    ), lines


def _encode_sources(
    rows: Sequence[Mapping[str, Any]],
    previous: Sequence[Sequence[str]],
    options: HeadlineOptions,
    tokenizer: WordPiece,
    truncate: bool,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, str]:
    """source, offsets and history of HeadlineExamples, and a line about truncated articles."""
    size, sep = options.article_len, np.array([tokenizer.eos_id], np.int32)
    texts = list(dict.fromkeys(headline for headlines in previous for headline in headlines))
    encoded = {
        text: np.concatenate([ids[: options.headline_len - 1], sep])
        for text, ids in zip(texts, tokenizer.encode_batch(texts))
    }
    articles = (
        ids
        for i in range(0, len(rows), _CHUNK)
        for ids in tokenizer.encode_batch([row["article"] for row in rows[i : i + _CHUNK]])
    )
    parts, starts, lengths, wanted = [np.zeros(0, np.int32)], [], [], []
    for article, headlines in zip(articles, previous):
        history: list[np.ndarray] = []
        n, most = 0, max(size // 2, size - 1 - len(article))  # the article may need the rest
        for ids in (encoded[text] for text in headlines):
            if n + len(ids) <= most:
                history.append(ids)
                n += len(ids)
        article_n = min(len(article), size - 1 - n)
        parts += (article[:article_n].copy(), sep, *history)  # a slice would keep the rest alive
        starts.append(article_n + 1)
        lengths.append(article_n + 1 + n)
        wanted.append(len(article) + 1 + n)
    truncated = check_lengths(
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
        truncated,
    )


def source_arrays(
    source: np.ndarray,
    offsets: np.ndarray,
    history: np.ndarray,
    which: np.ndarray,
    size: int,
    pad_id: int,
) -> dict[str, np.ndarray]:
    """source, source_types and source_mask [n, size] of the examples `which` [n], int."""
    columns = np.arange(size)
    present = columns < np.diff(offsets)[which][:, None]
    tokens = np.full(present.shape, pad_id, np.int32)
    tokens[present] = source[(offsets[which][:, None] + columns)[present]]
    return {
        "source": tokens,
        "source_types": (present & (columns >= history[which][:, None])).astype(np.int32),
        "source_mask": present.astype(np.float32),
    }


def texts_of(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The headlines and articles of rows."""
    return (row[name] for row in rows for name in ("headline", "article") if row.get(name))
