"""Has the API reference show docstrings as they are written: they are no Markdown."""

import html
import re

import griffe


class PlainDocstrings(griffe.Extension):
    """Escapes what Markdown would read as markup, outside `code`."""

    def on_object(self, *, obj, **kwargs):
        if obj.docstring:
            parts = re.split(r"(`[^`\n]+`)", obj.docstring.value)
            parts[::2] = [
                re.sub(r"([\\*_#\[\]])", r"\\\1", html.escape(p, False)) for p in parts[::2]
            ]
            obj.docstring.value = "".join(parts)
