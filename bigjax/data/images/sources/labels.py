"""Labels as numbers."""

from collections.abc import Callable, Sequence
import io
import zipfile

import numpy as np

from bigjax.data.files import cache_folder, write_cached

_MOST_CLASSES = 100_000  # whose names are numbers in order, whether each is used or not


def numbered(texts: Sequence[str]) -> tuple[np.ndarray, tuple[str, ...]]:
    """(int32 [n], the names of the classes): sorted, as numbers if all are. Integers from 0 on are
    their own numbers, also where one of them is missing, unless they are large, such as dates."""
    distinct = sorted(set(texts))
    if all(text.isdecimal() and str(int(text)) == text for text in distinct):
        distinct = sorted(distinct, key=int)
        n = int(distinct[-1]) + 1 if distinct else 0
        if n <= _MOST_CLASSES:
            classes = tuple(map(str, range(n)))
            return np.array([int(text) for text in texts], np.int32), classes
    number = {text: i for i, text in enumerate(distinct)}
    return np.array([number[text] for text in texts], np.int32), tuple(distinct)


def several(texts: Sequence[Sequence[str]]) -> tuple[np.ndarray, tuple[str, ...]]:
    """(bool [n, n_classes], the names of the classes) of images with several labels each."""
    classes = tuple(sorted({text for labels in texts for text in labels}))
    number = {text: i for i, text in enumerate(classes)}
    labels = np.zeros((len(texts), len(classes)), bool)
    for row, names in zip(labels, texts):
        row[[number[name] for name in names]] = True
    return labels, classes


def cached(reading, fingerprint: str, read: Callable[[], tuple]) -> tuple[np.ndarray, tuple]:
    """What `read` returns, (labels, names of the classes), from a file if it was read before: in
    records, labels lie between images, so that reading them is reading all.

    reading: a Reading. fingerprint: of the records.
    """
    path = cache_folder(reading.cache_dir, "images") / f"labels-{fingerprint}.npz"
    try:
        with path.open("rb") as f, np.load(io.BytesIO(f.read())) as saved:
            return saved["labels"], tuple(saved["classes"].tolist())
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile):  # absent or damaged
        pass
    reading.log("data: reading the labels of all records")
    labels, classes = read()
    buffer = io.BytesIO()
    np.savez(buffer, labels=labels, classes=np.array(classes, str))
    write_cached(path, buffer.getvalue())
    return labels, classes
