"""Images that are files with a name and a label each, local or on gs:// or s3://."""

from collections.abc import Sequence
import hashlib

import numpy as np

from bigjax.data.file_list import read_file
from bigjax.data.images.decode import BadImage


class Files:
    """paths: of the images. sizes: in bytes; fingerprints are of names, sizes and labels. records:
    the complete rows of their table, if there is one."""

    def __init__(
        self,
        kind: str,
        paths: Sequence[str],
        sizes: Sequence[int],
        labels: np.ndarray | None,
        classes: Sequence[str],
        names: Sequence[str] | None = None,
        records: Sequence[dict] | None = None,
    ) -> None:
        self.records = records
        self._paths, self.labels, self.classes = list(paths), labels, tuple(classes)
        self._names = self._paths if names is None else list(names)
        digest = hashlib.sha256(repr((self._names, list(sizes), self.classes)).encode())
        digest.update(b"" if labels is None else labels.tobytes())
        self.fingerprint = f"{kind}-{digest.hexdigest()[:16]}"

    def __len__(self) -> int:
        return len(self._paths)

    def read(self, i: int) -> bytes:
        return read_file(self._paths[i], BadImage)

    def name(self, i: int) -> str:
        return self._names[i]
