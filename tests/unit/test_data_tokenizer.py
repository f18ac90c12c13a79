"""bigjax.data.tokenizers: lossless round trips, exact byte counts, errors."""

import json
import os
import pathlib

import ml_collections
import numpy as np
import pytest

from bigjax.data import tokenizers as T
from bigjax.data.tokenizers.bpe import byte_characters, read_bpe_folder
from bigjax.data.tokenizers.sentencepiece import train_sentencepiece
from bigjax.data.tokenizers.wordpiece import SPECIALS, read_wordpiece
from bigjax.errors import UserError

WEIRD = [
    "",
    " ",
    "a\n\n  b\t\r\n c\n",
    "\0x\x01\x7f",
    "\u2581 \u2581\u2581a\u2581",
    "  lead, trail  ",
    "\ue000 e\u0301 \u00e9 \ufb01 \u2167 \u2585\u2585",
    "\U0001f600\u200d\U0001f467 \u4e2d\u6587 \u0639",
    "<s></s><0x41><unk><pad><|endoftext|>",
    "\ufeffx\u2028y\u0085z\u00a0\u3000",
    "\r\r\n",
    "\x80\xff\u200b\U0010ffff\ufffe\ufffd",
    "unchained " * 50,
]
TEXTS = [
    f"the {a} {b} chained the other {b} to a {c}\n    and so on, {i}\n"
    for i, (a, b, c) in enumerate(
        (a, b, c)
        for a in ("quick", "slow", "brown", "lazy", "odd")
        for b in ("fox", "dog", "cat", "horse", "goose")
        for c in ("hen", "mast", "tree", "wall", "cart", "stone")
    )
]


def write_bpe(folder, names=("vocab.json", "merges.txt"), drop=None):
    """A byte-level BPE with four merges."""
    merges = ["h e", "l l", "he ll", "Ġ w"]
    pieces = [
        *byte_characters().values(),
        *(merge.replace(" ", "") for merge in merges),
        "<|endoftext|>",
    ]
    folder.mkdir(exist_ok=True)
    vocab = {piece: i for i, piece in enumerate(pieces) if piece != drop}
    (folder / names[0]).write_text(json.dumps(vocab))
    (folder / names[1]).write_text("\n".join(["#version: 0.2", *merges, ""]))
    return str(folder)


def spec(kind, path="", vocab_size=400):
    return ml_collections.ConfigDict({"kind": kind, "path": path, "vocab_size": vocab_size})


def build(kind, path="", vocab_size=400, cache="unused", texts=TEXTS):
    return T.build(spec(kind, path, vocab_size), str(cache), lambda: iter(texts), "content", str)


@pytest.fixture(scope="module", params=["sentencepiece", "bpe", "bytes"])
def tokenizer(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    path = write_bpe(folder / "bpe") if request.param == "bpe" else ""
    return build(request.param, path, cache=folder)


def test_round_trip_bytes_and_specials(tokenizer):
    encoded = tokenizer.encode_batch(WEIRD + TEXTS)
    specials = {tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id}
    for text, ids in zip(WEIRD + TEXTS, encoded):
        assert ids.dtype == np.int32 and tokenizer.decode(ids) == text
        assert tokenizer.token_bytes[ids].sum() == len(text.encode())
        assert not specials & set(ids.tolist())
        np.testing.assert_array_equal(ids, tokenizer.encode(text))
    assert tokenizer.lossless and tokenizer.encode_batch([]) == []


def test_special_and_foreign_ids_are_skipped(tokenizer):
    specials = [tokenizer.eos_id, tokenizer.pad_id]
    ids = [tokenizer.bos_id, *tokenizer.encode("a b"), *specials, 10**6, -1]
    assert tokenizer.decode(ids) == tokenizer.decode(np.array(ids)) == "a b"
    table = tokenizer.token_bytes
    assert table.shape == (tokenizer.vocab_size,) and table.dtype == np.int32
    assert table[[tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id]].tolist() == [0, 0, 0]


def test_lone_surrogate_is_refused(tokenizer):
    with pytest.raises(UserError, match=r"\\ud800.*lone surrogate"):
        tokenizer.encode("fine \ud800")


def test_save_and_load(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "new" / "folder")
    again = T.load(tmp_path / "new" / "folder")
    assert (again.kind, again.fingerprint) == (tokenizer.kind, tokenizer.fingerprint)
    assert again.pieces == tokenizer.pieces
    np.testing.assert_array_equal(again.encode(TEXTS[0]), tokenizer.encode(TEXTS[0]))
    again_by = r"no tokenizer: .*import it again.*--config.data.tokenizer.kind=KIND and .*path=PATH"
    with pytest.raises(UserError, match=again_by) as e:
        T.load(tmp_path)
    assert "Errno" not in str(e.value)


def test_sentencepiece_training_is_deterministic_cached_and_compresses(tmp_path, capfd):
    first, second = (train_sentencepiece(TEXTS, 400) for _ in range(2))
    assert first.fingerprint == second.fingerprint and first.vocab_size == 400
    assert sum(map(len, first.encode_batch(TEXTS))) < 0.4 * sum(map(len, TEXTS))
    cached = build("sentencepiece", cache=tmp_path)
    again = T.build(spec("sentencepiece"), str(tmp_path), lambda: pytest.fail("trained"), "content")
    assert cached.fingerprint == again.fingerprint == first.fingerprint
    assert capfd.readouterr() == ("", "")


def test_sentencepiece_with_more_letters_than_pieces():
    han = ["".join(map(chr, range(0x4E00, 0x5E00))) + "\u4e00\u4e01" * 99]
    tokenizer = train_sentencepiece(han, 400)
    assert tokenizer.decode(tokenizer.encode(han[0])) == han[0]
    assert len(tokenizer.encode("\u4e00\u4e01")) < 6  # common letters got pieces of their own


@pytest.mark.parametrize(
    "texts, size, message",
    [
        ([], 4096, "vocab_size=4096 on 0 documents with 0 characters: there is no text"),
        (
            ["abc"],
            4096,
            r"on 1 documents with 3 characters: that much text makes at most 26\d pieces",
        ),
        (TEXTS, 100, "vocab_size=100 .*leave too few pieces"),
    ],
)
def test_vocabulary_that_cannot_be_trained(texts, size, message):
    with pytest.raises(UserError, match=message + ".*(?s:.)*bytes"):
        train_sentencepiece(texts, size)


def test_model_of_others_keeps_its_own_rules(tmp_path):
    """As T5's and Llama's: a space before the text, normalisation, no byte fallback."""
    import sentencepiece

    prefix = str(tmp_path / "m")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS),
        model_prefix=prefix,
        vocab_size=60,
        bos_id=-1,
        eos_id=1,
        unk_id=2,
        pad_id=0,
        model_type="unigram",
        minloglevel=5,
    )
    lines = []
    tokenizer = T.build(spec("sentencepiece", prefix + ".model"), "", None, "", lines.append)
    assert not tokenizer.lossless and "does not keep every text" in lines[0]
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (1, 1, 0)
    ids = [1, *tokenizer.encode("the quick fox"), 1, 0]
    assert tokenizer.decode(ids) == "the quick fox"


def test_bpe_merges_and_both_file_names(tmp_path):
    one = build("bpe", write_bpe(tmp_path / "a"))
    two = build("bpe", write_bpe(tmp_path / "b", ("encoder.json", "vocab.bpe")))
    assert one.fingerprint == two.fingerprint
    assert [one.pieces[i] for i in one.encode("hello wo")] == [b"hell", b"o", b" w", b"o"]
    assert one.bos_id == one.eos_id == one.pad_id == 260 and one.vocab_size == 261
    assert build("bytes").fingerprint != one.fingerprint


def test_errors_name_what_to_do(tmp_path):
    with pytest.raises(UserError, match="'unigram' is not a module of bigjax.data.tokenizers"):
        build("unigram")
    with pytest.raises(UserError, match="data.tokenizer.path is empty"):
        build("bpe")
    with pytest.raises(UserError, match="neither vocab.json nor encoder.json"):
        build("bpe", str(tmp_path))
    with pytest.raises(UserError, match="lacks 1 of the 256 bytes .*0x41"):
        build("bpe", write_bpe(tmp_path / "a", drop="A"))
    with pytest.raises(UserError, match="none of <|endoftext|>"):
        build("bpe", write_bpe(tmp_path / "b", drop="<|endoftext|>"))
    with pytest.raises(UserError, match="merges do not fit"):
        build("bpe", write_bpe(tmp_path / "c", drop="hell"))
    pathlib.Path(write_bpe(tmp_path / "d"), "merges.txt").write_text("a b c\n")
    with pytest.raises(UserError, match="two pieces .*'a b c'"):
        build("bpe", str(tmp_path / "d"))
    (tmp_path / "d" / "vocab.json").write_text("{")
    with pytest.raises(UserError, match="cannot read the vocabulary"):
        build("bpe", str(tmp_path / "d"))
    with pytest.raises(UserError, match="cannot read .*none.model"):
        build("sentencepiece", str(tmp_path / "none.model"))
    with pytest.raises(UserError, match="vocab.json is not a SentencePiece model"):
        build("sentencepiece", str(tmp_path / "d" / "vocab.json"))


def test_gpt2_files():
    """BIGJAX_TEST_DATA: a folder with GPT-2's encoder.json and vocab.bpe."""
    folder = os.environ.get("BIGJAX_TEST_DATA")
    if not folder:
        pytest.skip("BIGJAX_TEST_DATA names no folder with GPT-2's encoder.json and vocab.bpe")
    tokenizer = build("bpe", folder)
    assert tokenizer.encode("Hello world").tolist() == [15496, 995]
    assert (tokenizer.vocab_size, tokenizer.eos_id) == (50257, 50256)
    for text in WEIRD:
        assert tokenizer.decode(tokenizer.encode(text)) == text


# --- Files with other line ends ----------------------------------------------------------------


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r\r\n"])
@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
def test_bpe_files_may_end_lines_in_crlf_and_begin_with_a_mark(tmp_path, end, bom):
    """Equal ids and fingerprints, and what is saved or exported is read by others."""
    table = [*byte_characters().values(), "th", "the", "\u0120the", "<|endoftext|>"]
    vocab = json.dumps({piece: i for i, piece in enumerate(table)}, ensure_ascii=False, indent=1)
    merges = ["#version: 0.2", "t h", "th e", "\u0120 the"]
    plain, other = tmp_path / "plain", tmp_path / "other"
    for folder, mark, line_end in ((plain, b"", "\n"), (other, bom, end)):
        folder.mkdir()
        (folder / "vocab.json").write_bytes(mark + vocab.replace("\n", line_end).encode())
        (folder / "merges.txt").write_bytes(mark + line_end.join([*merges, ""]).encode())
    one, two = (read_bpe_folder(folder) for folder in (plain, other))
    text = "the other\r\nth \u00e9\n"
    assert two.encode(text).tolist() == one.encode(text).tolist() and two.decode([258]) == " the"
    assert two.fingerprint == one.fingerprint
    two.save(tmp_path / "saved")
    for name in ("vocab.json", "merges.txt"):
        assert (tmp_path / "saved" / name).read_bytes() == (plain / name).read_bytes()
    assert T.load(tmp_path / "saved").encode(text).tolist() == one.encode(text).tolist()


def test_settings_of_wordpiece_with_a_byte_order_mark(tmp_path):
    vocab = "\r\n".join([*SPECIALS, "A", "a", ""])
    (tmp_path / "vocab.txt").write_bytes(b"\xef\xbb\xbf" + vocab.encode())
    (tmp_path / "tokenizer_config.json").write_bytes(b'\xef\xbb\xbf{"do_lower_case": false}\r\n')
    tokenizer = read_wordpiece(tmp_path)
    assert not tokenizer.lowercase and tokenizer.encode("A a").tolist() == [5, 6]


# --- Damaged JSON ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content, message",
    [
        ("1e999", "id of the piece 'zz' is inf"),
        ("1" + "0" * 400, "id of the piece 'zz' is 1000"),
        ("1" + "0" * 5000, "cannot read the vocabulary"),
        ("1000000000000", "an integer from 0 to 16,777,215"),
        ("-1", "id of the piece 'zz' is -1"),
        ("true", "id of the piece 'zz' is True"),
        ('"7"', "id of the piece 'zz' is '7'"),
        ("null", "id of the piece 'zz' is None"),
        ("7", "have the same id 7"),
        ("[" * 100_000 + "]" * 100_000, "cannot read the vocabulary"),
    ],
    ids=lambda text: text[:9],
)
def test_ids_of_a_bpe_are_whole_numbers(tmp_path, content, message):
    path = pathlib.Path(write_bpe(tmp_path / "a"), "vocab.json")
    path.write_text(path.read_text().removesuffix("}") + f', "zz": {content}}}')
    with pytest.raises(UserError, match=message):
        build("bpe", str(tmp_path / "a"))


@pytest.mark.parametrize(
    "value", ["1e999", "1" + "0" * 400, "-1", "1.5", "true", '"1"', "null", "{"]
)
@pytest.mark.parametrize("key", ["kind", "bos_id", "eos_id", "pad_id"])
def test_what_a_run_saved_of_its_tokenizer_is_checked(tmp_path, key, value):
    if key == "kind" and value == '"1"':  # of a kind that no folder here has
        value = "[]"
    meta = {"kind": '"bytes"', "bos_id": "256", "eos_id": "257", "pad_id": "258", key: value}
    text = ", ".join(f'"{name}": {item}' for name, item in meta.items())
    (tmp_path / "bigjax_tokenizer.json").write_text(f"{{{text}}}")
    with pytest.raises(UserError, match=r"bigjax_tokenizer\.json was not saved by bigjax \("):
        T.load(tmp_path)
