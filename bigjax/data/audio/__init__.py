"""Recordings with texts: from the config section `data` to batches of int16 samples and tokens."""

from collections.abc import Callable, Sequence
import dataclasses
import time
from typing import Any

import numpy as np

from bigjax.bounds import SHARE, Range, at_least, check_ranges
from bigjax.data import tokenizers, unknown
from bigjax.data.audio import splits
from bigjax.data.audio.augment import Augment
from bigjax.data.audio.batches import AudioBatches, Inputs
from bigjax.data.audio.morse import Morse
from bigjax.data.audio.splits import Recordings
from bigjax.data.files import LOCAL_CACHE
from bigjax.data.row_data import (
    RowData,
    build_tokenizer,
    check_names,
    finish_line,
    log_warnings,
)
from bigjax.data.store import SPLITS
from bigjax.data.unreadable import Report
from bigjax.errors import UserError

_FORMAT = 1  # raise it when the same recordings would give other examples


@dataclasses.dataclass(frozen=True)
class Columns:
    """The names of columns in tables, and keys in JSON."""

    audio: str = "audio"
    text: str = "text"


@dataclasses.dataclass(frozen=True)
class Config:
    """The section `data` if its name is 'audio'."""

    train: str = "morse:docstrings"  # a folder, a table of files and texts, morse:docstrings
    valid: str = ""  # '' = the folder's own, else a fraction of train, by a hash of the text
    test: str = ""
    columns: Columns = Columns()
    tokenizer: tokenizers.Section = tokenizers.Section()
    sample_rate: int = 16000  # Hz
    max_seconds: float = 30.0  # of a recording; longer ones are refused
    seq_len: int = 448  # tokens of a text, with what the model needs before it and its end
    truncate: bool = False  # truncate texts that are longer than seq_len, else refuse them
    augment: Augment = Augment()  # of training recordings
    morse: Morse = Morse()  # of morse:docstrings
    valid_fraction: float = 0.01  # of the recordings of train, without data of its own
    test_fraction: float = 0.01
    max_bad: float = 0.0  # the share that may be unreadable or too long; they have no weight
    threads: int = 0  # that decode; 0 = as many as the machine has processors
    cache_dir: str = LOCAL_CACHE  # trained tokenizers, lengths of recordings

    RANGES = {
        "sample_rate": Range(1000, 384_000),
        "max_seconds": Range(0, 3600, open_low=True),
        "seq_len": at_least(1),
        **dict.fromkeys(("valid_fraction", "test_fraction", "max_bad"), SHARE),
        "threads": at_least(0),
    }
    MAY_CHANGE = ("cache_dir", "threads", "train", "valid", "test", "max_bad")
    DATA_PATHS = ("train", "valid", "test")

    def __post_init__(self):
        check_ranges("data", self)
        if not splits.max_samples(self):
            raise UserError(
                f"data.max_seconds={self.max_seconds:g} is less than a sample at "
                f"data.sample_rate={self.sample_rate:,} Hz."
            )


class AudioData(RowData):
    """Recordings read by `load_audio`, and as all RowData. Rows have `file`, `text` and `where` (of
    the text, for messages)."""

    def __init__(
        self,
        tokenizer: tokenizers.Tokenizer,
        data: Any,
        examples: dict[str, Recordings],
        prefix: Sequence[int],
    ) -> None:
        self._data, self.prefix = data, tuple(prefix)
        settings = [data.sample_rate, data.max_seconds, data.seq_len]
        of_sources = [part.part.source.fingerprint for part in examples.values()]
        super().__init__(
            tokenizer,
            {name: part.part.rows for name, part in examples.items()},
            examples,
            [_FORMAT, tokenizer.fingerprint, settings, of_sources],
            lambda part: (part.part.index, part.tokens, part.offsets),
        )

    def batches(self, name: str, **options: Any) -> AudioBatches:
        return AudioBatches(
            self.examples[name], self._data, self.tokenizer.pad_id, name=name, **options
        )

    def inputs(self, name: str) -> Inputs:
        """The recordings of a split, in the order of its rows, for evaluation by generation."""
        self.check_split(name)
        return Inputs(self.examples[name])

    def references(self, name: str) -> list[str]:
        """The text of each row of a split."""
        return [row["text"] for row in self.rows(name)]

    def summary(self) -> str:
        """Recordings, hours and tokens of each split, one line each."""
        lines = []
        for name, part in self.examples.items():
            line = f"data: {name:5s} {len(part):9,} recordings {len(part.tokens):12,} tokens"
            if len(part):
                line += f"  longest {np.diff(part.offsets).max():,}"
                line += unknown.share(self.tokenizer, part.n_unknown, part.n_text)
            if part.seconds is not None and np.isfinite(part.seconds).any():
                longest, hours = np.nanmax(part.seconds), np.nansum(part.seconds) / 3600
                line += f"; {hours:,.2f} hours, longest {longest:,.1f} s"
            lines.append(line)
        return "\n".join(lines)


def load_audio(
    data: Any,
    *,
    tokenizer: tokenizers.Tokenizer | None = None,
    prefix: Callable[[tokenizers.Tokenizer], Sequence[int]] = lambda tokenizer: (),
    log: Callable[[str], None] = print,
    names: Sequence[str] = SPLITS,
    python_path: str = "",
) -> AudioData:
    """Opens the splits `names` of `data.train`, `data.valid` and `data.test`; encodes their texts.

    Args:
      data: the config section `data`.
      tokenizer: used instead of the config's (a trained model has its own); that one is trained on
        the training texts, and cached, if its path is empty.
      prefix: of a tokenizer, the ids before each text, such as those of a language and a task.
      log: gets a few lines for people.
      names: the splits to load.
      python_path: of the config, for a tokenizer of one's own.

    Raises UserError for anything wrong with the config, the texts, or the files that can be seen
    without decoding all recordings.
    """
    start = time.monotonic()
    names = check_names(names)
    needed = [name for name in SPLITS if name in names or name == "train" and tokenizer is None]
    parts = splits.parts(data, needed, log)
    texts_of = lambda rows: (row["text"] for row in rows)
    if tokenizer is None:
        train = texts_of(parts["train"].rows)
        tokenizer = build_tokenizer(data, train, "texts", log, python_path)
    ids = prefix(tokenizer)
    _check_seq_len(data.seq_len, ids)
    silent = Report(log, "more recordings are silent", remark="It is used as it is.")
    reports = Report(log, "more recordings cannot be used"), silent
    examples = {
        name: splits.encode(parts[name], data, tokenizer, ids, name, reports) for name in names
    }
    loaded = AudioData(tokenizer, data, examples, ids)
    log(loaded.summary())
    truncated = lambda part: [part.truncated] if part.truncated else []
    log_warnings(data, loaded, ["text"], truncated, texts_of, log)
    log(f"data: {finish_line(loaded, time.monotonic() - start)}")
    return loaded


def _check_seq_len(seq_len: int, prefix: Sequence[int]) -> None:
    if seq_len < len(prefix) + 2:
        raise UserError(
            f"data.seq_len is {seq_len}: {len(prefix)} tokens before each text, one of a text and "
            f"the end need {len(prefix) + 2}."
        )
