"""TensorFlow Datasets, prepared as array_record: "tfds:NAME" or "tfds:NAME[SPLIT]"; NAME may be the
folder of a set. Columns: data.columns.image and data.columns.label."""

import hashlib

import numpy as np

from bigjax.data import tfds_sets
from bigjax.data.files import fingerprint_files
from bigjax.data.images.sources.labels import cached
from bigjax.errors import UserError

_LABELS_AT_ONCE = 4096


def matches(spec: str) -> bool:
    return spec.startswith("tfds:")


def has(spec: str, part: str) -> bool:
    return not spec.endswith("]") and tfds_sets.SPLIT[part] in tfds_sets.builder(spec).info.splits


class Tfds:
    """classes: the set's own, or '0', '1', ... for integers."""

    def __init__(self, rows, image: str, labels, where: str, fingerprint: str) -> None:
        self._rows, self._image, self._where = rows, image, where
        self.labels, self.classes = labels
        self.fingerprint = fingerprint

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, i: int) -> bytes | np.ndarray:
        value = self._rows[i][self._image]
        return value if isinstance(value, bytes) else np.asarray(value)

    def name(self, i: int) -> str:
        return f"{self._where}:{i}"


def opened(spec: str, reading) -> Tfds:
    import tensorflow_datasets as tfds

    builder = tfds_sets.builder(spec)
    split = tfds_sets.parse(spec)[1] or tfds_sets.SPLIT[reading.part]
    image, label = reading.columns.image, reading.columns.label
    features = builder.info.features
    needed = (image, label) if reading.labelled else (image,)
    missing = [name for name in needed if name not in features]
    if missing:
        raise UserError(
            f"{reading.key}={spec!r} has no feature {missing[0]!r}; it has {', '.join(features)}. "
            "Set data.columns.image and data.columns.label to two of them."
        )
    encoded = isinstance(features[image], tfds.features.Image)
    skip = {image: tfds.decode.SkipDecoding()} if encoded else {}
    try:
        rows = builder.as_data_source(split=split, decoders=skip or None)
        paths = [
            str(p) for name in builder.info.splits for p in builder.info.splits[name].filepaths
        ]
    except Exception as e:  # a wrong file format, a wrong split, missing shards
        raise UserError(
            f"{reading.key}={spec!r}: cannot read split {split!r} of "
            f"{', '.join(builder.info.splits)}: {tfds_sets.reason(e)} The set has to be prepared "
            "with file_format='array_record'."
        ) from None
    where = f"{builder.info.full_name}[{split}]"
    names = getattr(features[label], "names", None) if reading.labelled else None
    digest = hashlib.sha256(f"{where} {image} {label} {fingerprint_files(paths)} {names}".encode())
    fingerprint = f"tfds-{digest.hexdigest()[:16]}"
    labels: tuple = None, ()
    if reading.labelled:
        labels = cached(reading, fingerprint, lambda: _labels(rows, label, names))
    return Tfds(rows, image, labels, where, fingerprint)


def _labels(rows, name: str, names) -> tuple[np.ndarray, tuple[str, ...]]:
    values = []
    for start in range(0, len(rows), _LABELS_AT_ONCE):
        indices = range(start, min(len(rows), start + _LABELS_AT_ONCE))
        values += [int(row[name]) for row in rows.__getitems__([*indices])]
    labels = np.array(values, np.int32)
    return labels, tuple(names or map(str, range(int(labels.max(initial=-1)) + 1)))
