"""Text data: sources, tokenizers, the token store, and batches as a function of (seed, step)."""

from bigjax.data.corpus import Corpus, build_tokenizer, load_text
from bigjax.data.loader import TextData, iterate
from bigjax.data.tokenizer import load as load_tokenizer

__all__ = ["Corpus", "TextData", "build_tokenizer", "iterate", "load_text", "load_tokenizer"]
