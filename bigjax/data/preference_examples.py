"""Preferences as token ids: prompts with their answers."""

from collections.abc import Iterator, Sequence
import dataclasses
from typing import Any, NamedTuple

import numpy as np

from bigjax.data import unknown
from bigjax.data.chat_template import ChatTemplate, Encoded
from bigjax.data.conversation_rows import sources_of
from bigjax.data.examples import check_lengths
from bigjax.data.preference_rows import ANSWERS
from bigjax.errors import UserError
from bigjax.plural import plural


@dataclasses.dataclass
class Answers:
    """n rows with k answers each: the tokens of prompts with their answers, at most seq_len.

    form: 'pairs', k = 2, the chosen answer first; 'ratings', k = 1, or 2 if each row brings an
    answer to another prompt. encoded: [n * k], the answers of row 0, of row 1, ...
    """

    form: str
    encoded: list[Encoded]
    source: np.ndarray  # int32 [n], of its source
    value: np.ndarray  # float32 [n]: the margin of a pair, the label of a rating
    reference: np.ndarray  # float32 [n, k]: log-probabilities; NaN without
    lines: list[str]  # for people, about rows that were cut or left out
    n_unknown: int = 0  # tokens of text that the tokenizer does not know
    n_text: int = 0  # tokens without special ones

    def __len__(self) -> int:
        return len(self.source)

    @property
    def k(self) -> int:
        return self.reference.shape[1]

    def arrays(self) -> Iterator[np.ndarray]:
        for one in self.encoded:
            yield from one
        yield from (self.source, self.value, self.reference)


def begin_of(one: Encoded) -> int:
    """The index of the first token of an answer."""
    return int(np.argmax(one.learned[1:])) + 1


class _Kept(NamedTuple):
    row: dict[str, Any]
    encoded: list[Encoded]


def encode(
    rows: Sequence[dict[str, Any]], data: Any, form: str, template: ChatTemplate
) -> tuple[list[dict[str, Any]], Answers]:
    """(the rows that are used, their tokens).

    A prompt with an answer may have data.seq_len tokens. With data.truncate the end of a longer
    answer is cut; a row whose prompt leaves no room for an answer, or whose two answers are then
    equal, is left out. Raises UserError, with the row's file and line, for a longer one without
    data.truncate, if no row is left, and as ChatTemplate.encode.
    """
    keys = ANSWERS[form]
    if form == "ratings" and not all("mismatched" in row for row in rows):
        keys = keys[:1]
    every = [
        {**row, "messages": [*row["messages"], row[key]]} for row in rows for key in keys
    ]  # of each row its answers
    encoded = template.encode(every, "last")
    k, limit = len(keys), data.seq_len
    n_given = 2 if form == "pairs" else 1  # an answer to another prompt may always be cut
    lengths = np.array([len(one.ids) for one in encoded], np.int64).reshape(-1, k)[:, :n_given]
    begins = np.array([begin_of(one) for one in encoded], np.int64).reshape(-1, k)
    if not data.truncate:
        _check_prompts(rows, begins, limit)
    longest = lengths.max(1, initial=0)
    cut = check_lengths(longest, rows, limit, data.truncate, "conversation")
    kept, n_full, n_equal = [], 0, 0
    for i, row in enumerate(rows):
        own = [Encoded(x.ids[:limit], x.learned[:limit]) for x in encoded[k * i : k * i + k]]
        full = begins[i].max() >= limit
        equal = form == "pairs" and np.array_equal(own[0].ids, own[1].ids)
        n_full, n_equal = n_full + full, n_equal + (equal and not full)
        if not (full or equal):
            kept.append(_Kept(row, own))
    if rows and not kept:
        raise UserError(
            f"{rows[0]['where']}: none of the {len(rows):,} prompts leaves room for an answer with "
            f"data.seq_len={limit}. Raise it."
        )
    lines = [cut] if cut else []
    what = f"of {len(rows):,} {plural(len(rows), 'row')} left out"
    if n_full:
        lines.append(f"{n_full:,} {what}: the prompt fills data.seq_len={limit}")
    if n_equal:
        lines.append(f"{n_equal:,} {what}: the answers are equal within data.seq_len={limit}")
    return [one.row for one in kept], _answers(kept, data, form, k, lines, template)


def _answers(kept: list[_Kept], data, form: str, k: int, lines, template) -> Answers:
    numbers = {name: i for i, name in enumerate(sources_of(data))}
    value = "margin" if form == "pairs" else "label"
    encoded = [one for part in kept for one in part.encoded]
    tokens = np.concatenate([np.zeros(0, np.int32), *(one.ids for one in encoded)])
    reference = [
        [np.nan if x is None else x for x in (part.row["reference"] + [None])[:k]] for part in kept
    ]
    return Answers(
        form,
        encoded,
        np.array([numbers.get(part.row.get("dataset"), 0) for part in kept], np.int32),
        np.array([part.row[value] for part in kept], np.float32),
        np.array(reference, np.float32).reshape(len(kept), k),
        lines,
        *unknown.count(template.tokenizer, tokens),
    )


def _check_prompts(rows: Sequence[dict[str, Any]], begins: np.ndarray, limit: int) -> None:
    """Raises UserError for a prompt that leaves no room for an answer."""
    full = np.flatnonzero(begins.max(1, initial=0) >= limit)
    if len(full):
        i = int(full[0])
        raise UserError(
            f"{rows[i]['where']}: the prompt has {begins[i].max():,} tokens with the template, and "
            f"with data.seq_len={limit} there is no room for an answer. Raise data.seq_len, or set "
            f"data.truncate=True to leave such rows out ({len(full):,} of {len(rows):,})."
        )


def check_reference(rows: Sequence[dict[str, Any]], answers: Answers, data: Any) -> None:
    """Raises UserError for a row without the log-probabilities of the reference."""
    keys = ANSWERS[answers.form]
    wrong = answers.k < len(keys) and len(rows) or np.isnan(answers.reference).any(1).sum()
    if wrong:
        complete = answers.k == len(keys)
        i = int(np.isnan(answers.reference).any(1).argmax()) if complete else 0
        names = ", ".join(repr(data.columns[f"reference_{key}"]) for key in keys)
        raise UserError(
            f"{rows[i]['where'] if rows else 'the data'}: task.reference='data' needs numbers in "
            f"the columns {names}; {wrong:,} of {len(rows):,} rows lack them. Write them with "
            "`bigjax score`, or set task.reference to a run."
        )
