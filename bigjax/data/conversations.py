"""Conversations: from the config section `data` to batches of next-token rows with weights."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import time
from typing import Any

import numpy as np

from bigjax.bounds import POSITIVE, SHARE, at_least
from bigjax.data import chat_template, text, tokenizers, unknown
from bigjax.data.batches import ExampleBatches, Rows
from bigjax.data.chat_template import TRAIN_ON, ChatTemplate
from bigjax.data.conversation_rows import Columns, read_parts, sources_of, with_system
from bigjax.data.examples import check_lengths, joined, offsets_of
from bigjax.data.files import LOCAL_CACHE
from bigjax.data.labelled_batches import ranges, scatter
from bigjax.data.row_data import RowData, build_tokenizer, check_names, finish_line, log_warnings
from bigjax.data.row_plan import plan_packed, plan_rows, shuffled
from bigjax.data.store import SPLITS
from bigjax.errors import UserError
from bigjax.plural import plural

for_model = text.for_model

_FORMAT = 1  # raise it when the same rows would give other examples


@dataclasses.dataclass(frozen=True)
class Config:
    """The section `data` if its name is 'conversations'."""

    train: str = ""  # FILE (.jsonl, .parquet), docstrings:questions
    # NAME: FILE, several of them in place of train
    mixture: dict[str, str] = dataclasses.field(default_factory=dict)
    # NAME: its share of the rows in training, relative to the others; 1 by default
    weights: dict[str, float] = dataclasses.field(default_factory=dict)
    valid: str = ""  # '' = a fraction of train, by a hash of the first question
    test: str = ""
    columns: Columns = Columns()
    system: str = ""  # the system prompt of conversations without one
    chat_template: str = ""  # a Jinja file, 'plain' or 'chatml'; '' = the tokenizer's own
    train_on: str = "all"  # answers that are learned: all, or the last of each conversation
    tokenizer: tokenizers.Section = tokenizers.Section()
    seq_len: int = 512  # tokens of a row
    packing: bool = True  # short conversations share rows
    truncate: bool = False  # leave out the last turns of longer ones, else refuse them
    valid_fraction: float = 0.01  # of the rows of train, without data of its own
    test_fraction: float = 0.01
    cache_dir: str = LOCAL_CACHE  # trained tokenizers

    RANGES = {
        "seq_len": at_least(8),
        "weights": POSITIVE,
        "valid_fraction": SHARE,
        "test_fraction": SHARE,
    }
    MAY_CHANGE = ("cache_dir", "train", "mixture.*", "valid", "test")
    PATHS = ("chat_template",)
    DATA_PATHS = ("train", "mixture.*", "valid", "test")

    def __post_init__(self):
        if self.train_on not in TRAIN_ON:
            raise UserError(f"data.train_on is {self.train_on!r}; allowed: {', '.join(TRAIN_ON)}.")


@dataclasses.dataclass
class Chats:
    """n conversations of N tokens in all, concatenated."""

    tokens: np.ndarray  # int32 [N]
    learned: np.ndarray  # bool [N], what the assistant writes
    offsets: np.ndarray  # int64 [n + 1]
    source: np.ndarray  # int32 [n], of its source
    truncated: list[str]  # lines for people about turns and rows that were left out
    n_unknown: int = 0  # tokens of text that the tokenizer does not know
    n_text: int = 0  # tokens without special ones

    def __len__(self) -> int:
        return len(self.source)

    def last_answer(self, i: int) -> np.ndarray:
        """The tokens of the last answer of a conversation, with its end token."""
        part = slice(self.offsets[i], self.offsets[i + 1])
        tokens, learned = self.tokens[part], self.learned[part]
        end = int(np.flatnonzero(learned)[-1]) + 1
        others = np.flatnonzero(~learned[:end])
        return tokens[others[-1] + 1 if len(others) else 0 : end]


class ChatBatches(ExampleBatches):
    """The conversations of one split in batches of next-token rows.

    With packing a row holds several conversations of one source, distinguished by their segments;
    which ones is planned once, in training on shuffled conversations. Without it a row holds one.

    Batches, with B rows and T = seq_len: inputs and targets int32 [B, T]; weights float32 [B, T],
    1 where the target is learned; with packing segment_ids and positions int32 [B, T]: 1, 2, ...
    along the row, 0 on padding; from 0 on in each conversation.

    Attributes: `padding`, the fraction of the tokens that is padding; and as all ExampleBatches.
    """

    def __init__(
        self,
        chats: Chats,
        sources: Sequence[str],
        weights: Mapping[str, float],
        pad_id: int,
        seq_len: int,
        batch_size: int,
        seed: int = 0,
        packing: bool = True,
        shuffle: bool = True,
        name: str = "train",
    ) -> None:
        """sources: the names of those that chats.source counts. weights: of some of them, see
        ExampleBatches; 1 by default. Raises UserError for less than a batch of data."""
        self.chats, self.seq_len, self.packing, self._pad_id = chats, seq_len, packing, pad_id
        self._lengths = np.diff(chats.offsets) - 1  # the last token is only a target
        plans, starts, sizes, n_rows = [], [np.zeros(1, np.int64)], {}, 0
        for number, source in enumerate(sources):
            which = np.flatnonzero(chats.source == number)
            if not len(which):
                continue
            order = shuffled(len(which), seed) if shuffle else np.arange(len(which))
            lengths = self._lengths[which]
            plan, offsets = (
                plan_packed(lengths, order, seq_len)[:2]
                if packing
                else plan_rows(lengths, order, seq_len, 1)
            )
            starts.append(offsets[1:] + starts[-1][-1])
            plans.append(which[plan])
            sizes[source] = len(offsets) - 1
        self._plan, self._row_offsets = joined(plans).astype(np.int64), np.concatenate(starts)
        n_rows = len(self._row_offsets) - 1
        self._first_rows = offsets_of([*sizes.values()])  # of each source
        packed = f" (packed: {len(chats):,} conversations)" if packing else ""
        super().__init__(
            sizes,
            batch_size,
            seed,
            shuffle,
            name,
            weights={source: weights.get(source, 1.0) for source in sizes},
            fill=dict.fromkeys(("inputs", "targets"), pad_id),
            unit=f"rows of {seq_len} tokens{packed}",
            remedy="Lower train.batch_size to that, "
            + ("lower data.seq_len or set data.packing=False, " if packing else "")
            + "or give more data.",
        )
        self.n_examples = len(chats)
        self.padding = 1.0 - float(self._lengths.sum()) / (n_rows * seq_len)
        learned = float(chats.learned.sum()) / max(len(chats.learned), 1)
        self.note = f"{self.padding:.1%} of the tokens are padding, {learned:.1%} of others learned"

    def examples_at(self, step: int) -> list[str]:
        source, index = self._order(self._indices(step, None))
        rows = self._first_rows[source] + index
        return [f"{self.name}:{i}" for row in rows for i in self._examples_of(row)]

    def _examples_of(self, row: int) -> np.ndarray:
        return self._plan[self._row_offsets[row] : self._row_offsets[row + 1]]

    def assemble(self, rows: Rows) -> dict[str, np.ndarray]:
        chosen = self._first_rows[rows.source] + rows.index
        begins = self._row_offsets[chosen]
        counts = self._row_offsets[chosen + 1] - begins
        row = np.repeat(np.arange(len(counts)), counts)  # of each conversation
        slot = ranges(counts)
        which = self._plan[np.repeat(begins, counts) + slot]
        lengths = self._lengths[which]
        before = np.append(np.cumsum(lengths) - lengths, 0)
        column = before[:-1] - np.repeat(before[np.cumsum(counts) - counts], counts)
        inside = ranges(lengths)
        at = np.repeat(row, lengths), np.repeat(column, lengths) + inside
        token = np.repeat(self.chats.offsets[which], lengths) + inside
        shape, chats = (len(counts), self.seq_len), self.chats
        batch = {
            "inputs": scatter(shape, self._pad_id, at, chats.tokens[token]),
            "targets": scatter(shape, self._pad_id, at, chats.tokens[token + 1]),
            "weights": scatter(shape, 0, at, chats.learned[token + 1], np.float32),
        }
        if self.packing:
            batch["segment_ids"] = scatter(shape, 0, at, np.repeat(slot + 1, lengths))
            batch["positions"] = scatter(shape, 0, at, inside)
        return batch


class ChatData(RowData):
    """Conversations read by `load_conversations`: their `template`, and as all RowData.

    end_id: the token that ends an answer.
    """

    def __init__(
        self,
        template: ChatTemplate,
        rows: dict[str, list],
        examples: dict[str, Chats],
        data: Any,
    ) -> None:
        self.template, self._data = template, data
        self.end_id, tokenizer = template.end_ids[0], template.tokenizer
        self._sources = [*sources_of(data)]
        settings = [_FORMAT, tokenizer.fingerprint, template.fingerprint, data.seq_len]
        settings += [data.train_on, sorted(data.weights.items())]
        arrays = lambda c: (c.tokens, c.learned, c.offsets, c.source)
        super().__init__(tokenizer, rows, examples, settings, arrays)

    def batches(self, name: str, **options: Any) -> ChatBatches:
        d, chats = self._data, self.examples[name]
        names = self._sources if name == "train" else [name]
        if name != "train":  # of all sources, each conversation once
            chats = dataclasses.replace(chats, source=np.zeros_like(chats.source))
        more = dict(packing=d.packing, name=name, **options)
        sizes = self.tokenizer.pad_id, d.seq_len
        return ChatBatches(chats, names, d.weights, *sizes, **more)

    def inputs(self, name: str) -> list[list[int]]:
        """The token ids before the last answer of each conversation, in the order of `rows`."""
        return self.template.prompts(
            [{**row, "messages": row["messages"][:-1]} for row in self.rows(name)]
        )

    def references(self, name: str) -> list[str]:
        """The last answer of each conversation, as its tokens are decoded."""
        self.check_split(name)
        chats = self.examples[name]
        return [self.tokenizer.decode(chats.last_answer(i)) for i in range(len(chats))]

    def prompt_ids(self, question: str) -> list[int]:
        """The token ids before the answer to a question."""
        return self.template.prompt(
            with_system([{"role": "user", "content": question}], self._data)
        )

    def summary(self) -> str:
        """Conversations and tokens of each split, one line each."""
        lines = []
        for name, c in self.examples.items():
            line = f"data: {name:5s} {len(c):9,} conversations {len(c.tokens):12,} tokens"
            if len(c):
                lengths = np.diff(c.offsets)
                line += f", {c.learned.mean():.1%} learned; mean {lengths.mean():.1f}, longest "
                line += f"{lengths.max()}" + unknown.share(self.tokenizer, c.n_unknown, c.n_text)
            lines.append(line)
        return "\n".join(lines)


def load_conversations(
    data: Any,
    *,
    tokenizer: tokenizers.Tokenizer | None = None,
    log: Callable[[str], None] = print,
    names: Sequence[str] = SPLITS,
    python_path: str = "",
    template: str = "",
) -> ChatData:
    """Reads and encodes the splits `names` of `data.train` or `data.mixture`, `data.valid` and
    `data.test`.

    Args:
      data: the config section `data`.
      tokenizer: used instead of the config's (a trained model has its own); that one is trained
        on the training rows, and cached, if its path is empty.
      log: gets a few lines for people.
      names: the splits to load.
      python_path: of the config, for a tokenizer of one's own.
      template: the content of data.chat_template, if it is known.

    Raises UserError for anything wrong with the config, the rows, the template or the tokenizer.
    """
    start = time.monotonic()
    names = check_names(names)
    needed = [name for name in SPLITS if name in names or name == "train" and tokenizer is None]
    rows = read_parts(data, needed)
    if tokenizer is None:
        own = _texts(rows.get("train", []))
        tokenizer = build_tokenizer(data, own, "conversations", log, python_path)
    date = chat_template.DATE
    chat = chat_template.read(data.chat_template, tokenizer, date, template)
    if chat.turn_end is None:
        log(
            f"data: warning: {chat.name} writes no special token after an answer, so the model "
            "will not learn to end one"
        )
    encoded = {name: encode(rows[name], data, chat) for name in names}
    kept, examples = ({k: x[i] for k, x in encoded.items()} for i in (0, 1))
    loaded = ChatData(chat, kept, examples, data)
    log(loaded.summary())
    log_warnings(data, loaded, [], lambda c: c.truncated, _texts, log)
    log(f"data: {finish_line(loaded, time.monotonic() - start)}")
    return loaded


def _texts(rows: Sequence[dict[str, Any]]) -> list[str]:
    return [f"{m['role'].capitalize()}: {m['content']}" for row in rows for m in row["messages"]]


def encode(
    rows: Sequence[dict[str, Any]], data: Any, template: ChatTemplate
) -> tuple[list[dict[str, Any]], Chats]:
    """(the rows that are used, without the turns that are left out; their tokens).

    A conversation may have data.seq_len + 1 tokens, as the last one is only predicted. With
    data.truncate a longer one loses its last turns, up to an answer that fits with all before it;
    if none does, the row is left out. Raises UserError, with the row's file and line, for a longer
    one without data.truncate, and as ChatTemplate.encode.
    """
    limit, numbers = data.seq_len + 1, {name: i for i, name in enumerate(sources_of(data))}
    rows = [{**row, "messages": _up_to_answer(row["messages"])} for row in rows]
    encoded = template.encode(rows, data.train_on)
    lengths = np.array([len(one.ids) for one in encoded], np.int64)
    remark = "" if data.truncate else _remark(rows, lengths, limit, template)
    check_lengths(lengths, rows, limit, data.truncate, "conversation", remark=remark)
    kept, n_shorter, n_skipped = [], 0, 0
    for row, one in zip(rows, encoded):
        while len(one.ids) > limit and (messages := _up_to_answer(row["messages"][:-1])):
            row = {**row, "messages": messages}
            (one,) = template.encode([row], data.train_on)
            n_shorter += len(one.ids) <= limit
        if len(one.ids) <= limit:
            kept.append((row, one))
        else:
            n_skipped += 1
    if rows and not kept:
        raise UserError(
            f"{rows[0]['where']}: none of the {len(rows):,} conversations fits in data.seq_len="
            f"{data.seq_len} up to the end of its first answer. Raise data.seq_len."
        )
    lines = []
    what = f"of {len(rows):,} {plural(len(rows), 'conversation')}"
    where = "than data.seq_len allows (data.truncate)"
    if n_shorter:
        lines.append(f"the last turns of {n_shorter:,} {what}, longer {where}, are left out")
    if n_skipped:
        lines.append(
            f"{n_skipped:,} {what} left out: longer {where} up to the end of the first answer"
        )
    tokens = joined([one.ids for _, one in kept])
    n_unknown, n_text = unknown.count(template.tokenizer, tokens)
    chats = Chats(
        tokens,
        np.concatenate([np.zeros(0, bool), *(one.learned for _, one in kept)]),
        offsets_of([len(one.ids) for _, one in kept]),
        np.array([numbers.get(row["dataset"], 0) for row, _ in kept], np.int32),
        lines,
        n_unknown,
        n_text,
    )
    return [row for row, _ in kept], chats


def _up_to_answer(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages up to the last one of an assistant; [] without one."""
    ends = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    return messages[: ends[-1] + 1] if ends else []


def _remark(rows, lengths: np.ndarray, limit: int, template: ChatTemplate) -> str:
    """Follows the first conversation that is too long in a message, if its prompt alone is."""
    for row, length in zip(rows, lengths):
        if length > limit:
            roles = [message["role"] for message in row["messages"]]
            before = row["messages"][: roles.index("assistant")]
            if not before:
                return ""
            n = len(template.prompts([{**row, "messages": before}])[0])
            return f" (its first prompt alone has {n:,} tokens)" if n >= limit else ""
    return ""
