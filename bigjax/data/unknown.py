"""How much of a text a tokenizer does not know, and why: what becomes [UNK] teaches nothing."""

from collections.abc import Iterable
import itertools
from typing import Any
import unicodedata

import numpy as np

from bigjax.data.tokenizer_base import Tokenizer

MANY = 0.03  # of the tokens: above it people are warned
_TEXTS = 200  # looked at for examples of unknown words


def count(tokenizer: Tokenizer, ids: np.ndarray) -> tuple[int, int]:
    """(unknown tokens, tokens) of ids, bos, eos and padding left out."""
    special = np.isin(ids, [tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id])
    unknown = 0 if tokenizer.unk_id is None else int((ids == tokenizer.unk_id).sum())
    return unknown, int(ids.size - special.sum())


def share(tokenizer: Tokenizer, n_unknown: int, n_tokens: int) -> str:
    """Such as '; 0.12% unknown', to end a line with; '' for a tokenizer that knows every text."""
    return "" if tokenizer.unk_id is None else f"; {n_unknown / max(n_tokens, 1):.2%} unknown"


def warning(
    tokenizer: Tokenizer, n_unknown: int, n_tokens: int, what: str, texts: Iterable[str]
) -> list[str]:
    """A line for people, where more than MANY of the tokens are unknown, else none.

    what: whose tokens. texts: some of them, for examples; read only where there is a warning.
    """
    if n_unknown <= MANY * n_tokens:
        return []
    words = _unknown_words(tokenizer, texts)
    such = f", such as {', '.join(repr(word[:30]) for word in words)}" if words else ""
    return [
        f"data: warning: {n_unknown:,} of the {n_tokens:,} tokens of {what} "
        f"({n_unknown / n_tokens:.1%}) are unknown to the tokenizer ({tokenizer.name}){such}: to "
        f"the model they all look the same. {_reason(tokenizer, words)}"
    ]


def _unknown_words(tokenizer: Any, texts: Iterable[str]) -> list[str]:
    """At most three."""
    if not hasattr(tokenizer, "encode_with_offsets"):
        return []
    found: dict[str, None] = {}
    for text in itertools.islice(texts, _TEXTS):
        ids, spans = tokenizer.encode_with_offsets([text])[0]
        for start, end in spans[ids == tokenizer.unk_id].tolist():
            found[text[start:end]] = None
            if len(found) == 3:
                return list(found)
    return list(found)


def _reason(tokenizer: Any, words: list[str]) -> str:
    cut = "Or leave data.tokenizer.path empty, to train a vocabulary on this text."
    if not words:
        return f"Is its vocabulary of another language? {cut}"
    if any(len(word) > 100 for word in words):
        return (
            "Words of more than 100 characters are unknown whatever the vocabulary is: is the text "
            'of a language that has no spaces? Use data.tokenizer.kind="sentencepiece" or "bytes" '
            "where the model allows it, or put spaces between words."
        )
    known = lambda text: tokenizer.unk_id not in tokenizer.encode(text)
    if not tokenizer.lowercase and all(known(word.lower()) for word in words):
        return "Its vocabulary seems to have no capitals: set data.tokenizer.lowercase=True."
    scripts = dict.fromkeys(
        unicodedata.name(char, "?").split()[0].capitalize() for word in words for char in word
    )
    return f"Is its vocabulary of another language than these ({', '.join(scripts)})? {cut}"
