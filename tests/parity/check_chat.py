"""Checks the masks of chat templates against transformers. Run by hand:

    python tests/parity/check_chat.py     # needs PyTorch, transformers, bigjax

Five templates in the style of published ones, with {% generation %} marks (tests/chats.py), are
rendered by both with small tokenizers (tests/published_tokenizers.py). For each conversation it
checks that
    marks       ids and the mask of the assistant's tokens equal those of
                apply_chat_template(return_assistant_tokens_mask=True)
    difference  without the marks the same tokens are learned, except for white space after an end
                token within the marks; a template that rewrites earlier turns is refused
    prompt      the prompt of the last answer equals that of add_generation_prompt=True
Last run with torch 2.15.0, transformers 5.24.0, tokenizers 0.23.3: all are equal.
"""

import pathlib
import tempfile

import transformers

from bigjax.data.chat_template import ChatTemplate
from bigjax.data.tokenizers import tokenizer_json
from bigjax.errors import UserError
from tests.chats import CONVERSATIONS, TEMPLATES, TOOL_CONVERSATION, without_marks
from tests.published_tokenizers import write


def refused(template: str, tokenizer, row: dict) -> None:
    try:
        ChatTemplate(template, tokenizer).encode([row])
    except UserError:
        return
    raise AssertionError("a template that rewrites earlier turns is not refused")


def check(name: str, folder: pathlib.Path) -> None:
    family, template = TEMPLATES[name]
    write(family, folder)
    ours = tokenizer_json.load(folder)
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    n_learned = 0
    for row in CONVERSATIONS + [TOOL_CONVERSATION] * (name == "tools"):
        options = dict(tools=row.get("tools"), chat_template=template, return_dict=True)
        expected = theirs.apply_chat_template(
            row["messages"], tokenize=True, return_assistant_tokens_mask=True, **options
        )
        (encoded,) = ChatTemplate(template, ours).encode([row])
        assert encoded.ids.tolist() == expected["input_ids"], (name, row)
        mask = expected["assistant_masks"]
        assert encoded.learned.tolist() == [bool(x) for x in mask], (name, row)
        if name == "mistral" and row["messages"][0]["role"] == "system":
            refused(without_marks(template), ours, row)  # it moves the system prompt
        else:
            (other,) = ChatTemplate(without_marks(template), ours).encode([row])
            assert other.ids.tolist() == encoded.ids.tolist(), (name, row)
            assert not (other.learned & ~encoded.learned).any(), (name, row)
            more = encoded.ids[encoded.learned & ~other.learned]
            assert not ours.decode(more).strip(), (name, row)
            assert not {*more} & {*ours.special.values()}, (name, row)
        before = row["messages"][:-1]
        prompt = theirs.apply_chat_template(
            before, tokenize=True, add_generation_prompt=True, **options
        )
        assert ChatTemplate(template, ours).prompt(before, row.get("tools")) == prompt["input_ids"]
        n_learned += sum(mask)
    print(f"{name}: ids and masks are equal, {n_learned} tokens are learned")


if __name__ == "__main__":
    for name in TEMPLATES:
        with tempfile.TemporaryDirectory() as folder:
            check(name, pathlib.Path(folder))
