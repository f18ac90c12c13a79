"""Images without labels: a file, a folder with those below it, or a pattern of such paths."""

import os

from bigjax.data.images.sources.files import Files
from bigjax.data.images.sources.folder import EXTENSIONS, images_in
from bigjax.data.sources.paths import find
from bigjax.errors import UserError


def opened(spec: str, reading) -> Files:
    paths = find(spec, reading.key)
    files = [path for path in paths if not path.is_dir()]
    images = [p for p in files if p.name.lower().endswith(EXTENSIONS)]
    if len(paths) == 1:  # whatever its name, somebody says that it is an image
        images = files
    elif len(images) < len(files):
        reading.log(f"data: {len(files) - len(images):,} files of {spec} have no name of an image")
    sizes = {str(path): int(path.stat().length) for path in images}
    for folder in (path for path in paths if path.is_dir()):
        sizes |= dict(images_in(str(folder), reading.log))
    if not sizes:
        what = (
            f"names {len(paths):,} file(s) and folder(s) without an image" if paths else "no file"
        )
        raise UserError(
            f"{reading.key}={spec!r}: {what} (looked from {os.getcwd()!r}). Give an image, a "
            "folder, a pattern such as 'photos/*.jpg', or a table of files."
        )
    names = sorted(sizes)
    return Files("images", names, [sizes[name] for name in names], None, ())
