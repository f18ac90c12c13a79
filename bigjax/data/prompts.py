"""Prompts for reinforcement: from the config section `data` to batches of token ids.

What a model writes after a prompt is sampled in training, and rewarded (docs/reinforcement.md).
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import json
import time
from typing import Any

import numpy as np

from bigjax.bounds import SHARE, at_least
from bigjax.data import chat_template, letters, text, tokenizers, unknown
from bigjax.data.batches import ExampleBatches, Rows
from bigjax.data.chat_template import ChatTemplate
from bigjax.data.conversation_rows import (
    FILES,
    QUESTIONS,
    check,
    messages_of,
    questions,
    records,
    tools_of,
    with_own_system,
    with_system,
)
from bigjax.data.examples import joined, offsets_of
from bigjax.data.files import LOCAL_CACHE
from bigjax.data.row_data import RowData, build_tokenizer, check_names, finish_line, log_warnings
from bigjax.data.store import SPLITS, check_fractions, split_of
from bigjax.data.text_files import COMPRESSIONS, extension
from bigjax.data.values import describe
from bigjax.errors import UserError
from bigjax.plural import plural

for_model = text.for_model

_FORMAT = 1  # raise it when the same rows would give other prompts


@dataclasses.dataclass(frozen=True)
class Columns:
    """The names of columns. A row has a prompt or messages; rewards get all the others by name."""

    prompt: str = "prompt"  # text, or messages
    messages: str = "messages"  # a conversation whose last turn is the user's
    tools: str = "tools"  # optional: the tools that a template describes
    answer: str = "answer"  # optional: the right answer, for evaluations by generation


@dataclasses.dataclass(frozen=True)
class Config:
    """The section `data` if its name is 'prompts'."""

    train: str = ""  # FILE (.jsonl, .parquet), letters:sort, docstrings:questions
    valid: str = ""  # '' = a fraction of train, by a hash of the prompt
    test: str = ""
    columns: Columns = Columns()
    system: str = ""  # the system prompt of conversations without one
    continued: bool = False  # texts are continued as they are, without a chat template
    chat_template: str = ""  # a Jinja file, 'plain' or 'chatml'; '' = the tokenizer's own
    tokenizer: tokenizers.Section = tokenizers.Section()
    seq_len: int = 512  # tokens of a prompt with its completion
    valid_fraction: float = 0.01  # of the rows of train, without data of its own
    test_fraction: float = 0.01
    cache_dir: str = LOCAL_CACHE  # trained tokenizers

    RANGES = {"seq_len": at_least(2), "valid_fraction": SHARE, "test_fraction": SHARE}
    MAY_CHANGE = ("cache_dir", "train", "valid", "test")
    PATHS = ("chat_template",)
    DATA_PATHS = ("train", "valid", "test")

    def __post_init__(self):
        if self.continued and (self.system or self.chat_template):
            raise UserError(
                "data.continued=True leaves texts as they are: data.system and data.chat_template "
                "have no effect. Leave them empty, or set data.continued=False."
            )


@dataclasses.dataclass
class Prompts:
    """n prompts of N tokens in all, concatenated."""

    tokens: np.ndarray  # int32 [N]
    offsets: np.ndarray  # int64 [n + 1]
    n_unknown: int = 0  # tokens of text that the tokenizer does not know
    n_text: int = 0  # tokens without special ones

    def __len__(self) -> int:
        return len(self.offsets) - 1


class PromptBatches(ExampleBatches):
    """The prompts of one split in batches: prompt int32 [B, prompt_len], prompt_length int32 [B],
    and example int32 [B], the index of its row in the split, -1 for padding."""

    def __init__(self, prompts: Prompts, pad_id: int, prompt_len: int, **options: Any) -> None:
        """options: see ExampleBatches. Raises UserError for less than a batch of data."""
        self._prompts, self._pad_id, self._prompt_len = prompts, pad_id, prompt_len
        fill = {"prompt": pad_id, "prompt_length": 1, "example": -1}
        super().__init__(len(prompts), fill=fill, unit="prompts", **options)

    def assemble(self, rows: Rows) -> dict[str, np.ndarray]:
        p, begins = self._prompts, self._prompts.offsets[rows.index]
        lengths = p.offsets[rows.index + 1] - begins
        prompt = np.full((len(begins), self._prompt_len), self._pad_id, np.int32)
        for row, begin, n in zip(prompt, begins, lengths):
            row[:n] = p.tokens[begin : begin + n]
        as_int32 = lambda x: x.astype(np.int32)
        return {
            "prompt": prompt,
            "prompt_length": as_int32(lengths),
            "example": as_int32(rows.index),
        }


class PromptData(RowData):
    """Prompts read by `load_prompts`, and as all RowData.

    template: None if texts are continued as they are. end_ids: the ids that end a completion.
    Each of rows(name) has "prompt", text or messages as in the file; "messages" or "text", which
    the model reads; "columns", all others by name; "where".
    """

    def __init__(
        self,
        tokenizer: tokenizers.Tokenizer,
        template: ChatTemplate | None,
        rows: dict[str, list],
        examples: dict[str, Prompts],
        data: Any,
        prompt_len: int,
    ) -> None:
        self.template, self._data, self._prompt_len = template, data, prompt_len
        self.end_ids = template.end_ids if template else tokenizer.end_ids
        self.end_id = self.end_ids[0]
        settings = [_FORMAT, tokenizer.fingerprint, template.fingerprint if template else ""]
        columns = {name: [row["columns"] for row in part] for name, part in rows.items()}
        settings.append(json.dumps(columns, sort_keys=True, default=str))
        super().__init__(tokenizer, rows, examples, settings, lambda p: (p.tokens, p.offsets))

    def batches(self, name: str, **options: Any) -> PromptBatches:
        sizes = self.tokenizer.pad_id, self._prompt_len
        return PromptBatches(self.examples[name], *sizes, name=name, **options)

    def inputs(self, name: str) -> list[list[int]]:
        """The token ids of each prompt, in the order of `rows`."""
        self.check_split(name)
        prompts = self.examples[name]
        return [part.tolist() for part in np.split(prompts.tokens, prompts.offsets[1:-1])]

    def references(self, name: str) -> list[str]:
        """The right answer to each prompt, as its tokens are decoded. Raises UserError if the rows
        have no column data.columns.answer."""
        self.check_split(name)
        column, out = self._data.columns.answer, []
        for row in self.rows(name):
            answer = row["columns"].get(column)
            if not isinstance(answer, str):
                raise UserError(
                    f"{row['where']}: there is no text in the column {column!r} "
                    "(data.columns.answer), which this evaluation compares with. Add it, or use "
                    "another evaluation."
                )
            out.append(answer)
        if not self.template:
            return out
        turns = [{"role": "assistant", "content": answer} for answer in out]
        rows = [
            {**row, "messages": [*row["messages"], turn]}
            for row, turn in zip(self.rows(name), turns)
        ]
        encoded = self.template.encode(rows, "last")
        return [self.tokenizer.decode(one.ids[one.learned]) for one in encoded]

    def prompt_ids(self, question: str) -> list[int]:
        """The token ids after which the model writes."""
        return _encoded([_chat({"prompt": question, "where": ""}, self._data)], self)[0]

    def summary(self) -> str:
        """Prompts of each split, one line each."""
        lines = []
        for name, p in self.examples.items():
            line = f"data: {name:5s} {len(p):9,} prompts {len(p.tokens):12,} tokens"
            if len(p):
                lengths = np.diff(p.offsets)
                line += f"; mean {lengths.mean():.1f}, longest {lengths.max()}"
                line += unknown.share(self.tokenizer, p.n_unknown, p.n_text)
            lines.append(line)
        return "\n".join(lines)


def load_prompts(
    data: Any,
    *,
    prompt_len: int,
    tokenizer: tokenizers.Tokenizer | None = None,
    log: Callable[[str], None] = print,
    names: Sequence[str] = SPLITS,
    python_path: str = "",
    template: str = "",
) -> PromptData:
    """Reads and encodes the splits `names` of `data.train`, `data.valid` and `data.test`.

    prompt_len: the number of tokens that a prompt may have. The others: as of
    conversations.load_conversations.

    Raises UserError for anything wrong with the config, the rows, the template or the tokenizer,
    and for a prompt of more than prompt_len tokens.
    """
    start = time.monotonic()
    names = check_names(names)
    needed = [name for name in SPLITS if name in names or name == "train" and tokenizer is None]
    rows = _read_parts(data, needed)
    if tokenizer is None:
        own = _texts(rows.get("train", []))
        tokenizer = build_tokenizer(data, own, "prompts", log, python_path)
    chat = None
    if not data.continued:
        chat = chat_template.read(data.chat_template, tokenizer, chat_template.DATE, template)
    rows = {name: rows[name] for name in names}
    reader = _Reader(tokenizer, chat)
    examples = {name: _examples(part, reader, prompt_len, data) for name, part in rows.items()}
    loaded = PromptData(tokenizer, chat, rows, examples, data, prompt_len)
    log(loaded.summary())
    log_warnings(data, loaded, [], lambda p: (), _texts, log)
    log(f"data: {finish_line(loaded, time.monotonic() - start)}")
    return loaded


@dataclasses.dataclass(frozen=True)
class _Reader:
    """What turns rows into token ids."""

    tokenizer: tokenizers.Tokenizer
    template: ChatTemplate | None


def _encoded(rows: Sequence[Mapping[str, Any]], reader: Any) -> list[list[int]]:
    """The token ids of rows. reader: a _Reader or PromptData."""
    if reader.template:
        return reader.template.prompts(rows)
    tokenizer = reader.tokenizer
    ids = [x.tolist() for x in tokenizer.encode_batch([row["text"] for row in rows])]
    return [[*tokenizer.leading_ids, *row] or [tokenizer.bos_id] for row in ids]


def _examples(rows: Sequence[dict], reader: _Reader, prompt_len: int, data: Any) -> Prompts:
    ids = _encoded(rows, reader)
    over = [i for i, row in enumerate(ids) if len(row) > prompt_len]
    if over:
        row, longest = rows[over[0]], max(map(len, ids))
        verb = "is" if len(over) == 1 else "are"
        raise UserError(
            f"{row['where']}: the prompt has {len(ids[over[0]]):,} tokens, and {prompt_len:,} are "
            f"allowed: data.seq_len={data.seq_len:,} less the {data.seq_len - prompt_len:,} of a "
            f"completion (task.max_new_tokens). {len(over):,} of {len(rows):,} "
            f"{plural(len(rows), 'prompt')} {verb} too long. Raise data.seq_len (the longest needs "
            f"{longest + data.seq_len - prompt_len:,}), lower task.max_new_tokens, or remove them."
        )
    tokens = joined([np.array(row, np.int32) for row in ids])
    counts = unknown.count(reader.tokenizer, tokens)
    return Prompts(tokens, offsets_of([len(row) for row in ids]), *counts)


def _read_parts(data: Any, names: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    check_fractions(data.valid_fraction, data.test_fraction)
    own = {part: data[part] for part in ("valid", "test") if data[part]}
    if not data.train and set(names) - set(own):
        raise UserError(
            f"data.train is empty. Set it to a {' or '.join(FILES)} file with prompts, to "
            f"{letters.SORT!r}, or to {QUESTIONS!r}."
        )
    parts: dict[str, list] = {part: [] for part in SPLITS}
    for part, path in own.items():
        if part in names:
            parts[part] = [row for row in _read(path, data) if row["part"] in ("", part)]
    fractions = [0.0 if part in own else data[f"{part}_fraction"] for part in ("valid", "test")]
    if set(names) - set(own):
        for row in _read(data.train, data):
            part = row["part"] or split_of(_text_of(row), *fractions)
            if part not in own:
                parts[part].append(row)
    return {part: parts[part] for part in names}


def _read(path: str, data: Any) -> list[dict[str, Any]]:
    """The rows of a file or of a built-in set; "part": their split, '' if it is not known."""
    if path == letters.SORT:
        return [
            {
                **_chat({"prompt": row["question"], "where": row["where"]}, data),
                "columns": {"answer": row["answer"]},
                "part": row["part"],
            }
            for row in letters.rows(data.valid_fraction, data.test_fraction)
        ]
    if path == QUESTIONS:
        return [
            {
                **_chat({"prompt": row["messages"][0]["content"], "where": row["where"]}, data),
                "columns": {"answer": row["messages"][1]["content"]},
                "part": row["part"],
            }
            for row in questions(data)
        ]
    if extension(path) not in FILES:
        raise UserError(
            f"{path}: prompts are read from {' or '.join(FILES)} files, and these with "
            f"{', '.join(COMPRESSIONS)} after their names, or from {letters.SORT!r} or "
            f"{QUESTIONS!r}."
        )
    return [_row(row["row"], data, row["where"]) for row in records(path, "prompts")]


def _row(record: Mapping[str, Any], data: Any, where: str) -> dict[str, Any]:
    names = data.columns
    key = next((k for k in (names.prompt, names.messages) if record.get(k) is not None), None)
    if key is None:
        raise UserError(
            f"{where}: found the columns {', '.join(map(repr, record)) or 'none'}. A row needs "
            f"{names.prompt!r} or {names.messages!r}. Set data.columns to the names of the file."
        )
    prompt = record[key]
    if not isinstance(prompt, str | list):
        raise UserError(
            f"{where}: {key!r} holds {describe(prompt)}; it has to be text, or messages such as "
            '[{"role": "user", "content": "..."}].'
        )
    if isinstance(prompt, list):
        prompt = messages_of(prompt, where, key)
    elif not prompt.strip():
        raise UserError(f"{where}: {key!r} is empty. Give it a text, or remove the row.")
    columns = {k: v for k, v in record.items() if k != key}
    tools = None if data.continued else tools_of(record, names.tools, where)
    row = {"prompt": prompt, "where": where, "tools": tools}
    return {**_chat(row, data, record), "columns": columns, "part": ""}


def _chat(row: dict[str, Any], data: Any, record: Mapping[str, Any] = {}) -> dict[str, Any]:
    """The row with what the model reads: "text", or "messages" for the chat template."""
    prompt, where = row["prompt"], row["where"]
    if data.continued:
        if not isinstance(prompt, str):
            raise UserError(
                f"{where}: the prompt is {describe(prompt)}, and with data.continued=True it has "
                "to be text. Set data.continued=False for conversations."
            )
        return {**row, "text": prompt}
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    messages = with_system(with_own_system(messages, record), data)
    check(messages, where, answered=False)
    return {**row, "messages": messages}


def _text_of(row: Mapping[str, Any]) -> str:
    """By whose hash a row is put into a split."""
    if "text" in row:
        return row["text"]
    users = [m["content"] for m in row["messages"] if m["role"] == "user"]
    return users[0] if users else row["messages"][-1]["content"]


def _texts(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What a tokenizer is trained on."""
    out = []
    for row in rows:
        chat = [f"{m['role'].capitalize()}: {m['content']}" for m in row.get("messages", ())]
        out += [row["text"]] if "text" in row else chat
    return out
