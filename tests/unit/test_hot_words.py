"""Which words are hot, their file, and their ids beside an article."""

import dataclasses
import math

import numpy as np
import pytest

from bigjax.errors import UserError
from bigjax.projects.seqgan import hot_words as W
from bigjax.projects.seqgan.headline_rows import ClickRates
from tests.unit.test_data_examples import write
from tests.unit.test_data_headlines import ID, LETTERS, OPTIONS, PAD, TOKENIZER, row, text


def test_words():
    assert W.words_of(["Don't stop_it, Café!", "A体验2D巅 中", ""]) == [
        ["don", "t", "stop", "it", "cafe"],
        ["a", "体验", "2d", "巅", "中"],
        [],
    ]
    assert W.words_of(["体验巅峰 Café"], lowercase=False) == [["体验", "验巅", "巅峰", "Café"]]


def test_log_odds_by_hand():
    recent, rest = {"a": 30, "b": 70}, {"a": 10, "b": 90}
    prior = 1000 * 40 / 200
    a, b = 30 + prior, 10 + prior
    z = (math.log(a / (1100 - a)) - math.log(b / (1100 - b))) / math.sqrt(1 / a + 1 / b)
    scores = W.log_odds(recent, rest)
    assert scores["a"] == pytest.approx(z) and scores["b"] < 0 < z
    assert W.log_odds({"a": 1}, {"b": 1})["a"] < W.log_odds({"a": 9}, {"b": 9})["a"]


def hot_of(rows, size=9, **options):
    rates = ClickRates(rows, 2, 0)(rows)[1]
    options = dataclasses.replace(OPTIONS, hot_words=size, **options)
    return W.hot_words_of(rows, rates, options, True)


def test_hot_words_are_recent():
    old = [row("the cat sat rain", f"old {i}", time=i) for i in range(15)]
    new = [row("the dog ran 7 2024", f"new dog {i}", time=50 + i) for i in range(5)]
    for one in new[:3]:
        one["headline"] += " rain"  # less often than before
    assert [*hot_of(old + new)] == [*hot_of(new + old)] == ["dog", "new", "ran"]
    assert [*hot_of(old + new, 1)] == ["dog"] and hot_of(old + new, 0) == hot_of([]) == {}
    same = [{**one, "article": "one"} for one in new]  # of one article: that is one text
    assert hot_of(old + same) == {}


def test_hot_words_are_clicked():
    rows = [
        row(
            ["dull news", "cat"][i % 4 == 0],
            f"{LETTERS[i]} say",
            clicks=1 + 9 * (i % 4 == 0),
            impressions=10,
            time=i,
        )
        for i in range(20)
    ]
    assert [*hot_of(rows)] == ["cat"]  # nothing was published: the clicks say what is hot
    dated = [{**one, "published": one["time"]} for one in rows]
    for one in dated[-5:]:
        one["headline"] = "late cat" if one["clicks"] > 1 else "late dog"
    hot = hot_of(dated)
    assert hot.keys() >= {"late", "dog"} and "dull" not in hot
    likes_dogs = hot_of(
        [{**one, "clicks": 9.0 if "dog" in one["headline"] else 0.1} for one in dated]
    )
    assert likes_dogs["dog"] > hot["dog"]


def test_hot_word_file(tmp_path):
    path = write(tmp_path / "hot.txt", "\ufeffwarm\nhot dog\t7.5\r\n\n体验\t2\ncool\n")
    hot = W.read_hot_words(path)
    assert list(hot.items()) == [("hot dog", 7.5), ("体验", 2.0), ("warm", 1.0), ("cool", 1.0)]
    W.write_hot_words(tmp_path / "again.txt", hot)
    assert list(W.read_hot_words(tmp_path / "again.txt").items()) == list(hot.items())
    assert [*hot_of([row()], 2, hot_words_file=path)] == ["hot dog", "体验"]


@pytest.mark.parametrize(
    "content, message",
    [
        ("a\tb\n", r":1: found 'a\\tb'; a line has to be a word, or a word, a tab and its weight"),
        ("a\nb\t-1\n", ":2: found"),
        ("a\t1\t2\n", ":1: found"),
        ("\t1\n", ":1: found"),
        ("a\nb\na\t2\n", ":3: 'a' is there for the second time"),
        ("\n\n", "holds no words"),
        ("a\tnan\n", ":1: found"),
        ("a\nab, 1\n", ":2: found 'ab, 1', which looks like a word and its weight with ', '"),
        ("ab,1", ":1: found 'ab,1'.*with ','"),
        ("ab 1\ncd 2\n", ":1: found 'ab 1'.*with ' ' between. Write a tab"),
        ("hot dog\t2\nhot dogs  7.5\n", ":2: found 'hot dogs  7.5'"),
        ("ab;0,5", ":1: found"),
        ("ab: 1e-3", ":1: found 'ab: 1e-3'.*with ': '"),
        ("ab=2", ":1: found"),
        ("ab | 2", ":1: found"),
        ("ab\u00a01", ":1: found"),
        ("\u4f53\u9a8c\u3000-2", ":1: found"),
    ],
)
def test_bad_hot_word_files(tmp_path, content, message):
    with pytest.raises(UserError, match=r"hot\.txt.*" + message):
        W.read_hot_words(write(tmp_path / "hot.txt", content))


def test_numbers_that_belong_to_a_word(tmp_path):
    lines = "windows 11\t1\n3:1\t2\ncovid-19\n2024\nmp3\na, b\ng 7 summit\n4th of July\n"
    hot = W.read_hot_words(write(tmp_path / "hot.txt", lines))
    assert hot.pop("3:1") == 2 and set(hot.values()) == {1.0}
    assert [*hot] == [
        "windows 11",
        "covid-19",
        "2024",
        "mp3",
        "a, b",
        "g 7 summit",
        "4th of July",
    ]


def test_hot_ids_of_an_article_come_first():
    hot = ["a", "bc", "体验", "!?", "d e"]
    ids, mask = W.hot_ids(hot, ["x BC y", "", "巅体验", "d e a", "bcd"], TOKENIZER, 4)
    assert [text(one) for one in ids] == [
        "b ##c a 体",
        "a b ##c 体",
        "体 验 a b",
        "a d e b",
        "a b ##c 体",
    ]
    assert mask.sum() == 20 and ids.dtype == np.int32 and mask.dtype == np.float32
    ids, mask = W.hot_ids(["a", "!"], ["a"], TOKENIZER, 3)
    assert ids.tolist() == [[ID["a"], PAD, PAD]] and mask.tolist() == [[1, 0, 0]]
    assert W.hot_ids([], ["a", "b"], TOKENIZER, 2)[1].sum() == 0
