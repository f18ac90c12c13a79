"""Text data: sources, tokenizers, the token store, and batches as a function of (seed, step)."""

from bigjax.data.batches import Batches, Data
from bigjax.data.examples import unknown_warning
from bigjax.data.labelled import Labelled, LabelledData, encode_rows, label_names, load_labelled
from bigjax.data.loader import TextData, iterate
from bigjax.data.rows import read_rows
from bigjax.data.text import Corpus, build_tokenizer, load_text
from bigjax.data.tokenizer import load as load_tokenizer
from bigjax.data.wordpiece import WordPiece

__all__ = [
    "Batches",
    "Corpus",
    "Data",
    "Labelled",
    "LabelledData",
    "TextData",
    "WordPiece",
    "build_tokenizer",
    "encode_rows",
    "iterate",
    "label_names",
    "load_labelled",
    "load_text",
    "load_tokenizer",
    "read_rows",
    "unknown_warning",
]
