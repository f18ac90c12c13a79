"""bigjax.projects.seqgan.headline_rows: rows, docstrings and history."""

import math

import numpy as np
import pytest

from bigjax.data import docstrings
from bigjax.data.store import split_of
from bigjax.errors import UserError
from bigjax.projects.seqgan import headline_rows as R
from bigjax.projects.seqgan.headline_rows import History
from tests.unit.test_data_examples import write
from tests.unit.test_data_headlines import NAMES, file, line, row, section

# Rows.


def test_rows_have_one_name_whatever_the_columns_are_called(tmp_path):
    data = section({"headline": "Title", "article": "Body", "published": "when", "tags": "kinds"})
    given = {
        "Title": "T",
        "Body": "B",
        "clicks": 3,
        "impressions": "",
        "when": "2024-05-01",
        "kinds": "x, y",
    }
    path = file(tmp_path / "a.jsonl", given)
    assert R.read_headlines(path, data) == [
        {
            "headline": "T",
            "article": "B",
            "clicks": 3.0,
            "impressions": None,
            "tags": ["x", "y"],
            "published": 1714521600.0,
            "where": f"{path}:1",
            "row": given,
        }
    ]
    bare = write(tmp_path / "a.tsv", "T\t5\n")
    columns = {**dict.fromkeys(NAMES, ""), "headline": "0", "tags": "1"}
    (row,) = R.read_headlines(bare, section(columns))
    assert (row["headline"], row["article"], row["tags"]) == ("T", "", ["5"])
    assert row["clicks"] is row["impressions"] is row["published"] is None


def test_dates_and_numbers_order_rows(tmp_path):
    times = ["2024-05-01", "2024-05-01 00:00:01", "2024-05-01T02:00:00+01:00"]
    path = file(tmp_path / "a.jsonl", *[line(published=time) for time in times])
    published = [row["published"] for row in R.read_headlines(path, section())]
    assert np.diff(published).tolist() == [1, 3599]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"headline": " "}, "column 'headline' is empty"),
        ({"article": ""}, "'article' is empty"),
        ({"headline": None}, "'headline' holds null"),
        ({"published": ""}, "'published' is empty"),
        ({"clicks": -1}, "clicks is '-1'; it has to be a number of at least 0"),
        ({"clicks": "1e300"}, "clicks is '1e300'; it has to be a number of at least 0"),
        ({"impressions": 1e-300}, "impressions is '1e-300'; it has to be a number"),
        ({"impressions": 10**400}, "impressions is '1000.*at most 1e15"),
        ({"clicks": "many"}, "clicks is 'many'.*data.columns.clicks=''"),
        ({"impressions": "inf"}, "impressions is 'inf'"),
        ({"clicks": True}, "clicks is 'true'"),
        ({"published": "May 1st"}, "published is 'May 1st'.*ISO 8601"),
        ({"published": "nan"}, "published is 'nan'"),
    ],
)
def test_bad_rows(tmp_path, changes, message):
    path = file(tmp_path / "a.jsonl", line(1), line(2, **changes))
    with pytest.raises(UserError, match=r"a\.jsonl:2: .*" + message):
        R.read_headlines(path, section())


@pytest.mark.parametrize("name", ["clicks", "impressions", "tags"])
def test_missing_columns(tmp_path, name):
    given = line()
    del given[name]
    path = file(tmp_path / "a.jsonl", given)
    with pytest.raises(
        UserError, match=f"no column '{name}' for {name}; found 'headline'.*data.columns.{name}=''"
    ):
        R.read_headlines(path, section())
    assert R.read_headlines(path, section({name: ""}))[0]["headline"] == "h0"
    if name != "tags":
        assert R.read_headlines(path, section(), with_clicks=False)[0][name] is None


def test_articles_alone(tmp_path):
    path = file(tmp_path / "a.jsonl", {"article": "b c"})
    (row,) = R.read_headlines(path, section(), with_headlines=False)
    assert (row["article"], row["headline"], row["published"]) == ("b c", "", None)
    with pytest.raises(UserError, match="data.columns.article is empty"):
        R.read_headlines(path, section({"article": ""}), with_headlines=False)
    with pytest.raises(UserError, match="data.columns.headline is empty"):
        R.read_headlines(path, section({"headline": ""}))


def test_rows_of_one_article_fall_together(tmp_path):
    lines = [line(i, article=f"article {i % 40}") for i in range(120)]
    data = section(train=file(tmp_path / "a.jsonl", *lines), valid_fraction=0.3, test_fraction=0.2)
    parts = R.read_parts(data)
    assert [*parts] == ["train", "valid", "test"] and sum(map(len, parts.values())) == 120
    for name, rows in parts.items():
        assert rows and all(split_of(row["article"], 0.3, 0.2) == name for row in rows)
    titles = R.read_parts(
        section(
            {"article": ""},
            **{name: data[name] for name in ("train", "valid_fraction", "test_fraction")},
        )
    )
    assert all(
        split_of(row["headline"], 0.3, 0.2) == name for name, rows in titles.items() for row in rows
    )
    data.valid = data.train  # the same as none
    assert R.read_parts(data) == parts


def test_pairs_that_are_held_out_are_not_trained_on(tmp_path):
    train = file(tmp_path / "a.jsonl", line(1), line(2), line(3), line(4, article="a1"))
    data = section(
        train=train,
        valid=file(tmp_path / "b.jsonl", line(2), line(3)),
        test=file(tmp_path / "c.jsonl", line(3), line(9)),
    )
    lines = []
    parts = R.read_parts(data, log=lines.append)
    headlines = {name: [row["headline"] for row in rows] for name, rows in parts.items()}
    assert headlines == {"train": ["h1", "h4"], "valid": ["h2"], "test": ["h3", "h9"]}
    assert len(lines) == 2 and "train: 2 of 4 rows are also in another split" in lines[1]
    with pytest.raises(UserError, match='data.train is empty.*"docstrings:headline"'):
        R.read_parts(section(valid=train))


def test_time_is_the_order_of_the_file_without_published(tmp_path):
    lines = [line(i, article=f"article {i}") for i in range(30)]
    path, other = file(tmp_path / "a.jsonl", *lines), file(tmp_path / "b.jsonl", line(50))
    parts = R.read_parts(section({"published": ""}, train=path, valid_fraction=0.5, test=other))
    assert parts["valid"] and all(
        row["time"] == int(row["headline"][1:]) for row in parts["train"] + parts["valid"]
    )
    assert parts["test"][0]["time"] == math.inf
    dated = R.read_parts(section(train=path, test=other))
    assert dated["test"][0]["time"] == 50 and dated["train"][3]["time"] == 3


# Docstrings.


def test_uses_are_counted_in_files_that_import_the_package(tmp_path):
    a = write(tmp_path / "a.py", "import pkg.sub as p\np.f(1)\nf\nf = 2\np.f = 3\nimport g\n")
    b = write(tmp_path / "b.py", "from pkg import f\ndef g():\n    return f\n")
    c = write(tmp_path / "c.py", "import other\nf(f)\n")
    d = write(tmp_path / "d.py", "from . import x\nf\n")
    bad = write(tmp_path / "e.py", "import pkg\nf(")
    files = [("a", a), ("b", b), ("c", c), ("pkg.d", d), ("e", bad), ("f", str(tmp_path / "no"))]
    assert R.count_uses(files, ["pkg.f", "pkg.sub.g", "other.f", "none.f"]) == {
        "pkg.f": (4, 3),
        "pkg.sub.g": (0, 3),
        "other.f": (2, 1),
        "none.f": (0, 0),
    }


def test_docstrings_as_headlines(tmp_path, monkeypatch):
    body = "It does so in a way that takes more than forty characters."
    records = [
        docstrings.Record("pkg", "pkg.f", f"Does it.\n\n{body}"),
        docstrings.Record("pkg", "pkg.g", "Does something else.\n\nShort."),
    ]
    path = write(tmp_path / "a.py", "import pkg\npkg.f(pkg.f)\n")
    monkeypatch.setattr(docstrings, "records", lambda cache_dir: records)
    monkeypatch.setattr(docstrings, "python_files", lambda: [["pkg", "a", path]])
    data = section(cache_dir=str(tmp_path / "cache"))
    (row,) = R.read_headlines("docstrings:headline", data)
    assert row["headline"] == "Does it." and row["article"] == body
    assert (row["clicks"], row["impressions"], row["tags"]) == (2.0, 1.0, ["pkg"])
    monkeypatch.setattr(R, "count_uses", None)  # the second time they come from the cache
    assert R.read_headlines("docstrings:headline", data) == [row]
    with pytest.raises(UserError, match='no headline set .*the docstrings give "docstrings:h'):
        R.read_headlines("docstrings:title", data)


# History.


def test_history_is_strictly_before():
    history = History([row(f"h{i}", time=i) for i in (3, 1, 2, 2, 0)])
    assert history.before(row(time=2), 5) == ["h1", "h0"]
    assert history.before(row(time=math.inf), 2) == ["h3", "h2"]
    assert history.before(row("h3", time=9), 2) == ["h2", "h1"]  # not its own, none twice
    assert history.before(row(time=0), 2) == [] and history.before(row(time=9), 0) == []


def test_history_shares_the_most_tags():
    history = History(
        [
            row(f"h{i}", time=i, tags=tags)
            for i, tags in enumerate(["ab", "a", "b", "c", "ab", "abc"])
        ]
    )
    assert history.before(row(time=5, tags="ab"), 3) == ["h4", "h0", "h2"]
    assert history.before(row(time=9, tags="c"), 9) == ["h5", "h3"]
    assert history.before(row(time=9, tags="z"), 2) == []
    assert history.before(row(time=9), 2) == ["h5", "h4"]
