"""bigjax.data.tables: rows of labelled files, and what is refused."""

import json

import pytest

from bigjax.data.tables import read_table
from bigjax.errors import UserError


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def squad(*qas, context="The tower is 330 metres high."):
    return {
        "version": "2.0",
        "data": [{"title": "t", "paragraphs": [{"context": context, "qas": list(qas)}]}],
    }


QA = {"id": "q1", "question": "How high?", "answers": [{"text": "330 metres", "answer_start": 13}]}


def checked(*arguments):
    """The rows of read_table without "row", the whole record."""
    return [{name: row[name] for name in row if name != "row"} for row in read_table(*arguments)]


def test_tab_separated(tmp_path):
    path = write(tmp_path / "a.tsv", '\ufefflabel\ttext\tx\r\n1\tsay "hi\t\r\n0\tb\u2028c\td\n\n\n')
    assert checked(path, ["text", "label"]) == [
        {"text": 'say "hi', "label": "1", "where": f"{path}:2"},
        {"text": "b\u2028c", "label": "0", "where": f"{path}:3"},
    ]
    bare = write(tmp_path / "a.txt", "one\t1\ntwo\t0")
    assert checked(bare, ["1", "0"]) == [
        {"1": "1", "0": "one", "where": f"{bare}:1"},
        {"1": "0", "0": "two", "where": f"{bare}:2"},
    ]
    with_spaces = write(tmp_path / "b.tsv", " a b \t yes \n")
    assert checked(with_spaces, ["0", "1"], {"1": "label"})[0] == {
        "0": " a b ",
        "1": "yes",
        "where": f"{with_spaces}:1",
    }


def test_comma_separated(tmp_path):
    path = write(tmp_path / "a.csv", 'text,label\r\n"a, ""b""\nc",1\r\nd,0\r\n')
    assert checked(path, ["text", "label"]) == [
        {"text": 'a, "b"\nc', "label": "1", "where": f"{path}:2"},
        {"text": "d", "label": "0", "where": f"{path}:4"},
    ]
    long = "x" * 200_000  # the csv module's own limit is 131,072
    assert checked(write(tmp_path / "b.csv", f"{long},1\n"), ["0"])[0]["0"] == long


def test_json_lines(tmp_path):
    rows = [
        {"t": "één", "y": 3, "w": ["a", 1]},
        {"t": "x", "y": -2.5, "w": ["b"]},
        {"t": "z", "y": True, "w": ["c"]},
    ]
    path = write(tmp_path / "a.jsonl", "\ufeff" + "\n".join(map(json.dumps, rows)) + "\n")
    rows = checked(path, ["t", "y", "w"], {"y": "label", "w": "words"})
    assert [row["y"] for row in rows] == ["3", "-2.5", "true"]
    assert rows[0] == {"t": "één", "y": "3", "w": ["a", "1"], "where": f"{path}:1"}


def test_answers_in_each_form(tmp_path):
    forms = [
        ["a", "b"],
        {"text": ["a", "b"], "answer_start": [3, 5]},
        {"text": []},
        [],
        "a",
        "",
        [{"text": "a", "answer_start": 4}, {"text": "b"}],
    ]
    path = write(tmp_path / "a.jsonl", "\n".join(json.dumps({"x": form}) for form in forms))
    answers = [row["x"] for row in checked(path, ["x"], {"x": "answers"})]
    assert answers == [
        [("a", -1), ("b", -1)],
        [("a", 3), ("b", 5)],
        [],
        [],
        [("a", -1)],
        [],
        [("a", 4), ("b", -1)],
    ]


def test_parquet(tmp_path):
    import pyarrow as pa
    from pyarrow import parquet

    table = pa.table(
        {
            "text": ["a", "é"],
            "n": [1.5, float("nan")],
            "k": [3, None],
            "when": pa.array([0, 86_400_000_000], pa.timestamp("us")),
        }
    )
    path = str(tmp_path / "a.parquet")
    parquet.write_table(table, path)
    rows = read_table(path, ["text"], {}, ["n", "k", "when", "none"])
    assert [row["text"] for row in rows] == ["a", "é"] and rows[1]["where"] == f"{path}:2"
    assert [row["n"] for row in rows] == ["1.5", None]
    assert [row["k"] for row in rows] == ["3", None] and rows[0]["none"] is None
    assert rows[1]["when"] == "1970-01-02 00:00:00.000000" == rows[1]["row"]["when"]
    with pytest.raises(UserError, match=r"a\.parquet:1: no column 'x'; found 'text', 'n'"):
        read_table(path, ["x"])
    with pytest.raises(UserError, match=r"b\.parquet: not Parquet .*Restore the file"):
        read_table(write(tmp_path / "b.parquet", "text\n"), ["text"])


def test_optional_columns(tmp_path):
    lines = [
        {"t": "a", "n": 3, "w": ["x", 1]},
        {"t": "b", "n": "", "w": "y, z;"},
        {"t": "c", "n": None, "w": None},
        {"t": "d", "n": " 0.5 "},
    ]
    path = write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, lines)))
    rows = checked(path, ["t"], {"w": "names"}, ["n", "w"])
    assert [row["n"] for row in rows] == ["3", None, None, "0.5"]
    assert [row["w"] for row in rows] == [["x", "1"], ["y", "z"], [], []]
    bare = write(tmp_path / "a.tsv", "a\t1\nb\t\n")
    assert [row["1"] for row in checked(bare, ["0"], {}, ["1", "2"])] == ["1", None]
    with pytest.raises(UserError, match=r"a\.jsonl:1: column 'w' holds a list, not text"):
        read_table(path, ["t"], {}, ["w"])
    with pytest.raises(UserError, match='cannot be called "row"'):
        read_table(path, ["t"], {}, ["row"])


def test_squad(tmp_path):
    impossible = {
        "id": 7,
        "question": "How old?",
        "is_impossible": True,
        "answers": [{"text": "metres", "answer_start": 17}],
    }
    path = write(tmp_path / "a.json", json.dumps(squad(QA, impossible)))
    one, two = checked(path, ["question", "context", "answers"])
    assert one == {
        "question": "How high?",
        "context": "The tower is 330 metres high.",
        "answers": [("330 metres", 13)],
        "id": "q1",
        "is_impossible": False,
        "where": f"{path}: data[0].paragraphs[0].qas[0]",
    }
    assert (two["answers"], two["id"], two["is_impossible"]) == ([], "7", True)
    without = {key: QA[key] for key in ("id", "question")}
    path = write(tmp_path / "b.json", json.dumps(squad(without)))
    assert "answers" not in checked(path, ["question", "context"])[0]


def test_conll(tmp_path):
    path = write(
        tmp_path / "a.conll",
        "-DOCSTART- -X- O O\n\nEU NNP B-ORG\nrejects VBZ O\n\n\nNew York\tB-LOC\n!\tO\n",
    )
    assert checked(path, ["tokens", "tags"]) == [
        {"tokens": ["EU", "rejects"], "tags": ["B-ORG", "O"], "where": f"{path}:3"},
        {"tokens": ["New York", "!"], "tags": ["B-LOC", "O"], "where": f"{path}:7"},
    ]
    joined = write(tmp_path / "c.conll", "EU B-ORG\n-DOCSTART- -X- O O\n! O\n")
    assert checked(joined, ["tokens", "tags"]) == [
        {"tokens": ["EU"], "tags": ["B-ORG"], "where": f"{joined}:1"},
        {"tokens": ["!"], "tags": ["O"], "where": f"{joined}:3"},
    ]
    bare = write(tmp_path / "b.conll", "EU\nrejects\n")
    assert checked(bare, ["tokens"]) == [{"tokens": ["EU", "rejects"], "where": f"{bare}:1"}]
    with pytest.raises(UserError, match=r"b\.conll:1: found 'EU' without a tag"):
        checked(bare, ["tokens", "tags"])


def test_the_whole_record_is_kept(tmp_path):
    def records(name, content, *columns):
        return [row["row"] for row in read_table(write(tmp_path / name, content), columns)]

    assert records("a.tsv", 'x\ttext\tx\t\n1\ta\t\t"q\n', "text") == [
        {"x": "1", "text": "a", "x_2": "", "": '"q'}
    ]
    assert records("b.txt", "one\t1\tz\n", "1") == [{"0": "one", "1": "1", "2": "z"}]
    assert list(records("a.csv", "id,text\n7,a\n", "text")[0].items()) == [
        ("id", "7"),
        ("text", "a"),
    ]
    line = {"id": 7, "t": "a", "where": None, "row": [1.5], "text": ""}
    assert records("a.jsonl", json.dumps(line), "t") == [line]
    title = squad({**QA, "extra": 1})
    (record,) = records("a.json", json.dumps(title), "question", "context")
    assert list(record.items()) == [
        ("id", "q1"),
        ("title", "t"),
        ("question", "How high?"),
        ("context", "The tower is 330 metres high."),
        ("answers", QA["answers"]),
        ("extra", 1),
    ]
    assert records("a.conll", "EU NNP B\nis V O\n\na\nb\n\nc O\nd N O\n", "tokens") == [
        {"tokens": ["EU", "is"], "1": ["NNP", "V"], "tags": ["B", "O"]},
        {"tokens": ["a", "b"]},
        {"tokens": ["c", "d"], "tags": ["O", "O"]},
    ]


@pytest.mark.parametrize(
    "name, content, columns, message",
    [
        ("a.tsv", "text\tlabel\na\n", ["text"], r"a\.tsv:2: found 1 columns, and the header has 2"),
        ("a.tsv", "a\t1\nb\t2\t3\n", ["0"], r"a\.tsv:2: found 3 columns, and the first line has 2"),
        ("a.tsv", "a\t1\n\nb\t2\n", ["0"], r"a\.tsv:2: found 1 columns"),
        ("a.tsv", "a\t1\n", ["0", "2"], r"a\.tsv:1: there is no column 2; .* from 0 to 1"),
        ("a.tsv", "text\ty\na\t1\n", ["label"], r"no columns are called 'label'.* 'text', 'y'"),
        ("a.tsv", "text\ttext\na\t1\n", ["text"], "2 columns are called 'text'"),
        ("a.tsv", "text\ty\na\t1\n", ["text", "1"], "partly names and partly numbers"),
        ("a.tsv", "text\ty\na\t1\n \t1\n", ["text", "y"], r"a\.tsv:3: column 'text' is empty"),
        ("a.tsv", "text\ty\na\t\n", ["text", "y"], r"a\.tsv:2: column 'y' is empty"),
        ("a.tsv", "text\ty\n", ["text"], r"a\.tsv holds no rows"),
        ("a.tsv", "", ["0"], r"a\.tsv holds no rows"),
        ("a.tsv", b"fine\nb\xe9d\n", ["0"], r"a\.tsv:2: byte 6 \(0xE9\) is not UTF-8"),
        ("a.csv", 'a,b\n"x,1\n', ["a"], r"a\.csv:2: not CSV"),
        ("a.csv", 'a,b\n"x\ny",1\nx,y,1\n', ["a"], r"a\.csv:4: found 3 columns.*needs quotes"),
        ("a.jsonl", '{"t": "a"}\n{"t": 3}\n', ["t"], r"a\.jsonl:2: column 't' holds the number 3"),
        ("a.jsonl", '{"t": null}\n', ["t"], r"a\.jsonl:1: column 't' holds null"),
        ("a.jsonl", '{"t": "a"}\n{"u": "a"}\n', ["t"], r"a\.jsonl:2: no column 't'; found 'u'"),
        ("a.jsonl", '{"t": "a"}\n{"t"\n', ["t"], r"a\.jsonl:2: not JSON"),
        ("a.jsonl", '{"t": NaN}\n', ["t"], r"a\.jsonl:1: not JSON \(NaN"),
        ("a.jsonl", '["a"]\n', ["t"], r"a\.jsonl:1: found a list; .* object"),
        ("a.jsonl", '{"t": "a\\ud800"}\n', ["t"], r"a\.jsonl:1: character 1 .* lone surrogate"),
        ("a.jsonl", '{"t": ""}\n', ["t"], r"a\.jsonl:1: column 't' is empty"),
        ("a.jsonl", '{"t": "a"}\n', ["where"], 'cannot be called "where"'),
        ("a.jsonl", '{"t": "a"}\n', ["row"], 'cannot be called "row"'),
        ("a.json", '{\n"data": [}\n', ["question"], r"a\.json:2: not JSON"),
        ("a.json", "[1]", ["question"], r"a\.json: no list 'data'.*SQuAD"),
        ("a.json", '{"data": [{}]}', ["question"], r"a\.json: data\[0\]: no list 'paragraphs'"),
        ("a.json", '{"data": []}', ["question"], "holds no rows"),
        (
            "a.json",
            json.dumps(squad(QA)),
            ["text"],
            "no column 'text'; found 'question', 'context'",
        ),
        ("a.json", json.dumps(squad({**QA, "question": 3})), ["question"], r"qas\[0\].* number 3"),
        ("a.json", json.dumps(squad(QA, context=" ")), ["question"], "'context' is empty"),
        (
            "a.json",
            json.dumps(squad({**QA, "answers": [{"text": "a", "answer_start": "1"}]})),
            ["answers"],
            r"qas\[0\]: answer_start is the text '1'",
        ),
        ("a.conll", "a O\n", ["words"], "no column 'words'; found 'tokens', 'tags'"),
        ("a.xlsx", "", ["0"], r"a\.xlsx: cannot tell .*\.tsv, \.txt, \.csv"),
    ],
)
def test_bad_files(tmp_path, name, content, columns, message):
    with pytest.raises(UserError, match=message):
        read_table(write(tmp_path / name, content), columns)


@pytest.mark.parametrize(
    "value, kind, message",
    [
        ("a b", "words", "holds the text 'a b'; it has to be a list of words"),
        ([], "words", "holds a list; .* not empty"),
        ([["a"]], "words", "holds a list, not text"),
        ([None], "label", "holds a list"),
        (3, "answers", "the answers are the number 3"),
        ([3], "answers", "holds the number 3"),
        ([{"answer_start": 1}], "answers", "holds null"),
    ],
)
def test_values_of_another_kind(tmp_path, value, kind, message):
    path = write(tmp_path / "a.jsonl", json.dumps({"x": value}))
    with pytest.raises(UserError, match=r"a\.jsonl:1: .*" + message):
        read_table(path, ["x"], {"x": kind})


def test_missing_file_and_remote(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"cannot read .*none\.tsv: No such file"):
        read_table(tmp_path / "none.tsv", ["0"])
    from etils import epath

    monkeypatch.setattr(type(epath.Path("gs://b")), "read_bytes", lambda self: b"a\t1\n")
    assert checked("gs://b/c.tsv", ["0"]) == [{"0": "a", "where": "gs://b/c.tsv:1"}]
