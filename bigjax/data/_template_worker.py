"""Renders templates in a process of its own, which is killed when it takes too long.

Run by data/template_process.py: a JSON object on each line of the standard input has a template and
the contexts to render it with, a JSON object on each line of the standard output their texts or an
error. Nothing of bigjax is imported, so that the process starts at once.
"""

import datetime
import functools
import json
import re
import signal
import sys

_PLAIN = (str, dict, list, tuple, int, float, bool)


class TemplateError(Exception):
    """Raised by a template's raise_exception."""


def environment(strftime_now, form):
    """The sandbox in which templates run: of the form "chat" with what transformers gives them, of
    the form "harness" with what lm-evaluation-harness does, where an unknown name is an error.

    Values are plain JSON. Attributes and methods of anything else are refused, as are those that
    begin with an underscore. strftime_now(format) -> the date as text.
    """
    from jinja2 import StrictUndefined, Undefined
    from jinja2.runtime import LoopContext, Macro
    from jinja2.sandbox import ImmutableSandboxedEnvironment, SecurityError
    from jinja2.utils import Namespace

    generation = _generation()
    plain = (*_PLAIN, LoopContext, Namespace, Undefined)
    callers = (*plain, generation)

    class Sandbox(ImmutableSandboxedEnvironment):
        def unsafe_undefined(self, obj, attribute):
            raise SecurityError(f"it reads the attribute {attribute!r} of {type(obj).__name__}")

        def is_safe_attribute(self, obj, attr, value):
            return isinstance(obj, plain) and super().is_safe_attribute(obj, attr, value)

        def is_safe_callable(self, obj):
            of = getattr(
                getattr(obj, "__wrapped__", obj), "__self__", None
            )  # str.format is wrapped
            known = isinstance(obj, Macro) or any(obj is x for x in self.globals.values())
            return (known or isinstance(of, callers)) and super().is_safe_callable(obj)

    if form == "chat":
        loops = "jinja2.ext.loopcontrols"
        sandbox = Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[loops, generation])
    else:
        sandbox = Sandbox(undefined=StrictUndefined, keep_trailing_newline=True)
    for name in {*sandbox.globals} - {"range", "dict", "namespace"}:
        del sandbox.globals[name]
    if form == "chat":
        sandbox.globals |= {"raise_exception": _raise, "strftime_now": strftime_now}
        sandbox.filters["tojson"] = _to_json
    else:
        sandbox.filters["regex_replace"] = _regex_replace
    return sandbox


def _regex_replace(text, pattern, value="", count=0):
    return re.sub(pattern, value, text, count=count)


def _raise(message):
    raise TemplateError(message)


def _to_json(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    # Jinja's own escapes characters for HTML.
    return json.dumps(
        x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _generation():
    """The block {% generation %}: the variable _generation_marks has texts to put around it."""
    from jinja2 import nodes
    from jinja2.ext import Extension

    class Generation(Extension):
        tags = {"generation"}

        def parse(self, parser):
            number = next(parser.stream).lineno
            body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
            marks = nodes.Name("_generation_marks", "load")
            call = self.call_method("_mark", [marks])
            return nodes.CallBlock(call, [], [], body).set_lineno(number)

        def _mark(self, marks, caller):
            first, last = marks or ("", "")
            return f"{first}{caller()}{last}"

    return Generation


@functools.lru_cache(1)
def _compiled(template: str, date: str, form: str):
    fixed = datetime.datetime.fromisoformat(date) if date else None
    now = lambda form: (fixed or datetime.datetime.now()).strftime(form)
    return environment(now, form).from_string(template)


def render(template: str, contexts: list, date: str, form: str, limit: int) -> list[str]:
    """The text of each context. date: YYYY-MM-DD, '' = today. limit: of the characters of each."""
    compiled, texts = _compiled(template, date, form), []
    for context in contexts:
        pieces, size = [], 0
        for piece in compiled.generate(context):
            size += len(piece)
            if size > limit:
                raise TemplateError(f"it writes more than {limit:,} characters")
            pieces.append(piece)
        texts.append("".join(pieces))
    return texts


def _reply(request: dict, limit: int) -> dict:
    try:
        return {"texts": render(**request, limit=limit)}
    except MemoryError:
        return {"error": "it needs too much memory"}
    except RecursionError:
        return {"error": "it is nested too deeply"}
    except Exception as e:  # a template may raise any of Python's
        place = f"line {e.lineno}: " if getattr(e, "lineno", None) else ""
        return {"error": f"{place}{e or type(e).__name__}"[:1000]}


def main(seconds: float, memory: int, limit: int) -> None:
    import jinja2.sandbox  # noqa: F401  (before the clock starts)

    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    except (ImportError, ValueError, OSError):  # the time limit remains
        pass
    for line in sys.stdin.buffer:
        # The kernel ends the process, also within one long operation of the interpreter.
        signal.setitimer(signal.ITIMER_PROF, seconds)
        reply = json.dumps(_reply(json.loads(line), limit)).encode()
        signal.setitimer(signal.ITIMER_PROF, 0)
        sys.stdout.buffer.write(reply + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    sys.path += sys.argv[4:]
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the program that started it
    main(float(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
