"""Recordings without texts: a file, a folder with those below it, or a pattern of such paths."""

from typing import Any

from bigjax.data.audio.sources.files import EXTENSIONS, UNIT
from bigjax.data.file_list import matching_inputs

_EXAMPLE = "a recording, a folder, a pattern such as 'calls/*.wav'"


def paths(spec: str, reading) -> tuple[list[dict[str, Any]], list[str]]:
    """(rows, paths), as sources.opened_input."""
    sizes = matching_inputs(spec, reading.key, EXTENSIONS, UNIT, _EXAMPLE, reading.log)
    return [{"file": path} for path in sizes], [*sizes]
