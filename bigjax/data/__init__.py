"""Text data: sources, tokenizers, the token store, and batches as a function of (seed, step)."""

from bigjax.data.batches import Batches, Data, ExampleBatches, SplitData
from bigjax.data.kinds import Input, Kind, TextKind, encode_rows
from bigjax.data.labelled import Labelled, load_labelled
from bigjax.data.labelled_batches import LabelledBatches
from bigjax.data.loader import TextBatches, iterate
from bigjax.data.rows import label_counts, read_rows
from bigjax.data.text import Corpus, build_tokenizer, load_text
from bigjax.data.tokenizers import load as load_tokenizer
from bigjax.data.tokenizers.wordpiece import WordPiece

__all__ = [
    "Batches",
    "Corpus",
    "Data",
    "ExampleBatches",
    "Input",
    "Kind",
    "Labelled",
    "LabelledBatches",
    "SplitData",
    "TextBatches",
    "TextKind",
    "WordPiece",
    "build_tokenizer",
    "encode_rows",
    "iterate",
    "label_counts",
    "load_labelled",
    "load_text",
    "load_tokenizer",
    "read_rows",
]
