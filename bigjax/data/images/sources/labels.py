"""Labels as numbers."""

from collections.abc import Sequence

import numpy as np


def numbered(texts: Sequence[str]) -> tuple[np.ndarray, tuple[str, ...]]:
    """(int32 [n], the names of the classes): sorted, as numbers if all are. Integers from 0 on are
    their own numbers, also where one of them is missing."""
    distinct = sorted(set(texts))
    if all(text.isdecimal() for text in distinct):
        classes = tuple(map(str, range(max(map(int, distinct), default=-1) + 1)))
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
