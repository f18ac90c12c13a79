"""bigjax.projects.seqgan.headline_data: rows, click statistics, history, hot words, and batches."""

import dataclasses
import json
import math

import ml_collections
import numpy as np
import pytest

from bigjax.data.tokenizers.bytes import Bytes
from bigjax.data.tokenizers.wordpiece import SPECIALS, WordPiece
from bigjax.errors import UserError
from bigjax.projects.seqgan.headline_data import HeadlineBatches, load_headlines
from bigjax.projects.seqgan.headline_examples import (
    HeadlineOptions,
    encode_articles,
    encode_headlines,
)
from bigjax.projects.seqgan.headline_rows import ClickRates, History
from tests.unit.test_data_examples import write

PAD, UNK, CLS, SEP, MASK = range(5)
LETTERS = "abcdefghijklmnopqrstuvwxyz"
TOKENIZER = WordPiece([*SPECIALS, *LETTERS, *(f"##{x}" for x in LETTERS), *"体验巅峰"])
ID = {piece: i for i, piece in enumerate(TOKENIZER._vocab)}
NAMES = ("headline", "article", "clicks", "impressions", "published", "tags")
OPTIONS = HeadlineOptions(
    article_len=12, headline_len=4, click_buckets=2, hot_words=0, hot_per_example=3
)


def section(columns=None, **changes):
    c = ml_collections.ConfigDict(
        {
            "train": "",
            "valid": "",
            "test": "",
            "truncate": False,
            "valid_fraction": 0.0,
            "test_fraction": 0.0,
            "cache_dir": "unused",
            "columns": {name: name for name in NAMES},
            "tokenizer": {"kind": "wordpiece", "path": "", "vocab_size": 60, "lowercase": True},
        }
    )
    c.columns.update(columns or {})
    c.update(changes)
    return c


def line(i=0, **changes):
    return {
        "headline": f"h{i}",
        "article": f"a{i}",
        "clicks": i,
        "impressions": 100,
        "published": i,
        "tags": [],
        **changes,
    }


def file(path, *lines):
    return write(path, "\n".join(map(json.dumps, lines)))


def row(headline="x", article="a", clicks=None, impressions=None, time=0.0, tags=(), **more):
    return {
        "headline": headline,
        "article": article,
        "clicks": clicks,
        "where": "f:1",
        "impressions": impressions,
        "time": time,
        "tags": list(tags),
        "published": None,
        **more,
    }


def encode(rows, hot=(), truncate=False, train=(), **options):
    options = dataclasses.replace(OPTIONS, **options)
    rates = ClickRates(rows, options.click_buckets, options.click_smoothing)
    return encode_headlines(rows, options, TOKENIZER, History(train), rates, hot, truncate)


def text(ids):
    return " ".join(TOKENIZER._vocab[i] for i in ids)


def source(examples, i=0):
    return text(examples.source[examples.offsets[i] : examples.offsets[i + 1]])


# Examples and batches.


def test_examples_by_hand():
    train = [row("b c", time=1), row("d", time=2)]
    examples = encode([row("ab", "x y", 3, 10, time=5), row("e", "", time=1.5)], ["y"], train=train)
    assert source(examples) == "x y [SEP] d [SEP] b c [SEP]"
    assert source(examples, 1) == "[SEP] b c [SEP]" and examples.history.tolist() == [3, 1]
    assert [text(one) for one in examples.tokens] == ["a ##b [SEP] [PAD]", "e [SEP] [PAD] [PAD]"]
    assert examples.n_tokens.tolist() == [3, 2] and examples.clicks.tolist() == [1, 0]
    assert examples.click_weight.tolist() == [1, 0] and text(examples.hot[0]) == "y [PAD] [PAD]"
    assert examples.truncated == []


def test_what_is_too_long_is_refused_or_cut():
    train = [row("b c d e f", time=1), row("g h", time=2), row("i", time=0)]
    rows = [row("a b c d", " ".join(LETTERS), time=5), row("a b c", "a b", time=5)]
    with pytest.raises(
        UserError,
        match="f:1: the article, with the previous headlines, is 30 "
        "tokens long and 12 are allowed.*1 of 2.*article_len",
    ):
        encode(rows, train=train)
    with pytest.raises(UserError, match="f:1: the headline is 5 tokens long and 4 are allowed"):
        encode([row("a b c d")])
    examples = encode(rows, truncate=True, train=train, n_history=3)
    assert source(examples) == "a b c d e f [SEP] g h [SEP] i [SEP]"
    assert source(examples, 1) == "a b [SEP] g h [SEP] b c d [SEP] i [SEP]"  # there is room
    assert text(examples.tokens[0]) == "a b c [SEP]" and examples.n_tokens.tolist() == [4, 4]
    assert [cut.split(" is")[0] for cut in examples.truncated] == [
        "1 of 2 articles",
        "1 of 2 headlines",
    ]


def test_batch_by_hand():
    examples = encode(
        [row("a", "x", 1, 2, time=5), row("b", "y z", time=0), row("c", "w")],
        ["z"],
        train=[row("d", time=1)],
    )
    data = HeadlineBatches(examples, PAD, 12, 2, shuffle=False, name="valid")
    assert data.n_batches == 2 == data.epoch_steps and data.examples_at(1) == ["valid:2"]
    batch = data.batch_at(0)
    assert batch["source"][0].tolist() == [ID["x"], SEP, ID["d"], SEP] + [PAD] * 8
    assert batch["source_types"][0].tolist() == [0, 0, 1, 1] + [0] * 8
    assert batch["source_mask"].tolist() == [[1] * 4 + [0] * 8, [1] * 3 + [0] * 9]
    assert batch["tokens"].tolist() == [[ID["a"], SEP, PAD, PAD], [ID["b"], SEP, PAD, PAD]]
    assert batch["weights"].tolist() == [[1, 1, 0, 0]] * 2
    assert batch["click_weight"].tolist() == [1, 0] and batch["example"].tolist() == [0, 1]
    last = data.batch_at(1)
    assert last["example"].tolist() == [2, -1]
    assert all(
        last[key][1].sum() == 0
        for key in ("weights", "source_mask", "hot_mask", "click_weight", "clicks", "click_rate")
    )
    assert {key: value.dtype for key, value in last.items()} == {
        **dict.fromkeys(("source", "source_types", "tokens", "clicks", "hot", "example"), np.int32),
        **dict.fromkeys(
            ("source_mask", "weights", "click_rate", "click_weight", "hot_mask"), np.float32
        ),
    }
    part = data.batch_at(1, slice(1, 2))
    for key in last:
        np.testing.assert_array_equal(part[key], last[key][1:], err_msg=key)
    with pytest.raises(UserError, match="there is no batch 2"):
        data.batch_at(2)


def test_training_is_endless_and_a_function_of_seed_and_step():
    examples = encode([row(f"{x}", "a") for x in LETTERS[:10]])
    data = HeadlineBatches(examples, PAD, 12, 4, seed=3)
    assert data.epoch_steps == 2.5 and data.n_batches == 2
    seen = [data.batch_at(i)["example"] for i in range(5)]
    assert np.bincount(np.concatenate(seen)).tolist() == [2] * 10
    again = HeadlineBatches(examples, PAD, 12, 4, seed=3)
    np.testing.assert_array_equal(again.batch_at(4)["tokens"], data.batch_at(4)["tokens"])
    other = [HeadlineBatches(examples, PAD, 12, 4, seed=4).batch_at(i)["example"] for i in range(5)]
    assert np.concatenate(seen).tolist() != np.concatenate(other).tolist()
    for n, message in ((11, "10 examples, and a batch has 11"), (0, "batch size is 0")):
        with pytest.raises(UserError, match=message):
            HeadlineBatches(examples, PAD, 12, n)
    with pytest.raises(UserError, match="the train data has no examples"):
        HeadlineBatches(encode([]), PAD, 12, 4)


def test_inference_reads_what_training_does():
    rows = [row("a", "x y", time=5, history=["d"]), row("b", " ".join(LETTERS), history=[])]
    given, cut = encode_articles(
        [{"article": one["article"], "history": one["history"]} for one in rows],
        OPTIONS,
        TOKENIZER,
        ["y"],
    )
    examples = encode(rows, ["y"], truncate=True, train=[row("d", time=1)])
    batch = HeadlineBatches(examples, PAD, 12, 2, shuffle=False).batch_at(0)
    for key in given:
        np.testing.assert_array_equal(given[key], batch[key], err_msg=key)
    assert cut == examples.truncated[:1] and "1 of 2 articles is truncated" in cut[0]
    assert {*batch} - {*given} == {
        "tokens",
        "weights",
        "clicks",
        "click_rate",
        "click_weight",
        "example",
    }
    with pytest.raises(UserError, match="row 0: the article, .* is 27 tokens long"):
        encode_articles([{"article": " ".join(LETTERS)}], OPTIONS, TOKENIZER, truncate=False)


def titles(tmp_path, n=60, **changes):
    words = "lighthouse harbour weather elephant mountain festival".split()
    lines = [
        line(i, headline=f"{words[i % 6]} {words[i // 6 % 6]}", article=f"{words[i % 5]} {i}")
        for i in range(n)
    ]
    return section(train=file(tmp_path / "a.jsonl", *lines), valid_fraction=0.2, **changes)


def test_load(tmp_path):
    lines = []
    data = titles(tmp_path, cache_dir=str(tmp_path / "cache"))
    options = dataclasses.replace(OPTIONS, hot_words=5)
    loaded = load_headlines(data, options, lines.append)
    assert loaded.tokenizer.vocab_size == 60 and len(loaded.rows("valid")) > 2
    train, valid = loaded.split("train", 4), loaded.split("valid", 4)
    assert train.shuffle and not valid.shuffle
    assert train.n_examples + valid.n_examples == 60 and "60 ids" in lines[-1]
    batch = valid.batch_at(0)
    assert loaded.tokenizer.decode(batch["tokens"][0]) == loaded.rows("valid")[0]["headline"]
    own = {row["headline"] for row in loaded.rows("train")}
    assert loaded.history.before(row(time=math.inf), 99) and own >= set(
        loaded.history.before(row(time=math.inf), 99)
    )
    again = load_headlines(data, options, lines.append, loaded.tokenizer)
    assert again.fingerprint == loaded.fingerprint
    for changes in ({"n_history": 1}, {"hot_per_example": 2}, {"article_len": 13}):
        other = load_headlines(data, dataclasses.replace(options, **changes), lines.append)
        assert other.fingerprint != loaded.fingerprint
    with pytest.raises(UserError, match="the test split is empty.*data.test_fraction"):
        loaded.split("test", 4)


def test_boundaries_come_from_training_alone(tmp_path):
    data = titles(tmp_path, test=file(tmp_path / "t.jsonl", line(1, clicks=90)))
    loaded = load_headlines(data, OPTIONS, lambda line: None, TOKENIZER, ["test"])
    data.test = file(tmp_path / "t2.jsonl", line(1, clicks=1))
    other = load_headlines(data, OPTIONS, lambda line: None, TOKENIZER, ["test"])
    assert loaded.click_rates.boundaries.tolist() == other.click_rates.boundaries.tolist()
    assert loaded.split("test", 1).batch_at(0)["clicks"] == 2
    assert other.split("test", 1).batch_at(0)["clicks"] == 1
    with pytest.raises(UserError, match="'train' was not loaded; available: test"):
        loaded.rows("train")


def test_a_loader_refuses_what_it_cannot_do(tmp_path):
    data = titles(tmp_path)
    with pytest.raises(UserError, match="no split 'dev'; allowed: train, valid, test"):
        load_headlines(data, OPTIONS, splits=["dev"])
    with pytest.raises(UserError, match='kind="wordpiece", not "bytes"'):
        load_headlines(data, OPTIONS, tokenizer=Bytes())
    for name, value in (
        ("article_len", 7),
        ("headline_len", 1),
        ("click_smoothing", -1.0),
        ("click_smoothing", math.nan),
    ):
        with pytest.raises(UserError, match=f"{name} is {value}; it has to be at least"):
            HeadlineOptions(**{name: value})


def test_chinese_titles(tmp_path):
    titles = [
        "体验2D巅峰 倚天屠龙记十大创新概览",
        "60年铁树开花形状似玉米芯(组图)",
        "同步A股首秀：港股缩量回调",
        "中青宝sg现场抓拍 兔子舞热辣表演",
    ]
    path = file(tmp_path / "a.jsonl", *[{"headline": title} for title in titles * 3])
    columns = {**dict.fromkeys(NAMES, ""), "headline": "headline"}
    data = section(columns, train=path, cache_dir=str(tmp_path / "cache"))
    data.tokenizer.vocab_size = 73
    options = dataclasses.replace(OPTIONS, article_len=32, headline_len=24, click_buckets=0)
    loaded = load_headlines(data, options, lambda line: None)
    with pytest.raises(UserError, match="no training row has any. Set data.columns.clicks"):
        load_headlines(data, dataclasses.replace(options, click_buckets=2), lambda line: None)
    batch = HeadlineBatches(
        loaded.examples["train"], loaded.tokenizer.pad_id, 32, 4, shuffle=False
    ).batch_at(0)
    decoded = [loaded.tokenizer.decode(ids).replace(" ", "") for ids in batch["tokens"]]
    assert decoded == [title.lower().replace(" ", "") for title in titles]
    assert batch["source_mask"].sum(1).tolist() == [1, 1 + 17, 1 + 17, 1 + 14 + 17]
