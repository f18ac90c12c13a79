"""The share of a text that a tokenizer does not know, and why: [UNK] teaches nothing."""

from collections.abc import Iterable
import itertools
from typing import Any
import unicodedata

import numpy as np

from bigjax.data.tokenizers.base import Tokenizer
from bigjax.data.tokenizers.wordpiece import MAX_WORD_CHARS

MANY = 0.03  # of the tokens: above it a warning is logged
_TEXTS = 200  # searched for examples of unknown words


def count(tokenizer: Tokenizer, ids: np.ndarray) -> tuple[int, int]:
    """(unknown tokens, tokens) of ids, without bos, eos and padding."""
    special = np.isin(ids, [tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id])
    unknown = 0 if tokenizer.unk_id is None else int((ids == tokenizer.unk_id).sum())
    return unknown, int(ids.size - special.sum())


def share(tokenizer: Tokenizer, n_unknown: int, n_tokens: int) -> str:
    """Such as '; 0.12% unknown', to end a line with; '' for a tokenizer that knows every text."""
    return "" if tokenizer.unk_id is None else f"; {n_unknown / max(n_tokens, 1):.2%} unknown"


def warning(
    tokenizer: Tokenizer, n_unknown: int, n_tokens: int, what: str, texts: Iterable[str]
) -> list[str]:
    """A warning if more than MANY of the tokens are unknown, else no line.

    what: the text, for the message. texts: searched for examples if there is a warning.
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
    unknown: dict[str, None] = {}
    for text in itertools.islice(texts, _TEXTS):
        ids, spans = tokenizer.encode_with_offsets([text])[0]
        for start, end in spans[ids == tokenizer.unk_id].tolist():
            unknown[text[start:end]] = None
            if len(unknown) == 3:
                return list(unknown)
    return list(unknown)


def _reason(tokenizer: Any, words: list[str]) -> str:
    known = lambda text: tokenizer.unk_id not in tokenizer.encode(text)
    n = f"Its vocabulary of {tokenizer.vocab_size:,} pieces"
    remedy = "Use one made for such text, or leave data.tokenizer.path empty to have one trained."
    if not words:
        return f"{n} may be of another language, or too small. {remedy}"
    if not tokenizer.lowercase and all(known(word.lower()) for word in words):
        return f"{n} seems to have no capitals: set data.tokenizer.lowercase=True."
    strange = sorted({char for word in words for char in word if not known(char)})
    if strange:
        scripts = dict.fromkeys(unicodedata.name(char, "?").split()[0] for char in strange)
        return (
            f"{n} has none with {', '.join(map(repr, strange[:5]))} "
            f"({', '.join(scripts).lower()}): is it of another language, or too small? {remedy}"
        )
    if any(len(word) > MAX_WORD_CHARS for word in words):
        return (
            f"Words of more than {MAX_WORD_CHARS} characters are unknown whatever the vocabulary, "
            "as in BERT: put spaces between the words of a language that is written without."
        )
    return f"{n} may be of another language, or too small. {remedy}"
