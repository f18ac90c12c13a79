"""Recordings without texts: a file, a folder with those below it, or a pattern of such paths."""

from collections.abc import Callable

from bigjax.data.audio.sources.files import EXTENSIONS, UNIT
from bigjax.data.file_list import matching_inputs

_EXAMPLE = "a recording, a folder, a pattern such as 'calls/*.wav'"


def paths(spec: str, key: str, log: Callable[[str], None]) -> list[str]:
    """As sources.input_paths."""
    return [*matching_inputs(spec, key, EXTENSIONS, UNIT, _EXAMPLE, log)]
