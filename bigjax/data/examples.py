"""From labelled rows to ids: `[CLS] a [SEP]` or `[CLS] a [SEP] b [SEP]`, and their labels."""

from collections.abc import Callable, Sequence
import dataclasses
import re
from typing import Any

import numpy as np

from bigjax.data import unknown
from bigjax.data.tokenizer import Tokenizer
from bigjax.errors import UserError

_MIN_SEQ_LEN = 8


@dataclasses.dataclass
class Examples:
    """n examples of N tokens in all, one behind the other. None where the kind has no such thing.

    An example is a row, but for "answer", where a long context is several windows.
    """

    tokens: np.ndarray  # int32 [N]
    offsets: np.ndarray  # int64 [n + 1]: example i is tokens[offsets[i]:offsets[i + 1]]
    second: np.ndarray  # int32 [n]: the column from which on the token type is 1
    row: np.ndarray  # int32 [n]: the index of its row
    label: np.ndarray | None = None  # [n]: int32 of classify, float32 of regress
    token_labels: np.ndarray | None = None  # tag, int32 [N]: at each word's first piece, else -1
    start: np.ndarray | None = None  # answer, int32 [n]: its first column; 0, [CLS], if none
    end: np.ndarray | None = None  # answer, int32 [n]: its last column
    words: np.ndarray | None = None  # tag: see words_of
    word_offsets: np.ndarray | None = None
    context_spans: list[np.ndarray] | None = None  # answer: see spans_of
    context: np.ndarray | None = None
    context_from: np.ndarray | None = None
    n_cut: int = 0  # rows whose text (answer: question) was cut, as data.truncate allows
    cut: str = ""  # that as a line for people; '' if there is none
    n_unknown: int = 0  # tokens that stand for text which the tokenizer does not know
    n_text: int = 0  # tokens without special ones

    def __len__(self) -> int:
        return len(self.row)

    @property
    def lengths(self) -> np.ndarray:
        """int64 [n]: tokens of each example, special ones included."""
        return np.diff(self.offsets)

    def words_of(self, i: int) -> np.ndarray:
        """tag: the column of each word's first piece, int32 [words]; fewer if it was cut."""
        return self.words[self.word_offsets[i] : self.word_offsets[i + 1]]

    def spans_of(self, i: int) -> np.ndarray:
        """answer: the characters [from, to) of the row's context at each column, int32
        [length, 2]; -1 where a column is not of the context."""
        spans = np.full((int(self.lengths[i]), 2), -1, np.int32)
        first = int(self.second[i])
        n = len(spans) - 1 - first
        begin = int(self.context_from[i])
        spans[first : first + n] = self.context_spans[self.context[i]][begin : begin + n]
        return spans


def encode_rows(
    rows: Sequence[dict[str, Any]],
    data: Any,
    kind: str,
    labels: Sequence[str],
    tokenizer: Tokenizer,
    *,
    with_labels: bool,
) -> Examples:
    """The examples of `rows`, as `rows.read_rows` gives them.

    Args:
      data: the config section `data`: seq_len, truncate, and for "answer" doc_stride.
      kind: "classify", "regress", "tag" or "answer".
      labels: the names of the classes or tags; an example has its label's index.
      with_labels: False for rows without: then label, token_labels, start and end are None.

    Raises UserError, with the row's file and line, for a text longer than data.seq_len unless
    data.truncate (then the longer part is cut from its end, and Examples.cut says how often), an
    unknown label, no number where "regress" needs one, and an answer that is not in its context.
    """
    if data.seq_len < _MIN_SEQ_LEN:
        raise UserError(
            f"data.seq_len is {data.seq_len}; labelled examples need at least "
            f"{_MIN_SEQ_LEN} tokens."
        )
    if kind == "answer":
        examples = _encode_answers(rows, data, tokenizer, with_labels)
    elif kind == "tag":
        examples = _encode_tags(rows, data, labels, tokenizer, with_labels)
    else:
        examples = _encode_texts(rows, data, tokenizer)
        if with_labels:
            examples.label = (
                _numbers(rows)
                if kind == "regress"
                else _indices([row["label"] for row in rows], labels, lambda i: rows[i]["where"])
            )
    examples.n_unknown, examples.n_text = unknown.count(tokenizer, examples.tokens)
    return examples


def texts_of(row: dict[str, Any]) -> list[str]:
    """The texts of a row: those of its columns, or its words."""
    if "tokens" in row:
        return [" ".join(row["tokens"])]
    return [row[name] for name in ("text", "pair", "question", "context") if name in row]


def unknown_warning(
    examples: Examples, rows: Sequence[dict[str, Any]], tokenizer: Tokenizer, what: str
) -> list[str]:
    """A line for people, where the tokenizer does not know many of the tokens, else none."""
    texts = (text for row in rows for text in texts_of(row))
    return unknown.warning(tokenizer, examples.n_unknown, examples.n_text, what, texts)


def _encode_texts(rows: Sequence[dict], data: Any, tokenizer: Tokenizer) -> Examples:
    seq_len = data.seq_len
    first = tokenizer.encode_batch([row["text"] for row in rows])
    second: list = [None] * len(rows)
    paired = [i for i, row in enumerate(rows) if "pair" in row]
    for i, ids in zip(paired, tokenizer.encode_batch([rows[i]["pair"] for i in paired])):
        second[i] = ids
    a = np.array([len(ids) for ids in first], np.int64)
    b = np.array([0 if ids is None else len(ids) for ids in second], np.int64)
    room = np.array([seq_len - (2 if ids is None else 3) for ids in second], np.int64)
    cut = _check_lengths(a + b - room + seq_len, rows, seq_len, data.truncate)
    a, b = _cut(a, b, room)
    cls, sep = np.array([tokenizer.bos_id]), np.array([tokenizer.eos_id])
    parts = []
    for x, y, n, m in zip(first, second, a.tolist(), b.tolist()):
        parts += (cls, x[:n], sep) if y is None else (cls, x[:n], sep, y[:m], sep)
    lengths = a + b + seq_len - room
    return Examples(
        _joined(parts),
        _offsets(lengths),
        (a + 2).astype(np.int32),
        np.arange(len(rows), dtype=np.int32),
        **cut,
    )


def _cut(a: np.ndarray, b: np.ndarray, room: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lengths that fit, as if tokens were taken off the longer part (b if equal) one by one."""
    fits = a + b <= room
    half_a, half_b = (room + 1) // 2, room // 2
    short_a, short_b = a <= half_b, b <= half_b
    cut_a = np.where(short_a, a, np.where(short_b, room - b, half_a))
    cut_b = np.where(short_a, room - a, np.where(short_b, b, half_b))
    return np.where(fits, a, cut_a), np.where(fits, b, cut_b)


def _encode_tags(
    rows: Sequence[dict], data: Any, labels: Sequence[str], tokenizer: Tokenizer, with_labels: bool
) -> Examples:
    seq_len = data.seq_len
    vocabulary = list(dict.fromkeys(word for row in rows for word in row["tokens"]))
    # A word of characters that the tokenizer drops has a position all the same.
    nothing = np.array(
        [tokenizer.pad_id if tokenizer.unk_id is None else tokenizer.unk_id], np.int32
    )
    pieces = {
        word: ids if len(ids) else nothing
        for word, ids in zip(vocabulary, tokenizer.encode_batch(vocabulary))
    }
    words = [[pieces[word] for word in row["tokens"]] for row in rows]
    lengths = np.array([2 + sum(map(len, row)) for row in words], np.int64)
    cut = _check_lengths(lengths, rows, seq_len, data.truncate)
    cls, sep = np.array([tokenizer.bos_id]), np.array([tokenizer.eos_id])
    parts, columns = [], []
    for row in words:
        begins = np.cumsum([1, *map(len, row)])[:-1]
        columns.append(begins[begins < seq_len - 1].astype(np.int32))
        parts += (cls, np.concatenate(row)[: seq_len - 2], sep)
    lengths = np.minimum(lengths, seq_len)
    examples = Examples(
        _joined(parts),
        _offsets(lengths),
        lengths.astype(np.int32),
        np.arange(len(rows), dtype=np.int32),
        words=_joined(columns),
        word_offsets=_offsets([len(row) for row in columns]),
        **cut,
    )
    if with_labels:
        place = np.repeat(examples.offsets[:-1], np.diff(examples.word_offsets)) + examples.words
        kept = np.diff(examples.word_offsets).tolist()
        tags = [tag for row, n in zip(rows, kept) for tag in row["tags"][:n]]
        examples.token_labels = np.full(len(examples.tokens), -1, np.int32)
        examples.token_labels[place] = _indices(
            tags,
            labels,
            lambda i: rows[int(np.searchsorted(examples.word_offsets, i, "right")) - 1]["where"],
        )
    return examples


def _encode_answers(
    rows: Sequence[dict], data: Any, tokenizer: Tokenizer, with_labels: bool
) -> Examples:
    if not hasattr(tokenizer, "encode_with_offsets"):
        raise UserError(
            f"answers need a tokenizer that knows where its pieces stand in the text: "
            f'data.tokenizer.kind="wordpiece", not "{tokenizer.kind}".'
        )
    most = data.seq_len // 2 - 3  # at least half is the context's
    questions = tokenizer.encode_batch([row["question"] for row in rows])
    cut = _check_lengths(
        np.array([len(ids) + 3 for ids in questions], np.int64),
        rows,
        most + 3,
        data.truncate,
        "question",
        ", which may take half of data.seq_len,",
    )
    unique = {context: i for i, context in enumerate(dict.fromkeys(r["context"] for r in rows))}
    contexts = tokenizer.encode_with_offsets(list(unique))
    cls, sep = np.array([tokenizer.bos_id]), np.array([tokenizer.eos_id])
    parts, table = [], []
    for i, (row, question) in enumerate(zip(rows, questions)):
        question, which = question[:most], unique[row["context"]]
        ids, spans = contexts[which]
        answer = _answer_tokens(row, spans) if with_labels else None
        room, first = data.seq_len - len(question) - 3, len(question) + 2
        for begin in _windows(len(ids), room, data.doc_stride):
            n = min(room, len(ids) - begin)
            parts += (cls, question, sep, ids[begin : begin + n], sep)
            inside = answer is not None and begin <= answer[0] and answer[1] < begin + n
            start, end = (place - begin + first for place in answer) if inside else (0, 0)
            table.append((first + n + 1, first, i, start, end, which, begin))
    columns = np.array(table, np.int32).reshape(-1, 7).T
    return Examples(
        _joined(parts),
        _offsets(columns[0]),
        columns[1],
        columns[2],
        start=columns[3] if with_labels else None,
        end=columns[4] if with_labels else None,
        context_spans=[spans for _, spans in contexts],
        context=columns[5],
        context_from=columns[6],
        **cut,
    )


def _windows(n: int, room: int, stride: int) -> list[int]:
    """Where each window of `room` tokens begins, so that together they cover `n`."""
    step = max(1, min(stride, room // 2))
    return [0, *range(step, max(0, n - room) + step, step)] if n > room else [0]


def _answer_tokens(row: dict, spans: np.ndarray) -> tuple[int, int] | None:
    """The first and last token of the context that the (first) answer touches."""
    if not row["answers"]:
        return None
    text, start = row["answers"][0]
    start += len(text) - len(text.lstrip())
    text = text.strip()
    found = [match.start() for match in re.finditer(re.escape(text), row["context"])]
    if found:
        begin = min(found, key=lambda place: abs(place - start)) if start >= 0 else found[0]
        touched = np.flatnonzero((spans[:, 1] > begin) & (spans[:, 0] < begin + len(text)))
        if len(touched):
            return int(touched[0]), int(touched[-1])
    raise UserError(
        f"{row['where']}: the answer {text[:60]!r} is not in its context. It has to "
        "be there word for word; no answer is an empty list."
    )


def _check_lengths(
    lengths: np.ndarray,
    rows: Sequence[dict],
    limit: int,
    truncate: bool,
    what: str = "text",
    remark: str = "",
) -> dict[str, Any]:
    """n_cut and cut of Examples. UserError if one is too long and truncate is False."""
    over = np.flatnonzero(lengths > limit)
    if len(over) and not truncate:
        i = int(over[0])
        raise UserError(
            f"{rows[i]['where']}: the {what}{remark} is {lengths[i]:,} tokens long and {limit:,} "
            f"are allowed, special ones included; {len(over):,} of {len(rows):,} are too long. Set "
            "data.truncate=True to cut them at their end, or raise data.seq_len (the longest has "
            f"{lengths.max():,})."
        )
    return {
        "n_cut": len(over),
        "cut": ""
        if not len(over)
        else (
            f"{len(over):,} of {len(rows):,} {what}s are cut to {limit:,} tokens (data.truncate)"
        ),
    }


def _indices(
    names: Sequence[str], labels: Sequence[str], where: Callable[[int], str]
) -> np.ndarray:
    """int32: the index of each name in `labels`; where(i) says whose it is."""
    table = {label: i for i, label in enumerate(labels)}
    found = np.array([table.get(name, -1) for name in names], np.int32)
    unknown = np.flatnonzero(found < 0)
    if len(unknown):
        i = int(unknown[0])
        shown = ", ".join(map(repr, labels[:20])) + (", ..." if len(labels) > 20 else "")
        raise UserError(
            f"{where(i)}: the label {names[i]!r} is not one of the {len(labels)} "
            f"known ones: {shown or 'none'}. Correct it, or give the training data an "
            "example of it."
        )
    return found


def _numbers(rows: Sequence[dict]) -> np.ndarray:
    found = np.zeros(len(rows), np.float32)
    for i, row in enumerate(rows):
        try:
            number = float(row["label"])
        except ValueError:
            number = float("nan")
        if not abs(number) < 3e38:  # of float32; false for nan too
            raise UserError(
                f"{row['where']}: the label {row['label']!r} is not a number, and "
                "regress needs one. Correct it, or use the task for classes."
            )
        found[i] = number
    return found


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.zeros(0, np.int32), *parts]).astype(np.int32)


def _offsets(lengths: Sequence[int] | np.ndarray) -> np.ndarray:
    return np.cumsum([0, *lengths], dtype=np.int64)
