"""Chat templates: from conversations to token ids, and which of them a model learns."""

from collections.abc import Mapping, Sequence
import functools
import re
from typing import Any, NamedTuple

import numpy as np

from bigjax.data.chat_templates import BUILT_IN, NEEDS
from bigjax.data.template_process import NONCHARACTERS, TemplateProcess
from bigjax.data.tokenizers.base import Tokenizer, hash_of, read_bytes
from bigjax.errors import UserError

DATE = "2024-07-26"  # of strftime_now in training: data must not change from day to day
TRAIN_ON = ("all", "last")
_BOS, _EOS, _BREAK, _FIRST, _LAST = NONCHARACTERS[2:7]
_ODD = re.compile(f"[{NONCHARACTERS[0]}-{NONCHARACTERS[-1]}]")
_MARKED = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")


class Encoded(NamedTuple):
    """ids: int32 [n]. learned: bool [n], the tokens of assistants that a model learns."""

    ids: np.ndarray
    learned: np.ndarray


class ChatTemplate:
    """A chat template with a tokenizer.

    In a rendering the texts of special tokens are these tokens; within the contents of messages
    they are text, so that no message can end a turn or begin another one. The ids begin with the
    tokenizer's leading_ids, once. A template that puts {% generation %} around what an assistant
    writes says itself what is learned: that, and a special token right after it. For another one
    that is found by rendering the turns before and with each answer. Then each rendering must be
    the beginning of the next one; a template that writes earlier turns otherwise once later ones
    follow (such as without their reasoning) is refused, unless only the last answer is learned.

    date: what strftime_now gives, '' = today.
    """

    def __init__(
        self, template: str, tokenizer: Tokenizer, name: str = "the template", date: str = ""
    ) -> None:
        """Raises UserError if the template cannot be read."""
        self.tokenizer, self.name, self.marked = tokenizer, name, bool(_MARKED.search(template))
        self._process = TemplateProcess(template, name, date)
        self._special = tokenizer.special or {_BOS: tokenizer.bos_id, _EOS: tokenizer.eos_id}
        self._roles = tokenizer.role_tokens or {"bos_token": _BOS, "eos_token": _EOS}
        longest_first = sorted(self._special, key=lambda text: (-len(text), text))
        self._pattern = "|".join(map(re.escape, longest_first))
        self._tokens = re.compile(f"[{_BREAK}{_FIRST}{_LAST}]|{self._pattern}")
        self._beginnings = {text[:n] for text in self._special for n in range(1, len(text))}
        self._longest = max(map(len, self._special))
        self.fingerprint = hash_of("chat template", template, date)

    def encode(self, rows: Sequence[Mapping[str, Any]], train_on: str = "all") -> list[Encoded]:
        """The tokens of conversations; turns after the last one of an assistant are left out.

        rows: with "messages", which `conversation_rows.check` accepts, and optionally "tools" and
        "where", the place of the row. train_on: "all" answers of assistants are learned, or the
        "last" one.

        Raises UserError, with the row's place, for a template that refuses it, that exceeds a limit
        (see TemplateProcess) or rewrites earlier turns, and for a row of which nothing is learned.
        """
        texts = [self._marked_text(row, train_on) for row in rows]
        split = [self._split(text) for text in texts]
        cuts = [np.flatnonzero(np.diff(inside)) + 1 for _, inside in split]
        encoded = self.tokenizer.encode_parts([parts for parts, _ in split], cuts)
        out = []
        for row, (_, inside), (ids, spans) in zip(rows, split, encoded):
            n_inside = np.cumsum(np.append(0, inside))
            learned = n_inside[spans[:, 1]] > n_inside[spans[:, 0]]
            ids, learned = self._led(ids, learned)
            if not learned[1:].any():
                raise UserError(
                    f"{_where(row)}: {self.name} marks nothing that an assistant writes, so there "
                    "is nothing to learn. Put {% generation %} and {% endgeneration %} around it, "
                    "or leave these marks out of the template."
                )
            out.append(Encoded(ids, learned))
        return out

    def prompt(self, messages: Sequence[Mapping[str, Any]], tools: Any = None) -> list[int]:
        """The token ids after which an assistant writes its answer to the messages.

        Raises UserError for a template that refuses them.
        """
        return self.prompts([{"messages": messages, "tools": tools}])[0]

    def prompts(self, rows: Sequence[Mapping[str, Any]]) -> list[list[int]]:
        """As `prompt`, of the messages of each row."""
        parts = self.prompt_parts(rows)
        encoded = self.tokenizer.encode_parts(parts, [()] * len(parts))
        return [self._led(ids, ids < 0)[0].tolist() for ids, _ in encoded]

    def prompt_parts(self, rows: Sequence[Mapping[str, Any]]) -> list[list[str | int]]:
        """The texts and the special ids in turn of each of `prompts`."""
        parts = []
        for row in rows:
            (text,) = self._render(row, [(len(row["messages"]), True)])
            parts.append(self._split(text)[0])
        return parts

    @functools.cached_property
    def before_answer(self) -> str:
        """What the template writes between a prompt and the text of the answer, such as a space."""
        turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "answer"}]
        try:
            prompt, whole = self._render({"messages": turns}, [(1, True), (2, False)])
        except UserError:  # a template for other conversations
            return ""
        between, answer, _ = whole.removeprefix(prompt).partition("answer")
        plain = whole.startswith(prompt) and answer and not re.search(self._pattern, between)
        return between if plain else ""

    @functools.cached_property
    def turn_end(self) -> int | None:
        """The special token that ends an assistant's turn, None if the template writes none."""
        turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        try:
            ids, learned = self.encode([{"messages": turns}], "last")[0]
        except UserError:  # a template for other conversations
            return None
        special = {*self._special.values()}
        return next((i for i in reversed(ids[learned].tolist()) if i in special), None)

    @property
    def end_ids(self) -> tuple[int, ...]:
        """The ids that end an answer: the one that is learned, and the tokenizer's."""
        own = () if self.turn_end is None else (self.turn_end,)
        return tuple(dict.fromkeys([*own, *self.tokenizer.end_ids]))

    def _led(self, ids: np.ndarray, learned: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        lead = np.array(self.tokenizer.leading_ids, np.int32)
        if np.array_equal(ids[: len(lead)], lead):
            return ids, learned
        return np.append(lead, ids), np.append(np.zeros(len(lead), bool), learned)

    def _marked_text(self, row: Mapping[str, Any], train_on: str) -> str:
        """The rendering with marks around what is learned."""
        messages = row["messages"]
        turns = [i for i, m in enumerate(messages) if m["role"] == "assistant"]
        end = turns[-1] + 1
        if self.marked:
            (text,) = self._render(row, [(end, False)], marks=(_FIRST, _LAST))
            if train_on == "last" and (at := text.rfind(_FIRST)) > 0:
                return text[:at].replace(_FIRST, "").replace(_LAST, "") + text[at:]
            return text
        turns = turns if train_on == "all" else turns[-1:]
        wanted = [(n, prompt) for i in turns for n, prompt in ((i, True), (i + 1, False))]
        renderings = self._render(row, wanted)
        whole, at, out = renderings[-1], 0, ""
        for before, after in zip(renderings[::2], renderings[1::2]):
            if not (after.startswith(before) and whole.startswith(after)):
                raise self._rewritten(row, whole.startswith(after))
            stop = len(before) + self._length(after[len(before) :])
            out += whole[at : len(before)] + _FIRST + whole[len(before) : stop] + _LAST
            at = stop
        return out + whole[at:]

    def _length(self, answer: str) -> int:
        """Of an answer without the white space after its last special token."""
        ends = [m.end() for m in re.finditer(self._pattern, answer)]
        return ends[-1] if ends and not answer[ends[-1] :].strip() else len(answer)

    def _rewritten(self, row: Mapping[str, Any], of_prompt: bool) -> UserError:
        if of_prompt:
            return UserError(
                f"{_where(row)}: what {self.name} writes before an answer of the assistant "
                "(add_generation_prompt) is not what it writes before the same answer in a "
                "conversation, so the model would learn another task. Put {% generation %} and "
                "{% endgeneration %} around the answers in a copy of the template, and set "
                "data.chat_template to it."
            )
        return UserError(
            f"{_where(row)}: {self.name} writes an earlier answer of the assistant otherwise once "
            "later turns follow, such as without its reasoning. Set data.train_on='last' to learn "
            "only the last answer of each conversation, or data.chat_template to a template with "
            "{% generation %} and {% endgeneration %} around the answers."
        )

    def _render(
        self,
        row: Mapping[str, Any],
        wanted: Sequence[tuple[int, bool]],
        marks: tuple[str, str] | None = None,
    ) -> list[str]:
        """The rendering of the first n messages, with or without add_generation_prompt, for each
        (n, add_generation_prompt). marks: around what an assistant writes."""
        messages, tools = (self._as_text(row.get(k), row) for k in ("messages", "tools"))
        shared = {"tools": tools or None, "documents": None, "_generation_marks": marks}
        contexts = [
            {**self._roles, **shared, "messages": messages[:n], "add_generation_prompt": prompt}
            for n, prompt in wanted
        ]
        try:
            return self._process.render(contexts)
        except UserError as e:
            raise UserError(f"{_where(row)}: {e}") from None

    def _as_text(self, value: Any, row: Mapping[str, Any]) -> Any:
        """The value with a mark in each text of a special token, so that it will stay text."""
        if isinstance(value, Mapping):
            return {self._as_text(k, row): self._as_text(x, row) for k, x in value.items()}
        if isinstance(value, (list, tuple)):
            return [self._as_text(x, row) for x in value]
        if not isinstance(value, str):
            return value
        if odd := _ODD.search(value):
            raise UserError(
                f"{_where(row)}: a text has U+{ord(odd[0]):04X}, which Unicode reserves for use "
                "within programs. Remove it."
            )
        broken = re.sub(self._pattern, lambda m: f"{m[0][0]}{_BREAK}{m[0][1:]}", value)
        for n in range(min(self._longest, len(value)), 0, -1):
            end = value[-n:]
            if end in self._beginnings and broken.endswith(end):  # the rest may follow it
                return f"{broken[:-n]}{end[0]}{_BREAK}{end[1:]}"
        return broken

    def _split(self, text: str) -> tuple[list[str | int], np.ndarray]:
        """(texts and special ids in turn, bool of each of their characters: between marks)."""
        parts: list[str | int] = []
        inside: list[bool] = []
        on, at, since = False, 0, ""  # since: the text after the last special token
        for m in re.finditer(self._tokens, text):
            since += text[at : m.start()]
            inside += [on] * (m.start() - at)
            at = m.end()
            if m[0] in (_FIRST, _LAST):
                on = m[0] == _FIRST
            elif m[0] != _BREAK:
                # The token right after a mark belongs to the turn, if that has no end of its own.
                ended = len(inside) > len(since) and inside[-1 - len(since)] and not since.strip()
                after_mark = text.endswith(_LAST, 0, m.start()) and not ended
                parts += [since, self._special[m[0]]] if since else [self._special[m[0]]]
                inside.append(on or after_mark)
                since = ""
        inside += [on] * (len(text) - at)
        since += text[at:]
        return [*parts, since] if since else parts, np.array(inside, bool)


def template_text(name: str) -> str:
    """The template that data.chat_template names: a built-in one or a file; '' of ''."""
    if not name or name in BUILT_IN:
        return BUILT_IN.get(name, "")
    content = read_bytes(name, f"a chat template in Jinja, or {' or '.join(map(repr, BUILT_IN))}")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        raise UserError(f"{name} is not UTF-8 ({e}). Save it as UTF-8.") from None


def read(name: str, tokenizer: Tokenizer, date: str = "", text: str = "") -> ChatTemplate:
    """The template of data.chat_template: a built-in one, a file, or '' for the tokenizer's own.

    text: its content, if that is known. Raises UserError if there is none, and for one that needs
    other special tokens.
    """
    if missing := [token for token in NEEDS.get(name, ()) if token not in tokenizer.special]:
        raise UserError(
            f"data.chat_template={name!r} needs a tokenizer with the special tokens "
            f"{', '.join(NEEDS[name])}; {tokenizer.name} has no {missing[0]}. Set it to 'plain', "
            "which works with every tokenizer."
        )
    if text := text or template_text(name):
        what = f"data.chat_template={name!r}" if name in BUILT_IN else name or "the chat template"
        return ChatTemplate(text, tokenizer, what, date)
    if "default" not in tokenizer.chat_templates:
        raise UserError(
            f"data.chat_template is empty and {tokenizer.name} has no chat template. Set it to a "
            f"Jinja file, or to one of {', '.join(map(repr, BUILT_IN))}; 'plain' works with every "
            "tokenizer."
        )
    own = f"the chat template of {tokenizer.name}"
    return ChatTemplate(tokenizer.chat_templates["default"], tokenizer, own, date)


def _where(row: Mapping[str, Any]) -> str:
    return str(row.get("where", "the conversation"))
