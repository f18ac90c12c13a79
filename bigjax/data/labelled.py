"""Labelled data: from the config section `data` to batches of rows with complete examples."""

from collections.abc import Callable, Sequence
import dataclasses
import time
from typing import Any

from bigjax.bounds import SHARE, at_least
from bigjax.data import text, tokenizers, unknown
from bigjax.data.examples import Examples
from bigjax.data.files import LOCAL_CACHE
from bigjax.data.kinds import Input, TextKind, columns_of, encode_rows, unknown_warning
from bigjax.data.labelled_batches import LabelledBatches
from bigjax.data.row_data import (
    RowData,
    build_tokenizer,
    check_names,
    finish_line,
    log_warnings,
)
from bigjax.data.rows import read_parts, read_rows
from bigjax.data.store import SPLITS

for_model = text.for_model

_FORMAT = 1  # raise it when the same rows would give other examples


@dataclasses.dataclass(frozen=True)
class NoColumns:
    """data.columns for a task without a kind of labelled data."""


@dataclasses.dataclass(frozen=True)
class Config:
    """The section `data` if its name is 'labelled': examples with labels, in rows of tokens."""

    train: str = ""  # FILE, tfds:NAME, docstrings:library, docstrings:title
    valid: str = ""  # '' = a fraction of train, by a hash of the text
    test: str = ""
    columns: NoColumns = NoColumns()  # KEY: its name in a file; keys: those of the task's kind
    tokenizer: tokenizers.Section = tokenizers.Section()
    seq_len: int = 256  # tokens per row
    packing: bool = True  # short examples share rows
    truncate: bool = False  # truncate texts that are longer than seq_len, else refuse them
    doc_stride: int = 128  # tokens between windows over a long context
    valid_fraction: float = 0.01  # of the rows of train, without data of its own
    test_fraction: float = 0.01
    cache_dir: str = LOCAL_CACHE  # trained tokenizers

    RANGES = {
        "seq_len": at_least(1),
        "doc_stride": at_least(1),
        "valid_fraction": SHARE,
        "test_fraction": SHARE,
    }
    MAY_CHANGE = ("cache_dir", "train", "valid", "test")
    DATA_PATHS = ("train", "valid", "test")

    @classmethod
    def for_task(cls, task: Any) -> type:
        """This class with the columns of the task's kind; task: the module of config.task."""
        if not hasattr(task, "KIND"):
            return cls
        columns = columns_of(task.KIND)
        fields = [("columns", columns, dataclasses.field(default=columns()))]
        return dataclasses.make_dataclass("Config", fields, bases=(cls,), frozen=True)


class Labelled(RowData):
    """Labelled data read by `load_labelled`: its `kind`, and as all RowData."""

    def __init__(
        self,
        tokenizer: tokenizers.Tokenizer,
        kind: TextKind,
        rows: dict[str, list],
        examples: dict[str, Examples],
        seq_len: int,
        packing: bool,
    ) -> None:
        self.kind, self.seq_len, self.packing = kind, seq_len, packing
        super().__init__(
            tokenizer,
            rows,
            examples,
            [_FORMAT, kind.name, list(kind.labels), tokenizer.fingerprint, seq_len],
            lambda part: (part.tokens, part.offsets, *part.targets.values()),
        )

    def batches(self, name: str, **options: Any) -> LabelledBatches:
        return LabelledBatches(
            self.examples[name],
            self.tokenizer.pad_id,
            self.seq_len,
            packing=self.packing,
            name=name,
            **options,
        )

    def summary(self) -> str:
        """Rows, tokens, lengths and labels of each split, one line each."""
        lines = []
        for name, examples in self.examples.items():
            lengths = examples.lengths
            line = (
                f"data: {name:5s} {len(self.rows(name)):9,} rows {len(examples):9,} examples "
                f"{len(examples.tokens):12,} tokens"
            )
            if len(examples):
                line += f"  mean {lengths.mean():.1f}, longest {lengths.max()}"
                line += unknown.share(self.tokenizer, examples.n_unknown, examples.n_text)
                line += self.kind.summary(examples)
            lines.append(line)
        return "\n".join(lines)


def load_labelled(
    data: Any,
    kind: TextKind,
    *,
    tokenizer: tokenizers.Tokenizer | None = None,
    log: Callable[[str], None] = print,
    names: Sequence[str] = SPLITS,
    python_path: str = "",
) -> Labelled:
    """Reads and encodes the splits `names` of `data.train`, `data.valid` and `data.test`.

    Args:
      data: the config section `data`.
      kind: with its labels.
      tokenizer: used instead of the config's (a trained model has its own); that one is trained
        on the training rows, and cached, if its path is empty.
      log: gets a few lines for people.
      names: the splits to load. Others are read only as far as these need them: a split without
        data of its own is a fraction of the training rows, and so is the tokenizer's text.
      python_path: of the config, for a tokenizer of one's own.

    Raises UserError for anything wrong with the config, the rows (see `TextKind.encode`), or the
    tokenizer.
    """
    start = time.monotonic()
    names = check_names(names)
    needed = [name for name in SPLITS if name in names or name == "train" and tokenizer is None]
    rows = read_parts(data, kind, needed)
    texts_of = lambda part: (text for row in part for text in kind.texts(row))
    if tokenizer is None:
        tokenizer = build_tokenizer(data, texts_of(rows["train"]), "labelled", log, python_path)
    rows = {name: rows[name] for name in names}
    examples = {
        name: encode_rows(part, data, kind, tokenizer, with_labels=True)
        for name, part in rows.items()
    }
    labelled = Labelled(tokenizer, kind, rows, examples, data.seq_len, data.packing)
    log(labelled.summary())
    truncated = lambda part: [part.truncated] if part.truncated else []
    columns = [k for k, column in {**kind.targets, **kind.inputs}.items() if column.warn_missing]
    log_warnings(data, labelled, columns, truncated, texts_of, log)
    log(f"data: {finish_line(labelled, time.monotonic() - start)}")
    return labelled


def load_input(
    spec: str,
    data: Any,
    kind: TextKind,
    tokenizer: tokenizers.Tokenizer,
    batch_size: int,
    log: Callable[[str], None] = print,
) -> Input:
    """Rows without labels to predict for; spec: as `rows.read_rows`. Raises UserError as
    `load_labelled`."""
    rows = read_rows(spec, data, kind, with_labels=False)
    examples = encode_rows(rows, data, kind, tokenizer, with_labels=False)
    if examples.truncated:
        log(f"data: input: {examples.truncated}")
    for line in unknown_warning(examples, rows, kind, tokenizer, spec):
        log(line)
    batches = LabelledBatches(
        examples,
        tokenizer.pad_id,
        data.seq_len,
        batch_size,
        packing=data.packing,
        shuffle=False,
        name="input",
    )
    return Input(rows, batches)
