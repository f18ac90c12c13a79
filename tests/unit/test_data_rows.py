"""bigjax.data.rows: labelled rows of files, TFDS and docstrings, and how they are split."""

import dataclasses
import json
import types

import numpy as np
import pytest

from bigjax.data import docstrings, kinds, labelled
from bigjax.data import rows as R
from bigjax.data.rows import label_counts
from bigjax.data.store import split_of
from bigjax.errors import UserError
from tests import helpers
from tests.helpers import kind
from tests.unit.test_data_examples import section, table, write


def test_rows_have_one_name_whatever_the_columns_are_called(tmp_path):
    data = section()
    data.columns.text, data.columns.pair, data.columns.label = "#2 S", "label", "#1 S"
    path = table(tmp_path / "a.tsv", ["x\ty\tz"], "#1 S\t#2 S\tlabel")
    assert R.read_rows(path, data, kind("classify")) == [
        {
            "text": "y",
            "pair": "z",
            "label": "x",
            "where": f"{path}:2",
            "row": {"#1 S": "x", "#2 S": "y", "label": "z"},
        }
    ]
    bare = table(tmp_path / "b.tsv", ["y\tz"], "#2 S\tlabel")
    assert R.read_rows(bare, data, kind("classify"), with_labels=False) == [
        {"text": "y", "pair": "z", "where": f"{bare}:2", "row": {"#2 S": "y", "label": "z"}}
    ]
    with pytest.raises(UserError, match=r"b\.tsv:1: no columns are called '#1 S'"):
        R.read_rows(bare, data, kind("classify"))
    data.columns.text = ""
    with pytest.raises(UserError, match="data.columns.text is empty; classify needs it"):
        R.read_rows(bare, data, kind("classify"))


def test_a_config_has_the_columns_of_its_kind_alone():
    """Also a user's kind: the task's module names it."""

    class Rank(kinds.Kind):
        name = "rank"
        inputs = {"query": kinds.Column("text"), "note": kinds.Column("text", "", optional=True)}
        targets = {"score": kinds.Column("label", name="relevance")}

    task = types.SimpleNamespace(KIND=Rank)
    columns = labelled.Config.for_task(task)(columns=kinds.columns_of(Rank)(note="why")).columns
    assert dataclasses.asdict(columns) == {"query": "query", "note": "why", "score": "relevance"}
    assert sorted(helpers.data_section("labelled", "tag").columns) == ["tags", "tokens"]
    assert not helpers.data_section("labelled").columns  # causal_lm has no kind
    with pytest.raises(UserError, match="'data.columns.text'. Allowed: tags, tokens"):
        helpers.data_section("labelled", "tag", columns={"text": "x"})


def test_tags_have_to_be_as_many_as_tokens(tmp_path):
    path = write(tmp_path / "a.jsonl", json.dumps({"tokens": ["a", "b"], "tags": ["O"]}))
    with pytest.raises(UserError, match=r"a\.jsonl:1: 2 tokens and 1 tags"):
        R.read_rows(path, section(), kind("tag"))


def test_parts_are_cut_by_a_hash_of_the_text(tmp_path):
    lines = [f"text {i}\t{i % 3}" for i in range(300)] + ["text 7\t1"] * 3
    data = section(train=table(tmp_path / "a.tsv", lines), valid_fraction=0.2, test_fraction=0.1)
    parts = R.read_parts(data, kind("classify"))
    assert sum(map(len, parts.values())) == 303
    for name, rows in parts.items():
        assert rows and all(split_of(row["text"], 0.2, 0.1) == name for row in rows)
    data.valid = table(tmp_path / "b.tsv", ["other\t5"])
    again = R.read_parts(data, kind("classify"))
    assert [row["text"] for row in again["valid"]] == ["other"]
    assert {row["text"] for row in again["test"]} == {
        row["text"]
        for row in parts["train"] + parts["valid"] + parts["test"]
        if split_of(row["text"], 0, 0.1) == "test"
    }
    with pytest.raises(UserError, match="data.train is empty. Set it to a file"):
        R.read_parts(section(), kind("classify"))


def test_training_rows_are_read_only_where_they_are_needed(tmp_path):
    mine, none = table(tmp_path / "b.tsv", ["other\t5"]), str(tmp_path / "none.tsv")
    for train in (none, "tfds:/none", "docstrings:none", ""):
        data = section(train=train, test=mine, valid_fraction=0.1, test_fraction=0.1)
        parts = R.read_parts(data, kind("classify"), ["test"])
        assert [(name, row["text"]) for name in parts for row in parts[name]] == [("test", "other")]
    for names in (["valid"], ["valid", "test"], ["train"]):
        with pytest.raises(UserError, match="none.tsv"):
            R.read_parts(section(train=none, test=mine), kind("classify"), names)
    with pytest.raises(UserError, match="data.train is empty"):
        R.read_parts(section(test=mine), kind("classify"), ["valid"])


def test_label_names_come_from_the_training_part(tmp_path):
    data = section(
        train=table(tmp_path / "a.tsv", [f"t {i}\t{i % 12}" for i in range(40)]),
        valid=str(tmp_path / "is not read"),
    )
    assert list(label_counts(data, kind("classify"))) == [str(i) for i in range(12)]
    assert (
        label_counts(data, kind("classify"))["3"] == 4
        and label_counts(data, kind("classify"))["4"] == 3
    )
    data.train = table(tmp_path / "c.tsv", ["a\t10", "b\t9", "c\tx"])
    assert list(label_counts(data, kind("classify"))) == ["10", "9", "x"]
    assert (
        list(label_counts(data, kind("regress"))) == [] == list(label_counts(data, kind("answer")))
    )
    data.train = write(tmp_path / "d.conll", "EU B\nis O\n\na O\n")
    assert label_counts(data, kind("tag")) == {"B": 1, "O": 2}


@pytest.mark.usefixtures("fewer_docstrings")
def test_docstrings_of_libraries(cache_dir):
    data = section(
        train="docstrings:library", cache_dir=cache_dir, valid_fraction=0.1, test_fraction=0.1
    )
    parts = R.read_parts(data, kind("classify"))
    records = docstrings.records(cache_dir)
    assert sum(map(len, parts.values())) == len(records)
    for name, rows in parts.items():
        mine = [record for record in records if split_of(record.text, 0.1, 0.1) == name]
        assert [(row["text"], row["label"]) for row in rows] == [
            (record.doc, record.library) for record in mine
        ]
    assert {"python", "numpy", "jax"} <= set(label_counts(data, kind("classify")))
    data.valid = "docstrings:library"
    assert R.read_parts(data, kind("classify"))["valid"] == parts["valid"]
    assert (
        "label" not in R.read_rows("docstrings:library", data, kind("classify"), "test", False)[0]
    )
    with pytest.raises(UserError, match="no set 'docstrings:name'.*docstrings:library"):
        R.read_rows("docstrings:name", data, kind("classify"))
    with pytest.raises(UserError, match="cannot be used to tag"):
        R.read_rows("docstrings:library", data, kind("tag"))


@pytest.mark.slow
def test_docstring_titles(cache_dir):
    data = section(
        train="docstrings:title", cache_dir=cache_dir, valid_fraction=0.1, test_fraction=0.1
    )
    parts = R.read_parts(data, kind("classify"))
    assert parts == R.read_parts(data, kind("classify"))
    records, bodies = {}, {}
    for record in docstrings.records(cache_dir):
        records[record.name] = record
        title, _, body = record.doc.strip().partition("\n")
        where = split_of(record.text, 0.1, 0.1)
        bodies.setdefault((where, body.strip()), set()).add(record.library)
    same_library = 0
    for name, rows in parts.items():
        for row in rows:
            record = records[row["where"].removeprefix("docstring of ")]
            title, _, body = record.doc.strip().partition("\n")
            if title.strip() != row["text"]:
                continue  # two records of one name
            assert len(row["pair"]) >= 40 and (name, row["pair"]) in bodies  # of the same split
            assert (row["pair"] == body.strip()) == (row["label"] == "together")
            same_library += record.library in bodies[name, row["pair"]]
    every = [row["label"] for rows in parts.values() for row in rows]
    assert len(every) > 5000 and 0.47 < every.count("apart") / len(every) < 0.53
    assert same_library / len(every) > 0.98
    assert list(label_counts(data, kind("classify"))) == ["apart", "together"]


def test_a_title_whose_library_has_no_other_gets_one_of_another_library():
    records = [
        docstrings.Record(f"lib{i}", f"lib{i}.f", f"Title {i}\n" + f"body {i} " * 9)
        for i in range(40)
    ]
    rows = list(R._titles(records))
    labels = [row["label"] for row in rows]
    assert 10 < labels.count("apart") < 30
    for i, row in enumerate(rows):
        assert (row["pair"] == (f"body {i} " * 9).strip()) == (row["label"] == "together")
    (alone,) = R._titles(records[:1])
    assert alone["label"] == "together"  # there is no other body


@pytest.fixture(scope="module")
def tfds_set(tmp_path_factory):
    """A set with validation, and test labels that are -1 as GLUE's; and its spec as a folder."""
    tfds = pytest.importorskip("tensorflow_datasets")
    pytest.importorskip("array_record")

    class Sentences(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            words = tfds.features.Sequence(tfds.features.Text())
            tags = tfds.features.Sequence(tfds.features.ClassLabel(names=["O", "B"]))
            answers = tfds.features.Sequence(
                {"text": tfds.features.Text(), "answer_start": np.int32}
            )
            return tfds.core.DatasetInfo(
                builder=self,
                features=tfds.features.FeaturesDict(
                    {
                        "sentence": tfds.features.Text(),
                        "score": np.float32,
                        "tokens": words,
                        "tags": tags,
                        "answers": answers,
                        "label": tfds.features.ClassLabel(names=["bad", "good"]),
                    }
                ),
            )

        def _split_generators(self, dl_manager):
            return {
                "train": self._generate_examples(60),
                "validation": self._generate_examples(5),
                "test": self._generate_examples(4, -1),
            }

        def _generate_examples(self, n, label=None):
            for i in range(n):
                yield (
                    i,
                    {
                        "sentence": f"sentencé {i}",
                        "score": i / 2,
                        "tokens": ["a", "b"],
                        "tags": [i % 2, 1],
                        "label": i % 2 if label is None else label,
                        "answers": [{"text": "cé", "answer_start": 6}] if i % 2 else [],
                    },
                )

    folder = tmp_path_factory.mktemp("tfds")
    builder = Sentences(data_dir=folder, file_format="array_record")
    builder.download_and_prepare()
    return f"tfds:{builder.data_path}"


def test_tfds(tfds_set):
    data = section(train=tfds_set, valid_fraction=0.5, test_fraction=0.2)
    data.columns.text = data.columns.context = data.columns.question = "sentence"
    parts = R.read_parts(data, kind("classify"))
    assert sorted(row["text"] for row in parts["valid"]) == [f"sentencé {i}" for i in range(5)]
    assert {row["label"] for row in parts["train"]} == {"bad", "good"}
    assert len(parts["train"]) + len(parts["test"]) == 60 and len(parts["test"]) > 1
    assert all(split_of(row["text"], 0, 0.2) == "test" for row in parts["test"])
    assert len(R.read_rows(tfds_set + "[train[10:30]]", data, kind("classify"), "valid")) == 20
    for row in R.read_rows(tfds_set, data, kind("tag")):
        assert row["tokens"] == ["a", "b"] and row["tags"] in (["O", "B"], ["B", "B"])
    rows = R.read_rows(tfds_set, data, kind("answer"), "valid")
    assert sorted(len(row["answers"]) for row in rows) == [0, 0, 0, 1, 1]
    assert [("cé", 6)] in [row["answers"] for row in rows]
    data.columns.label = "score"
    rows = R.read_rows(tfds_set, data, kind("regress"), "valid")
    assert sorted(float(row["label"]) for row in rows) == [0, 0.5, 1, 1.5, 2]
    assert R.read_parts(data, kind("regress"))["test"][0]["label"] != "-1"


def test_tfds_validation_is_read_without_the_test_split(tfds_set, monkeypatch):
    data = section(train=tfds_set)
    data.columns.text = "sentence"
    read, parts_read = R.read_rows, []
    monkeypatch.setattr(
        R,
        "read_rows",
        lambda spec, data, kind, part="train", *rest: (
            parts_read.append(part),
            read(spec, data, kind, part, *rest),
        )[1],
    )
    (row, *_) = R.read_parts(data, kind("classify"), ["valid"])["valid"]
    assert parts_read == ["valid"]
    assert row["row"]["sentence"] == row["text"] and row["row"]["label"] == row["label"]
    assert set(row["row"]) == {"sentence", "label", "score", "tokens", "tags", "answers"}


@pytest.fixture
def glue(tmp_path, monkeypatch):
    """The config of tfds:glue/sst2, and its download, which the test replaces."""
    tfds = pytest.importorskip("tensorflow_datasets")
    pytest.importorskip("array_record")
    from tensorflow_datasets.core import constants

    monkeypatch.setattr(constants, "DATA_DIR", str(tmp_path / "data"))
    data = section(train="tfds:glue/sst2", test_fraction=0.2)
    data.columns.text = "sentence"
    return data, lambda get: monkeypatch.setattr(
        tfds.download.DownloadManager, "download_and_extract", get
    )


def test_a_set_of_tfds_that_is_not_prepared_is_downloaded(glue, tmp_path):
    data, download = glue
    folder = tmp_path / "raw" / "SST-2"
    folder.mkdir(parents=True)
    for name in ("train", "dev"):
        table(
            folder / f"{name}.tsv", [f"{name} {i}\t{i % 2}" for i in range(20)], "sentence\tlabel"
        )
    table(folder / "test.tsv", ["0\tx", "1\ty"], "index\tsentence")
    download(lambda self, url: folder.parent)
    parts = R.read_parts(data, kind("classify"))
    assert sorted(row["text"] for row in parts["valid"]) == sorted(f"dev {i}" for i in range(20))
    assert len(parts["train"]) + len(parts["test"]) == 20  # its own test has no labels
    assert {row["label"] for row in parts["valid"]} == {"negative", "positive"}
    assert list((tmp_path / "data").glob("glue/sst2/*/*array_record*"))


def test_a_set_of_tfds_that_cannot_be_downloaded(glue, tmp_path):
    def offline(self, url):
        raise ConnectionError("HTTPSConnectionPool(host='dl.example.com'): no network\nand more")

    data, download = glue
    download(offline)
    with pytest.raises(
        UserError,
        match=(
            r"tfds:glue/sst2 is not prepared in .*data/glue/sst2/.*, and could not be downloaded: "
            r"HTTPS.*no network\. Run bigjax once on a machine with a network.*array_record.*"
            r"TFDS_DATA_DIR"
        ),
    ):
        R.read_rows("tfds:glue/sst2", data, kind("classify"))
    assert not list((tmp_path / "data").glob("glue/sst2/*"))


def test_tfds_errors(tfds_set):
    data = section()
    with pytest.raises(UserError, match="no feature 'text'; it has .*sentence"):
        R.read_rows(tfds_set, data, kind("classify"))
    with pytest.raises(UserError, match=r"(?s)cannot read split 'dev'.*train, validation, test"):
        R.read_rows(tfds_set + "[dev]", data, kind("classify"))
    with pytest.raises(UserError, match=r"tfds:/nowhere: .*dataset_info\.json"):
        R.read_rows("tfds:/nowhere", data, kind("classify"))
    with pytest.raises(UserError, match="tfds:no_such_set_of_mine: .*not found"):
        R.read_rows("tfds:no_such_set_of_mine", data, kind("classify"))
