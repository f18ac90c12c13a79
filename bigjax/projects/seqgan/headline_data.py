"""Headline data: from the config section `data` to batches for a conditional generator.

A headline is generated from its article, headlines published before it, reader clicks, and
a dictionary of hot words: SeqGAN (Yu et al. 2017, https://arxiv.org/abs/1609.05473) with an
encoder. Click statistics, hot words, the history and the vocabulary come from the training split
alone.
"""

from collections.abc import Callable, Collection
import dataclasses
import time
from typing import Any

import numpy as np

from bigjax.bounds import SHARE, at_least
from bigjax.data import tokenizers, unknown
from bigjax.data.batches import ExampleBatches, Rows
from bigjax.data.files import LOCAL_CACHE
from bigjax.data.row_data import (
    RowData,
    build_tokenizer,
    check_names,
    finish_line,
    log_warnings,
)
from bigjax.data.store import SPLITS
from bigjax.data.tokenizers.wordpiece import WordPiece
from bigjax.errors import UserError
from bigjax.projects.seqgan.headline_examples import (
    HeadlineExamples,
    HeadlineOptions,
    encode_headlines,
    source_arrays,
    texts_of,
)
from bigjax.projects.seqgan.headline_rows import ClickRates, History, read_parts
from bigjax.projects.seqgan.hot_words import hot_words_of

_FORMAT = 1  # raise it when the same rows would give other examples


@dataclasses.dataclass(frozen=True)
class Columns:
    """The names of columns in a file; '' = it has no such column."""

    headline: str = "headline"
    article: str = "article"
    clicks: str = ""
    impressions: str = ""  # how often a headline was shown
    published: str = ""  # a number or a date by which rows are ordered; '' = as in the file
    tags: str = "tags"  # subjects


@dataclasses.dataclass(frozen=True)
class Config:
    """The section `data` if its name is 'seqgan.headline_data'."""

    train: str = ""  # FILE or docstrings:headline
    valid: str = ""  # '' = a fraction of train, by a hash of the article
    test: str = ""
    columns: Columns = Columns()
    tokenizer: tokenizers.Section = tokenizers.Section("wordpiece")
    seq_len: int = 20  # tokens of a headline
    truncate: bool = False  # truncate longer texts, else refuse them
    valid_fraction: float = 0.01  # of the rows of train, without data of its own
    test_fraction: float = 0.01
    cache_dir: str = LOCAL_CACHE

    RANGES = {"seq_len": at_least(1), "valid_fraction": SHARE, "test_fraction": SHARE}
    MAY_CHANGE = ("cache_dir", "train", "valid", "test")
    DATA_PATHS = ("train", "valid", "test")


class HeadlineBatches(ExampleBatches):
    """The examples of one split in batches.

    Batches, with B rows, S = article_len, T = headline_len and K = hot_per_example:
    - source, source_types (0 article and its [SEP], 1 previous headlines) int32 [B, S],
      source_mask float32 [B, S], 1 where there is a token;
    - tokens int32 [B, T], the headline and its [SEP], weights float32 [B, T], 1 on these;
    - clicks int32 [B] (bucket, 0 unknown), click_rate and click_weight float32 [B] (0 unknown);
    - hot int32 [B, K], ids of hot words, hot_mask float32 [B, K];
    - example int32 [B], the index in `examples`, -1 on padding rows, where all masks and weights
      are 0.
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
        fill = dict.fromkeys(("tokens", "hot", "source"), pad_id) | {"example": -1}
        super().__init__(len(examples), batch_size, seed, shuffle, name, fill=fill)
        self.examples, self._pad_id, self._article_len = examples, pad_id, article_len

    def assemble(self, rows: Rows) -> dict[str, np.ndarray]:
        which, examples = rows.index, self.examples
        columns = np.arange(examples.tokens.shape[1])
        names = ("tokens", "hot", "clicks", "click_rate", "click_weight", "hot_mask")
        return {
            "weights": (columns < examples.n_tokens[which][:, None]).astype(np.float32),
            "example": which.astype(np.int32),
            **{name: getattr(examples, name)[which] for name in names},
            **source_arrays(
                examples.source,
                examples.offsets,
                examples.history,
                which,
                self._article_len,
                self._pad_id,
            ),
        }


class Headlines(RowData):
    """Headline data read by `load_headlines`.

    Attributes: `options`; `hot_words`, {word: weight}, hottest first; `history` and `click_rates`,
    computed from the training rows; and as all RowData.
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
        self.options, self.hot_words = options, hot_words
        self.history, self.click_rates = history, click_rates
        super().__init__(
            tokenizer,
            rows,
            examples,
            [_FORMAT, dataclasses.astuple(options), tokenizer.fingerprint],
            lambda e: (e.source, e.offsets, e.tokens, e.click_rate, e.clicks, e.hot),
        )

    def batches(self, name: str, **options: Any) -> HeadlineBatches:
        return HeadlineBatches(
            self.examples[name],
            self.tokenizer.pad_id,
            self.options.article_len,
            name=name,
            **options,
        )

    def summary(self) -> str:
        """Rows, tokens and clicks of each split, one line each."""
        lines = []
        for name, part in self.examples.items():
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
      log: gets a few lines for people.
      tokenizer: used instead of the config's (a trained model has its own); that one is trained
        on the training rows, and cached, if its path is empty.

    Raises UserError for anything wrong with the config, the rows or the tokenizer.
    """
    start = time.monotonic()
    names = check_names(splits)
    parts = read_parts(data, options.click_buckets > 0, log)
    train = parts["train"]
    tokenizer = tokenizer or build_tokenizer(data, texts_of(train), "headlines", log)
    if not isinstance(tokenizer, WordPiece):
        raise UserError(
            f'headlines need data.tokenizer.kind="wordpiece", not "{tokenizer.kind}": '
            "hot words are its words."
        )
    rates = ClickRates(train, options.click_buckets, options.click_smoothing)
    if options.click_buckets and not rates.known:
        raise UserError(
            "model.click_buckets needs clicks, and no training row has any. Set "
            "data.columns.clicks, and .impressions if they are known, or model.click_buckets=0."
        )
    hot = hot_words_of(train, rates(train)[1], options, tokenizer.lowercase)
    history = History(train)
    rows = {name: parts[name] for name in names}
    examples = {
        name: encode_headlines(part, options, tokenizer, history, rates, hot, data.truncate)
        for name, part in rows.items()
    }
    headlines = Headlines(tokenizer, options, hot, history, rates, rows, examples)
    log(headlines.summary())
    columns = ("tags", "headline", "article")
    log_warnings(data, headlines, columns, lambda part: part.truncated, texts_of, log)
    log(
        f"data: {len(hot)} hot words"
        + (f" ({', '.join([*hot][:8])}, ...)" if hot else "")
        + f"; {finish_line(headlines, time.monotonic() - start)}"
    )
    return headlines
