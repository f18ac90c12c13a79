"""Texts from generated tokens, piece by piece, up to a stop text."""

import io
import types

import numpy as np
import pytest
import sentencepiece

from bigjax.data.tokenizers.bytes import Bytes
from bigjax.data.tokenizers.sentencepiece import SentencePiece, train_sentencepiece
from bigjax.errors import UserError
from bigjax.infer import generate, sentinels, texts
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
    pieces = list(texts.stream(written, tokenizer, [[256, 112], [256]], Options(), stop=stop))
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
    pieces = [piece for _, piece in texts.stream(written, Pieces(), [[]], Options(), stop=stop)]
    assert "".join(pieces) == expected and not any("\ufffd" in piece for piece in pieces)


def with_sentinels(kind: str) -> SentencePiece:
    """A tokenizer of ours, or one that puts a space before every text, as T5's."""
    text = "the quick brown fox jumps over the lazy dog. " * 9
    if kind == "own":
        model = train_sentencepiece([text], 300).files()["tokenizer.model"]
    else:
        file = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter([text]), model_writer=file, vocab_size=31, minloglevel=5
        )
        model = file.getvalue()
    return SentencePiece(model, sentinels=4)


def named(tokenizer, continues=False):
    return sentinels.named(tokenizer, types.SimpleNamespace(continues=continues))


@pytest.mark.parametrize("kind", ["own", "T5"])
def test_sentinels_in_sources_and_targets(kind):
    tokenizer = with_sentinels(kind)
    s, encode = tokenizer.sentinel_ids, lambda text: tokenizer.encode(text).tolist()
    both = named(tokenizer)
    source, plain = both.encode_batch(["the <extra_id_0> fox <extra_id_3>", "the fox"])
    assert source.tolist() == [*encode("the"), s[0], *encode(" fox"), s[3]]
    assert plain.tolist() == encode("the fox") == encode("the") + encode(" fox")
    target = [s[0], *encode(" quick brown"), s[1], *encode(" dog"), s[2], tokenizer.eos_id]
    assert both.decode(target) == "<extra_id_0> quick brown<extra_id_1> dog<extra_id_2>"
    assert both.decode([*encode("the"), 10**6]) == "the"
    assert both.decode([]) == "" and both.encode_batch([""])[0].tolist() == []
    # A training text, and a prompt that is continued, have it as text.
    assert not {*encode("<extra_id_0>")} & {*s}
    assert named(tokenizer, continues=True) is tokenizer and named(Bytes()).sentinel_ids == ()


def test_a_sentinel_that_the_tokenizer_lacks_is_refused():
    check = lambda tokenizer: sentinels.check(tokenizer, ["b", "a <extra_id_4>"], ["x:1", "x:2"])
    with pytest.raises(UserError, match="x:2: the text has <extra_id_4>; .* to <extra_id_3>"):
        check(named(with_sentinels("own")))
    check(named(Bytes()))


def test_prompts_follow_the_leading_ids_of_the_tokenizer():
    tokenizer, prompts = Bytes(), ["a", ""]
    ids = lambda continues: texts.prompt_ids(
        tokenizer, prompts, types.SimpleNamespace(continues=continues)
    )
    assert ids(True) == [[256, 97], [256]] and ids(False) == [[97, 257], [257]]
    tokenizer.leading_ids = (7, 256)
    assert ids(True) == [[7, 256, 97], [7, 256]]
    tokenizer.leading_ids = ()  # nothing is put before a text, but there has to be a token
    assert ids(True) == [[97], [256]] and ids(False) == [[97, 257], [257]]


def test_invalid_utf8_is_returned_at_the_end():
    (row,) = texts.texts(Written([[0xC3]], 1), Bytes(), [""], Options())
    assert row == "\ufffd"
