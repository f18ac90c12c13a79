"""The 1,797 handwritten digits of scikit-learn, 8x8 pixels: data that every install has."""

import numpy as np


def matches(spec: str) -> bool:
    return spec == "digits"


class Digits:
    """https://scikit-learn.org/stable/datasets/toy_dataset.html; values of 0 to 16 become 0 to
    255."""

    classes = tuple("0123456789")
    fingerprint = "digits"

    def __init__(self) -> None:
        from sklearn.datasets import load_digits

        data = load_digits()
        self._images = np.rint(data.images * (255 / 16)).astype(np.uint8)
        self.labels = data.target.astype(np.int32)

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, i: int) -> np.ndarray:
        return self._images[i]

    def name(self, i: int) -> str:
        return f"digits:{i}"


def opened(spec: str, reading) -> Digits:
    return Digits()
