"""bigjax.data.tables: rows of labelled files, and what is refused."""

import json

import numpy as np
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
    found = checked(path, ["t", "y", "w"], {"y": "label", "w": "words"})
    assert [row["y"] for row in found] == ["3", "-2.5", "true"]
    assert found[0] == {"t": "één", "y": "3", "w": ["a", "1"], "where": f"{path}:1"}


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
    found = [row["x"] for row in checked(path, ["x"], {"x": "answers"})]
    assert found == [
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
    found = read_table(path, ["text"], {}, ["n", "k", "when", "none"])
    assert [row["text"] for row in found] == ["a", "é"] and found[1]["where"] == f"{path}:2"
    assert [row["n"] for row in found] == ["1.5", None]
    assert [row["k"] for row in found] == ["3", None] and found[0]["none"] is None
    assert found[1]["when"] == "1970-01-02 00:00:00.000000" == found[1]["row"]["when"]
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
    found = checked(path, ["t"], {"w": "names"}, ["n", "w"])
    assert [row["n"] for row in found] == ["3", None, None, "0.5"]
    assert [row["w"] for row in found] == [["x", "1"], ["y", "z"], [], []]
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


# --- Missing values, numbers as labels, odd characters -----------------------------------------


def parquet_file(path, **columns):
    import pyarrow as pa
    from pyarrow import parquet

    parquet.write_table(pa.table(columns), str(path))
    return str(path)


def arrays():
    """A label column of each type, its second value missing."""
    import pyarrow as pa

    nan = float("nan")
    return {
        "a double": [0.0, nan],
        "a double with null": pa.array([0.0, None]),
        "an integer": pa.array([0, None], pa.int64()),
        "a text": pa.array(["a", None]),
        "a category": pa.array(["a", None]).dictionary_encode(),
        "a truth value": pa.array([True, None]),
        "a time": pa.array([0, None], pa.timestamp("us")),
        "an infinity": [0.0, float("inf")],
        "an empty text": ["a", ""],
        "a half": pa.array(np.array([0, nan], np.float16)),
    }


@pytest.mark.parametrize("name", arrays())
def test_a_missing_label_is_refused_with_its_row(tmp_path, name):
    path = parquet_file(tmp_path / "a.parquet", text=["x", "y"], label=arrays()[name])
    with pytest.raises(UserError, match=r"a\.parquet:2: column 'label' (holds|is empty)"):
        read_table(path, ["text", "label"], {"label": "label"})


@pytest.mark.parametrize("kind", ["text", "words", "answers"])
def test_a_missing_text_list_or_answer_is_refused_with_its_row(tmp_path, kind):
    values = {"text": ["a", None], "words": [["a"], None], "answers": [["a"], None]}[kind]
    path = parquet_file(tmp_path / "a.parquet", x=values)
    with pytest.raises(UserError, match=r"a\.parquet:2: .*null"):
        read_table(path, ["x"], {"x": kind})


def test_missing_values_in_lists_and_in_text_formats(tmp_path):
    for content, message in (
        ({"w": ["a", None]}, "column 'w' holds null"),
        ({"w": None}, "column 'w' holds null"),
        ({"w": "a", "y": 1e999}, "column 'y' holds inf"),
    ):
        path = write(tmp_path / "a.jsonl", json.dumps(content).replace("Infinity", "1e999"))
        kinds = {"w": "words" if "y" not in content else "text", "y": "label"}
        with pytest.raises(UserError, match=r"a\.jsonl:1: " + message):
            read_table(path, list(content), kinds)
    path = parquet_file(tmp_path / "a.parquet", w=[[1.0, float("nan")]])
    with pytest.raises(UserError, match=r"a\.parquet:1: column 'w' holds NaN"):
        read_table(path, ["w"], {"w": "words"})
    path = write(tmp_path / "a.csv", "text,label\na,1\nb,\n")
    with pytest.raises(UserError, match=r"a\.csv:3: column 'label' is empty"):
        read_table(path, ["text", "label"], {"label": "label"})
    path = write(tmp_path / "b.tsv", "text\tlabel\na\t1\n\t\n")
    with pytest.raises(UserError, match=r"b\.tsv:3: column 'text' is empty"):
        read_table(path, ["text", "label"], {"label": "label"})


def test_classes_that_are_called_nan_or_na_are_kept(tmp_path):
    path = write(tmp_path / "a.csv", "text,label\na,NaN\nb,NA\nc,None\nd,null\n")
    found = [row["label"] for row in read_table(path, ["text", "label"], {"label": "label"})]
    assert found == ["NaN", "NA", "None", "null"]


def test_whole_numbers_are_labels_without_decimals(tmp_path):
    """Parquet has a column of integers as doubles where some of them were missing once."""
    path = parquet_file(tmp_path / "a.parquet", label=[0.0, 1.0, -2.0, 0.5])
    found = [row["label"] for row in read_table(path, ["label"], {"label": "label"})]
    assert found == ["0", "1", "-2", "0.5"]
    path = write(tmp_path / "a.jsonl", '{"label": 1' + "0" * 400 + "}\n")  # of no float
    assert read_table(path, ["label"], {"label": "label"})[0]["label"] == "1" + "0" * 400


def test_answers_with_another_number_of_starts(tmp_path):
    content = {"a": {"text": ["x", "y"], "answer_start": [1]}}
    path = write(tmp_path / "a.jsonl", json.dumps(content))
    with pytest.raises(UserError, match=r"a\.jsonl:1: the answers have 2 texts and another"):
        read_table(path, ["a"], {"a": "answers"})


@pytest.mark.parametrize("space", ["\u00a0", "\u202f", "\u2009", "\u3000", "\u0085", "\u2028"])
@pytest.mark.parametrize("separator", [" ", "   ", "\t", " \t"])
def test_conll_columns_are_cut_at_tabs_and_spaces_only(tmp_path, space, separator):
    token = f"50{space}000"
    lines = [f"{token}{separator}NUM{separator}B-SUM  ", f"{space}{separator}X{separator}O\t"]
    for end in ("\n", "\r\n"):
        path = write(tmp_path / "a.conll", "\ufeff" + end.join([*lines, " \t", *lines]))
        first, second = checked(path, ["tokens", "tags"])
        assert first["tokens"] == [token, space] == second["tokens"]
        assert first["tags"] == ["B-SUM", "O"]
    bare = write(tmp_path / "b.conll", f"{token}\n{space}x\n")
    assert checked(bare, ["tokens"])[0]["tokens"] == [token, f"{space}x"]


def test_conll_comments(tmp_path):
    comments = "# newdoc id = a\n# sent_id = 1\n# text = EU is\n"
    for tab in (" ", "\t"):
        path = write(tmp_path / "a.conll", f"{comments}EU{tab}B\n#{tab}O\n\n#{tab}O\n#x{tab}B\n")
        assert [row["tokens"] for row in checked(path, ["tokens", "tags"])] == [
            ["EU", "#"],
            ["#", "#x"],
        ]
    path = write(tmp_path / "b.conll", "# a free remark\nEU\tB\n")
    assert checked(path, ["tokens", "tags"])[0]["tokens"] == ["EU"]


def test_labels_and_names_keep_their_no_break_spaces(tmp_path):
    label = "10\u00a0000\u00a0"
    for name, content in (
        ("a.tsv", f"te\u00a0xt\tlabel\nx\t {label} \n"),
        ("a.csv", f"te\u00a0xt,label\nx,{label}\n"),
        ("a.jsonl", json.dumps({"te\u00a0xt": "x", "label": label}, ensure_ascii=False)),
    ):
        (row,) = read_table(
            write(tmp_path / name, content), ["te\u00a0xt", "label"], {"label": "label"}
        )
        assert row["label"] == label


@pytest.mark.parametrize("line", ["sep=,", '"sep=,"', "SEP=,"])
def test_a_line_for_excel_is_passed_over(tmp_path, line):
    path = write(tmp_path / "a.csv", f"\ufeff{line}\r\ntext,label\r\nx,1\r\n")
    (row,) = read_table(path, ["text", "label"])
    assert row == {"text": "x", "label": "1", "where": f"{path}:3", "row": row["row"]}
    path = write(tmp_path / "c.csv", f"text,label\nx,1\n{line}\n")  # further down it is a row
    with pytest.raises(UserError, match=r"c\.csv:3: "):
        read_table(path, ["text", "label"])
    path = write(tmp_path / "b.csv", "sep=;\ntext;label\nx;1\n")
    with pytest.raises(UserError, match="seems to have ';'"):
        read_table(path, ["text", "label"])


@pytest.mark.parametrize("name, mark", [("a.csv", ","), ("a.tsv", "\t")])
def test_line_ends_that_were_written_twice(tmp_path, name, mark):
    """As by Python's csv module on Windows into a file that was opened without newline=''."""
    path = write(tmp_path / name, f"text{mark}label\r\r\nx{mark}1\r\r\ny{mark}2\r\r\n")
    rows = read_table(path, ["text", "label"])
    assert [(row["text"], row["label"]) for row in rows] == [("x", "1"), ("y", "2")]


def test_blank_lines_between_json_lines_are_passed_over(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"text": "x"}\n\n \n{"text": "y"}\n\n')
    assert [row["where"] for row in read_table(path, ["text"])] == [f"{path}:1", f"{path}:4"]


def test_another_separator_is_named(tmp_path):
    path = write(tmp_path / "a.csv", "text;label\nx;1\n")
    with pytest.raises(UserError, match="no columns are called 'text'.*seems to have ';'"):
        read_table(path, ["text", "label"])
