"""Sentinels of hidden spans in the texts that a model reads and writes."""

from collections.abc import Iterable, Sequence
import re

import numpy as np

from bigjax.data.tokenizers import Tokenizer
from bigjax.errors import UserError
from bigjax.models import Decoder

# A hidden span includes the space before its first word.
_SENTINEL = re.compile(r" ?<extra_id_(0|[1-9]\d*)>", re.ASCII)


def named(tokenizer: Tokenizer, decoder: Decoder) -> "Tokenizer | Named":
    """The tokenizer for what a decoder reads and writes: a Named one if it has sentinels and the
    decoder answers sources. In training texts `<extra_id_N>` is text."""
    return Named(tokenizer) if tokenizer.sentinel_ids and not decoder.continues else tokenizer


def check(tokenizer: "Tokenizer | Named", texts: Sequence[str], names: Sequence[str]) -> None:
    """Raises UserError for a sentinel in a text that the tokenizer lacks. names: where each text is
    from."""
    if not isinstance(tokenizer, Named):
        return
    for text, name in zip(texts, names):
        for number in map(int, _SENTINEL.findall(text)):
            if number >= len(tokenizer.sentinel_ids):
                last = len(tokenizer.sentinel_ids) - 1
                raise UserError(
                    f"{name}: the text has <extra_id_{number}>; the tokenizer has the sentinels "
                    f"<extra_id_0> to <extra_id_{last}>. Use one of these."
                )


class Named:
    """A tokenizer with sentinels, for which `<extra_id_N>` in a text is sentinel N."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer, self.sentinel_ids = tokenizer, tokenizer.sentinel_ids
        self._numbers = {id_: n for n, id_ in enumerate(tokenizer.sentinel_ids)}
        self.bos_id, self.eos_id = tokenizer.bos_id, tokenizer.eos_id
        self.pad_id, self.leading_ids = tokenizer.pad_id, tokenizer.leading_ids

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """As Tokenizer.encode_batch, of texts that pass `check`."""
        split = [_SENTINEL.split(text) for text in texts]  # text, number, text, ..., text
        between = iter(self._tokenizer.encode_batch([x for parts in split for x in parts[::2]]))
        return [
            np.concatenate(
                [
                    np.array([self.sentinel_ids[int(part)]], np.int32) if i % 2 else next(between)
                    for i, part in enumerate(parts)
                ]
            )
            for parts in split
        ]

    def decode(self, ids: Iterable[int]) -> str:
        """As Tokenizer.decode, with sentinels."""
        text, part = "", []
        for id_ in map(int, ids):
            if id_ in self._numbers:
                text += self._decoded(part, text) + f"<extra_id_{self._numbers[id_]}>"
                part = []
            else:
                part.append(id_)
        return text + self._decoded(part, text)

    def _decoded(self, ids: list[int], before: str) -> str:
        text, pieces = self._tokenizer.decode(ids), self._tokenizer.pieces
        if not before or not text or text[0] == " ":
            return text
        # Some tokenizers drop a space at the start, which is only the start of this part.
        first = next((pieces[i] for i in ids if 0 <= i < len(pieces) and pieces[i]), b"")
        return " " * first.startswith(b" ") + text
