"""Text data: sources, tokenizers, the token store, and batches as a function of (seed, step)."""

from bigjax.data.corpus import Corpus, build_tokenizer, comparable, load_text
from bigjax.data.examples import unknown_warning
from bigjax.data.headlines import (
    HeadlineData,
    HeadlineOptions,
    Headlines,
    encode_articles,
    load_headlines,
)
from bigjax.data.labelled import Labelled, LabelledData, encode_rows, label_names, load_labelled
from bigjax.data.loader import TextData, iterate
from bigjax.data.rows import read_rows
from bigjax.data.tokenizer import load as load_tokenizer
from bigjax.data.wordpiece import WordPiece

__all__ = [
    "Corpus",
    "HeadlineData",
    "HeadlineOptions",
    "Headlines",
    "Labelled",
    "LabelledData",
    "TextData",
    "WordPiece",
    "build_tokenizer",
    "comparable",
    "encode_articles",
    "encode_rows",
    "iterate",
    "label_names",
    "load_headlines",
    "load_labelled",
    "load_text",
    "load_tokenizer",
    "read_rows",
    "unknown_warning",
]
