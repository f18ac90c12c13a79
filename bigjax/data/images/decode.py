"""Image files as a person sees them, with Pillow."""

from collections.abc import Callable
import functools
import io
import math
import re
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageCms, PngImagePlugin

from bigjax.errors import UserError

Box = tuple[float, float, float, float]  # left, top, right, bottom, in pixels
_WHITE = (255, 255, 255, 255)  # behind transparent pixels, as on a page
_ORIENTATION = 0x0112  # in EXIF
_TURNS = {  # what makes an image of this orientation upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_TURNED = (5, 6, 7, 8)  # which swap width and height
_LEAST = 1e-3  # of a pixel: less is an error of rounding
_NO_NAME = re.compile("image file <_io.BytesIO object at .*?>")  # in errors of Pillow
_LARGEST_REDUCTION = 8  # of a JPEG, while it is decoded
# Pillow knows many more, whatever the name of the file: for EPS it runs Ghostscript.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000")
# Pillow refuses a PNG with a text or colour profile above 1 MiB, such as the history of an editor:
# here the limit for one text is the one that it has for all texts of an image.
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY


class BadImage(UserError):
    """A file that is no image, or one that is damaged or too large."""


class View(NamedTuple):
    """box: the part of the upright image to show. size: (height, width) to resize it to."""

    box: Box
    size: tuple[int, int]


def decode(
    content: bytes,
    where: str,
    view: Callable[[int, int], View],
    channels: int = 3,
    max_pixels: int = 89_478_485,
) -> Image.Image:
    """The part of an image that `view` chooses, resized.

    Grey, palette, transparent (on white), 16-bit and CMYK images become RGB, or grey for one
    channel; EXIF's orientation and colour profiles are applied.

    Args:
      content: a file in one of FORMATS.
      where: names the image in messages.
      view: (width, height) of the upright image -> View.
      channels: 3 or 1.
      max_pixels: refused above that, before anything is decoded: a small file can hold a huge image
        (a decompression bomb).

    Raises BadImage.
    """
    if Image.MAX_IMAGE_PIXELS and Image.MAX_IMAGE_PIXELS < max_pixels:
        Image.MAX_IMAGE_PIXELS = max_pixels  # Pillow's own limit, which has no other place
    try:
        with _opened(content, where) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise BadImage(
                    f"{where}: the image has {width:,} x {height:,} pixels, more than "
                    f"data.max_pixels={max_pixels:,}."
                )
            if image.format not in ("JPEG", "MPO"):  # only these can be decoded smaller
                image.load()
            orientation = _orientation(image)
            upright = (height, width) if orientation in _TURNED else (width, height)
            chosen = view(*upright)
            _reduce(image, chosen)
            image.load()
            if orientation in _TURNS:
                image = image.transpose(_TURNS[orientation])
            return show(image, chosen, upright, channels)
    except BadImage:
        raise
    except Exception as e:  # Pillow's readers raise errors of many kinds
        raise _bad(where, e) from None


def size_of(content: bytes, where: str) -> tuple[int, int]:
    """(width, height) as they are stored, which EXIF may swap. Raises BadImage."""
    with _opened(content, where) as image:
        return image.size


def _opened(content: bytes, where: str) -> Image.Image:
    if not content:
        raise BadImage(f"{where}: the file is empty.")
    try:
        return Image.open(io.BytesIO(content), formats=FORMATS)
    except Image.DecompressionBombError as e:
        raise BadImage(f"{where}: {e} Such images are refused: see data.max_pixels.") from None
    except Exception as e:
        raise _bad(where, e) from None


def _bad(where: str, e: Exception) -> BadImage:
    reason = _NO_NAME.sub("it", str(e)).splitlines()[:1] or [""]
    return BadImage(
        f"{where}: not an image that Pillow can read ({', '.join(FORMATS)}), or a damaged one: "
        f"{(reason[0] or type(e).__name__).rstrip('.')}."
    )


def show(image: Image.Image, view: View, size: tuple[int, int], channels: int) -> Image.Image:
    """A view of an upright image, in RGB, or grey for one channel. size: (width, height) of which
    the view is; a JPEG may have been decoded smaller."""
    x, y = image.width / size[0], image.height / size[1]
    left, top, right, bottom = view.box
    box = left * x, top * y, right * x, bottom * y
    return resize(coloured(image, channels), box, view.size)


def resize(image: Image.Image, box: Box, size: tuple[int, int]) -> Image.Image:
    """A part of an RGB or grey image, resized to (height, width) with antialiasing."""
    height, width = size
    if box == (0, 0, image.width, image.height) and image.size == (width, height):
        return image
    # Cut out first: pixels beside the box are not part of the result.
    left, top = math.floor(box[0] + _LEAST), math.floor(box[1] + _LEAST)
    right, bottom = math.ceil(box[2] - _LEAST), math.ceil(box[3] - _LEAST)
    image = image.crop((left, top, right, bottom))
    box = (box[0] - left, box[1] - top, box[2] - left, box[3] - top)
    box = (max(0, box[0]), max(0, box[1]), min(image.width, box[2]), min(image.height, box[3]))
    return image.resize((width, height), Image.Resampling.BILINEAR, box=box)


def to_array(image: Image.Image) -> np.ndarray:
    """uint8 [height, width, channels]."""
    array = np.array(image, np.uint8)  # a copy, which may be written
    return array[..., None] if array.ndim == 2 else array


def coloured(image: Image.Image, channels: int) -> Image.Image:
    """The image in RGB, or in grey for one channel, with 8 bits."""
    if image.mode.startswith(("I", "F")):
        image = _eight_bits(image)
    image = _on_white(image)
    profile = image.info.get("icc_profile")
    if profile and (transform := _to_srgb(profile, image.mode)):
        image = ImageCms.applyTransform(image, transform)
    mode = "L" if channels == 1 else "RGB"
    return image if image.mode == mode else image.convert(mode)  # which would copy it


def _orientation(image: Image.Image) -> int:
    """EXIF's orientation; 1, as without one, if EXIF is damaged, which people do not see, and for a
    TIFF, which Pillow turns itself."""
    try:
        return 1 if image.format == "TIFF" else image.getexif().get(_ORIENTATION, 1)
    except Exception:  # of many kinds
        return 1


def _reduce(image: Image.Image, view: View) -> None:
    """Lets a JPEG decode at 1/2, 1/4 or 1/8, if what is shown keeps twice the size to which it is
    resized."""
    left, top, right, bottom = view.box
    spare = min((bottom - top) / view.size[0], (right - left) / view.size[1]) / 2
    factor = 1
    while factor < _LARGEST_REDUCTION and 2 * factor <= spare:
        factor *= 2
    if factor > 1:  # other formats ignore it
        image.draft(None, (image.width // factor, image.height // factor))


def _eight_bits(image: Image.Image) -> Image.Image:
    """An image of integers of 16 or 32 bits, or of floats: those of 16 bits are divided by 257,
    others are stretched over what they hold. NaN, which marks pixels without data, is black."""
    values = np.asarray(image).astype(np.float32)
    if not (finite := np.isfinite(values)).all():
        known = values[finite]
        low, high = (known.min(), known.max()) if known.size else (0.0, 0.0)
        values = np.nan_to_num(values, nan=low, posinf=high, neginf=low)
    low, high = (0.0, 65535.0) if image.mode.startswith("I") else (values.min(), values.max())
    if values.max(initial=0) > high or values.min(initial=0) < low:
        low, high = float(values.min()), float(values.max())
    scaled = (values - low) * (255 / max(high - low, 1e-12))
    return Image.fromarray(np.clip(np.rint(scaled), 0, 255).astype(np.uint8))


def _on_white(image: Image.Image) -> Image.Image:
    """The image without transparency and palette."""
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        profile = image.info.get("icc_profile")
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, _WHITE)
        image = Image.alpha_composite(white, image).convert("RGB")
        image.info["icc_profile"] = profile
        return image
    return image.convert("RGB") if image.mode in ("P", "1", "HSV", "LAB", "YCbCr") else image


@functools.lru_cache(maxsize=64)
def _to_srgb(profile: bytes, mode: str):
    """What turns the colours of a profile into those of sRGB; None if it is sRGB already, damaged,
    or of another kind of image."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if "sRGB" in ImageCms.getProfileDescription(source):
            return None
        return ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None
