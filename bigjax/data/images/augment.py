"""The section data.augment: how training images are changed."""

import dataclasses

import numpy as np
from PIL import Image

from bigjax.bounds import POSITIVE, SHARE, Range, at_least, check_ranges
from bigjax.data.images import randaugment, transforms
from bigjax.data.images.decode import View, to_array
from bigjax.errors import UserError

CROPS = ("inception", "random", "center")


@dataclasses.dataclass(frozen=True)
class Augment:
    """In the order in which they are applied; each is off at its default, but the crop."""

    crop: str = "inception"  # inception; random (BiT: resized to `resize`, then cut); center
    area: tuple[float, ...] = (0.08, 1.0)  # inception: the smallest and largest share of the area
    ratio: tuple[float, ...] = (0.75, 1.3333333333)  # inception: of width to height
    resize: int = 0  # random: height and width before the crop, at least data.size; 0 = data.size
    flip: bool = True  # half of the images, left and right
    shift: int = 0  # pixels, up to which an image is moved in each direction
    rotation: float = 0.0  # degrees, in either direction
    scale: tuple[float, ...] = (1.0, 1.0)  # smallest and largest factor
    randaugment_layers: int = 0  # operations per image
    randaugment_strength: float = 10.0  # of each: 0 to 10, or more
    trivial: bool = False  # TrivialAugment: one operation of a random strength
    brightness: float = 0.0  # factors from 1 - x to 1 + x
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0  # of the circle of colours, in either direction
    noise: float = 0.0  # standard deviation, for values of 0 to 1
    erasing: float = 0.0  # the probability of a rectangle of noise

    RANGES = {
        "area": Range(0, 1, open_low=True),
        **dict.fromkeys(("ratio", "scale"), POSITIVE),
        **dict.fromkeys(("resize", "shift", "randaugment_layers"), at_least(0)),
        **dict.fromkeys(("randaugment_strength", "noise"), at_least(0)),
        "rotation": Range(0, 180),
        **dict.fromkeys(("brightness", "contrast", "saturation"), at_least(0)),
        "hue": Range(0, 0.5),
        "erasing": SHARE,
    }

    def __post_init__(self):
        check_ranges("data.augment", self)
        if self.crop not in CROPS:
            raise UserError(f"data.augment.crop is {self.crop!r}; allowed: {', '.join(CROPS)}.")
        for name in ("area", "ratio", "scale"):
            value = getattr(self, name)
            if len(value) != 2 or value[0] > value[1]:
                raise UserError(
                    f"data.augment.{name} is {value}; it has to be the smallest and the largest."
                )

    def view(self, width: int, height: int, size: int, rng: np.random.Generator) -> View:
        """The part of a training image to decode, as a square of `size`."""
        square = size, size
        if self.crop == "inception":
            return transforms.inception_crop(width, height, square, rng, self.area, self.ratio)
        if self.crop == "random":
            resized = max(self.resize, size)
            return transforms.random_crop(width, height, square, rng, (resized, resized))
        return transforms.central_crop(width, height, square)

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> np.ndarray:
        """uint8 [H, W, channels] of a decoded training image, changed."""
        if self.flip:
            image = transforms.flip(image, rng)
        if self.shift:
            image = transforms.shifted(image, rng, self.shift)
        if self.rotation or self.scale != (1.0, 1.0):
            image = transforms.rotate_and_scale(image, rng, self.rotation, self.scale)
        if self.randaugment_layers:
            layers, strength = self.randaugment_layers, self.randaugment_strength
            image = randaugment.rand_augment(image, rng, layers, strength)
        if self.trivial:
            image = randaugment.trivial_augment(image, rng)
        colours = self.brightness, self.contrast, self.saturation, self.hue
        if any(colours):
            image = transforms.jitter(image, rng, *colours)
        array = to_array(image)
        if self.noise:
            array = transforms.noise(array, rng, self.noise)
        return transforms.erase(array, rng, self.erasing) if self.erasing else array
