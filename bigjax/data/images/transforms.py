"""Random changes of training images: functions of an image and a numpy Generator.

Images are Pillow's, in RGB or grey. Views choose the part of an image that is decoded.
"""

import math

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from bigjax.data.images.decode import View

_ATTEMPTS = 10  # at a crop of a drawn area and shape that lies within the image


def inception_crop(
    width: int,
    height: int,
    size: tuple[int, int],
    rng: np.random.Generator,
    area: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> View:
    """A random part, with an area and a ratio of its sides drawn from these ranges
    (https://arxiv.org/abs/1409.4842, as in big_vision and torchvision)."""
    for _ in range(_ATTEMPTS):
        pixels = width * height * rng.uniform(*area)
        shape = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = round(math.sqrt(pixels * shape)), round(math.sqrt(pixels / shape))
        if 0 < w <= width and 0 < h <= height:
            left, top = rng.integers(width - w + 1), rng.integers(height - h + 1)
            return View((left, top, left + w, top + h), size)
    return central_crop(width, height, size)


def central_crop(width: int, height: int, size: tuple[int, int], share: float = 1.0) -> View:
    """The largest part in the middle with the shape of `size`, or `share` of its sides."""
    h, w = size
    scale = share * min(width / w, height / h)
    left, top = (width - scale * w) / 2, (height - scale * h) / 2
    return View((left, top, left + scale * w, top + scale * h), size)


def random_crop(
    width: int,
    height: int,
    size: tuple[int, int],
    rng: np.random.Generator,
    resize: tuple[int, int],
) -> View:
    """A random part of `size` of the image resized to `resize`, as BiT crops
    (https://arxiv.org/abs/1912.11370)."""
    (h, w), (resized_h, resized_w) = size, resize
    top, left = rng.integers(resized_h - h + 1), rng.integers(resized_w - w + 1)
    x, y = width / resized_w, height / resized_h
    return View((left * x, top * y, (left + w) * x, (top + h) * y), size)


def shifted(image: Image.Image, rng: np.random.Generator, pixels: int) -> Image.Image:
    """Moved by up to `pixels` pixels in each direction; what comes in is black."""
    shift = rng.integers(-pixels, pixels + 1, 2)
    return _moved(image, (1, 0, int(shift[0]), 0, 1, int(shift[1])))


def flip(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Left and right exchanged, with probability 1/2."""
    return ImageOps.mirror(image) if rng.random() < 0.5 else image


def rotate_and_scale(
    image: Image.Image, rng: np.random.Generator, degrees: float, scale: tuple[float, float]
) -> Image.Image:
    """Turned by up to `degrees` in either direction, and scaled by a factor of this range, about
    the middle; what comes in is black."""
    angle, factor = math.radians(rng.uniform(-degrees, degrees)), rng.uniform(*scale)
    cos, sin = math.cos(angle) / factor, math.sin(angle) / factor
    x, y = (image.width - 1) / 2, (image.height - 1) / 2
    return _moved(image, (cos, sin, x - cos * x - sin * y, -sin, cos, y + sin * x - cos * y))


def jitter(
    image: Image.Image,
    rng: np.random.Generator,
    brightness: float = 0.0,
    contrast: float = 0.0,
    saturation: float = 0.0,
    hue: float = 0.0,
) -> Image.Image:
    """Colours changed in a random order: factors from 1 - x to 1 + x, and the hue by up to `hue` of
    the circle of colours in either direction (as torchvision's ColorJitter)."""
    factors = rng.uniform(-1, 1, 4)
    for i in rng.permutation(4):
        if i == 3:
            if hue and image.mode == "RGB":
                image = _turn_hue(image, round(255 * hue * factors[3]))
            continue
        amount = (brightness, contrast, saturation)[i]
        if amount:
            enhance = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)[i]
            image = enhance(image).enhance(max(0.0, 1 + amount * factors[i]))
    return image


def noise(image: np.ndarray, rng: np.random.Generator, deviation: float) -> np.ndarray:
    """Gaussian noise on each value; deviation: of values of 0 to 1. image: uint8."""
    noisy = image + rng.normal(0, 255 * deviation, image.shape).astype(np.float32)
    return np.clip(np.rint(noisy), 0, 255).astype(np.uint8)


def erase(image: np.ndarray, rng: np.random.Generator, probability: float) -> np.ndarray:
    """With this probability a rectangle of 2% to 33% of the image becomes noise
    (https://arxiv.org/abs/1708.04896). image: uint8 [H, W, C], changed in place."""
    if rng.random() >= probability:
        return image
    height, width, channels = image.shape
    for _ in range(_ATTEMPTS):
        pixels = height * width * rng.uniform(0.02, 1 / 3)
        shape = math.exp(rng.uniform(math.log(0.3), math.log(1 / 0.3)))
        h, w = round(math.sqrt(pixels * shape)), round(math.sqrt(pixels / shape))
        if 0 < h < height and 0 < w < width:
            top, left = rng.integers(height - h + 1), rng.integers(width - w + 1)
            image[top : top + h, left : left + w] = rng.integers(0, 256, (h, w, channels), np.uint8)
            return image
    return image


def cutout(image: Image.Image, rng: np.random.Generator, share: float, value: int) -> Image.Image:
    """A rectangle of one grey around a random place, `share` of the sides in each direction; a part
    beyond the border is cut off (https://arxiv.org/abs/1708.04552)."""
    x, y = rng.integers(image.width), rng.integers(image.height)
    w, h = int(share * image.width), int(share * image.height)
    image = image.copy()
    image.paste(filling(image, value), (max(0, x - w), max(0, y - h), x + w, y + h))
    return image


def _turn_hue(image: Image.Image, amount: int) -> Image.Image:
    hue, saturation, value = image.convert("HSV").split()
    turned = (np.asarray(hue, np.int32) + amount).astype(np.uint8)  # modulo 256
    return Image.merge("HSV", (Image.fromarray(turned), saturation, value)).convert("RGB")


def _moved(image: Image.Image, matrix: tuple) -> Image.Image:
    """An affine change: matrix (a, b, c, d, e, f) takes the pixel (x, y) of the result from
    (ax + by + c, dx + ey + f)."""
    a, b, c, d, e, f = matrix
    # Pillow's coordinates are those of the corners of pixels, ours those of their centres.
    corners = (a, b, c + (1 - a - b) / 2, d, e, f + (1 - d - e) / 2)
    return affine(image, corners, 0)


def affine(image: Image.Image, matrix: tuple, value: int) -> Image.Image:
    """An affine change by a matrix of Pillow; value: of what comes in."""
    kind, how = Image.Transform.AFFINE, Image.Resampling.BILINEAR
    return image.transform(image.size, kind, matrix, how, fillcolor=filling(image, value))


def filling(image: Image.Image, value: int) -> int | tuple[int, ...]:
    """A grey colour in the mode of the image."""
    return value if image.mode == "L" else (value,) * 3
