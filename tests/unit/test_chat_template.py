"""Chat templates: what is learned, special tokens in contents, and limits."""

import threading
import time
import types

import numpy as np
import pytest

from bigjax.data import chat_template, tokenizers
from bigjax.data.chat_template import ChatTemplate
from bigjax.data.chat_templates import BUILT_IN
from bigjax.data.template_process import TemplateProcess
from bigjax.data.tokenizers import sentencepiece, tokenizer_json
from bigjax.data.tokenizers.bytes import Bytes
from bigjax.errors import UserError
from bigjax.train import export_model
from tests import chats, published_tokenizers
from tests.chats import CONVERSATIONS, ONE, TEMPLATES, turn, without_marks


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """family -> its tokenizer."""
    loaded = {}

    def load(family):
        if family not in loaded:
            folder = tmp_path_factory.mktemp(family)
            loaded[family] = tokenizer_json.load(published_tokenizers.write(family, folder))
        return loaded[family]

    return load


def shown(tokenizer, ids) -> str:
    """The text of ids with that of special tokens."""
    texts = {i: text for text, i in tokenizer.special.items()}
    return b"".join(texts.get(i, "").encode() or tokenizer.pieces[i] for i in ids).decode()


def learned(template, tokenizer, messages, train_on="all", **row) -> list[str]:
    """The texts of the runs of tokens that are learned."""
    (one,) = ChatTemplate(template, tokenizer).encode([{"messages": messages, **row}], train_on)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], one.learned, [0]])))
    return [shown(tokenizer, one.ids[a:b]) for a, b in zip(edges[::2], edges[1::2])]


TURNS = [turn("system", "Be brief."), turn("user", "Hi <b>"), turn("assistant", "Yes, one.")] + [
    turn("user", "And?"),
    turn("assistant", "Two, isn't it"),
]


@pytest.mark.parametrize("name, marked", [(n, m) for n in TEMPLATES for m in (True, False)])
def test_the_answers_and_their_ends_are_learned(name, marked, tokenizer):
    family, template = TEMPLATES[name]
    if name == "mistral" and not marked:
        messages = TURNS[1:]  # it moves the system prompt
    else:
        messages = TURNS
    template = template if marked else without_marks(template)
    end = {"llama3": "<|eot_id|>", "gemma": "<end_of_turn>", "mistral": "</s>"}.get(
        name, "<|im_end|>"
    )
    answers = [f"{text}{end}" for text in ("Yes, one.", "Two, isn't it")]
    texts = learned(template, tokenizer(family), messages)
    assert [text.strip() for text in texts] == answers
    last = learned(template, tokenizer(family), messages, "last")
    assert [text.strip() for text in last] == answers[1:]
    t = ChatTemplate(template, tokenizer(family))
    assert t.turn_end == tokenizer(family).special[end]
    assert {*tokenizer(family).end_ids} <= {*t.end_ids} and t.end_ids[0] == t.turn_end


def test_calls_of_tools_are_learned_and_their_results_are_not(tokenizer):
    row = chats.TOOL_CONVERSATION
    for template in (chats.TOOLS, without_marks(chats.TOOLS)):
        calls, answer = learned(template, tokenizer("qwen"), row["messages"], tools=row["tools"])
        assert calls.count('"arguments": {"a": 1, "b": "naïve"}}') == 2
        assert answer.strip() == "It is 2.<|im_end|>"


OF_FAMILY = dict(TEMPLATES.values())


# Those with a letter for each character.
@pytest.mark.parametrize("family", [*OF_FAMILY, "llama2", "neox", "smollm"])
def test_the_ids_are_those_of_the_text_with_special_tokens(family, tokenizer):
    t = tokenizer(family)
    template = OF_FAMILY.get(family, chat_template.BUILT_IN["plain"])
    chat = ChatTemplate(template, t)
    for row in CONVERSATIONS:
        text = chat._render(row, [(len(row["messages"]), False)])[0]
        (one,) = chat.encode([row])
        want = t.encode_with_specials(text).tolist()
        lead = [*t.leading_ids]
        assert one.ids.tolist() == (want if want[: len(lead)] == lead else lead + want)


@pytest.mark.parametrize("kind", ["bytes", "sentencepiece"])
def test_the_plain_template_is_for_every_tokenizer(kind):
    t = Bytes()
    if kind == "sentencepiece":
        t = sentencepiece.train_sentencepiece(published_tokenizers.TEXTS * 3, 320)
    template = chat_template.BUILT_IN["plain"]
    (one,) = ChatTemplate(template, t).encode([{"messages": TURNS}])
    assert one.ids[0] == t.bos_id and one.ids.tolist().count(t.bos_id) == 1
    text = "System: Be brief.\nUser: Hi <b>\nAssistant: Yes, one.\nUser: And?\nAssistant: "
    text += "Two, isn't it\n"
    assert t.decode(one.ids) == text
    assert t.decode(one.ids[one.learned]) == " Yes, one. Two, isn't it"
    assert (one.ids[one.learned] == t.eos_id).sum() == 2
    assert ChatTemplate(template, t).end_ids == (t.eos_id,)
    prompt = ChatTemplate(template, t).prompt(TURNS[:2])
    assert prompt == one.ids[: len(prompt)].tolist() and one.learned[len(prompt)]


def test_a_tokenizer_that_changes_texts_has_masks_within_a_token():
    class Lower(Bytes):
        def encode_texts(self, texts):
            return super().encode_texts([text.lower().replace("  ", " ") for text in texts])

    t = Lower()
    messages = [turn("user", "A  B"), turn("assistant", "C  D é")]
    (one,) = ChatTemplate(chat_template.BUILT_IN["plain"], t).encode([{"messages": messages}])
    assert t.decode(one.ids) == "user: a b\nassistant: c d é\n"
    assert t.decode(one.ids[one.learned]) == " c d é" and t.eos_id in one.ids[one.learned]


# --- Special tokens ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", TEMPLATES)
def test_special_tokens_in_contents_are_text(name, tokenizer):
    family, template = TEMPLATES[name]
    t = tokenizer(family)
    attacks = [f"x{text}system\n{text}" for text in t.special]
    # The end of the content and what the template writes next must not make one together.
    attacks += [f"x{text[:n]}" for text in t.special for n in range(1, len(text))]
    chat, (clean,) = (c := ChatTemplate(template, t)), c.encode([{"messages": ONE}])
    special = [i for i in clean.ids.tolist() if i in t.special.values()]
    rows = [{"messages": [turn("user", text), turn("assistant", text)]} for text in attacks]
    for row, one in zip(rows, chat.encode(rows)):
        content = row["messages"][0]["content"]
        assert [i for i in one.ids.tolist() if i in t.special.values()] == special, content
        if t.lossless:
            assert t.decode(one.ids).count(content) == 2
        assert "\ufdd4" not in t.decode(one.ids)
    with pytest.raises(UserError, match=r"a\.jsonl:3: a text has U\+FDD0"):
        chat.encode([{"messages": [turn("user", "\ufdd0"), *ONE[1:]], "where": "a.jsonl:3"}])


def test_bos_is_neither_doubled_nor_missing(tokenizer):
    t = tokenizer("llama3")
    for template in (chats.LLAMA3, chats.LLAMA3.replace("{{- bos_token }}", "")):
        (one,) = ChatTemplate(template, t).encode([{"messages": TURNS}])
        assert one.ids.tolist().count(t.bos_id) == 1 and one.ids[0] == t.bos_id
        assert ChatTemplate(template, t).prompt(TURNS[:2]).count(t.bos_id) == 1
    assert t.end_ids == (t.special["<|eot_id|>"], t.special["<|end_of_text|>"])


# --- Refusals ---------------------------------------------------------------------------------

STRIPS = (
    "{% for m in messages %}<|im_start|>{{ m.role }} {{ m.content if loop.last or m.role == 'user'"
    " else m.content.split('</think>')[-1] }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant {% endif %}"
)


def test_a_template_that_rewrites_history_is_refused_or_learns_the_last_answer(tokenizer):
    t = tokenizer("qwen")
    messages = [ONE[0], turn("assistant", "<think>a</think>b")] * 2
    with pytest.raises(UserError, match=r"a.jsonl:7: the template writes an earlier.*train_on='l"):
        learned(STRIPS, t, messages, where="a.jsonl:7")
    assert learned(STRIPS, t, messages, "last") == ["<think>a</think>b<|im_end|>"]
    other = STRIPS.replace("<|im_start|>assistant ", "<|im_start|>assistant <think>")
    with pytest.raises(UserError, match="add_generation_prompt"):
        learned(other, t, ONE, "last")


def test_a_mask_is_never_all_zero(tokenizer):
    nothing = (
        "{% for m in messages %}{{ m.content }}{% generation %}{% endgeneration %}{% endfor %}"
    )
    with pytest.raises(UserError, match="a.jsonl:2: the template marks nothing"):
        learned(nothing, tokenizer("qwen"), ONE, where="a.jsonl:2")


def test_the_end_of_a_turn_right_after_the_marks_is_learned(tokenizer):
    template = chats.CHATML.replace(
        "{{ m['content'] + '<|im_end|>' }}{% endgeneration %}",
        "{{ m['content'] }}{% endgeneration %}{{ '<|im_end|>' }}",
    )
    t = tokenizer("qwen")
    assert learned(template, t, TURNS) == ["Yes, one.<|im_end|>", "Two, isn't it<|im_end|>"]


@pytest.mark.parametrize(
    "template, message",
    [
        ("{% for i in range(10**9) %}{% endfor %}", "Range too big"),
        ("{{ 'a' * 10**11 }}", "too much memory"),
        ("{% for i in range(90000) %}{{ 'a' * 9999 }}{% endfor %}", "more than 20,000,000"),
        ("{{ messages.__class__ }}", "reads the attribute '__class__'"),
        ("{{ messages[0].content.__class__.__mro__ }}", "reads the attribute"),
        ("{{ '{0.__class__}'.format(messages) }}", "reads the attribute"),
        ("{{ messages.append(1) }}", "reads the attribute 'append'"),
        ("{{ cycler.__init__.__globals__ }}", "reads the attribute|undefined"),
        ("{% include '/etc/passwd' %}", "no loader"),
        ("{{ raise_exception('no dogs') }}", "no dogs"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "nested too deeply"),
        ("\n{% for", "line 2: unexpected"),
    ],
)
def test_what_a_template_must_not_do(template, message):
    with pytest.raises(UserError, match=f"^the conversation: the template cannot.*{message}"):
        ChatTemplate(template, Bytes()).encode([{"messages": ONE}])


@pytest.mark.parametrize(
    "template", ["{% for i in r %}{% for j in r %}{% endfor %}{% endfor %}", "{{ 9 ** (9 ** 9) }}"]
)
def test_a_template_that_does_not_end_is_stopped_on_any_thread(template):
    process = TemplateProcess("{% set r = range(99999) %}" + template, "t", seconds=0.3)
    errors = []

    def run():
        with pytest.raises(UserError, match="t cannot be rendered: it does not end within 0.3 s"):
            process.render([{"messages": ONE}])
        errors.append(1)

    start = time.monotonic()
    run()
    thread = threading.Thread(target=run)
    thread.start()
    thread.join(20)
    assert len(errors) == 2 and time.monotonic() - start < 15


def test_a_process_works_again_after_a_failure():
    process = TemplateProcess("{{ x.y }}", "t")
    with pytest.raises(UserError, match="undefined"):
        process.render([{}])
    assert process.render([{"x": {"y": 1}}]) == ["1"]
    process = TemplateProcess(
        "{% if n %}{{ 9 ** (9 ** (n + 8)) }}{% endif %}{{ n }}", "t", seconds=0.2
    )
    with pytest.raises(UserError, match="does not end"):
        process.render([{"n": 1}])
    assert process.render([{"n": 0}, {"n": 0}]) == ["0", "0"]
    process.close()
    assert process.render([{"n": 0}]) == ["0"]


def test_helpers_that_templates_use():
    template = (
        "{{ strftime_now('%d %b %Y') }} {{ {'b': 'é<', 'a': 1} | tojson }}"
        "{% for i in range(9) %}{% if i == 1 %}{% continue %}{% endif %}{% if i > 2 %}"
        "{% break %}{% endif %}{{ i }}{% endfor %} {{ 'a b'.split(' ') | join('+') }}"
        "{{ '%s' | format('x') }}{{ namespace(a=3).a }}"
    )
    (text,) = TemplateProcess(template, "t", "2024-07-26").render([{}])
    assert text == '26 Jul 2024 {"b": "é<", "a": 1}02 a+bx3'


# --- data.chat_template -----------------------------------------------------------------------


def test_where_a_template_comes_from(tmp_path, tokenizer):
    path = tmp_path / "mine.jinja"
    path.write_text(chats.CHATML)
    own = chat_template.read(str(path), tokenizer("qwen"))
    built_in = chat_template.read("chatml", tokenizer("qwen"))
    rows = [{"messages": TURNS}]
    assert (own.encode(rows)[0].ids == built_in.encode(rows)[0].ids).all()
    assert own.name == str(path) and own.fingerprint != built_in.fingerprint
    default = chat_template.read("", tokenizer("qwen"))
    assert default.name.startswith("the chat template of ") and not default.marked
    for name, t, message in (
        ("", Bytes(), "has no chat template. Set"),
        ("chatml", Bytes(), "<|im_start|>"),
        (str(tmp_path / "none.jinja"), Bytes(), "cannot read"),
    ):
        with pytest.raises(UserError, match=message):
            chat_template.read(name, t)


# --- Export -----------------------------------------------------------------------------------


@pytest.mark.parametrize("leading, want", [((1,), "{{- bos_token }}x"), ((), "x")])
def test_an_exported_template_writes_the_bos_that_transformers_would_leave_out(
    monkeypatch, tmp_path, leading, want
):
    tokenizer = types.SimpleNamespace(leading_ids=leading)
    monkeypatch.setattr(export_model.tokenizers, "load", lambda folder: tokenizer)
    monkeypatch.setattr(export_model.workdir_lib, "existing", lambda path: tmp_path)
    assert export_model._template("x", "run") == want.encode()
    own = "{{ bos_token }}x"
    assert export_model._template(own, "run") == own.encode()


def test_a_template_beside_a_sentencepiece_model(tmp_path):
    """Its control pieces are tokens where the template writes them, and text in messages."""
    tokenizer = sentencepiece.train_sentencepiece(["Some words of some texts. User: a"] * 50, 280)
    tokenizer.save(tmp_path / "plain")
    folder = tmp_path / "chat"
    folder.mkdir()
    (folder / "tokenizer.model").write_bytes(tokenizer.files()["tokenizer.model"])
    (folder / "chat_template.jinja").write_text("{{ bos_token }}" + BUILT_IN["plain"])
    options = tokenizers.Config(path=str(folder))
    for own in (sentencepiece.build(options, None), None):
        if own is None:
            own = tokenizers.load(tmp_path / "saved")
        else:
            own.save(tmp_path / "saved")
        template = chat_template.read("", own)
        messages = [turn("user", "Say </s>!"), turn("assistant", "a")]
        ids, learned = template.encode([{"messages": messages}])[0]
        plain = chat_template.read("plain", tokenizers.load(tmp_path / "plain"))
        want = plain.encode([{"messages": messages}])[0]
        np.testing.assert_array_equal(ids, want.ids)
        np.testing.assert_array_equal(learned, want.learned)
        assert ids[0] == own.bos_id and list(ids).count(own.eos_id) == 1
    (folder / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(UserError, match="chat_template.jinja is not UTF-8"):
        sentencepiece.build(options, None)
