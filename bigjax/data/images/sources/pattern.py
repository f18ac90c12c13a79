"""Images without labels: a file, a folder with those below it, or a pattern of such paths."""

from bigjax.data.file_list import matching_inputs
from bigjax.data.images.sources.files import Files
from bigjax.data.images.sources.folder import EXTENSIONS

_EXAMPLE = "an image, a folder, a pattern such as 'photos/*.jpg'"


def opened(spec: str, reading) -> Files:
    sizes = matching_inputs(spec, reading.key, EXTENSIONS, "images", _EXAMPLE, reading.log)
    return Files("images", [*sizes], [*sizes.values()], None, ())
