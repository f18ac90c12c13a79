"""bigjax.data.examples: tokens, types, labels and windows of labelled rows."""

import ml_collections
import numpy as np
import pytest

from bigjax.data.kinds import encode_rows
from bigjax.data.tokenizers.bytes import Bytes
from bigjax.data.tokenizers.wordpiece import SPECIALS, WordPiece
from bigjax.errors import UserError
from tests.helpers import kind

PAD, UNK, CLS, SEP, MASK = range(5)
LETTERS = "abcdefghijklmnopqrstuvwxyz"
TOKENIZER = WordPiece([*SPECIALS, *LETTERS, *(f"##{x}" for x in LETTERS), "?", "."])
ID = {piece: i for i, piece in enumerate(TOKENIZER._vocab)}


def section(**changes):
    """The keys of the config section `data` that labelled data use."""
    columns = ("text", "label", "question", "context", "answers", "tokens", "tags")
    c = ml_collections.ConfigDict(
        {
            "train": "",
            "valid": "",
            "test": "",
            "seq_len": 32,
            "packing": True,
            "truncate": False,
            "doc_stride": 128,
            "valid_fraction": 0.0,
            "test_fraction": 0.0,
            "cache_dir": "unused",
            "columns": {"pair": "", **{name: name for name in columns}},
            "tokenizer": {"kind": "wordpiece", "path": "", "vocab_size": 60, "lowercase": True},
        }
    )
    for key, value in changes.items():
        c[key] = value
    return c


def write(path, content):
    path.write_text(content, encoding="utf-8")
    return str(path)


def table(path, lines, header="text\tlabel"):
    return write(path, "\n".join([header, *lines, ""]))


def encode(rows, name="classify", labels=("0", "1"), with_labels=True, tokenizer=TOKENIZER, **keys):
    rows = [{"where": f"f.tsv:{i}", **row} for i, row in enumerate(rows, 1)]
    return encode_rows(
        rows, section(**keys), kind(name, labels), tokenizer, with_labels=with_labels
    )


def tokens_of(examples, i=0):
    ids = examples.tokens[examples.offsets[i] : examples.offsets[i + 1]]
    return " ".join(TOKENIZER._vocab[j] for j in ids)


def test_encoding_of_texts_and_pairs():
    examples = encode(
        [
            {"text": "AB", "label": "1"},
            {"text": "a", "pair": "b?", "label": "0"},
            {"text": "\u200d", "label": "0"},
        ]
    )
    assert [tokens_of(examples, i) for i in range(3)] == [
        "[CLS] a ##b [SEP]",
        "[CLS] a [SEP] b ? [SEP]",
        "[CLS] [SEP]",
    ]
    assert (
        examples.example_arrays["label"].tolist() == [1, 0, 0]
        and examples.example_arrays["label"].dtype == np.int32
    )
    assert examples.second.tolist() == [4, 3, 2] and examples.lengths.tolist() == [4, 6, 2]
    assert examples.tokens.dtype == np.int32 and examples.row.tolist() == [0, 1, 2]
    bare = encode([{"text": "AB"}], with_labels=False)
    assert not bare.targets and tokens_of(bare) == "[CLS] a ##b [SEP]" and len(bare) == 1
    assert len(encode([])) == 0


def test_any_tokenizer_will_do():
    examples = encode([{"text": "AB", "label": "1"}], tokenizer=Bytes())
    assert examples.tokens.tolist() == [256, 65, 66, 257]


def truncated(a, b, room):
    """BERT's own loop."""
    while a + b > room:
        if a > b:
            a -= 1
        else:
            b -= 1
    return a, b


def test_truncation_is_berts():
    pairs = [(a, b) for a in range(1, 15) for b in range(1, 15)]
    rows = [{"text": "a " * a, "pair": "b " * b, "label": "0"} for a, b in pairs]
    for seq_len in (8, 13):
        examples = encode(rows, seq_len=seq_len, truncate=True)
        assert examples.lengths.max() == seq_len
        for i, (a, b) in enumerate(pairs):
            a, b = truncated(a, b, seq_len - 3)
            assert tokens_of(examples, i).split() == ["[CLS]", *"a" * a, "[SEP]", *"b" * b, "[SEP]"]
            assert examples.second[i] == a + 2
    alone = encode([{"text": "a b c d e f g h", "label": "0"}], seq_len=8, truncate=True)
    assert tokens_of(alone) == "[CLS] a b c d e f [SEP]"


def test_truncated_texts_are_counted():
    def truncated(rows, name="classify", **keys):
        return encode(
            rows, name, (), with_labels=False, seq_len=16, truncate=True, **keys
        ).truncated

    assert truncated([{"text": "a " * n} for n in (13, 14, 15, 99)]) == (
        "2 of 4 texts are truncated to 16 tokens (data.truncate, data.seq_len)"
    )
    assert truncated([{"tokens": ["a"] * n} for n in (14, 15)], "tag") == (
        "1 of 2 texts is truncated to 16 tokens (data.truncate, data.seq_len)"
    )
    questions = [question("a " * 99, text="q " * n) for n in (5, 6)]
    assert truncated(questions, "answer", doc_stride=2) == (
        "1 of 2 questions is truncated to 8 tokens (data.truncate, data.seq_len)"
    )
    assert truncated([{"text": "a"}]) == ""
    assert truncated([{"text": "a " * 99}]).startswith("1 of 1 text is truncated to 16 tokens")
    with pytest.raises(UserError, match="included; 1 of 1 is too long"):
        encode([{"text": "a " * 99}], seq_len=16)


def test_long_text_is_refused_with_its_line():
    rows = [
        {"text": "a", "label": "0"},
        {"text": "a " * 31, "label": "0"},
        {"text": "a " * 20, "pair": "b " * 15, "label": "0"},
    ]
    with pytest.raises(
        UserError,
        match=r"f\.tsv:2: the text is 33 tokens long and 32 are allowed"
        r".*2 of 3 .*data.truncate=True.*the longest has 38",
    ):
        encode(rows)
    assert encode([{"text": "a " * 30, "label": "0"}]).lengths.tolist() == [32]
    with pytest.raises(UserError, match="data.seq_len is 7; .* at least 8"):
        encode(rows, seq_len=7)


def test_labels_that_are_unknown_or_no_numbers():
    with pytest.raises(
        UserError,
        match=r"f\.tsv:2: the label '2' is not one of the 2 known ones: "
        "'0', '1'",
    ):
        encode([{"text": "a", "label": "0"}, {"text": "a", "label": "2"}])
    numbers = encode([{"text": "a", "label": "-1.5"}, {"text": "a", "label": "3"}], "regress", ())
    assert (
        numbers.example_arrays["label"].tolist() == [-1.5, 3.0]
        and numbers.example_arrays["label"].dtype == np.float32
    )
    for bad in ("x", "nan", "inf", "1e300", "1,5"):
        with pytest.raises(UserError, match=rf"f\.tsv:1: the label '{bad}' is not a number"):
            encode([{"text": "a", "label": bad}], "regress", ())


def test_tags_are_at_first_pieces():
    rows = [
        {"tokens": ["ab", "\u200d", "c"], "tags": ["X", "O", "X"]},
        {"tokens": ["a"], "tags": ["O"]},
    ]
    examples = encode(rows, "tag", ("O", "X"))
    assert tokens_of(examples) == "[CLS] a ##b [UNK] c [SEP]"
    assert examples.token_arrays["token_labels"].tolist() == [-1, 1, -1, 0, 1, -1, -1, 0, -1]
    assert examples.words_of(0).tolist() == [1, 3, 4] and examples.words_of(1).tolist() == [1]
    bare = encode([{"tokens": ["ab", "c"]}], "tag", (), with_labels=False)
    assert not bare.targets and bare.words_of(0).tolist() == [1, 3]
    with pytest.raises(UserError, match=r"f\.tsv:2: the label 'O' is not .*: 'X'"):
        encode([{"tokens": ["a", "b"], "tags": ["X", "X"]}, rows[1]], "tag", ("X",))


def test_tags_of_a_sentence_that_is_cut():
    rows = [{"tokens": ["abcd", "e", "fgh"], "tags": ["O", "X", "O"]}]
    with pytest.raises(UserError, match=r"f\.tsv:1: the text is 10 tokens long"):
        encode(rows, "tag", ("O", "X"), seq_len=8)
    examples = encode(rows, "tag", ("O", "X"), seq_len=8, truncate=True)
    assert tokens_of(examples) == "[CLS] a ##b ##c ##d e f [SEP]"
    assert examples.words_of(0).tolist() == [1, 5, 6]
    assert examples.token_arrays["token_labels"].tolist() == [-1, 0, -1, -1, -1, 1, 0, -1]
    shorter = encode(
        [{"tokens": ["abcdef", "g"], "tags": ["O", "X"]}],
        "tag",
        ("O", "X"),
        seq_len=8,
        truncate=True,
    )
    assert shorter.words_of(0).tolist() == [1] and shorter.token_arrays["token_labels"].max() == 0


def question(context, answers=(), text="Q?"):
    return {"question": text, "context": context, "answers": list(answers)}


def answer_text(examples, rows, i):
    """What the labels of example i say, as `predict` would read it from the spans."""
    spans = examples.spans_of(i)
    first, last = examples.column_arrays["start"][i], examples.column_arrays["end"][i]
    assert (spans[first : last + 1] >= 0).all()
    return rows[examples.row[i]]["context"][spans[first, 0] : spans[last, 1]]


def test_answers():
    rows = [
        question("A BC, éd e.", [(" éd ", 5), ("A", 0)]),
        question("a b"),
        question("aa a b", [("a", 3)]),
        question("aa a b", [("a b", -1)]),
    ]
    examples = encode(rows, "answer", ())
    assert tokens_of(examples) == "[CLS] q ? [SEP] a b ##c [UNK] e ##d e . [SEP]"
    assert examples.second.tolist() == [4] * 4 and examples.row.tolist() == [0, 1, 2, 3]
    assert (examples.column_arrays["start"][0], examples.column_arrays["end"][0]) == (8, 9)
    assert answer_text(examples, rows, 0) == "éd"
    assert (examples.column_arrays["start"][1], examples.column_arrays["end"][1]) == (0, 0)
    assert (examples.column_arrays["start"][2], answer_text(examples, rows, 2)) == (
        6,
        "a",
    )  # the nearest
    assert answer_text(examples, rows, 3) == "a b"
    touching = [question("a?b", [("a", 0)]), question("a?b", [("b", 2)])]
    beside = encode(touching, "answer", ())
    assert [answer_text(beside, touching, i) for i in range(2)] == ["a", "b"]
    spans = examples.spans_of(0)
    assert spans[:4].tolist() == [[-1, -1]] * 4 == [spans[-1].tolist()] + [[-1, -1]] * 3
    assert spans[4:6].tolist() == [[0, 1], [2, 3]] and spans.shape == (13, 2)
    bare = encode([question("a b")], "answer", (), with_labels=False)
    assert not bare.targets and bare.spans_of(0)[4].tolist() == [0, 1]


@pytest.mark.parametrize(
    "n, stride", [(5, 128), (27, 128), (28, 128), (100, 128), (101, 3), (40, 1), (64, 13)]
)
def test_windows_cover_the_context(n, stride):
    room = 32 - 2 - 3
    letters = [LETTERS[i % 26] for i in range(n)]
    where = min(n - 1, 30)
    rows = [question(" ".join(letters), [(letters[where], 2 * where)])]
    examples = encode(rows, "answer", (), doc_stride=stride)
    step = min(stride, room // 2)
    covered, has_answer = set(), []
    for i in range(len(examples)):
        spans = examples.spans_of(i)
        inside = (spans[spans[:, 0] >= 0, 0] // 2).tolist()
        assert inside == list(range(i * step, min(n, i * step + room)))
        covered |= set(inside)
        has_answer.append(where in inside)
        if where in inside:
            assert answer_text(examples, rows, i) == letters[where]
        else:
            assert examples.column_arrays["start"][i] == examples.column_arrays["end"][i] == 0
    assert covered == set(range(n)) and any(has_answer)
    if len(examples) > 1:
        assert n > room and (len(examples) - 2) * step + room < n  # and no more than it takes


def test_answer_across_the_end_of_a_window_is_none_there():
    rows = [question("a " * 26 + "b c " + "d " * 20, [("b c", 52)])]
    examples = encode(rows, "answer", ())
    assert examples.column_arrays["start"][0] == 0 and examples.column_arrays["start"][1] > 0
    assert answer_text(examples, rows, 1) == "b c"


def test_answers_that_cannot_be():
    with pytest.raises(UserError, match=r"f\.tsv:2: the answer 'x' is not in its context"):
        encode([question("a b"), question("a b", [("x", 0)])], "answer", ())
    with pytest.raises(UserError, match=r"the question.* half of .* is 33 tokens long and 16 are"):
        encode([question("a", text="q " * 30)], "answer", ())
    cut = encode([question("a", text="q " * 30)], "answer", (), truncate=True)
    assert tokens_of(cut) == "[CLS] " + "q " * 13 + "[SEP] a [SEP]"
    with pytest.raises(UserError, match='tokenizer.kind="wordpiece", not "bytes"'):
        encode([question("a")], "answer", (), tokenizer=Bytes())
