"""TensorFlow Datasets: the `field` of each example of `split` (slices such as 'train[:10%]' too).

The set is `name`, prepared as array_record under `path`; or `path` is the set's own folder.
"""

from collections.abc import Iterator
import os
from typing import Any

from bigjax.data.files import fingerprint_files
from bigjax.data.sources import Config, Reading
from bigjax.data.utf8 import Replacing
from bigjax.errors import UserError

_BATCH = 256


def documents(options: Config, reading: Reading) -> Iterator[str]:
    where, utf8 = reading.where, reading.utf8
    builder = _builder(options, where)
    _split_names(builder, options, where)
    try:
        rows = builder.as_data_source(split=options.split)
    except Exception as e:  # a wrong file format, a wrong split, missing shards
        raise UserError(
            f"{where}: cannot read split {options.split!r}: {e}. The set has to be "
            'prepared with file_format="array_record".'
        ) from None
    for start in range(0, len(rows), _BATCH):
        indices = range(start, min(start + _BATCH, len(rows)))
        for i, row in zip(indices, rows.__getitems__(list(indices))):
            yield _text(row, options.field, f"{where} example {i}", utf8)
    utf8.finish(where)


def fingerprint(options: Config, reading: Reading) -> str:
    builder = _builder(options, reading.where)
    paths = [
        path
        for split in _split_names(builder, options, reading.where)
        for path in builder.info.splits[split].filepaths
    ]
    return (
        f"tfds-{builder.info.full_name}-{options.split}-{options.field}-{fingerprint_files(paths)}"
    )


def _text(row: Any, field: str, where: str, utf8: Replacing) -> str:
    for part in field.split("/"):  # 'dialogue/answer': a feature inside a feature
        if not isinstance(row, dict) or part not in row:
            available = ", ".join(row) if isinstance(row, dict) else type(row).__name__
            raise UserError(
                f"{where}: no field {field!r}; found {available}. Set the "
                "source's field to the one that holds the text."
            )
        row = row[part]
    if isinstance(row, bytes):
        return utf8.decode(row, where)
    if isinstance(row, str):
        return utf8.clean(row, where)
    raise UserError(
        f"{where}: field {field!r} holds {type(row).__name__}, not text. Set "
        "the source's field to a Text feature."
    )


def _builder(options: Config, where: str) -> Any:
    try:
        import tensorflow_datasets as tfds
    except ImportError:
        raise UserError(
            'a source of kind "tfds" needs the package tensorflow-datasets '
            "(TensorFlow itself is not needed): pip install tensorflow-datasets "
            "array_record"
        ) from None
    path = os.path.expanduser(options.path)
    try:
        if options.name:
            return tfds.builder(options.name, data_dir=path or None)
        return tfds.builder_from_directory(path)
    except Exception as e:  # of many types; the first line has the reason, the rest lists all sets
        reason = (str(e).strip().splitlines() or [type(e).__name__])[0]
        raise UserError(
            f"{where}: {reason} Set name to NAME:VERSION and path to the data_dir it "
            "was prepared in, or leave name empty and set path to the set's own folder (the one "
            "with dataset_info.json)."
        ) from None


def _split_names(builder: Any, options: Config, where: str) -> list[str]:
    splits = builder.info.splits
    names = [name for name in splits if name in options.split]
    try:
        splits[options.split]
    except Exception as e:
        raise UserError(
            f"{where}: cannot read split {options.split!r}: {e} The set has "
            f'{", ".join(splits) or "no prepared split"}; slices such as "train[:10%]" work too.'
        ) from None
    return names
