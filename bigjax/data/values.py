"""The values of labelled rows: from a file's values to text, lists and answers."""

from collections.abc import Iterable, Mapping
import json
import math
import re
from typing import Any

from bigjax.errors import UserError

# How programs write a missing value in text: pandas, NumPy, R, Excel, SQL, Hive, JSON, Python.
_MISSING = frozenset(
    "NaN nan NAN -NaN -nan NA N/A n/a #N/A #NA <NA> NaT null Null NULL None \\N "
    "1.#IND -1.#IND 1.#QNAN -1.#QNAN".split()
)
_SPACE = " \t\r\n\f\v"  # str.strip() would remove U+00A0 and similar ones, which texts may have


class ColumnError(UserError):
    """A column is missing, or holds values of another kind: it may be the wrong one."""


def convert(value: Any, kind: str, column: str, where: str) -> Any:
    """`value` as the `kind` that `tables.read_table` describes.

    Raises UserError, with `where`, if it is of another kind or missing.
    """
    if kind == "flag":
        return _flag(value, column, where)
    if kind == "answers":
        return _answers(value, where)
    if kind == "words":
        if not isinstance(value, (list, tuple)) or not value:
            raise UserError(
                f"{where}: column {column!r} holds {describe(value)}; it has to be a "
                "list of words or tags that is not empty."
            )
        return [convert(item, "word", column, where) for item in value]
    if kind == "names":
        names = re.split("[,;]", value) if isinstance(value, str) else value
        parts = [
            convert(part, "optional", column, where)
            for part in (names if isinstance(names, (list, tuple)) else [names])
        ]
        return [part for part in parts if part is not None]
    if kind == "optional":
        missing = _is_missing(value) or isinstance(value, str) and not value.strip()
        return None if missing else convert(value, "label", column, where)
    if _is_missing(value):
        raise UserError(
            f"{where}: column {column!r} holds {'null' if value is None else 'NaN'}: the value is "
            "missing. Fill it, or take the row out."
        )
    if kind in ("label", "word") and isinstance(value, (bool, int, float)):
        return _number(value, column, where)
    if not isinstance(value, str):
        raise ColumnError(
            f"{where}: column {column!r} holds {describe(value)}, not text. Write it in "
            "quotes, or name another column in data.columns."
        )
    if not value.strip(_SPACE if kind == "word" else None):
        raise UserError(f"{where}: column {column!r} is empty. Fill it, or take the row out.")
    return _utf8(value if kind == "text" else value.strip(_SPACE), column, where)


def missing_warning(rows: Iterable[Mapping[str, Any]], names: Iterable[str]) -> list[str]:
    """A line for people if values of rows under these names are 'NaN', 'null' or the like, which
    may be classes but mostly are missing values that were written as text; else none."""
    counts: dict[tuple[str, str], int] = {}
    first = ""
    for row in rows:
        for name in names:
            value = row.get(name)
            # As a set: this counts rows.
            parts = {value} if isinstance(value, str) else set(value or ())
            for part in sorted(parts):
                if part.strip() in _MISSING:
                    key = name.removesuffix("s"), part.strip()
                    counts[key] = counts.get(key, 0) + 1
                    first = first or row["where"]
    if not counts:
        return []
    values = ", ".join(
        f"{n:,} row{'s' * (n > 1)} with the {name} {value!r}" for (name, value), n in counts.items()
    )
    return [
        f"data: warning: {values} (the first at {first}): missing values are often written like "
        "this. They are used as they are; if they are missing, fill them in or remove the rows."
    ]


def _is_missing(value: Any) -> bool:
    # NaN, which is not itself, is how pandas writes a missing number.
    return value is None or isinstance(value, float) and value != value


def _number(value: bool | int | float, column: str, where: str) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(
            f"{where}: column {column!r} holds {value}, which is not a finite number. Correct it, "
            "or take the row out."
        )
    return str(int(value)) if isinstance(value, float) and value.is_integer() else json.dumps(value)


def _flag(value: Any, column: str, where: str) -> bool:
    if not isinstance(value, (bool, int)) and value is not None:
        raise UserError(f"{where}: {column!r} is {describe(value)}; it has to be true or false.")
    return bool(value)


def _utf8(text: str, column: str, where: str) -> str:
    try:
        text.encode()
        return text
    except UnicodeEncodeError as e:
        raise UserError(
            f"{where}: character {e.start} of column {column!r} is a lone surrogate, "
            "which has no UTF-8 form. Correct it."
        ) from None


def describe(value: Any) -> str:
    """A value in a few words, for a message."""
    if isinstance(value, (bool, int, float)):
        return f"the number {value}" if not isinstance(value, bool) else f"{value}"
    return {
        "list": "a list",
        "dict": "an object",
        "NoneType": "null",
        "str": f"the text {value!r:.40}",
    }.get(type(value).__name__, type(value).__name__)


def _answers(value: Any, where: str) -> list[tuple[str, int]]:
    if isinstance(value, str):
        value = [value] if value.strip() else []
    elif isinstance(value, dict) and isinstance(value.get("text"), list):
        starts = value.get("answer_start") or [-1] * len(value["text"])
        if not isinstance(starts, list) or len(starts) != len(value["text"]):
            raise UserError(
                f"{where}: the answers have {len(value['text'])} texts and another number of "
                "answer_start. Give one for each."
            )
        value = [
            {"text": text, "answer_start": start} for text, start in zip(value["text"], starts)
        ]
    if not isinstance(value, list):
        raise UserError(
            f"{where}: the answers are {describe(value)}; they have to be a list of "
            'texts or of {"text": ..., "answer_start": ...}, empty for no answer.'
        )
    answers = []
    for answer in value:
        text, start = answer, -1
        if isinstance(answer, dict):
            text, start = answer.get("text"), answer.get("answer_start", -1)
        if not isinstance(start, int) or isinstance(start, bool):
            raise UserError(
                f"{where}: answer_start is {describe(start)}; it has to be a number of "
                "characters from the start of the context."
            )
        answers.append((convert(text, "text", "answers", where), start))
    return answers
