"""bigjax.data.tables: missing values, numbers as labels, odd characters."""

import json

import numpy as np
import pytest

from bigjax.data.tables import read_table
from bigjax.errors import UserError
from tests.unit.test_data_tables import checked, write

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
    labels = [row["label"] for row in read_table(path, ["text", "label"], {"label": "label"})]
    assert labels == ["NaN", "NA", "None", "null"]


def test_whole_numbers_are_labels_without_decimals(tmp_path):
    """Parquet has a column of integers as doubles where some of them were missing once."""
    path = parquet_file(tmp_path / "a.parquet", label=[0.0, 1.0, -2.0, 0.5])
    labels = [row["label"] for row in read_table(path, ["label"], {"label": "label"})]
    assert labels == ["0", "1", "-2", "0.5"]
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
