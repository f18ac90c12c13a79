"""IDX files, such as those of MNIST and Fashion-MNIST: images beside their labels.

http://yann.lecun.com/exdb/mnist/ describes the format. `data.train` names the file of images; that
of labels lies beside it, with `labels-idx1` in its name for `images-idx3`. Both may be compressed.
Or it names a folder with the four files of such a set, of 60,000 images and the t10k to test.
"""

import gzip
import hashlib
import math
import os
import re
import zlib

from etils import epath
import numpy as np

from bigjax.errors import UserError

_NAME = re.compile(r"images[-.]idx3[-.]ubyte(\.gz)?$")
_PREFIXES = {"train": "train", "test": "t10k"}
_UBYTE = 8  # the code of bytes, the only type of images and labels


def matches(spec: str) -> bool:
    return bool(_NAME.search(spec)) or bool(_file_of(spec, "train"))


def has(spec: str, part: str) -> bool:
    return not _NAME.search(spec) and bool(_file_of(spec, part))


def _file_of(folder: str, part: str) -> str | None:
    """The images of a split in a folder, None if it is not there."""
    root = epath.Path(os.path.expanduser(folder))
    if part not in _PREFIXES or not root.is_dir():
        return None
    names = [f"{_PREFIXES[part]}-images{x}idx3-ubyte{end}" for x in "-." for end in ("", ".gz")]
    return next((str(root / name) for name in names if (root / name).is_file()), None)


class Idx:
    def __init__(self, images: np.ndarray, labels: np.ndarray | None, path: str) -> None:
        self._images, self._path, self.labels, self.classes = images, path, None, ()
        digest = hashlib.sha256(images.tobytes())
        if labels is not None:
            self.labels = labels.astype(np.int32)
            self.classes = tuple(map(str, range(int(self.labels.max(initial=-1)) + 1)))
            digest.update(labels.tobytes())
        self.fingerprint = f"idx-{digest.hexdigest()[:16]}"

    def __len__(self) -> int:
        return len(self._images)

    def read(self, i: int) -> np.ndarray:
        return self._images[i]

    def name(self, i: int) -> str:
        return f"{self._path}:{i}"


def opened(spec: str, reading) -> Idx:
    if not _NAME.search(spec):
        spec = _file_of(spec, reading.part) or _file_of(spec, "train") or spec
    images = _array(spec, 3, reading.key)
    if not reading.labelled:
        return Idx(images, None, spec)
    beside = re.sub(r"images([-.])idx3", r"labels\1idx1", spec)
    labels = _array(beside, 1, reading.key)
    if len(images) != len(labels):
        raise UserError(
            f"{reading.key}: {spec} has {len(images):,} images, but {beside} has {len(labels):,} "
            "labels. They have to be of one set."
        )
    return Idx(images, labels, spec)


def _array(path: str, dims: int, key: str) -> np.ndarray:
    """The array of a file, uint8 with this many dimensions."""
    try:
        content = epath.Path(path).read_bytes()
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as e:
        raise UserError(f"{key}: cannot read {path}: {e}. IDX files lie in pairs.") from None
    start = 4 + 4 * dims
    sizes = [int.from_bytes(content[4 + 4 * i : 8 + 4 * i], "big") for i in range(dims)]
    if content[:4] != bytes((0, 0, _UBYTE, dims)) or len(content) != start + math.prod(sizes):
        raise UserError(
            f"{key}: {path} is not an IDX file of bytes with {dims} dimensions, or is cut off: its "
            f"header is {content[:4].hex(' ')}, its length {len(content):,}."
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(sizes)
