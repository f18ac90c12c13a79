"""bigjax.data.tokenizers.wordpiece: BERT's pieces and offsets, files of others, training."""

import json
import pathlib
import subprocess
import sys

import ml_collections
import numpy as np
import pytest

import bigjax
from bigjax.data import tokenizers as T
from bigjax.data.tokenizers.wordpiece import SPECIALS, WordPiece, read_wordpiece, train_wordpiece
from bigjax.errors import UserError

ROOT = str(pathlib.Path(bigjax.__file__).parents[1])
VOCAB = [
    *SPECIALS,
    "un",
    "##aff",
    "##able",
    "cafe",
    "##s",
    "中",
    "[",
    "]",
    "sep",
    "mask",
    "!",
    "Un",
    "Café",
    "##ß",
    "##",
    "a",
]
ID = {piece: i for i, piece in enumerate(VOCAB)}
TEXTS = [
    f"the {a} {b} chained the other {b} to a {c}, and so on: {i}"
    for i, (a, b, c) in enumerate(
        (a, b, c)
        for a in ("quick", "slow", "brown", "lazy", "odd")
        for b in ("fox", "dog", "cat", "horse", "goose")
        for c in ("hen", "mast", "tree", "wall", "cart", "stone")
    )
]


def write_vocab(path, lines=VOCAB, end="\n"):
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_bytes("".join(f"{line}{end}" for line in lines).encode())
    return str(path)


def write_json(folder, **changes):
    content = {
        "added_tokens": [{"id": 3, "content": "[SEP]", "special": True}],
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "lowercase": False,
            "handle_chinese_chars": True,
            "strip_accents": None,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "model": {
            "type": "WordPiece",
            "unk_token": "[UNK]",
            "vocab": ID,
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
        },
        **changes,
    }
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(content))
    return str(folder)


def spec(path="", vocab_size=200, lowercase=True):
    return ml_collections.ConfigDict(
        {"kind": "wordpiece", "path": path, "vocab_size": vocab_size, "lowercase": lowercase}
    )


def pieces(tokenizer, text):
    return [tokenizer._vocab[i] for i in tokenizer.encode(text)]


def test_pieces_as_bert_makes_them():
    tokenizer = WordPiece(VOCAB)
    assert pieces(tokenizer, "UnaffABLE Cafés!\t中中") == [
        "un",
        "##aff",
        "##able",
        "cafe",
        "##s",
        "!",
        "中",
        "中",
    ]
    assert pieces(tokenizer, "a\u00a0a\u200d \0a \ufffd zebra") == ["a", "a", "a", "[UNK]"]
    assert pieces(tokenizer, "a" * 101) == ["[UNK]"]  # BERT's limit on a word
    assert tokenizer.encode_batch(["", " "])[1].tolist() == []
    assert tokenizer.encode("a").dtype == np.int32


def test_settings_change_the_pieces():
    cased = WordPiece(VOCAB, lowercase=False)
    assert pieces(cased, "Un Café un") == ["Un", "Café", "un"]
    assert pieces(WordPiece(VOCAB, False, True), "Cafés cafés") == ["[UNK]", "cafe", "##s"]
    assert pieces(WordPiece(VOCAB, True, False), "café") == ["[UNK]"]
    assert pieces(WordPiece(VOCAB, chinese_chars=False), "中中") == ["[UNK]"]
    every = [
        WordPiece(VOCAB, *settings)
        for settings in ((True,), (False,), (True, False), (True, None, False), (True, True, True))
    ]
    assert len({tokenizer.fingerprint for tokenizer in every}) == 4
    assert every[0].fingerprint == every[4].fingerprint != WordPiece(VOCAB[:-1]).fingerprint


def test_special_ids_never_come_out_of_text():
    tokenizer = WordPiece(VOCAB)
    text = "[SEP] a [MASK][CLS] [PAD]"
    ids = tokenizer.encode(text)
    assert not {tokenizer.eos_id, tokenizer.mask_id, tokenizer.bos_id, tokenizer.pad_id} & set(
        ids.tolist()
    )
    assert pieces(tokenizer, "[SEP]") == ["[", "sep", "]"]
    cased = WordPiece(VOCAB, lowercase=False)
    assert (
        cased.eos_id not in cased.encode(text)
        and cased.eos_id not in (cased.encode_with_offsets([text])[0][0])
    )


def test_attributes():
    tokenizer = WordPiece(VOCAB)
    assert (
        tokenizer.pad_id,
        tokenizer.unk_id,
        tokenizer.bos_id,
        tokenizer.eos_id,
        tokenizer.mask_id,
    ) == (0, 1, 2, 3, 4)
    assert tokenizer.vocab_size == len(VOCAB) and not tokenizer.lossless and tokenizer.lowercase
    assert np.flatnonzero(tokenizer.is_special).tolist() == [0, 1, 2, 3, 4]
    assert [VOCAB[i] for i in np.flatnonzero(tokenizer.is_continuation)] == [
        "##aff",
        "##able",
        "##s",
        "##ß",
    ]
    assert tokenizer.pieces[ID["##s"]] == b"s" and tokenizer.pieces[ID["##"]] == b"##"
    assert tokenizer.pieces[ID["[MASK]"]] == b"" and tokenizer.token_bytes[ID["中"]] == 3


def test_offsets_count_in_the_original_text():
    tokenizer = WordPiece(VOCAB)
    texts = ["\0 CaFÉS\U0001f600  中Unaff", "", "cafe\u0301s", "A! " * 1500]
    encoded = tokenizer.encode_with_offsets(texts)
    for text, (ids, spans) in zip(texts, encoded):
        assert ids.dtype == spans.dtype == np.int32 and spans.shape == (len(ids), 2)
        np.testing.assert_array_equal(ids, tokenizer.encode(text))
    assert [texts[0][a:b] for a, b in encoded[0][1]] == ["CaFÉS\U0001f600", "中", "Un", "aff"]
    assert [texts[2][a:b] for a, b in encoded[2][1]] == ["cafe", "s"]
    many = tokenizer.encode_with_offsets(["a", "中 a"] * 1500)
    assert len(many) == 3000 and many[2999][1].tolist() == [[0, 1], [2, 3]]
    with pytest.raises(UserError, match="lone surrogate"):
        tokenizer.encode_with_offsets(["\ud800"])


def test_decode():
    tokenizer = WordPiece(VOCAB)
    ids = [2, *tokenizer.encode("Unaffable cafés !"), 1, 3, 0, 10**6, -1]
    assert tokenizer.decode(ids) == "unaffable cafes !"
    assert tokenizer.decode([ID["##s"], ID["a"]]) == "s a" and tokenizer.decode([]) == ""


def test_files_of_others(tmp_path):
    plain = read_wordpiece(write_vocab(tmp_path / "vocab.txt"))
    assert plain.fingerprint == WordPiece(VOCAB).fingerprint
    windows = write_vocab(tmp_path / "b.txt", ["\ufeff[PAD]", *VOCAB[1:]], "\r\n")
    assert read_wordpiece(windows).fingerprint == plain.fingerprint
    assert read_wordpiece(windows, False).fingerprint == WordPiece(VOCAB, False).fingerprint
    assert read_wordpiece(tmp_path).fingerprint == plain.fingerprint
    (tmp_path / "tokenizer_config.json").write_text(
        '{"do_lower_case": false, "strip_accents": true, "tokenize_chinese_chars": false}'
    )
    assert (
        read_wordpiece(tmp_path, True).fingerprint
        == WordPiece(VOCAB, False, True, False).fingerprint
    )
    other = read_wordpiece(write_json(tmp_path / "hf"), True)
    assert other.fingerprint == WordPiece(VOCAB, False).fingerprint


def test_odd_line_ends_are_pieces(tmp_path):
    path = write_vocab(tmp_path / "vocab.txt", [*VOCAB, "\u2028", "\x85"])
    assert read_wordpiece(path).vocab_size == len(VOCAB) + 2


def test_save_load_and_build(tmp_path):
    tokenizer = WordPiece(VOCAB, False, True, False)
    tokenizer.save(tmp_path / "new" / "folder")
    for again in (
        T.load(tmp_path / "new" / "folder"),
        T.build(spec(str(tmp_path / "new" / "folder")), "", None, "", pytest.fail),
    ):
        assert isinstance(again, WordPiece) and again.fingerprint == tokenizer.fingerprint
    lines = []
    T.build(spec(write_vocab(tmp_path / "cased.txt")), "", None, "", lines.append)
    assert len(lines) == 1 and "lowercase=False" in lines[0]
    T.build(spec(str(tmp_path / "cased.txt"), lowercase=False), "", None, "", pytest.fail)


def test_training_is_cached_by_its_settings(tmp_path, capfd):
    def build(**kwargs):
        return T.build(spec(**kwargs), str(tmp_path), lambda: iter(TEXTS), "content", str)

    first = build()
    again = T.build(spec(), str(tmp_path), lambda: pytest.fail("trained"), "content")
    assert again.fingerprint == first.fingerprint and first.vocab_size == 200
    cased = build(lowercase=False)
    assert not cased.lowercase and build(vocab_size=150).vocab_size == 150
    assert capfd.readouterr() == ("", "")


def test_trained_vocabulary():
    tokenizer = train_wordpiece(TEXTS, 200)
    assert tokenizer._vocab[:5] == list(SPECIALS) and tokenizer.vocab_size == 200
    assert tokenizer.decode(tokenizer.encode(TEXTS[3])) == TEXTS[3].replace(",", " ,").replace(
        ":", " :"
    )
    assert not any(tokenizer.unk_id in ids for ids in tokenizer.encode_batch(TEXTS))
    assert pieces(tokenizer, "the chained") == ["the", "chained"]


def test_training_keeps_case_only_when_told():
    texts = ["Über ÜBER über Straße"] * 5
    assert not any(piece != piece.lower() for piece in train_wordpiece(texts, 24)._vocab[5:])
    assert any("Ü" in piece for piece in train_wordpiece(texts, 24, False)._vocab)


def test_training_gives_the_same_in_another_process():
    """Twice, because the library's own order of letters differs from process to process."""
    script = (
        "from tests.unit.test_data_wordpiece import *\n"
        "print(train_wordpiece(TEXTS, 180).fingerprint)"
    )
    fingerprints = {
        subprocess.run(
            [sys.executable, "-c", script],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        ).stdout
        for _ in range(2)
    }
    assert fingerprints == {train_wordpiece(TEXTS, 180).fingerprint + "\n"}


def test_more_letters_than_room():
    """Letters get half of it, the common ones, unless there are too few words for the rest."""
    han = "".join(map(chr, range(0x4E00, 0x4F00)))
    both = train_wordpiece([*TEXTS, han, "\u4e05" * 999], 100)
    assert both.vocab_size == 100 and "\u4e05" in both._vocab
    assert sum("\u4e00" <= piece < "\u4f00" for piece in both._vocab) < 20
    alone = train_wordpiece([han + "\u4e05" * 9], 200)
    assert sum("\u4e00" <= piece < "\u4f00" for piece in alone._vocab) == 195


@pytest.mark.parametrize(
    "texts, size, message",
    [
        ([], 4096, "vocab_size=4096 on 0 documents with 0 characters: .*at most 5 pieces"),
        (["abc"], 4096, "on 1 documents with 3 characters: that much text makes at most 12 pieces"),
        (TEXTS, 5, "5 special pieces leave no room"),
    ],
)
def test_vocabulary_that_cannot_be_trained(texts, size, message):
    with pytest.raises(UserError, match=message + "(?s:.)*vocab.txt"):
        train_wordpiece(texts, size)


def test_bad_vocabularies(tmp_path):
    for piece in SPECIALS:
        with pytest.raises(UserError, match=rf"v\.txt has no \{piece[:-1]}\]"):
            read_wordpiece(write_vocab(tmp_path / "v.txt", [x for x in VOCAB if x != piece]))
    with pytest.raises(UserError, match="'a' is there twice, in lines 21 and 22"):
        read_wordpiece(write_vocab(tmp_path / "v.txt", [*VOCAB, "a"]))
    (tmp_path / "v.txt").write_bytes(b"[PAD]\ncaf\xe9\n")
    with pytest.raises(UserError, match=r"v\.txt:2: byte 9 \(0xE9\) is not UTF-8"):
        read_wordpiece(tmp_path / "v.txt")
    with pytest.raises(UserError, match="cannot read .*none.txt"):
        read_wordpiece(tmp_path / "none.txt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="neither vocab.txt nor tokenizer.json"):
        read_wordpiece(tmp_path / "empty")


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"model": {"type": "BPE", "vocab": {}}}, "found 'BPE' where 'WordPiece'"),
        ({"normalizer": None}, "has no normalizer"),
        ({"normalizer": {"type": "NFC"}}, "found 'NFC' where 'BertNormalizer'"),
        ({"pre_tokenizer": {"type": "ByteLevel"}}, "found 'ByteLevel'"),
        ({"model": {"vocab": ID, "continuing_subword_prefix": "@@"}}, "found '@@' where '##'"),
        ({"model": {"vocab": ["a"]}}, "no vocab of piece: id"),
        ({"model": {"vocab": {**ID, "b": 99}}}, "are not 0 to 21"),
    ],
)
def test_tokenizer_json_of_another_kind(tmp_path, changes, message):
    with pytest.raises(UserError, match=r"tokenizer\.json.*" + message):
        read_wordpiece(write_json(tmp_path / "hf", **changes))
    (tmp_path / "hf" / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="not JSON"):
        read_wordpiece(tmp_path / "hf")


WRONG = ["false", "true", "", 0, 1, 1.0, [], {}]  # where true or false is due


@pytest.mark.parametrize("value", WRONG, ids=repr)
@pytest.mark.parametrize("key", ["do_lower_case", "strip_accents", "tokenize_chinese_chars"])
def test_settings_are_true_or_false(tmp_path, key, value):
    write_vocab(tmp_path / "vocab.txt")
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps({key: value}))
    with pytest.raises(UserError, match=rf"tokenizer_config\.json: {key} is .*true, false or null"):
        read_wordpiece(tmp_path)
    theirs = {"do_lower_case": "lowercase", "tokenize_chinese_chars": "handle_chinese_chars"}
    name = theirs.get(key, key)
    normalizer = {"type": "BertNormalizer", name: value}
    with pytest.raises(UserError, match=rf"tokenizer\.json: {name} is .*true, false or null"):
        read_wordpiece(write_json(tmp_path / "hf", normalizer=normalizer))


def test_a_setting_that_is_null_is_as_if_absent(tmp_path):
    write_vocab(tmp_path / "vocab.txt")
    names = ("do_lower_case", "strip_accents", "tokenize_chinese_chars")
    for lowercase in (True, False):
        plain = read_wordpiece(tmp_path / "vocab.txt", lowercase)
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(dict.fromkeys(names)))
        assert read_wordpiece(tmp_path, lowercase).fingerprint == plain.fingerprint


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"model": {"vocab": {**ID, "b": "7"}}}, "id of the piece 'b' is '7'"),
        ({"model": {"vocab": {**ID, "b": 1.0}}}, "id of the piece 'b' is 1.0"),
        ({"model": {"vocab": {**ID, "b": None}}}, "id of the piece 'b' is None"),
        ({"model": {"vocab": {**ID, "b": True}}}, "id of the piece 'b' is True"),
        ({"model": {"vocab": {**ID, "b": -1}}}, "id of the piece 'b' is -1"),
        ({"model": {"vocab": {**ID, "b": 10**400}}}, "id of the piece 'b' is 1000.*\\.\\.\\.; it"),
        ({"model": {"vocab": {**ID, "b": float("inf")}}}, "id of the piece 'b' is inf"),
        ({"model": {"vocab": {**ID, "b": [3]}}}, r"id of the piece 'b' is \[3\]"),
        ({"model": {"vocab": {**ID, "b": 3}}}, "have the same id 3"),
        ({"model": {"vocab": {**ID, "\ud800": len(ID)}}}, "has a lone surrogate"),
        ({"added_tokens": ["[SEP]"]}, r"found '\[SEP\]' in added_tokens"),
        ({"added_tokens": [{"id": 3}]}, r"found \{'id': 3\} in added_tokens"),
        ({"added_tokens": [{"content": "[SEP]"}]}, "in added_tokens, which must be a list"),
        ({"added_tokens": [{"content": "[SEP]", "id": "3"}]}, "in added_tokens, which"),
        ({"added_tokens": [{"content": ["a"], "id": 3}]}, "in added_tokens, which"),
        ({"added_tokens": {"[SEP]": 3}}, "in added_tokens, which"),
        ({"added_tokens": "[SEP]"}, "in added_tokens, which"),
        ({"added_tokens": [None]}, "found None in added_tokens"),
    ],
)
def test_pieces_and_added_tokens_of_another_form(tmp_path, changes, message):
    with pytest.raises(UserError, match=r"tokenizer\.json: .*" + message):
        read_wordpiece(write_json(tmp_path / "hf", **changes))
