"""Conversations: rows of JSON lines or Parquet in the usual forms, checked, as messages."""

from collections.abc import Callable, Iterator, Mapping, Sequence
import dataclasses
import functools
import json
from typing import Any

from bigjax.data import docstrings, letters
from bigjax.data.store import SPLITS, check_fractions, split_of
from bigjax.data.tables import read_table
from bigjax.data.text_files import COMPRESSIONS, extension
from bigjax.data.values import describe
from bigjax.errors import UserError
from bigjax.json_text import shown

ROLES = ("system", "user", "assistant", "tool")
_SHAREGPT = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "observation": "tool",
    "tool": "tool",
}
_WEIGHTS = ("weight", "train")  # keys of messages by which others leave answers out of the loss
FILES = (".jsonl", ".parquet")
QUESTIONS = "docstrings:questions"


@dataclasses.dataclass(frozen=True)
class Columns:
    """The names of columns. A row has messages, conversations, or prompt and completion."""

    messages: str = "messages"  # [{"role": ..., "content": ...}, ...]
    conversations: str = "conversations"  # [{"from": ..., "value": ...}, ...], as ShareGPT
    prompt: str = "prompt"  # text, or messages
    completion: str = "completion"  # likewise
    tools: str = "tools"  # optional: the tools that a template describes


def read_parts(data: Any, names: Sequence[str] = SPLITS) -> dict[str, list[dict[str, Any]]]:
    """The rows of the splits `names`: "messages", "tools" (None without), "where", and
    "dataset", the key of data.mixture."""
    return split_parts(data, names, functools.partial(_read, data), "conversations")


def split_parts(
    data: Any,
    names: Sequence[str],
    read: Callable[[str, str, str | None], list[dict[str, Any]]],
    what: str,
) -> dict[str, list[dict[str, Any]]]:
    """The rows of the splits `names`.

    Rows are of data.train, or of all data.mixture. Without files of their own, 'valid' and 'test'
    are fractions of them by a hash of the first question, so that equal ones are in one split.

    read(path, source, part) -> the rows of a file or of a set of bigjax's own, the latter with
    "part", their split; part: the split that they are for, None for all. what: names the rows.
    """
    check_fractions(data.valid_fraction, data.test_fraction)
    sources = sources_of(data)
    own = {part: data[part] for part in ("valid", "test") if data[part]}
    if not sources and set(names) - set(own):
        raise UserError(
            f"data.train is empty. Set it to a {' or '.join(FILES)} file with {what}, to "
            f"{QUESTIONS!r}, or data.mixture to several of them."
        )
    parts: dict[str, list] = {part: [] for part in SPLITS}
    for part, path in own.items():
        if part in names:
            parts[part] = read(path, part, part)
    fractions = [0.0 if part in own else data[f"{part}_fraction"] for part in ("valid", "test")]
    if set(names) - set(own):
        for source, path in sources.items():
            for row in read(path, source, None):
                part = row.pop("part", None) or split_of(first_question(row), *fractions)
                if part not in own:
                    parts[part].append(row)
    return {part: parts[part] for part in names}


def sources_of(data: Any) -> dict[str, str]:
    """{name: what it is read from} of data.mixture, or of data.train alone."""
    if data.train and data.mixture:
        raise UserError("data.train and data.mixture are both set. Leave one of them empty.")
    if others := set(data.weights) - set(data.mixture):
        raise UserError(
            f"data.weights.{min(others)} is set, but data.mixture has no file of this name; it "
            f"has {', '.join(data.mixture) or 'none'}."
        )
    return dict(data.mixture) if data.mixture else {"train": data.train} if data.train else {}


def check(messages: Sequence[Mapping[str, Any]], where: str, answered: bool = True) -> None:
    """Raises UserError for messages that are no conversation with an answer, or if not `answered`
    for those that do not end where an assistant answers.

    A system message may only be the first. Two users' or two assistants' turns do not follow each
    other; a tool's turn follows an assistant's or another tool's. Content is text, and empty only
    beside calls of tools.
    """
    before = ""
    for i, message in enumerate(messages):
        role, at = message["role"], f"{where}: message {i + 1}"
        if role not in ROLES:
            raise UserError(f"{at} has the role {role!r}; allowed: {', '.join(ROLES)}.")
        if role == "system" and i:
            raise UserError(
                f"{at} is a system message; only the first message may be one. Move its text there."
            )
        if role == before and role in ("user", "assistant"):
            raise UserError(
                f"{at} has the role {role!r}, as the one before. Join two turns of one role, or "
                "correct the roles."
            )
        if role == "tool" and before not in ("assistant", "tool"):
            raise UserError(
                f"{at} is a tool's, after {before or 'nothing'}; it has to follow an assistant's "
                "message, which calls the tool."
            )
        if not (message["content"].strip() or message.get("tool_calls")):
            raise UserError(f"{at} ({role}) is empty. Give it content, or remove the row.")
        before = role
    if not answered:
        if before not in ("user", "tool"):
            raise UserError(
                f"{where}: the last message is of the role {before!r}; a prompt has to end with a "
                "user's or a tool's message, which the model answers. Remove the last message."
            )
        return
    if not any(message["role"] == "assistant" for message in messages):
        raise UserError(
            f"{where}: no message is an assistant's, so there is nothing to learn. Add its answer, "
            "or remove the row."
        )


def _read(data: Any, path: str, source: str, part: str | None) -> list[dict[str, Any]]:
    """The rows of a file or of docstrings; part: the split that it is for, None for all."""
    if path == QUESTIONS:
        rows = [row for row in questions(data) if part is None or row["part"] == part]
    elif path == letters.SORT:
        rows = letters.conversations(data.valid_fraction, data.test_fraction)
        rows = [row for row in rows if part is None or row["part"] == part]
    else:
        rows = [_row(row["row"], data, row["where"]) for row in records(path, "conversations")]
    for row in rows:
        row["messages"] = with_system(row["messages"], data)
        check(row["messages"], row["where"])
        row["dataset"] = source
    return rows


def records(path: str, what: str) -> list[dict[str, Any]]:
    """The rows of a file by `read_table`, with "row" and "where". Raises UserError for a file of
    another kind; what: the rows, for the message."""
    if path.startswith("docstrings:"):
        raise UserError(f"there is no set {path!r}; for {what} there is {QUESTIONS!r}.")
    if extension(path) not in FILES:
        raise UserError(
            f"{path}: {what} are read from {' or '.join(FILES)} files, and these with "
            f"{', '.join(COMPRESSIONS)} after their names."
        )
    rows = read_table(path, [])
    if ".parquet" in path:  # which gives each object the keys of all others
        for one in rows:
            one["row"] = {key: without_nulls(value) for key, value in one["row"].items()}
    return rows


def with_system(messages: list[dict[str, Any]], data: Any) -> list[dict[str, Any]]:
    """The messages after the system prompt of the config section `data`, if they have none."""
    if not data.system or messages and messages[0]["role"] == "system":
        return messages
    return [{"role": "system", "content": data.system}, *messages]


def first_question(row: Mapping[str, Any]) -> str:
    """The content of a user's first message, by whose hash a row is put into a split."""
    questions = [m["content"] for m in row["messages"] if m["role"] == "user"]
    return questions[0] if questions else row["messages"][-1]["content"]


def _row(record: Mapping[str, Any], data: Any, where: str) -> dict[str, Any]:
    columns = data.columns
    has = lambda key: record.get(columns[key]) is not None
    if has("messages"):
        messages = messages_of(record[columns.messages], where, columns.messages)
    elif has("conversations"):
        turns = _list(record[columns.conversations], where, columns.conversations)
        if isinstance(turns[0], Mapping) and turns[0].get("role") is not None:
            messages = messages_of(turns, where, columns.conversations)
        else:
            places = (f"{where}: message {i + 1}" for i in range(len(turns)))
            messages = [*map(_of_sharegpt, turns, places)]
    elif has("prompt") and has("completion"):
        messages = []
        for key, role in (("prompt", "user"), ("completion", "assistant")):
            messages += text_or_messages(record[columns[key]], role, where, columns[key])
    else:
        raise UserError(
            f"{where}: found the columns {', '.join(map(repr, record)) or 'none'}. A conversation "
            f"needs {columns.messages!r}, {columns.conversations!r}, or {columns.prompt!r} and "
            f"{columns.completion!r}. Set data.columns to the names that the file has."
        )
    messages = with_own_system(messages, record)
    tools = tools_of(record, columns.tools, where)
    return {"messages": messages, "tools": tools, "where": where}


def with_own_system(
    messages: list[dict[str, Any]], record: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """The messages after the system prompt of the record's column 'system', if they have none."""
    system = record.get("system")
    if not isinstance(system, str) or not system.strip() or messages[0]["role"] == "system":
        return messages
    return [{"role": "system", "content": system}, *messages]


def tools_of(record: Mapping[str, Any], column: str, where: str) -> list | None:
    """The tools of a record, in JSON or as a list; None without."""
    tools = record.get(column)
    if isinstance(tools, str):
        tools = _parsed(tools) if tools.strip() else None
    if tools is not None and not isinstance(tools, list):
        raise UserError(
            f"{where}: {column!r} holds {describe(record[column])}; it has to be a list of tools, "
            "each an object."
        )
    return tools or None


def text_or_messages(value: Any, role: str, where: str, column: str) -> list[dict[str, Any]]:
    """The messages of a column: a text is one message of this role."""
    one = [{"role": role, "content": value}] if isinstance(value, str) else value
    return messages_of(one, where, column)


def messages_of(value: Any, where: str, column: str) -> list[dict[str, Any]]:
    """The messages in a column, in the form of templates. Raises UserError for anything else."""
    messages = []
    for i, message in enumerate(_list(value, where, column)):
        at = f"{where}: message {i + 1}"
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise UserError(
                f'{at} is {describe(message)}; it has to be like {{"role": "user", "content": '
                '"..."}.'
            )
        _check_weight(message, at)
        kept = {key: x for key, x in message.items() if _is_for_templates(key, x)}
        content = _content(message.get("content"), at, "tool_calls" in kept)
        if "tool_calls" in kept:
            kept["tool_calls"] = [
                _call(call, at) for call in _list(kept["tool_calls"], at, "tool_calls")
            ]
        messages.append({"role": message["role"], "content": content, **kept})
    return messages


def _is_for_templates(key: str, value: Any) -> bool:
    """Whether a key of a message is passed on, such as tool_calls, name or reasoning_content."""
    if value is None or key in ("role", "content", *_WEIGHTS):
        return False
    try:
        json.dumps(value)
    except (TypeError, ValueError):  # such as a date of Parquet
        return False
    return True


def _check_weight(message: Mapping[str, Any], at: str) -> None:
    """Raises UserError for an answer that its row leaves out of the loss, which is not supported
    for one by one."""
    for key in _WEIGHTS:
        if message.get(key) is not None and not message[key]:
            raise UserError(
                f"{at} has {key!r}: {shown(message[key])}, an answer that is not learned. Set "
                "data.train_on='last' to learn the last answers alone, or use a chat template with "
                "{% generation %} around those that are learned; then remove the key."
            )


def _content(value: Any, at: str, may_be_empty: bool) -> str:
    if isinstance(value, list) and all(isinstance(x, Mapping) for x in value):
        texts = [x.get("text") for x in value if x.get("type", "text") == "text"]
        if len(texts) == len(value) and all(isinstance(text, str) for text in texts):
            return "".join(texts)
    if value is None and may_be_empty:
        return ""
    if not isinstance(value, str):
        raise UserError(f"{at}: its content is {describe(value)}; it has to be text.")
    return value


def _call(call: Any, at: str) -> Any:
    """A call of a tool, with its arguments as an object, as templates expect them."""
    if not isinstance(call, Mapping):
        raise UserError(f"{at}: a call of a tool is {describe(call)}; it has to be an object.")
    inner = call.get("function", call)
    if isinstance(inner, Mapping) and isinstance(inner.get("arguments"), str):
        parsed = _parsed(inner["arguments"])
        inner = {**inner, "arguments": parsed if isinstance(parsed, dict) else inner["arguments"]}
    return {**call, "function": inner} if "function" in call else dict(inner)


def _of_sharegpt(turn: Any, at: str) -> dict[str, Any]:
    if not isinstance(turn, Mapping) or not isinstance(turn.get("from"), str):
        raise UserError(
            f'{at} is {describe(turn)}; it has to be like {{"from": "human", "value": "..."}}.'
        )
    if turn["from"] not in _SHAREGPT:
        raise UserError(
            f'{at} has "from": {turn["from"]!r}; allowed: {", ".join(_SHAREGPT)}. Correct the row.'
        )
    _check_weight(turn, at)
    return {"role": _SHAREGPT[turn["from"]], "content": _content(turn.get("value"), at, False)}


def _list(value: Any, where: str, column: str) -> list:
    if not isinstance(value, list) or not value:
        raise UserError(
            f"{where}: {column!r} holds {describe(value)}; it has to be a list that is not empty."
        )
    return value


def _parsed(text: str) -> Any:
    """The JSON in a text, or the text."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def without_nulls(value: Any) -> Any:
    """The value without keys that are null."""
    if isinstance(value, Mapping):
        return {k: without_nulls(x) for k, x in value.items() if x is not None}
    return [*map(without_nulls, value)] if isinstance(value, list) else value


def questions(data: Any) -> Iterator[dict[str, Any]]:
    """'What does NAME do?' and the first line of its docstring, split as for pre-training."""
    fractions = data.valid_fraction, data.test_fraction
    for record in docstrings.records(data.cache_dir):
        title = record.doc.strip().partition("\n")[0].strip()
        if len(title.split()) > 1 and not record.name.startswith("help."):
            question = f"What does {record.name} do?"
            yield {
                "messages": [
                    {"role": "user", "content": question},
                    {"role": "assistant", "content": title},
                ],
                "tools": None,
                "where": f"docstring of {record.name}",
                "part": split_of(record.text, *fractions),
            }
