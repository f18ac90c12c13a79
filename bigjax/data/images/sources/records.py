"""array_record files of tf.train.Example: the features data.columns.image (an encoded image) and
data.columns.label (an integer or text)."""

import hashlib

from bigjax.data.files import fingerprint_files
from bigjax.data.images.sources.labels import cached, numbered
from bigjax.data.sources.paths import matching_files
from bigjax.errors import UserError

_AT_ONCE = 4096


def matches(spec: str) -> bool:
    return ".array_record" in spec


class Records:
    def __init__(self, source, labels, classes, image: str, where: str, fingerprint: str) -> None:
        self._source, self._image, self._where = source, image, where
        self.labels, self.classes, self.fingerprint = labels, classes, fingerprint

    def __len__(self) -> int:
        return len(self._source)

    def read(self, i: int) -> bytes:
        return _feature(_features(self._source[i]), self._image)

    def name(self, i: int) -> str:
        return f"{self._where}:{i}"


def opened(spec: str, reading) -> Records:
    from array_record.python.array_record_data_source import ArrayRecordDataSource

    paths = [str(path) for path in matching_files(spec, "array_record")]
    image, label = reading.columns.image, reading.columns.label
    needed = {image, label} if reading.labelled else {image}
    digest = hashlib.sha256(f"{image} {label} {fingerprint_files(paths)}".encode())
    fingerprint = f"array_record-{digest.hexdigest()[:16]}"

    def checked(record: bytes, i: int) -> dict:
        features = _features(record)
        if missing := needed - {*features}:
            raise UserError(
                f"{reading.key}={spec!r}: record {i} has no feature {min(missing)!r}; it has "
                f"{', '.join(sorted(features))}. Set data.columns.image and data.columns.label to "
                "two of them."
            )
        return features

    def read():
        texts: list[str] = []
        for start in range(0, len(source), _AT_ONCE):
            indices = range(start, min(len(source), start + _AT_ONCE))
            for record in source.__getitems__([*indices]):
                texts.append(_text(_feature(checked(record, len(texts)), label)))
        return numbered(texts)

    try:
        source = ArrayRecordDataSource(paths)
        if len(source):
            checked(source[0], 0)
        labels, classes = cached(reading, fingerprint, read) if reading.labelled else (None, ())
    except (RuntimeError, ValueError, OSError) as e:
        raise UserError(f"{reading.key}={spec!r}: cannot read the files: {e}") from None
    return Records(source, labels, classes, image, spec, fingerprint)


def _features(record: bytes) -> dict:
    from google.protobuf.message import DecodeError
    from tensorflow_datasets.proto import tf_example_generated_pb2

    try:
        example = tf_example_generated_pb2.Example.FromString(record)
    except DecodeError:
        raise ValueError("a record is not a tf.train.Example") from None
    return dict(example.features.feature)


def _text(label: bytes | int) -> str:
    return label.decode() if isinstance(label, bytes) else str(label)


def _feature(features: dict, name: str) -> bytes | int:
    """The first value of a feature."""
    value = features[name]
    if value.int64_list.value:
        return int(value.int64_list.value[0])
    return bytes(value.bytes_list.value[0]) if value.bytes_list.value else b""
