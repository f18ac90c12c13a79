"""One label for each word: named entities, parts of speech."""

from collections.abc import Sequence
import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np

from bigjax import losses
from bigjax.bounds import FINITE, check_ranges
from bigjax.data import measures
from bigjax.data.examples import Examples, check_lengths, joined, label_indices, offsets_of
from bigjax.data.kinds import Column, TextKind
from bigjax.data.measures import Measures
from bigjax.data.rows import label_counts
from bigjax.data.tokenizers.base import Tokenizer
from bigjax.errors import UserError
from bigjax.tasks import Task
from bigjax.tasks._encoder import ASSUMED_LABELS, labelled_task

DATA, EVALUATION = "labelled", "metrics"  # in a config that is generated for this task


@dataclasses.dataclass(frozen=True)
class Config:
    labels: tuple[str, ...] = ()  # () = those of the training data
    # NAME: weight in the training loss of a sum of the model's layers, such as a router's loss
    sum_weights: dict[str, float] = dataclasses.field(default_factory=dict)

    MAY_CHANGE = ("sum_weights.*",)
    RANGES = {"sum_weights": FINITE}

    def __post_init__(self):
        check_ranges("task", self)


@dataclasses.dataclass
class TagExamples(Examples):
    _: dataclasses.KW_ONLY
    words: np.ndarray  # see words_of
    word_offsets: np.ndarray

    def words_of(self, i: int) -> np.ndarray:
        """The column of each word's first piece, int32 [words]; fewer words if truncated."""
        return self.words[self.word_offsets[i] : self.word_offsets[i + 1]]


class Tag(TextKind):
    """`[CLS] words [SEP]`, with a label for each word at its first piece, as in
    https://arxiv.org/abs/1810.04805, section 5.3."""

    name, has_labels, metrics = "tag", True, measures.CLASSIFICATION
    inputs = {"tokens": Column("words", warn_missing=False)}
    targets = {"tags": Column("words")}
    outputs_per_token = True
    token_arrays = {"token_labels": np.int32}

    def __init__(self, labels: Sequence[str] = ()) -> None:
        self.labels = tuple(labels)

    def check_row(self, row):
        if "tags" in row and len(row["tokens"]) != len(row["tags"]):
            raise UserError(
                f"{row['where']}: {len(row['tokens'])} tokens and "
                f"{len(row['tags'])} tags; each token has to have one."
            )

    def labels_in(self, row):
        return row["tags"]

    def texts(self, row):
        return [" ".join(row["tokens"])]

    def encode(self, rows, data, tokenizer, with_labels) -> TagExamples:
        """A text that is too long is truncated at its end, if data.truncate."""
        examples = _encode_words(rows, data, tokenizer)
        if with_labels:
            examples.token_arrays["token_labels"] = self._token_labels(rows, examples)
        return examples

    def _token_labels(self, rows: Sequence[dict], examples: TagExamples) -> np.ndarray:
        """int32 [N]: the label's index at each word's first piece, else -1."""
        n_words = np.diff(examples.word_offsets)
        tags = [tag for row, n in zip(rows, n_words.tolist()) for tag in row["tags"][:n]]
        label_array = np.full(len(examples.tokens), -1, np.int32)
        label_array[np.repeat(examples.offsets[:-1], n_words) + examples.words] = label_indices(
            tags,
            self.labels,
            lambda i: rows[int(np.searchsorted(examples.word_offsets, i, "right")) - 1]["where"],
        )
        return label_array

    def predict(self, rows, examples, outputs):
        """prediction: a list of a label per word, None where the row was truncated before it."""
        predictions: list[dict] = [{} for _ in rows]
        for i, row in enumerate(examples.row):
            best = outputs[i][examples.words_of(i)].astype(np.float64).argmax(-1)
            missing = len(rows[row]["tokens"]) - len(best)
            predictions[row] = {"prediction": [self.labels[j] for j in best] + [None] * missing}
        return predictions

    def label_pairs(self, rows, predictions):
        """A truncated word has the label TRUNCATED, so that it counts as missed."""
        true = [tag for row in rows for tag in row["tags"]]
        tags = [tag for p in predictions for tag in p["prediction"]]
        return true, [measures.TRUNCATED if tag is None else tag for tag in tags]

    def measure(self, rows, predictions) -> Measures:
        """Averages leave out the label O, words that are no entity: they would hide the rest."""
        averaged = [label for label in self.labels if label != "O"]
        return measures.classification(*self.label_pairs(rows, predictions), self.labels, averaged)


KIND = Tag


def resolve(config, options: Config) -> dict:
    """The labels of the training data."""
    return {"labels": options.labels or tuple(label_counts(config.data, Tag()))}


def assume(config, options: Config) -> dict:
    """The labels of a plan, which reads no data."""
    return {} if options.labels else {"labels": ASSUMED_LABELS}


def build(config, options: Config) -> Task:
    """Batches: see data.labelled_batches, kind Tag."""
    if len(options.labels) < 2:
        raise UserError(f"task.labels is {list(options.labels)}: tagging needs at least two.")

    def loss(logits, batch, train):
        del train
        weights = (batch["token_labels"] >= 0).astype(jnp.float32)
        labels = jnp.maximum(batch["token_labels"], 0)
        return losses.cross_entropy(logits, labels, weights), {
            "accuracy": losses.accuracy(logits, labels, weights)
        }

    kind, n = Tag(options.labels), len(options.labels)
    return labelled_task(config, kind, "tagger", loss, n, sum_weights=options.sum_weights)


def _encode_words(rows: Sequence[dict], data: Any, tokenizer: Tokenizer) -> TagExamples:
    seq_len = data.seq_len
    vocabulary = list(dict.fromkeys(word for row in rows for word in row["tokens"]))
    # A word of characters that the tokenizer drops still gets one position.
    nothing = np.array(
        [tokenizer.pad_id if tokenizer.unk_id is None else tokenizer.unk_id], np.int32
    )
    pieces = {
        word: ids if len(ids) else nothing
        for word, ids in zip(vocabulary, tokenizer.encode_batch(vocabulary))
    }
    words = [[pieces[word] for word in row["tokens"]] for row in rows]
    lengths = np.array([2 + sum(map(len, row)) for row in words], np.int64)
    truncated = check_lengths(lengths, rows, seq_len, data.truncate)
    cls, sep = np.array([tokenizer.bos_id]), np.array([tokenizer.eos_id])
    parts, columns = [], []
    for row in words:
        begins = np.cumsum([1, *map(len, row)])[:-1]
        columns.append(begins[begins < seq_len - 1].astype(np.int32))
        parts += (cls, np.concatenate(row)[: seq_len - 2], sep)
    lengths = np.minimum(lengths, seq_len)
    return TagExamples(
        joined(parts),
        offsets_of(lengths),
        lengths.astype(np.int32),
        np.arange(len(rows), dtype=np.int32),
        truncated=truncated,
        words=joined(columns),
        word_offsets=offsets_of([len(row) for row in columns]),
    )
