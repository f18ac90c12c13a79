"""The share of a text that a tokenizer does not know is printed, with a warning if it is large."""

import json
import re

import numpy as np
import pytest

from bigjax.data import load_labelled, load_text, unknown
from bigjax.data.rows import label_counts
from bigjax.data.tokenizers.bytes import Bytes
from bigjax.data.tokenizers.wordpiece import SPECIALS, WordPiece
from bigjax.projects.seqgan import headline_data as headlines
from bigjax.projects.seqgan import headline_examples
from tests import helpers
from tests.helpers import kind
from tests.unit.test_data_headlines import OPTIONS

ENGLISH = [
    *SPECIALS,
    *"abcdefghijklmnopqrstuvwxyz",
    *(f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz"),
]
TOKENIZER = WordPiece([*ENGLISH, ".", "the", "film"], name="english.txt")
THAI = "\u0e1d\u0e19\u0e15\u0e01\u0e2b\u0e19\u0e31\u0e01"


def warnings_of(lines):
    return [line for line in lines if line.startswith("data: warning: ")]


def section(tmp_path, name="labelled", task="classify", **changes):
    values = {"seq_len": 32, "cache_dir": str(tmp_path / "cache"), **changes}
    return helpers.data_section(name, task, **values)


def headline_section(tmp_path, path):
    return section(
        tmp_path,
        "seqgan.headline_data",
        train=str(path),
        columns={"tags": ""},
        valid_fraction=0.0,
        test_fraction=0.0,
    )


def table(tmp_path, texts):
    path = tmp_path / "train.tsv"
    path.write_text("text\tlabel\n" + "".join(f"{t}\t{i % 2}\n" for i, t in enumerate(texts)))
    return str(path)


@pytest.mark.parametrize("share", [1.0, 0.2, 0.01, 0.0])
def test_labelled_rows(tmp_path, share):
    n = round(100 * share)
    texts = [f"{THAI} {i}".split()[0] for i in range(n)] + ["the film"] * (100 - n)
    data = section(tmp_path, train=table(tmp_path, texts), valid_fraction=0.0, test_fraction=0.0)
    lines = []
    loaded = load_labelled(
        data, kind("classify", ["0", "1"]), tokenizer=TOKENIZER, log=lines.append
    )
    n_tokens = n + 2 * (100 - n)
    assert f"{n / n_tokens:.2%} unknown" in loaded.summary().splitlines()[0]
    warnings = warnings_of(lines)
    assert len(warnings) == (share > 0.03)
    if warnings:
        assert f"{n:,} of the {n_tokens:,} tokens of the train data ({data.train})" in warnings[0]
        assert "english.txt" in warnings[0] and THAI in warnings[0] and "thai" in warnings[0]


def test_every_text_of_a_row_counts(tmp_path):
    rows = {
        "pair": {"text": "the film", "pair": THAI, "label": "0"},
        "answer": {"question": "the film", "context": f"{THAI} film", "answers": ["film"]},
        "tag": {"tokens": ["the", THAI], "tags": ["0", "1"]},
    }
    for name, row in rows.items():
        path = tmp_path / f"{name}.jsonl"
        path.write_text(json.dumps(row) + "\n")
        lines, kind_name = [], "classify" if name == "pair" else name
        fractions = dict(valid_fraction=0.0, test_fraction=0.0)
        data = section(tmp_path, task=kind_name, train=str(path), **fractions)
        if name == "pair":
            data.columns.pair = "pair"
        load_labelled(data, kind(kind_name, ["0", "1"]), tokenizer=TOKENIZER, log=lines.append)
        assert "1 of the " in warnings_of(lines)[0], name


def test_cached_sources_repeat_their_warnings(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(f"the film {THAI}\n\n".encode() * 200 + b"caf\xe9\n")
    mine = {"kind": "text", "path": str(path)}
    data = section(tmp_path, "text", sources={"mine": mine}, valid_fraction=0.0, test_fraction=0.0)
    source_warnings = []
    for _ in range(2):
        lines = []
        corpus = load_text(data, lines.append, TOKENIZER)
        assert "MB; 33.17% unknown" in lines[0].splitlines()[0]
        assert "1 byte sequences were not UTF-8" in lines[0] and "% of its bytes" in lines[0]
        source_warnings.append([line for line in warnings_of(lines) if "source 'mine'" in line])
    assert source_warnings[0] == source_warnings[1] and len(source_warnings[0]) == 1
    assert THAI in source_warnings[0][0]
    assert corpus.stores["mine"].stats["unknown"] == 200
    lines = []
    load_text(data, lines.append, Bytes())
    assert "unknown" not in "".join(lines)


def test_headlines_and_articles(tmp_path):
    path = tmp_path / "a.jsonl"
    rows = [{"headline": "the film", "article": f"{THAI} film"}] * 9
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = headline_section(tmp_path, path)
    options = headline_examples.HeadlineOptions(
        article_len=OPTIONS.article_len, headline_len=6, n_history=0, click_buckets=0, hot_words=0
    )
    lines = []
    headlines.load_headlines(data, options, lines.append, TOKENIZER)
    assert "25.00% unknown" in lines[0]
    assert "9 of the 36 tokens of the train data" in warnings_of(lines)[0]
    _, messages = headline_examples.encode_articles(rows, options, TOKENIZER)
    assert "9 of the 18 tokens of the articles" in warnings_of(messages)[0]


@pytest.mark.parametrize(
    "lowercase, text, reason",
    [
        (False, "The Film", "no capitals: set data.tokenizer.lowercase=True"),
        (True, THAI, "has none with .*thai"),
        (True, "a" * 101, "more than 100 characters are unknown whatever the vocabulary"),
        (True, "\u4e2d\u6587", "has none with .*cjk"),
    ],
)
def test_the_likely_reason(lowercase, text, reason):
    tokenizer = WordPiece(ENGLISH, lowercase)
    n_unknown, n_tokens = unknown.count(tokenizer, tokenizer.encode(text))
    assert n_unknown
    (line,) = unknown.warning(tokenizer, n_unknown, n_tokens, "x", [text])
    assert re.search(reason, line), line


def test_special_tokens_do_not_count():
    ids = TOKENIZER.encode(f"the {THAI}").tolist()
    padded = [TOKENIZER.bos_id, *ids, TOKENIZER.eos_id, TOKENIZER.pad_id]
    assert unknown.count(TOKENIZER, np.array(padded)) == (1, 2)
    assert unknown.share(Bytes(), 0, 2) == "" and Bytes().unk_id is None


# --- Missing values that were written as text --------------------------------------------------


def missing_lines(data, name="classify"):
    """The warnings about missing values; the labels."""
    lines, labels = [], list(label_counts(data, kind(name)))
    load_labelled(data, kind(name, labels), tokenizer=TOKENIZER, log=lines.append)
    return [line for line in lines if "missing" in line], labels


@pytest.mark.parametrize(
    "label",
    ["NaN", "nan", "NA", "N/A", "n/a", "<NA>", "null", "NULL", "None", "#N/A", "NaT", "\\N"],
)
@pytest.mark.parametrize("name", ["a.tsv", "a.csv", "a.jsonl", "a.parquet"])
def test_labels_that_may_be_missing_are_classes_with_a_warning(tmp_path, name, label):
    labels = ["good", label, "bad", f" {label} "]
    rows = [{"text": f"the film {i}", "label": label} for i, label in enumerate(labels)]
    if name == "a.parquet":
        import pyarrow as pa
        from pyarrow import parquet

        parquet.write_table(pa.Table.from_pylist(rows), str(tmp_path / name))
    elif name == "a.jsonl":
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        mark = "," if name == "a.csv" else "\t"
        lines = [mark.join(row.values()) for row in ({"text": "text", "label": "label"}, *rows)]
        (tmp_path / name).write_text("\n".join(lines) + "\n")
    data = section(tmp_path, train=str(tmp_path / name), valid_fraction=0.0, test_fraction=0.0)
    lines, labels = missing_lines(data)
    where = f"{tmp_path / name}:{2 if name in ('a.jsonl', 'a.parquet') else 3}"
    assert labels == sorted({"good", "bad", label})
    assert (
        len(lines) == 1 and f": 2 rows with the label {label!r} (the first at {where})" in lines[0]
    )
    assert "fill them in or remove the rows" in lines[0]


def test_one_line_for_all_that_may_be_missing(tmp_path):
    path = tmp_path / "a.tsv"
    path.write_text("text\tlabel\nnan\tNone\nthe film\tNone\na film, NA\tnone\nNULL\tNA\nx\tnano\n")
    data = section(tmp_path, train=str(path), valid_fraction=0.0, test_fraction=0.0)
    ((line,), _) = missing_lines(data)
    assert ": 2 rows with the label 'None', 1 row with the text 'nan', 1 row with the label" in line
    assert "'NA', 1 row with the text 'NULL' (the first at" in line and "none" not in line
    path.write_text("text\tlabel\nthe film, None\tgood\nnull and void\tnone\nx\tnull-like\n")
    assert missing_lines(data)[0] == []


def test_tags_and_headlines_that_may_be_missing(tmp_path):
    path = tmp_path / "a.conll"
    path.write_text("NA B\nthe null\nfilm null\n\nthe null\nNone B\n")
    data = section(tmp_path, task="tag", train=str(path), valid_fraction=0.0, test_fraction=0.0)
    ((line,), labels) = missing_lines(data, "tag")
    assert "warning: 2 rows with the tag 'null' (the first at" in line and "NA" not in line
    assert labels == ["B", "null"]
    path = tmp_path / "a.jsonl"
    rows = [{"headline": "the film", "article": article} for article in ("nan", "a film", "nan")]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = headline_section(tmp_path, path)
    options = headline_examples.HeadlineOptions(
        article_len=OPTIONS.article_len, headline_len=6, n_history=0, click_buckets=0, hot_words=0
    )
    lines = []
    headlines.load_headlines(data, options, lines.append, TOKENIZER)
    (line,) = [line for line in lines if "missing" in line]
    assert "with the article 'nan' (the first at" in line
