"""What the tasks on conversations share."""

from typing import Any

from bigjax.data.chat_template import template_text


def resolve(config, options: Any) -> dict[str, str]:
    """A task's `resolve`: the content of data.chat_template, as the key task.chat_template."""
    del options
    return {"chat_template": template_text(config.data.get("chat_template", ""))}
