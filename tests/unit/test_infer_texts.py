"""Texts from generated tokens, piece by piece, up to a stop text."""

import types

import numpy as np
import pytest

from bigjax.data.tokenizers.bytes import Bytes
from bigjax.infer import generate, texts
from bigjax.infer.generate import Options


class Written:
    """A fake Generator that returns known ids, a few at a time."""

    def __init__(self, rows, at_once):
        self.rows, self.n = rows, at_once
        self.decoder = types.SimpleNamespace(continues=True)

    def stream(self, ids, options, seed, at_once, samples):
        keep = np.ones(len(self.rows), bool)
        for start in range(0, max(map(len, self.rows)), self.n):
            part = [row[start : start + self.n] for row in self.rows]
            real = np.array([[i < len(p) for i in range(self.n)] for p in part]) & keep[:, None]
            tokens = np.array([p + [0] * (self.n - len(p)) for p in part])
            sent = yield generate.Chunk(tokens, np.zeros(tokens.shape), real)
            keep &= True if sent is None else sent


@pytest.mark.parametrize("at_once", [1, 2, 3, 100])
@pytest.mark.parametrize(
    "text, stop, want",
    [
        ("one two", (), "one two"),
        ("one two", (" t",), "one"),
        ("one two", ("two", "e "), "on"),
        ("aaab", ("aab",), "a"),
        ("ab", ("abc",), "ab"),
        ("héllo €5", ("€",), "héllo "),
        ("naïve", (), "naïve"),
        ("x\n\ny", ("\n\n",), "x"),
        ("xabc", ("abc", "b"), "xa"),
        ("xabc", ("bc", "abc"), "x"),
    ],
)
def test_joined_pieces_are_the_text_up_to_a_stop_text(text, stop, want, at_once):
    """Tokens are bytes, so stop texts and characters span several tokens and chunks."""
    tokenizer = Bytes()
    written = Written([list(text.encode()), list(b"other")], at_once)
    pieces = list(texts.stream(written, tokenizer, ["p", ""], Options(), stop=stop))
    assert "".join(p for i, p in pieces if i == 0) == want
    assert all("\ufffd" not in p for _, p in pieces)
    if not stop:
        assert "".join(p for i, p in pieces if i == 1) == "other"


class Pieces:
    """A tokenizer whose tokens are several characters, or parts of one."""

    PIECES = (b"p", b"hello", b" wor", b"ld \xe2", b"\x82", b"\xac!")
    bos_id = 0

    def encode_batch(self, texts):
        return [np.array([], int) for _ in texts]

    def decode(self, ids):
        return b"".join(self.PIECES[i] for i in ids).decode(errors="replace")


@pytest.mark.parametrize("at_once", [1, 2, 100])
@pytest.mark.parametrize(
    "stop, expected",
    [((), "hello world €!"), (("ell",), "h"), (("o w",), "hell"), (("€",), "hello world ")],
)
def test_a_stop_text_may_start_and_end_inside_a_token(stop, expected, at_once):
    written = Written([[1, 2, 3, 4, 5]], at_once)
    pieces = [piece for _, piece in texts.stream(written, Pieces(), [""], Options(), stop=stop)]
    assert "".join(pieces) == expected and not any("\ufffd" in piece for piece in pieces)


def test_invalid_utf8_is_returned_at_the_end():
    (row,) = texts.texts(Written([[0xC3]], 1), Bytes(), [""], Options())
    assert row == "\ufffd"
