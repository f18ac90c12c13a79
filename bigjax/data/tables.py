"""Labelled files: tab- and comma-separated, JSON lines, Parquet, SQuAD's JSON, CoNLL's columns."""

from collections.abc import Collection, Iterator, Mapping, Sequence
import csv
import io
import json
import os
import re
from typing import Any

from bigjax.data import conll
from bigjax.data.text_files import COMPRESSIONS, extension, read_bytes, read_lines, read_text
from bigjax.data.values import ColumnError, convert, describe
from bigjax.errors import UserError

_SQUAD = ("question", "context", "answers", "id")
_OWN_NAMES = ("where", "row")
_CONLL = (".conll", ".conllu")


def read_table(
    path: str | os.PathLike,
    columns: Sequence[str],
    kinds: Mapping[str, str] | None = None,
    optional: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """The rows of a file (local or gs://) as dicts: the `columns`, "where" for messages, "row".

    row["row"] is the complete record as in the file, without renames or checks: a dict of its
    columns, in order (numbers from "0" without a header; the second x is "x_2").

    The extension decides, without that of a compression (train.tsv.gz; see `text_files.py` for how
    files are decompressed and decoded):
    - .tsv, .txt: tabs between columns, no quoting; .csv: commas, with quoting. The first line
      has the names, unless `columns` are numbers: "0" is the first column of a file without.
      Everything is text. Blank lines at the end are skipped.
    - .jsonl: one object per line; blank lines are skipped.
    - .parquet: times are text ("2024-05-01 12:00:00"); rows count from 1. Missing values are null
      or NaN.
    - .json: SQuAD 1.1 or 2.0; rows have question, context, answers, id and is_impossible, the
      record id, title, question, context and the other fields of the question.
    - .conll, .conllu: a token and, in the last column, its tag on each line, separated by tabs or
      spaces (U+00A0 belongs to a token), a blank line between sentences; -DOCSTART- and CoNLL-U's
      comments are skipped; rows have tokens and tags, the record the columns between
      them as "1", "2", ... too. `columns` may be numbers, from "0", instead: then the record's are
      too. They have to be where the first column numbers the words, as CoNLL-U's does: FORM is
      "1", UPOS "3"; its lines of several words (1-2) and of elided words (1.1) are skipped.

    Args:
      kinds: the type of each column's values, "text" by default: "label" may be a number or
        truth value too, and becomes text, a whole number without decimals ("1" of 1.0, as Parquet
        has it of a column where some were missing); "words" is a list of texts (or labels);
        "answers" is a list of texts, or of SQuAD's {"text", "answer_start"} (or its two lists), or
        one text, empty for no answer, and becomes a list of (text, start), start -1 if not given;
        "optional" is text or a number, and becomes text, or None where it is empty or null;
        "names" is a list of texts, or one text with commas or semicolons between, or nothing.
      optional: more columns, of type "optional" by default, which records may lack.

    Raises UserError, with file and line, for a file that is missing, of another kind, not UTF-8
    or without rows, for missing columns and values, ragged rows, bad JSON, empty text, and numbers
    for text; it is a ColumnError if another column may be meant.
    """
    path = os.path.expanduser(os.fspath(path))
    kind_of_file = extension(path)
    readers = {
        ".tsv": _separated,
        ".txt": _separated,
        ".csv": _separated,
        ".jsonl": _jsonl,
        ".parquet": _parquet,
        ".json": _squad,
        ".conll": _conll,
        ".conllu": _conll,
    }
    if kind_of_file not in readers:
        raise UserError(
            f"{path}: cannot tell what kind of file it is. Its name has to end in "
            f"{', '.join(readers)}, or in one of these and {', '.join(COMPRESSIONS)}."
        )
    for name in sorted({*_OWN_NAMES} & {*columns, *optional}):
        raise UserError(f'{path}: a column cannot be called "{name}"; rename it in the file.')
    own = {"answers": "answers", "is_impossible": "flag"} if kind_of_file == ".json" else {}
    own |= dict.fromkeys(columns, "words") if kind_of_file in _CONLL else {}
    kinds = {**(kinds or {}), **own}
    rows = [
        {
            column: convert(row[column], kinds.get(column, "text"), column, row["where"])
            for column in row
            if column not in _OWN_NAMES
        }
        | {
            column: convert(
                row["row"].get(column), kinds.get(column, "optional"), column, row["where"]
            )
            for column in optional
        }
        | {name: row[name] for name in _OWN_NAMES}
        for row in readers[kind_of_file](path, list(columns))
    ]
    if not rows:
        raise UserError(f"{path} holds no rows. Give a file with at least one.")
    return rows


def free_name(name: str, taken: Collection[str]) -> str:
    """`name`, or if it is `taken` the first of name_2, name_3, ... that is not."""
    number, free = 1, name
    while free in taken:
        number += 1
        free = f"{name}_{number}"
    return free


def _lines(path: str) -> list[str]:
    """The lines without their ends and without blank ones at the end."""
    lines = read_lines(path, "a table in UTF-8")
    while lines and not lines[-1].strip(" "):  # a line of tabs is a row of empty fields
        lines.pop()
    return lines


def _separated(path: str, columns: list[str]) -> Iterator[dict[str, Any]]:
    if extension(path) == ".csv":
        records = _csv_records(path)
    else:
        records = enumerate((line.split("\t") for line in _lines(path)), 1)
    numbered = [column.isdecimal() for column in columns]
    if any(numbered) and not all(numbered):
        raise ColumnError(
            f"{path}: columns {', '.join(map(repr, columns))} are partly names and "
            "partly numbers. Use names for a file whose first line has them, and "
            "numbers from 0 for one without."
        )
    header = None if columns and all(numbered) else next(records, (1, []))[1]
    places = [int(column) if header is None else _place(column, header, path) for column in columns]
    width = None if header is None else len(header)
    names = _names(header or [])
    for number, fields in records:
        if width is None:
            width, names = len(fields), [str(i) for i in range(len(fields))]
        if len(fields) != width:
            as_what = "the first line" if header is None else "the header"
            raise UserError(
                f"{path}:{number}: found {len(fields)} columns, and {as_what} has "
                f"{width}. Correct the line"
                + (
                    "; a text with a comma needs quotes."
                    if extension(path) == ".csv"
                    else "; a text cannot hold a tab or a line end."
                )
            )
        if max(places, default=0) >= width:
            raise ColumnError(
                f"{path}:{number}: there is no column {max(places)}; the line has "
                f"{width}, numbered from 0 to {width - 1}. Set data.columns to them."
            )
        yield {column: fields[place] for column, place in zip(columns, places)} | {
            "where": f"{path}:{number}",
            "row": dict(zip(names, fields)),
        }


def _names(header: list[str]) -> list[str]:
    names: list[str] = []
    for name in header:
        names.append(free_name(name, names))
    return names


def _place(column: str, header: list[str], path: str) -> int:
    n = header.count(column)
    if n != 1:
        raise ColumnError(
            f"{path}:1: {'no' if not n else n} columns are called {column!r}; the "
            f"header has {', '.join(map(repr, header)) or 'none'}. Set data.columns "
            'to names that it has, or to numbers ("0", "1") for a file without one.'
            + _separator_hint(header, path)
        )
    return header.index(column)


def _separator_hint(header: list[str], path: str) -> str:
    other = [mark for mark in ";\t,|" if len(header) == 1 and mark in header[0]]
    if not other:
        return ""
    return (
        f" It seems to have {other[0]!r} between its columns; commas belong there in .csv, "
        "tabs in .tsv."
    )


def _csv_records(path: str) -> Iterator[tuple[int, list[str]]]:
    """(number of its first line, fields); a quoted field may hold line ends."""
    text = re.sub(r"[\r\n][ \r\n]*\Z", "", read_text(path, "a table in UTF-8"))
    text = re.sub(r"\r\r+\n", "\r\n", text)  # written by a program with doubled line ends
    limit = csv.field_size_limit(1 << 30)  # the default of 128 kB is too small for long contexts
    try:
        reader = csv.reader(io.StringIO(text, newline=""), strict=True)
        records, number = [], 1
        for fields in reader:
            # A first line sep=, is for Excel; some programs quote it.
            if number > 1 or ",".join(fields).lower() != "sep=,":
                records.append((number, fields))
            number = reader.line_num + 1
    except csv.Error as e:
        raise UserError(
            f"{path}:{number}: not CSV ({e}). A field with a comma, a quote or a line "
            "end has to be in double quotes, quotes in it doubled."
        ) from None
    finally:
        csv.field_size_limit(limit)
    return iter(records)


def _jsonl(path: str, columns: list[str]) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(_lines(path), 1):
        # There may be byte order marks within concatenated files.
        if not line.strip(" "):
            continue
        row, where = _json(line.removeprefix("\ufeff"), path, number), f"{path}:{number}"
        if not isinstance(row, dict):
            raise UserError(f"{where}: found {describe(row)}; each line has to be a JSON object.")
        yield _record(row, columns, where)


def _record(row: dict, columns: list[str], where: str) -> dict[str, Any]:
    return {**{name: _member(row, name, where) for name in columns}, "where": where, "row": row}


def _json(text: str, path: str, first_line: int = 1) -> Any:
    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no JSON number")

    try:
        return json.loads(text, parse_constant=refuse)
    except (ValueError, RecursionError) as e:
        number = first_line + getattr(e, "lineno", 1) - 1
        raise UserError(
            f"{path}:{number}: not JSON ({e}); the text begins "
            f"{text[:60].strip()!r}. Correct the line."
        ) from None


def _member(row: dict, column: str, where: str) -> Any:
    if column not in row:
        raise ColumnError(
            f"{where}: no column {column!r}; found "
            f"{', '.join(map(repr, row)) or 'none'}. Set data.columns to names "
            "that the file has."
        )
    return row[column]


def _parquet(path: str, columns: list[str]) -> Iterator[dict[str, Any]]:
    import pyarrow as pa  # slow to import
    from pyarrow import parquet

    try:
        table = parquet.read_table(pa.BufferReader(read_bytes(path, "a Parquet file")))
    except pa.ArrowException as e:
        raise UserError(f"{path}: not Parquet ({e}). Restore the file.") from None
    for i, field in enumerate(table.schema):
        if pa.types.is_timestamp(field.type) or pa.types.is_date(field.type):
            table = table.set_column(i, field.name, table[i].cast(pa.string()))
    for number, row in enumerate(table.to_pylist(), 1):
        yield _record(row, columns, f"{path}:{number}")


def _squad(path: str, columns: list[str]) -> Iterator[dict[str, Any]]:
    for column in columns:
        _member(dict.fromkeys(_SQUAD), column, path)
    content = _json(read_text(path, "a JSON file in UTF-8"), path)
    for i, article in enumerate(_list(content, "data", path)):
        for j, paragraph in enumerate(_list(article, "paragraphs", f"{path}: data[{i}]")):
            place = f"{path}: data[{i}].paragraphs[{j}]"
            for k, question in enumerate(_list(paragraph, "qas", place)):
                where = f"{place}.qas[{k}]"
                if not isinstance(question, dict):
                    raise UserError(f"{where}: found {describe(question)}, not a question.")
                fields = {
                    "context": paragraph.get("context"),
                    "id": str(question.get("id", where)),
                    "question": question.get("question"),
                }
                if "answers" in columns:
                    fields["is_impossible"] = question.get("is_impossible", False)
                    fields["answers"] = (
                        [] if fields["is_impossible"] else _list(question, "answers", where)
                    )
                record = {
                    "id": fields["id"],
                    "title": article.get("title", ""),
                    "question": fields["question"],
                    "context": fields["context"],
                    **question,
                }
                yield {**fields, "where": where, "row": record}


def _list(value: Any, key: str, where: str) -> list:
    if not isinstance(value, dict) or not isinstance(value.get(key), list):
        raise UserError(
            f"{where}: no list {key!r}. A .json file has to be laid out as SQuAD's: "
            "data, paragraphs, qas, answers; other rows go into a .jsonl file."
        )
    return value[key]


def _conll(path: str, columns: list[str]) -> Iterator[dict[str, Any]]:
    return conll.read(path, _lines(path), columns)
