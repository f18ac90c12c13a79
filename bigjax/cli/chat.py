"""Chats with a trained model in a terminal, or answers one message.

It keeps the history of the conversation. Ctrl-C ends an answer, /clear starts another conversation,
/exit or Ctrl-D leaves. Without a terminal each line of the standard input is a message.
"""

import contextlib
import re
import sys

from bigjax.arguments import MODEL, SETTLED, STEP, Arguments, Command, Flag
from bigjax.errors import UserError

COMMAND = Command(
    flags=(
        Flag("prompt", "a message to answer, without a terminal; several are one conversation", []),
        Flag("system", "the system prompt; default: data.system of the run"),
        Flag(
            "template",
            "the chat template: a Jinja file, plain or chatml; default: that of the run, else that "
            "of its tokenizer",
            value="FILE",
        ),
        Flag("max_tokens", "per answer; fewer where model.max_len requires it", 256),
        Flag("temperature", "0 always takes the most likely token", 0.8),
        Flag("top_k", "only the k most likely tokens; 0 = all", 0),
        Flag("top_p", "only the most likely tokens that together have this probability", 0.95),
        Flag("seed", "of the answers", 0),
        STEP,
    ),
    keys=MODEL,
    unused=SETTLED,
)
# What a terminal would take for commands, but for line ends and tabs.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def run(arguments: Arguments) -> None:
    f = arguments.flags
    check_flags(f)
    chat = _open(arguments)
    if f.prompt:
        for message in f.prompt:
            _print(chat.answer(message))
        return
    is_terminal = sys.stdin.isatty()
    if is_terminal:
        print("Ctrl-C ends an answer; /clear starts another conversation; /exit leaves.")
    while True:
        try:
            message = input("> " if is_terminal else "").strip()
        except (EOFError, KeyboardInterrupt):
            if is_terminal:
                print()
            return
        if message == "/exit":
            return
        if message == "/clear":
            chat.clear()
        elif message:
            try:
                _print(chat.answer(message))
            except UserError as e:
                if not is_terminal:
                    raise
                print(e)


def check_flags(f) -> None:
    """Raises UserError for invalid flags, and for those without effect."""
    from bigjax import bounds
    from bigjax.infer.generate import Options

    Options(f.max_tokens, f.temperature, f.top_k, f.top_p)  # raises UserError for invalid values
    bounds.check_seed(f.seed)
    if not all(message.strip() for message in f.prompt):
        raise UserError("--prompt is empty; give a message to answer.")
    for name in ("top_k", "top_p", "seed"):
        if not f.temperature and f[name].present:
            raise UserError(
                f"--{name} would change nothing: --temperature=0 takes the most likely token. "
                "Leave one of the two out."
            )


def _open(arguments: Arguments):
    """The conversation with the model of the work folder."""
    from bigjax import data, modules
    from bigjax.data import chat_template
    from bigjax.infer.chat import Chat
    from bigjax.infer.generate import Generator, Options
    from bigjax.train import load as load_lib
    from bigjax.train import workdir as workdir_lib

    f, config = arguments.flags, arguments.config_of_run()
    family = modules.of(config, "model")
    if not hasattr(family, "decoder"):
        raise UserError(
            "Only decoders chat, such as model.name='gpt'; "
            f"{arguments.workdir} has model.name={config.model.name!r}."
        )
    folder = workdir_lib.existing(arguments.workdir) / "tokenizer"
    tokenizer = data.load_tokenizer(folder, config.python_path)
    name, text = f.template, ""
    if name is None:
        name, text = config.data.get("chat_template", ""), config.task.get("chat_template", "")
    try:
        template = chat_template.read(name, tokenizer, text=text)
    except UserError as e:
        remark = " For `bigjax chat` that is --template." if f.template is None else ""
        raise UserError(f"{e}{remark}") from None
    loaded = load_lib.load(arguments.workdir, config, arguments.step, batch_size=None)
    decoder, variables = load_lib.decoder_of(loaded, family, arguments.overrides)
    if not decoder.continues:
        raise UserError(
            "Only decoders that continue texts chat, such as model.name='gpt'; "
            f"{arguments.workdir} has model.name={config.model.name!r}. Use bigjax generate."
        )
    options = Options(f.max_tokens, f.temperature, f.top_k, f.top_p)
    system = config.data.get("system", "") if f.system is None else f.system
    log = lambda line: print(line, file=sys.stderr)
    return Chat(Generator(decoder, variables), template, options, system, f.seed, log)


def _print(pieces) -> None:
    """Prints an answer as it comes; Ctrl-C ends it."""
    with contextlib.suppress(KeyboardInterrupt), contextlib.closing(pieces):
        for piece in pieces:
            print(_CONTROL.sub("\ufffd", piece), end="", flush=True)
    print()
