"""TensorFlow Datasets in configs: "tfds:NAME" and "tfds:NAME[SPLIT]", prepared as array_record."""

import contextlib
import importlib
import os
import pkgutil
from typing import Any

from bigjax.errors import UserError

SPLIT = {"train": "train", "valid": "validation", "test": "test"}  # ours: theirs
_NO_SETS = ("core", "dataset_collections", "datasets", "proto", "scripts", "testing")


def parse(spec: str) -> tuple[str, str]:
    """('glue/sst2', '') of 'tfds:glue/sst2', ('x', 'train[:5]') of 'tfds:x[train[:5]]'."""
    name, bracket, split = spec.removeprefix("tfds:").partition("[")
    return name, split.removesuffix("]") if bracket else ""


def builder(spec: str) -> Any:
    """The TFDS builder of 'tfds:NAME', whose set is downloaded if it is not prepared. Raises
    UserError."""
    name, _ = parse(spec)
    try:
        import tensorflow_datasets as tfds
    except ImportError:
        raise UserError(
            f"{spec} needs the package tensorflow-datasets (TensorFlow itself is not "
            "needed): pip install tensorflow-datasets array_record"
        ) from None
    try:
        if name.startswith(("/", "~", ".")) or "://" in name:
            return tfds.builder_from_directory(os.path.expanduser(name))
        made = _registered(tfds, name)
    except Exception as e:  # of many types; the first line has the reason, the rest lists all sets
        raise UserError(
            f"tfds:{name}: {reason(e)} Name a set that is prepared in TFDS_DATA_DIR (such as "
            '"tfds:glue/sst2"), or the set\'s own folder (the one with dataset_info.json).'
        ) from None
    if not made.info.splits:
        _prepare(made, name)
    return made


def _registered(tfds: Any, name: str) -> Any:
    """The set's builder. TFDS itself stops looking for sets at the first of its packages that
    cannot be imported, and some need TensorFlow or other packages that are not installed."""
    try:
        return tfds.builder(name)
    except tfds.core.registered.DatasetNotFoundError:
        for package in pkgutil.iter_modules(tfds.__path__):
            if package.ispkg and package.name not in _NO_SETS:
                with contextlib.suppress(Exception):
                    importlib.import_module(f"tensorflow_datasets.{package.name}")
        return tfds.builder(name)


def _prepare(builder: Any, name: str) -> None:
    """Downloads a set that is not in TFDS_DATA_DIR, and writes it there."""
    try:
        builder.download_and_prepare(file_format="array_record")
    except Exception as e:  # no network, a missing file, no space, a missing package
        raise UserError(
            f"tfds:{name} is not prepared in {builder.data_dir}, and could not be downloaded: "
            f"{reason(e)} Run bigjax once on a machine with a network, or prepare it with "
            'TFDS and file_format="array_record"; copy what that wrote, and name the folder with '
            'its dataset_info.json as "tfds:FOLDER", or set TFDS_DATA_DIR to the one above all '
            "sets."
        ) from None


def reason(error: Exception) -> str:
    """The first line of an error of TFDS, as a sentence; the rest lists all sets."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].removesuffix(".") + "."
