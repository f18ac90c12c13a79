"""Conversations with a model: `infer.chat` and the command `bigjax chat`."""

import io
import pathlib
import types

from ml_collections import ConfigDict
import pytest

from bigjax.arguments import Arguments
from bigjax.cli import chat as cli
from bigjax.data import chat_template
from bigjax.data.tokenizers.bytes import Bytes
from bigjax.errors import UserError
from bigjax.infer.chat import Chat
from bigjax.infer.generate import Generator, Options
from tests import chats
from tests.chats import turn
from tests.decoders import continuing_decoder

# The decoder of these tests answers with the letter a, again and again.


def chat(max_len=128, max_new_tokens=4, **more):
    lines: list[str] = []
    generator = Generator(continuing_decoder(max_len), 20.0)
    template = chat_template.read("plain", Bytes())
    options = Options(max_new_tokens, temperature=0)
    return Chat(generator, template, options, log=lines.append, **more), lines


def test_history_is_kept_and_cleared():
    talk, lines = chat(system="Be brief.")
    system = turn("system", "Be brief.")
    assert "".join(talk.answer("Hi?")) == "aaaa"
    first = [turn("user", "Hi?"), turn("assistant", "aaaa")]
    assert talk.messages == [system, *first]
    "".join(talk.answer("And?"))
    assert talk.messages == [system, *first, turn("user", "And?"), turn("assistant", "aaaa")]
    talk.clear()
    assert talk.messages == [system] and not lines


def test_an_answer_that_is_ended_early_is_kept():
    talk, _ = chat(max_new_tokens=64)
    pieces = talk.answer("Hi?")
    said = next(pieces)
    pieces.close()
    assert talk.messages == [turn("user", "Hi?"), turn("assistant", said)] and len(said) < 64


def test_the_oldest_turns_are_left_out_at_the_length_of_the_model():
    talk, lines = chat(max_len=72, system="S")
    for i in range(6):
        assert "".join(talk.answer(f"q{i}")) == "aaaa"
    questions = [m["content"] for m in talk.messages if m["role"] == "user"]
    assert questions == ["q4", "q5"] and talk.messages[0] == turn("system", "S")
    assert lines[-1] == "note: the oldest 8 turns are left out: model.max_len=72"
    before = [*talk.messages]
    with pytest.raises(
        UserError, match="The message has .* at most 68 are allowed with model.max_"
    ):
        "".join(talk.answer("long" * 20))
    assert talk.messages == before


def test_an_answer_is_shorter_where_the_model_has_no_room():
    talk, _ = chat(max_len=32, max_new_tokens=100)
    ids = talk._template.prompt([turn("user", "q")])
    assert "".join(talk.answer("q")) == "a" * (32 - len(ids))


def test_a_message_that_the_template_refuses_changes_nothing():
    talk, _ = chat()
    talk._template = chat_template.ChatTemplate(chats.GEMMA, Bytes())
    talk.messages = [turn("user", "a")]
    with pytest.raises(UserError, match="turns must alternate"):
        "".join(talk.answer("b"))
    assert talk.messages == [turn("user", "a")]


# --- The command ------------------------------------------------------------------------------


def run_command(monkeypatch, *flags, stdin="", data=None, task=None, family=None, max_len=128):
    decoder = continuing_decoder(max_len)
    family = family or types.SimpleNamespace(decoder=lambda c: decoder)
    given = {"chat_template": "plain", "system": "Be brief."} if data is None else data
    config = ConfigDict(
        {"model": {"name": "m"}, "data": given, "task": task or {}, "python_path": ""}
    )
    monkeypatch.setattr("bigjax.modules.of", lambda config, section: family)
    monkeypatch.setattr("bigjax.data.load_tokenizer", lambda folder, python_path: Bytes())
    monkeypatch.setattr("bigjax.train.workdir.existing", pathlib.Path)
    monkeypatch.setattr("bigjax.train.load.load", lambda *_, **__: None)
    monkeypatch.setattr("bigjax.train.load.decoder_of", lambda *_: (decoder, 20.0))
    monkeypatch.setattr("sys.stdin", io.StringIO(stdin))
    f = Arguments(["--max_tokens=3", "--temperature=0", *flags], cli.COMMAND).flags
    cli.run(
        types.SimpleNamespace(
            flags=f, workdir="run", step=None, overrides=[], config_of_run=lambda: config
        )
    )


def test_prompts_are_the_turns_of_one_conversation(monkeypatch, capsys):
    run_command(monkeypatch, "--prompt=Hi?", "--prompt=And?")
    assert capsys.readouterr().out == "aaa\naaa\n"


def test_lines_of_the_standard_input_are_messages(monkeypatch, capsys):
    run_command(monkeypatch, stdin="Hi?\n\n/clear\nAnd?\n/exit\nnever\n")
    assert capsys.readouterr().out == "aaa\naaa\n"
    run_command(monkeypatch, stdin="Hi?")
    assert capsys.readouterr().out == "aaa\n"


def test_the_template_and_the_system_prompt_of_a_run_or_of_the_flags(monkeypatch, tmp_path):
    given = []

    class Recorded(Chat):
        def __init__(self, generator, template, options, system, *more):
            super().__init__(generator, template, options, system, *more)
            given.append((self._template.prompt([turn("user", "q")]), system))

    monkeypatch.setattr("bigjax.infer.chat.Chat", Recorded)
    path = tmp_path / "mine.jinja"
    path.write_text("mine")
    text = lambda: Bytes().decode(given[-1][0])
    run_command(monkeypatch, "--prompt=a")
    assert text() == "User: q\nAssistant:" and given[-1][1] == "Be brief."
    run_command(monkeypatch, "--prompt=a", task={"chat_template": "kept"})
    assert text() == "kept"
    run_command(
        monkeypatch, "--prompt=a", f"--template={path}", "--system=", task={"chat_template": "x"}
    )
    assert text() == "mine" and given[-1][1] == ""
    with pytest.raises(
        UserError, match="has no chat template.*For `bigjax chat` that is --template"
    ):
        run_command(monkeypatch, "--prompt=a", data={})


def test_what_would_control_the_terminal_is_not_printed(capsys):
    cli._print(piece for piece in ("a\x1b[2J\tb\n", "c\x9b\rd"))
    assert capsys.readouterr().out == "a\ufffd[2J\tb\nc\ufffd\ufffdd\n"


def test_ctrl_c_ends_an_answer(capsys):
    closed = []

    def pieces():
        try:
            yield "a"
            raise KeyboardInterrupt
        finally:
            closed.append(1)

    cli._print(pieces())
    assert capsys.readouterr().out == "a\n" and closed


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--prompt= "], "--prompt is empty"),
        (["--top_p=0.5"], "--top_p would change nothing"),
        (["--temperature=-1"], "temperature is -1.0"),
        (["--seed=-1"], "seed"),
    ],
)
def test_flags_without_sense_are_refused(monkeypatch, flags, message):
    with pytest.raises(UserError, match=message):
        run_command(monkeypatch, *flags)


def test_only_decoders_chat(monkeypatch):
    with pytest.raises(UserError, match="Only decoders chat, .*run has model.name='m'"):
        run_command(monkeypatch, "--prompt=a", family=types.SimpleNamespace())
