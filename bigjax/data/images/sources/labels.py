"""Labels as numbers."""

from collections.abc import Sequence

import numpy as np

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
