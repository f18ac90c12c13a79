"""Rated conversations: records of JSON lines, checked. docs/feedback.md describes the format."""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import datetime
import hashlib
import json
import math
import os
import pathlib
from typing import Any

from bigjax.data import conversation_rows
from bigjax.data.text_files import COMPRESSIONS, extension, read_bytes
from bigjax.data.values import describe
from bigjax.errors import UserError

FORMAT = 1  # of the records and of the manifest
_TEXTS = ("id", "comment", "edited", "user", "chosen", "rejected")
_KEYS = (*_TEXTS, "time", "model", "messages", "rating", "scale", "alternative", "consent")
_FREE = "metadata"  # a key for anything else
# Of a message, beside its role and content
_MESSAGE_KEYS = ("tool_calls", "tool_call_id", "name", "reasoning_content")


@dataclasses.dataclass(frozen=True)
class Record:
    """One rated answer, or one comparison of two answers to the same messages.

    content: the record as JSON in one form, from which its order and equality follow. prompt: the
    messages before the answer. answer: that of the model; '' for a comparison. rating: from -1 to
    1, None without one. chosen, rejected: of a comparison, or None.
    """

    content: str
    where: str
    id: str
    time: datetime.datetime
    model: Mapping[str, str]
    prompt: Sequence[Mapping[str, Any]]
    answer: str
    rating: float | None
    edited: str | None
    chosen: str | None
    rejected: str | None
    user: str | None
    consent: bool

    @property
    def best(self) -> str:
        """The answer that is worth most: as it was corrected, preferred or given."""
        return self.edited or self.chosen or self.answer

    @property
    def texts(self) -> list[str]:
        """All texts that a snapshot may have of it: those of calls of tools too."""
        own = [self.answer, self.edited, self.chosen, self.rejected]
        prompt = [{k: x for k, x in m.items() if k != "role"} for m in self.prompt]
        return [*_strings(prompt), *(text for text in own if text)]

    def order(self, seed: int) -> str:
        """A hash by which records are chosen and ordered, whatever the order of the files."""
        return hashlib.sha256(f"{seed} {self.content}".encode()).hexdigest()


@dataclasses.dataclass(frozen=True)
class Source:
    """A file of records. name: without its folder. n_bad: lines that were skipped."""

    name: str
    sha256: str
    records: list[Record]
    n_bad: int


def files_of(paths: Sequence[str]) -> list[pathlib.Path]:
    """The files that paths of files and folders name, each once; of a folder its .jsonl files.

    Raises UserError for a path that does not exist, and a folder without such files.
    """
    files: dict[str, pathlib.Path] = {}
    for name in paths:
        path = pathlib.Path(name)
        if not path.exists():
            raise UserError(f"{name} does not exist (looked from {os.getcwd()!r}). Check --input.")
        within = [path]
        if path.is_dir():
            within = sorted(p for p in path.rglob("*") if p.is_file() and _is_jsonl(p))
        elif not _is_jsonl(path):
            within = []
        if not within:
            raise UserError(
                f"{name}: rated conversations are read from .jsonl files, and these with "
                f"{', '.join(COMPRESSIONS)} after their names."
            )
        files |= {os.path.realpath(p): p for p in within}
    return [*files.values()]


def _is_jsonl(path: pathlib.Path) -> bool:
    return extension(path.name) == ".jsonl"


def read(path: pathlib.Path, skip_bad: bool) -> Source:
    """The records of a file. Raises UserError, with file and line, for a line that is not a valid
    record; with skip_bad it is left out and counted."""
    records, n_bad = [], 0
    content = read_bytes(path, "rated conversations, one JSON object on each line")
    for number, line in enumerate(content.split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            records.append(parse(line, f"{path}:{number}"))
        except UserError:
            if not skip_bad:
                raise
            n_bad += 1
    return Source(path.name, hashlib.sha256(path.read_bytes()).hexdigest(), records, n_bad)


def parse(line: bytes, where: str) -> Record:
    """The record of one line. Raises UserError, with its place, for one that is not valid."""
    value = _json(line, where)
    if unknown := {*value} - {*_KEYS, _FREE}:
        raise UserError(
            f"{where}: unknown key {min(unknown)!r}; known: {', '.join(_KEYS)}. Put what is your "
            f"own under {_FREE!r}."
        )
    for key in _TEXTS:
        if not isinstance(value.get(key), (str, type(None))):
            raise UserError(f"{where}: {key!r} is {describe(value[key])}; it has to be text.")
    for key in ("id", "time", "model", "messages"):
        if not value.get(key):
            raise UserError(f"{where}: the key {key!r} is missing or empty. Each record needs it.")
    if not isinstance(value.get("consent"), (bool, type(None))):
        raise UserError(f"{where}: 'consent' is {describe(value['consent'])}; true or false.")
    messages, compared = _messages(value["messages"], where), _compared(value, where)
    if compared:
        prompt, answer, (chosen, rejected) = messages, "", compared
        conversation_rows.check([*prompt, {"role": "assistant", "content": chosen}], where)
    else:
        prompt, answer = messages[:-1], messages[-1]["content"]
        if messages[-1]["role"] != "assistant" or not prompt:
            raise UserError(
                f"{where}: 'messages' has to end with the rated answer of the assistant, after at "
                "least one other message. A comparison has 'chosen' and 'rejected'."
            )
        conversation_rows.check(messages, where)
        if messages[-1].get("tool_calls"):
            raise UserError(
                f"{where}: the rated answer has 'tool_calls', which no file of a snapshot has room "
                "for. Rate the answer that follows the tools."
            )
        chosen, rejected = _alternative(value, answer, where)
    rating, edited = _rating(value, where), value.get("edited")
    if edited is not None and (compared or not edited.strip()):
        why = "a comparison has none" if compared else "it is empty"
        raise UserError(f"{where}: 'edited' cannot be used: {why}. Remove it.")
    if rating is None and edited is None and chosen is None:
        raise UserError(
            f"{where}: there is no judgement: give 'rating', 'edited', 'alternative', or 'chosen' "
            "and 'rejected'."
        )
    return Record(
        content=json.dumps(value, sort_keys=True, ensure_ascii=False),
        where=where,
        id=value["id"],
        time=parse_time(value["time"], f"{where}: 'time'"),
        model=_model(value["model"], where),
        prompt=prompt,
        answer=answer,
        rating=rating,
        edited=edited,
        chosen=chosen,
        rejected=rejected,
        user=value.get("user"),
        consent=bool(value.get("consent")),
    )


def parse_time(text: Any, what: str) -> datetime.datetime:
    """A date or time in ISO 8601, in UTC unless it says otherwise. Raises UserError."""
    try:
        time = datetime.datetime.fromisoformat(text)
    except (TypeError, ValueError):
        raise UserError(
            f"{what} is {text!r}; it has to be a time in ISO 8601, such as 2026-03-01T12:00:00Z."
        ) from None
    return time if time.tzinfo else time.replace(tzinfo=datetime.UTC)


def _json(line: bytes, where: str) -> dict[str, Any]:
    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no JSON number")

    try:
        text = line.decode("utf-8-sig")
        value = json.loads(text, parse_constant=refuse)
        text = json.dumps(value, ensure_ascii=False)
        text.encode()  # no lone surrogates
    except (ValueError, RecursionError) as e:
        raise UserError(
            f"{where}: not JSON in UTF-8 ({e}). Correct the line, or skip it with --skip_bad."
        ) from None
    if not isinstance(value, dict):
        raise UserError(f"{where}: found {describe(value)}; each line has to be a JSON object.")
    return value


def _messages(value: Any, where: str) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not value:
        raise UserError(f"{where}: 'messages' is {describe(value)}; it has to be a list.")
    for i, message in enumerate(value):
        ok = isinstance(message, dict) and isinstance(message.get("role"), str)
        if not ok or not isinstance(message.get("content"), str):
            raise UserError(
                f"{where}: message {i + 1} is {describe(message)}; it has to be like "
                '{"role": "user", "content": "..."}.'
            )
        known = ("role", "content", *_MESSAGE_KEYS)
        if unknown := {*message} - {*known}:
            raise UserError(
                f"{where}: message {i + 1} has the unknown key {min(unknown)!r}; known: "
                f"{', '.join(known)}. Remove it, or put it under {_FREE!r} of the record."
            )
    return value


def _strings(value: Any, free: bool = False) -> Iterator[str]:
    """All texts within JSON, also within JSON in a text. free: whether keys are texts too, as those
    of the arguments of a call are; other keys are of the format."""
    if isinstance(value, str):
        yield value
        if free:
            try:
                inner = json.loads(value)
            except (ValueError, RecursionError):
                return
            if isinstance(inner, (dict, list)):
                yield from _strings(inner, free)
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            if free:
                yield key
            yield from _strings(inner, free or key == "arguments")
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(inner, free)
    elif value is not None and not isinstance(value, bool):
        yield str(value)  # a number, such as a telephone's


def _model(value: Any, where: str) -> dict[str, str]:
    ok = isinstance(value, dict) and isinstance(value.get("name"), str) and value["name"]
    if not ok or not all(isinstance(x, str) for x in value.values()):
        raise UserError(
            f"{where}: 'model' is {describe(value)}; it has to be like "
            '{"name": "assistant", "checkpoint": "fingerprint"}.'
        )
    return value


def _rating(value: Mapping[str, Any], where: str) -> float | None:
    """The rating on a scale from -1 to 1."""
    rating, scale = value.get("rating"), value.get("scale")
    number = lambda x: isinstance(x, (int, float)) and not isinstance(x, bool) and math.isfinite(x)
    if rating is None:
        if scale is not None:
            raise UserError(f"{where}: 'scale' without 'rating'. Add the rating, or remove it.")
        return None
    if not number(rating):
        raise UserError(f"{where}: 'rating' is {describe(rating)}; it has to be a number.")
    if scale is None:
        if rating not in (-1, 1):
            raise UserError(
                f"{where}: 'rating' is {rating}; without 'scale' it is -1 or 1. For stars add "
                '"scale": [1, 5], the worst and the best rating.'
            )
        return float(rating)
    if not isinstance(scale, list) or len(scale) != 2 or not all(map(number, scale)):
        raise UserError(f"{where}: 'scale' is {describe(scale)}; it has to be like [1, 5].")
    low, high = scale
    if not low < high or not low <= rating <= high:
        raise UserError(
            f"{where}: 'rating' is {rating} on the scale {scale}; it has to be from the worst to "
            "the best, the worst first."
        )
    return 2 * (rating - low) / (high - low) - 1


def _compared(value: Mapping[str, Any], where: str) -> tuple[str, str] | None:
    """(chosen, rejected) of a comparison."""
    pair = value.get("chosen"), value.get("rejected")
    if pair == (None, None):
        return None
    return _pair(*pair, where)


def _alternative(
    value: Mapping[str, Any], answer: str, where: str
) -> tuple[str | None, str | None]:
    """(chosen, rejected) of an answer and its alternative."""
    other = value.get("alternative")
    if other is None:
        return None, None
    if not isinstance(other, dict) or not isinstance(other.get("preferred"), bool):
        raise UserError(
            f"{where}: 'alternative' is {describe(other)}; it has to be like "
            '{"content": "...", "preferred": true}.'
        )
    pair = other.get("content"), answer
    return _pair(*(pair if other["preferred"] else pair[::-1]), where)


def _pair(chosen: Any, rejected: Any, where: str) -> tuple[str, str]:
    for text in (chosen, rejected):
        if not isinstance(text, str) or not text.strip():
            raise UserError(
                f"{where}: one of two compared answers is missing or empty. Give both as text."
            )
    if chosen == rejected:
        raise UserError(f"{where}: the two compared answers are equal. Remove the record.")
    return chosen, rejected
