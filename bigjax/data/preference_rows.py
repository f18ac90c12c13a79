"""Preferences: rows of JSON lines or Parquet, pairs of answers or rated answers, checked."""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import functools
import hashlib
import math
from typing import Any

from bigjax.data import conversation_rows
from bigjax.data.conversation_rows import (
    QUESTIONS,
    text_or_messages,
    tools_of,
    with_own_system,
    with_system,
)
from bigjax.data.store import SPLITS
from bigjax.data.values import describe
from bigjax.errors import UserError

FORMS = ("pairs", "ratings")
# The answers of a row: of a pair; of a rating the answer, and one to another prompt, if it has one.
ANSWERS = {"pairs": ("chosen", "rejected"), "ratings": ("completion", "mismatched")}


@dataclasses.dataclass(frozen=True)
class Columns:
    """The names of columns. A pair has chosen and rejected, a rating prompt, completion, label."""

    prompt: str = "prompt"  # text, or messages; pairs of complete conversations have none
    chosen: str = "chosen"  # text, or messages
    rejected: str = "rejected"
    completion: str = "completion"
    label: str = "label"  # true or false
    margin: str = "margin"  # optional, of pairs: by how much the chosen answer is better
    mismatched: str = "mismatched"  # optional, of ratings: an answer to another prompt
    tools: str = "tools"  # optional: the tools that a template describes
    # Optional log-probabilities by the reference, which `bigjax score` writes.
    reference_chosen: str = "reference_chosen"
    reference_rejected: str = "reference_rejected"
    reference_completion: str = "reference_completion"
    reference_mismatched: str = "reference_mismatched"


def read_parts(data: Any, form: str, names: Sequence[str] = SPLITS) -> dict[str, list]:
    """The rows of the splits `names`, see `read_rows`, with "dataset", the key of data.mixture.

    Raises UserError for a train split whose ratings are all the same.
    """
    parts = conversation_rows.split_parts(
        data, names, functools.partial(_read, data, form), "preferences"
    )
    labels = {row["label"] for row in parts.get("train", ())} if form == "ratings" else set()
    if len(labels) == 1:
        (label,) = labels
        raise UserError(
            f"{parts['train'][0]['where']}: all {len(parts['train']):,} ratings of the train data "
            f"are {str(label).lower()}. KTO needs desirable and undesirable answers: add rows "
            f"whose {data.columns.label!r} is {str(not label).lower()}."
        )
    return parts


def read_rows(path: str, data: Any, form: str) -> list[dict[str, Any]]:
    """The rows of a file.

    A row has "messages", the prompt; "chosen" and "rejected", or "completion" and if the file has
    it "mismatched", each the message of an assistant; "label", bool, of ratings; "margin", float,
    0 without, of pairs; "reference", the log-probabilities of its answers, None where they are
    missing; "tools"; "where"; "row", the complete record.
    """
    columns = data.columns
    make = _pair if form == "pairs" else _rating
    rows = []
    for one in conversation_rows.records(path, "preferences"):
        record, where = one["row"], one["where"]
        row = make(record, columns, where)
        row["messages"] = with_system(with_own_system(row["messages"], record), data)
        for key in ANSWERS[form]:
            if key in row:
                _check(row, key, columns[key], where)
        names = [columns[f"reference_{key}"] for key in ANSWERS[form] if key in row]
        row["reference"] = [_number(record.get(name), name, where) for name in names]
        tools = tools_of(record, columns.tools, where)
        rows.append({**row, "tools": tools, "where": where, "row": record})
    return rows


def _read(data: Any, form: str, path: str, source: str, part: str | None) -> list[dict[str, Any]]:
    if path == QUESTIONS:
        rows = [
            {**row, "messages": with_system(row["messages"], data)}
            for row in _of_questions(conversation_rows.questions(data), form)
            if part is None or row["part"] == part
        ]
    else:
        rows = read_rows(path, data, form)
    for row in rows:
        row["dataset"] = source
    return rows


def _pair(record: Mapping[str, Any], columns: Any, where: str) -> dict[str, Any]:
    if any(record.get(columns[key]) is None for key in ("chosen", "rejected")):
        raise _missing(record, where, f"{columns.chosen!r} and {columns.rejected!r}", columns)
    prompt = _prompt(record, columns, where)
    prompts, answers = [], {}
    for key in ("chosen", "rejected"):
        before, answers[key] = _split(record[columns[key]], prompt, columns[key], where)
        prompts.append(before)
    if prompts[0] != prompts[1]:
        raise UserError(
            f"{where}: {columns.chosen!r} and {columns.rejected!r} have different turns before "
            "their last answers. A pair has two answers to the same prompt: correct the row."
        )
    if answers["chosen"] == answers["rejected"]:
        raise UserError(
            f"{where}: {columns.chosen!r} and {columns.rejected!r} are equal, so neither is "
            "preferred. Correct the row, or remove it."
        )
    margin = _number(record.get(columns.margin), columns.margin, where)
    return {"messages": prompts[0], **answers, "margin": 0.0 if margin is None else margin}


def _rating(record: Mapping[str, Any], columns: Any, where: str) -> dict[str, Any]:
    if any(record.get(columns[key]) is None for key in ("completion", "label")):
        raise _missing(record, where, f"{columns.completion!r} and {columns.label!r}", columns)
    prompt = _prompt(record, columns, where)
    before, answer = _split(record[columns.completion], prompt, columns.completion, where)
    label = record[columns.label]
    if not isinstance(label, bool):
        raise UserError(
            f"{where}: {columns.label!r} holds {describe(label)}; it has to be true (desirable) or "
            "false (undesirable)."
        )
    row = {"messages": before, "completion": answer, "label": label}
    if record.get(columns.mismatched) is not None:
        value = record[columns.mismatched]
        row["mismatched"] = text_or_messages(value, "assistant", where, columns.mismatched)[-1]
    return row


def _missing(record: Mapping[str, Any], where: str, needed: str, columns: Any) -> UserError:
    return UserError(
        f"{where}: found the columns {', '.join(map(repr, record)) or 'none'}. A row needs "
        f"{needed}, and {columns.prompt!r} unless they are complete conversations. Set "
        "data.columns to the names that the file has."
    )


def _prompt(record: Mapping[str, Any], columns: Any, where: str) -> list[dict[str, Any]]:
    value = record.get(columns.prompt)
    return [] if value is None else text_or_messages(value, "user", where, columns.prompt)


def _split(
    value: Any, prompt: list[dict[str, Any]], column: str, where: str
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """(the turns before, the last answer) of an answer, or of a complete conversation."""
    own = text_or_messages(value, "assistant", where, column)
    system, rest = _without_system(own)
    given, without = _without_system(prompt)
    if system and given and system != given:
        raise UserError(
            f"{where}: the prompt and {column!r} have different system messages. Correct the row."
        )
    is_complete = bool(without) and rest[: len(without)] == without
    messages = [*(given or system), *rest] if is_complete else [*prompt, *own]
    if messages[-1]["role"] != "assistant":
        raise UserError(
            f"{where}: the last message of {column!r} is of the role {messages[-1]['role']!r}; it "
            "has to be an assistant's, the answer."
        )
    if len(messages) == 1:
        raise UserError(
            f"{where}: {column!r} is an answer without a prompt. Add the column of the prompt, or "
            "give the complete conversation as messages."
        )
    return messages[:-1], messages[-1]


def _without_system(messages: list[dict[str, Any]]) -> tuple[list, list]:
    """([the system message] or [], the others)."""
    n = bool(messages) and messages[0]["role"] == "system"
    return messages[:n], messages[n:]


def _check(row: Mapping[str, Any], key: str, column: str, where: str) -> None:
    if not (row[key]["content"].strip() or row[key].get("tool_calls")):
        raise UserError(
            f"{where}: the answer of {column!r} is empty. Give it content, or remove the row."
        )
    conversation_rows.check([*row["messages"], row[key]], where)


def _number(value: Any, column: str, where: str) -> float | None:
    """None if there is none. Raises UserError for anything but a finite number."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise UserError(
            f"{where}: {column!r} holds {describe(value)}; it has to be a finite number."
        )
    return float(value)


def _of_questions(rows: Iterator[dict[str, Any]], form: str) -> list[dict[str, Any]]:
    """Preferences about docstrings: the right first line is better than another function's, or
    than the right one with its words in another order. Which of these follows from a hash of the
    question. As ratings, half of the rows have the right line and half another one.
    """
    rows, made = [*rows], []
    titles: dict[str, list[str]] = {}  # of each split
    for row in rows:
        titles.setdefault(row["part"], []).append(row["messages"][-1]["content"])
    for row in rows:
        prompt, right = row["messages"][:-1], row["messages"][-1]["content"]
        digest = hashlib.blake2b(prompt[-1]["content"].encode(), digest_size=16, person=b"worse")
        u, v = (int.from_bytes(x, "little") for x in (digest.digest()[:8], digest.digest()[8:]))
        wrong = _shuffled(right, v) if u % 2 else _another(titles[row["part"]], right, v)
        if wrong == right:
            continue
        rest = {key: row[key] for key in ("tools", "where", "part")}
        answers = {"chosen": right, "rejected": wrong} if form == "pairs" else {}
        more: dict[str, Any] = {"margin": 0.0, "reference": [None, None]}
        if form == "ratings":
            label = bool(u // 2 % 2)
            answers = {"completion": right if label else wrong}
            more = {"label": label, "reference": [None]}
        messages = {key: {"role": "assistant", "content": x} for key, x in answers.items()}
        made.append({"messages": prompt, **messages, **more, **rest})
    return made


def _shuffled(text: str, seed: int) -> str:
    """Its words in the order of their hashes."""
    key = lambda item: hashlib.blake2b(f"{seed} {item}".encode(), digest_size=8).digest()
    return " ".join(word for _, word in sorted(enumerate(text.split()), key=key))


def _another(titles: Sequence[str], own: str, start: int) -> str:
    """The first one from index `start` on that is not `own`; `own` if there is none."""
    at = (titles[(start + i) % len(titles)] for i in range(len(titles)))
    return next((title for title in at if title != own), own)
