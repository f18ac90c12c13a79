"""CoNLL's columns: a token and its annotations on each line, a blank line between sentences."""

from collections.abc import Iterator, Sequence
import re
from typing import Any

from bigjax.data.values import convert
from bigjax.errors import UserError

NAMES = {"tokens": 0, "tags": -1}  # the columns that have a name; others are numbers from 0
_COMMENT = re.compile(r"# (newdoc|newpar)\b|# [\w.:-]+ = ")  # CoNLL-U's
# Ids in CoNLL-U of lines that are not words: tokens of several words, and elided words.
_NO_WORD = re.compile(r"[0-9]+-[0-9]+|[0-9]+\.[0-9]+")
_CONLL_U = ("ID", "FORM", "LEMMA", "UPOS", "XPOS", "FEATS", "HEAD", "DEPREL", "DEPS", "MISC")

_Sentence = list[tuple[int, list[str]]]  # (number of the line, its columns)


def read(path: str, lines: Sequence[str], columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The sentences of a file as `tables.read_table` gives rows: lists of `columns`, which are
    "tokens" (the first column), "tags" (the last one) or numbers from "0".

    Of a file whose first column numbers the words, as CoNLL-U's, words alone are read. Raises
    UserError, with the line, for one where that column would be the tokens, and for a line without
    one of the columns.
    """
    for column in columns:
        if column not in NAMES and not column.isdecimal():
            raise UserError(
                f"{path}: no column {column!r}; found 'tokens', 'tags'. Set data.columns to these, "
                'or to numbers ("0" is the first column).'
            )
    sentences = list(_sentences(lines))
    if _is_numbered(sentences):
        _refuse_ids(path, sentences[0][0], columns)
        words = ([x for x in sentence if not _NO_WORD.fullmatch(x[1][0])] for sentence in sentences)
        sentences = [sentence for sentence in words if sentence]
    for sentence in sentences:
        row = {column: _column(path, sentence, column) for column in columns}
        by_number = any(column.isdecimal() for column in columns)
        record = _record([fields for _, fields in sentence], by_number)
        yield row | {"where": f"{path}:{sentence[0][0]}", "row": record}


def _sentences(lines: Sequence[str]) -> Iterator[_Sentence]:
    sentence: _Sentence = []
    has_tabs = any("\t" in line for line in lines if not line.startswith("#"))
    for number, line in enumerate([*lines, ""], 1):
        line = line.rstrip(" \t")
        if not line or line.startswith("-DOCSTART-"):  # which may have no blank line before it
            if sentence:
                yield sentence
            sentence = []
        elif sentence or not _is_comment(line, has_tabs):
            # Not line.split(), which would split a token at U+00A0.
            fields = line.split("\t") if "\t" in line else re.split(" +", line.lstrip(" "))
            sentence.append((number, fields))


def _is_comment(line: str, has_tabs: bool) -> bool:
    """Whether a line is a comment of CoNLL-U. A token may also be "#"; its line has tabs."""
    if not line.startswith("#"):
        return False
    return "\t" not in line if has_tabs else bool(_COMMENT.match(line))


def _is_numbered(sentences: list[_Sentence]) -> bool:
    """Whether the first of three or more columns numbers the words of each sentence."""
    width = max((len(fields) for sentence in sentences for _, fields in sentence), default=0)
    several = width == len(_CONLL_U)  # else one sentence at least has several words
    for sentence in sentences:
        ids = [fields[0] for _, fields in sentence if not _NO_WORD.fullmatch(fields[0])]
        if not all(re.fullmatch("[0-9]{1,9}", i) for i in ids):
            return False
        first = int(ids[0]) if ids else 0
        if [int(i) for i in ids] != list(range(first, first + len(ids))):
            return False
        several |= len(ids) > 1
    return several and width > 2


def _refuse_ids(path: str, line: tuple[int, list[str]], columns: Sequence[str]) -> None:
    """UserError if `columns` do not say where the tokens, and the tags of CoNLL-U, are."""
    number, fields = line
    is_conll_u = len(fields) == len(_CONLL_U)
    if not ("tokens" in columns or is_conll_u and "tags" in columns):
        return
    if is_conll_u:
        raise UserError(
            f"{path}:{number}: the file is CoNLL-U, whose ten columns are {', '.join(_CONLL_U)}. "
            'Set data.columns.tokens="1" (FORM) and data.columns.tags="3" (UPOS), or to the '
            "numbers of other columns, or write a file of a token, a tab and its tag on each line."
        )
    raise UserError(
        f"{path}:{number}: the first of {len(fields)} columns ({' '.join(fields)[:60]!r}) numbers "
        'the words. Set data.columns.tokens to the number of the column with the words ("1" is the '
        "second), or remove the numbers from the file."
    )


def _column(path: str, sentence: _Sentence, column: str) -> list[str]:
    place = NAMES.get(column)
    if place is None:
        place = int(column)
    for number, fields in sentence:
        where = f"{path}:{number}"
        if column == "tags" and len(fields) < 2:
            raise UserError(
                f"{where}: found {fields[0]!r} without a tag. Each line has to "
                "be a token, a tab or space, and its tag in the last column."
            )
        if place >= len(fields):
            raise UserError(
                f"{where}: there is no column {place}; the line has {len(fields)}, numbered from 0 "
                f"to {len(fields) - 1}. Set data.columns to them, or correct the line."
            )
        convert(fields[place], "word", column, where)
    return [fields[place] for _, fields in sentence]


def _record(lines: list[list[str]], by_number: bool) -> dict[str, list[str]]:
    """A sentence's columns by name, or all by number. If its lines differ in width: only the first
    and the last column, or, by number, those that all lines have."""
    width, widest = min(map(len, lines)), max(map(len, lines))
    if by_number:
        names = list(map(str, range(width)))
    else:
        if 1 < width < widest:
            lines, width = [[fields[0], fields[-1]] for fields in lines], 2
        names = ["tokens", *map(str, range(1, width - 1)), *["tags"][: width - 1]]
    return {name: list(column) for name, column in zip(names, zip(*lines))}
