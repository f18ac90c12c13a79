"""RandAugment and TrivialAugment: random operations of random strength on an image.

Images are Pillow's, in RGB or grey; each function draws from a numpy Generator.
"""

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from bigjax.data.images.transforms import affine, cutout, filling

_GREY = 128  # what comes in when an image is moved


def _enhance(kind) -> Callable[[Image.Image, float], Image.Image]:
    return lambda image, factor: kind(image).enhance(factor)


def _affine(matrix: Callable[[float, Image.Image], tuple]):
    """matrix(amount, image) -> (a, b, c, d, e, f) of Image.transform."""

    return lambda image, amount: affine(image, matrix(amount, image), _GREY)


def _rotate(image: Image.Image, degrees: float) -> Image.Image:
    how = Image.Resampling.BILINEAR
    return image.rotate(degrees, how, fillcolor=filling(image, _GREY))


def _solarize_add(image: Image.Image, amount: float) -> Image.Image:
    """`amount` is added to values below 128."""
    table = [min(255, i + int(amount)) if i < 128 else i for i in range(256)]
    return image.point(table * len(image.getbands()))


# By name: (image, amount) -> image.
OPERATIONS: dict[str, Callable[[Image.Image, float], Image.Image]] = {
    "identity": lambda image, _: image,
    "autocontrast": lambda image, _: ImageOps.autocontrast(image),
    "equalize": lambda image, _: ImageOps.equalize(image),
    "invert": lambda image, _: ImageOps.invert(image),
    "rotate": _rotate,  # degrees
    "posterize": lambda image, bits: ImageOps.posterize(image, int(bits)),
    "solarize": lambda image, threshold: ImageOps.solarize(image, int(threshold)),
    "solarize_add": _solarize_add,
    "color": _enhance(ImageEnhance.Color),  # factors; 1 changes nothing
    "contrast": _enhance(ImageEnhance.Contrast),
    "brightness": _enhance(ImageEnhance.Brightness),
    "sharpness": _enhance(ImageEnhance.Sharpness),
    "shear_x": _affine(lambda x, image: (1, x, -x * image.height / 2, 0, 1, 0)),
    "shear_y": _affine(lambda x, image: (1, 0, 0, x, 1, -x * image.width / 2)),
    "translate_x": _affine(lambda x, image: (1, 0, x * image.width, 0, 1, 0)),  # of the width
    "translate_y": _affine(lambda x, image: (1, 0, 0, 0, 1, x * image.height)),
}

_FACTORS = ("color", "contrast", "brightness", "sharpness")
_SIGNED = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")
# RandAugment's, at strength 10, as in big_vision for 224 pixels: an image is moved by 100 of them.
_STRONGEST = {
    "autocontrast": 0.0,
    "equalize": 0.0,
    "invert": 0.0,
    "rotate": 30.0,
    "posterize": 4.0,
    "solarize": 256.0,
    "solarize_add": 110.0,
    **dict.fromkeys(_FACTORS, 1.8),
    "shear_x": 0.3,
    "shear_y": 0.3,
    "translate_x": 100 / 224,
    "translate_y": 100 / 224,
    "cutout": 40 / 224,
}
# TrivialAugment's wide space, for 224 pixels: from the first amount to the second.
_WIDE = {
    "identity": (0.0, 0.0),
    "autocontrast": (0.0, 0.0),
    "equalize": (0.0, 0.0),
    "rotate": (0.0, 135.0),
    "posterize": (8.0, 2.0),
    "solarize": (255.0, 0.0),
    **dict.fromkeys(_FACTORS, (0.0, 0.99)),
    "shear_x": (0.0, 0.99),
    "shear_y": (0.0, 0.99),
    "translate_x": (0.0, 32 / 224),
    "translate_y": (0.0, 32 / 224),
}
_BINS = 31


def rand_augment(
    image: Image.Image, rng: np.random.Generator, layers: int, strength: float
) -> Image.Image:
    """`layers` operations, each drawn from all, of `strength`: 0 to 10, or more
    (https://arxiv.org/abs/1909.13719). Operations and strengths are those of big_vision and of the
    paper's own code, except that shears keep the middle in its place, not a corner, and that
    distances are shares of the image."""
    for _ in range(layers):
        name = str(rng.choice([*_STRONGEST]))
        amount = _STRONGEST[name] * strength / 10
        if name in _FACTORS:
            amount += 0.1
        elif name == "posterize":
            amount = min(max(1, int(amount)), 8)
        elif name in _SIGNED:
            amount *= rng.choice((-1.0, 1.0))
        if name == "cutout":
            image = cutout(image, rng, amount, _GREY)
        else:
            image = OPERATIONS[name](image, amount)
    return image


def trivial_augment(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """One operation of a random strength (https://arxiv.org/abs/2103.10158, its wide space).
    Shears, distances and what comes in are as in `rand_augment`."""
    name = str(rng.choice([*_WIDE]))
    first, last = _WIDE[name]
    amount = first + (last - first) * rng.integers(_BINS) / (_BINS - 1)
    if name == "posterize":
        amount = round(amount)
    if name in _FACTORS or name in _SIGNED:
        amount *= rng.choice((-1.0, 1.0))
    return OPERATIONS[name](image, amount + (1.0 if name in _FACTORS else 0.0))
