"""bigjax.data.labelled.load_labelled: splits, fingerprints and errors."""

import json

import pytest

from bigjax.data.labelled import load_labelled
from bigjax.data.rows import label_counts
from bigjax.data.tokenizers.bytes import Bytes
from bigjax.errors import UserError
from tests.helpers import kind
from tests.unit.test_data_examples import (
    LETTERS,
    TOKENIZER,
    answer_text,
    section,
    table,
    write,
)

SENTIMENT = kind("classify", ["bad", "good"])


def sentiment(tmp_path, **changes):
    lines = [f"{word} film number {i}\t{word}" for i in range(60) for word in ("good", "bad")]
    return section(
        train=table(tmp_path / "train.tsv", lines),
        cache_dir=str(tmp_path / "cache"),
        valid_fraction=0.1,
        test_fraction=0.1,
        **changes,
    )


def test_load_labelled(tmp_path):
    data, lines = sentiment(tmp_path), []
    labels = list(label_counts(data, kind("classify")))
    loaded = load_labelled(data, kind("classify", labels), log=lines.append)
    assert labels == list(loaded.kind.labels) == ["bad", "good"]
    assert loaded.tokenizer.kind == "wordpiece" and loaded.tokenizer.vocab_size == 60
    train, valid = loaded.split("train", 4, seed=1), loaded.split("valid", 4)
    assert train.shuffle and not valid.shuffle
    assert not loaded.split("train", 4, shuffle=False).shuffle
    held = [
        i
        for step in range(valid.n_batches)
        for i in valid.batch_at(step)["example"].ravel()
        if i >= 0
    ]
    assert sorted(held) == list(range(len(loaded.rows("valid"))))
    batch = valid.batch_at(0)
    row = loaded.rows("valid")[valid.examples.row[batch["example"][0, 0]]]
    assert labels[batch["label"][0, 0]] == row["label"] and "film" in row["text"]
    assert loaded.summary() in lines and "train" in loaded.summary() and "bad" in loaded.summary()
    assert sum("training a WordPiece vocabulary" in line for line in lines) == 1
    again = load_labelled(data, kind("classify", labels), log=lines.append)
    assert again.fingerprint == loaded.fingerprint
    assert sum("training a WordPiece vocabulary" in line for line in lines) == 1
    with pytest.raises(UserError, match="'dev' was not loaded; available: train, valid, test"):
        loaded.split("dev", 4)


def test_fingerprint_sees_content_tokenizer_labels_and_settings(tmp_path):
    def fingerprint(labels=("bad", "good"), tokenizer=TOKENIZER, **changes):
        data = sentiment(tmp_path, **changes)
        return load_labelled(
            data, kind("classify", labels), tokenizer=tokenizer, log=str
        ).fingerprint

    first = fingerprint()
    assert fingerprint() == first == fingerprint(packing=False)
    others = {
        fingerprint(("good", "bad")),
        fingerprint(tokenizer=Bytes()),
        fingerprint(seq_len=40),
        fingerprint(test=table(tmp_path / "x.tsv", ["a\tbad"])),
    }
    assert len(others) == 4 and first not in others


def test_only_the_splits_that_are_named(tmp_path):
    mine = table(tmp_path / "x.tsv", ["a\tbad", "b\tgood"])

    def load(tokenizer=TOKENIZER, names=("test",), **changes):
        return load_labelled(
            sentiment(tmp_path, **changes),
            SENTIMENT,
            tokenizer=tokenizer,
            log=str,
            names=names,
        )

    every, alone = load(names=("train", "valid", "test"), test=mine), load(test=mine)
    assert alone.rows("test") == every.rows("test") and len(alone.rows("test")) == 2
    assert load(names=("valid", "train")).rows("valid") == load(names=["valid"]).rows("valid")
    with pytest.raises(UserError, match="'train' was not loaded; available: test"):
        alone.split("train", 4)
    with pytest.raises(UserError, match="no split 'dev'.*train, valid, test"):
        load(names=("dev",))
    trained = load(tokenizer=None, test=mine)  # on the training rows, which it does not keep
    assert trained.tokenizer.vocab_size == 60 and "train" not in trained.summary()
    fingerprint = alone.fingerprint
    assert load(names=("test", "test"), test=mine).fingerprint == fingerprint
    assert fingerprint != every.fingerprint
    assert fingerprint != load(names=("test", "valid"), test=mine).fingerprint
    write(tmp_path / "train.tsv", "")
    data = section(train=str(tmp_path / "train.tsv"), test=mine)
    again = load_labelled(data, SENTIMENT, tokenizer=TOKENIZER, log=str, names=("test",))
    assert again.fingerprint == fingerprint


def test_load_labelled_errors(tmp_path):
    data = sentiment(tmp_path, valid=table(tmp_path / "v.tsv", ["fine\tgood", "so so\tmiddling"]))
    with pytest.raises(UserError, match=r"v\.tsv:3: the label 'middling' .*'bad', 'good'"):
        load_labelled(data, SENTIMENT, tokenizer=TOKENIZER, log=str)
    with pytest.raises(UserError, match=r"train\.tsv:\d+: the label 'good' is not a number"):
        load_labelled(data, kind("regress", []), tokenizer=TOKENIZER, log=str)
    data = sentiment(tmp_path, seq_len=8)
    with pytest.raises(UserError, match=r"train\.tsv:\d+: the text is .*data.truncate=True"):
        load_labelled(data, SENTIMENT, tokenizer=TOKENIZER, log=str)
    data.truncate, lines = True, []
    cut = load_labelled(data, SENTIMENT, tokenizer=TOKENIZER, log=lines.append)
    assert cut.split("train", 4).examples.lengths.max() == 8
    n = len(cut.rows("train"))
    assert (
        f"data: train: {n} of {n} texts are truncated to 8 tokens (data.truncate, data.seq_len)"
        in lines
    )
    assert sum("are truncated to" in line for line in lines) == 3
    data.seq_len = 32
    load_labelled(data, SENTIMENT, tokenizer=TOKENIZER, log=lines.append)
    assert sum("are truncated to" in line for line in lines) == 3
    data = section(train=table(tmp_path / "few.tsv", ["a\t0", "b\t1"]))
    few = load_labelled(data, kind("classify", ["0", "1"]), tokenizer=TOKENIZER, log=str)
    with pytest.raises(UserError, match="the valid split is empty.*Raise data.valid_fraction"):
        few.split("valid", 1)
    data.test_fraction = 1.0
    none = load_labelled(data, kind("classify", ["0", "1"]), tokenizer=TOKENIZER, log=str)
    with pytest.raises(UserError, match="the train split is empty.*Lower data.valid_fraction"):
        none.split("train", 1)


def test_squad_and_conll_files_end_to_end(tmp_path):
    qas = [
        {"id": str(i), "question": f"{x}?", "answers": [{"text": x, "answer_start": 2 * i}]}
        for i, x in enumerate(LETTERS)
    ]
    content = {"data": [{"paragraphs": [{"context": " ".join(LETTERS), "qas": qas}]}]}
    data = section(train=write(tmp_path / "a.json", json.dumps(content)), seq_len=16, doc_stride=4)
    labelled = load_labelled(data, kind("answer", []), tokenizer=TOKENIZER, log=str)
    examples = labelled.split("train", 4).examples
    answered = {
        labelled.rows("train")[examples.row[i]]["question"][0]: answer_text(
            examples, labelled.rows("train"), i
        )
        for i in range(len(examples))
        if examples.column_arrays["start"][i]
    }
    assert answered == {x: x for x in LETTERS}
    data = section(train=write(tmp_path / "a.conll", "a O\nb X\n\nc O\n"))
    tags = load_labelled(
        data, kind("tag", list(label_counts(data, kind("tag")))), tokenizer=TOKENIZER, log=str
    )
    assert tags.split("train", 1).batch_at(0)["token_labels"].max() == 1
