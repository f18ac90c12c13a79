"""A folder with one folder of images per class, whose name is the label.

Folders `train`, `valid` (or `val`, `validation`) and `test` in it are the splits, if there are any;
beside other folders, a `train` without folders is a class. Where no labels are needed, the images
may lie in any folders.
"""

import fnmatch
import os

from etils import epath
import numpy as np

from bigjax.data.file_list import SPLIT_FOLDERS, named_files
from bigjax.data.images.sources.files import Files
from bigjax.errors import UserError
from bigjax.plural import plural

EXTENSIONS = (".png", ".jpg", ".jpeg", ".jfif", ".jp2", ".webp", ".bmp", ".gif", ".tif", ".tiff")
EXTENSIONS += (".ppm", ".pgm")


def matches(spec: str) -> bool:
    return epath.Path(os.path.expanduser(spec)).is_dir()


def has(spec: str, part: str) -> bool:
    return _split_folder(spec, part) is not None


def _split_folder(path: str, part: str) -> str | None:
    """The folder of a split within a folder; None if it has none, or no folder `train`."""
    root = epath.Path(path)
    names = SPLIT_FOLDERS[part] if (root / "train").is_dir() and _is_divided(root) else ()
    return next((str(root / name) for name in names if (root / name).is_dir()), None)


def _is_divided(root) -> bool:
    """Whether the folder `train` in it is a split, not a class of images of trains."""
    splits = {name for names in SPLIT_FOLDERS.values() for name in names}
    return {p.name for p in _listed(root)[0]} <= splits or bool(_listed(root / "train")[0])


def opened(spec: str, reading) -> Files:
    spec = _split_folder(spec, reading.part) or spec
    if not reading.labelled:
        images = named_files(spec, EXTENSIONS, "images", reading.log)
        if not images and (shards := _shards(spec, _listed(epath.Path(spec))[1])):
            raise UserError(f"{reading.key}: the folder {spec} has no images; {shards}")
        return Files("images", [p for p, _ in images], [n for _, n in images], None, ())
    folders, names = _listed(epath.Path(spec))
    classes = [p.name for p in folders]
    if not classes:
        if shards := _shards(spec, names):
            raise UserError(f"{reading.key}: the folder {spec} has no folders of images; {shards}")
        raise UserError(
            f"{reading.key}: the folder {spec} has no folders. Images of a class have to lie in a "
            "folder with its name, such as photos/cat/1.jpg; for others give a table of files."
        )
    if loose := [name for name in names if name.lower().endswith(EXTENSIONS)]:
        n = len(loose)
        reading.log(
            f"data: {n:,} {plural(n, 'image')} in {spec} {'lies' if n == 1 else 'lie'} in no class "
            f"folder, such as {_joined(spec, loose[0])}: left out"
        )
    paths, sizes, labels = [], [], []
    for label, name in enumerate(classes):
        images = named_files(_joined(spec, name), EXTENSIONS, "images", reading.log)
        if not images:
            raise UserError(
                f"{reading.key}: the folder {spec}/{name} has no images ({', '.join(EXTENSIONS)}). "
                "Each folder is a class: remove it, or put images into it."
            )
        paths += [p for p, _ in images]
        sizes += [n for _, n in images]
        labels += [label] * len(images)
    return Files("folder", paths, sizes, np.array(labels, np.int32), classes)


def _listed(folder) -> tuple[list, list[str]]:
    """(its folders, the names of its files), sorted; not those below them, and not hidden ones."""
    folders, names = [], []
    for p in sorted(folder.iterdir(), key=lambda p: p.name):
        if p.name.startswith("."):
            continue
        if p.is_dir():
            folders.append(p)
        else:
            names.append(p.name)
    return folders, names


def _joined(folder: str, name: str) -> str:
    return f"{folder}/{name}" if "://" in folder else os.path.join(folder, name)


def _shards(folder: str, names: list[str]) -> str:
    """What to give instead of a folder whose files hold many images each; '' for others."""
    for pattern in ("*.tar", "*.array_record*"):
        if n := len(fnmatch.filter(names, pattern)):
            spec = f"tfds:{folder}" if "dataset_info.json" in names else _joined(folder, pattern)
            return f"it holds {n:,} {pattern.strip('*')} {plural(n, 'file')}: give {spec!r}."
    return ""
