"""The bytes of UTF-8 as ids. It uses no key of data.tokenizer."""

from typing import Any

import numpy as np

from bigjax.data.tokenizers import Config
from bigjax.data.tokenizers.base import Tokenizer, Training, hash_of


class Bytes(Tokenizer):
    """Ids 0 to 255 are bytes, then bos 256, eos 257 and pad 258."""

    kind = "bytes"

    def __init__(self) -> None:
        self.pieces = [bytes([i]) for i in range(256)] + [b""] * 3
        self.bos_id, self.eos_id, self.pad_id = 256, 257, 258
        self.fingerprint = hash_of("bytes")

    def encode_texts(self, texts: list[str]) -> list[np.ndarray]:
        return [np.frombuffer(text.encode(), np.uint8) for text in texts]


def build(options: Config, training: Training) -> Bytes:
    del options, training
    return Bytes()


def load(folder: Any) -> Bytes:
    del folder
    return Bytes()
