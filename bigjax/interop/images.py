"""preprocessor_config.json: how transformers turns a picture into the numbers that a model reads.

bigjax decodes and resizes in its data (size, crop, keep_ratio) and normalises in its model (mean,
std). Both resize with antialiasing; transformers first resizes and then cuts whole pixels, so that
for a picture that is not square its cut may be half a pixel aside.
"""

from collections.abc import Mapping
import json
import math
from typing import Any, NamedTuple

from bigjax.errors import UserError

FILE = "preprocessor_config.json"
_BILINEAR = 2  # of Pillow, as bigjax resizes
_WARPED = 384  # ConvNext's processor cuts nothing off images of this size or more
_BYTE = 255.0


class View(NamedTuple):
    """size: height and width; 0 = unknown. crop, keep_ratio: as in data.images."""

    size: int = 0
    crop: float = 1.0
    keep_ratio: bool = True


class Preprocessing(NamedTuple):
    """view: None if bigjax cannot do the same. mean, std: of values of 0 to 1; () = not given.
    notes: what differs."""

    view: View | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    notes: list[str]


def read(content: bytes, where: str = FILE) -> Preprocessing:
    """The settings in a preprocessor_config.json. where: names it in messages. Raises UserError for
    a damaged file."""
    try:
        config = json.loads(content)
    except ValueError as e:
        raise UserError(f"{where} is not JSON ({e}). Copy it again.") from None
    if not isinstance(config, dict):
        raise UserError(f"{where} holds a {type(config).__name__}; it must be a JSON object.")
    notes = []
    try:
        view = _view(config)
        mean, std = _pixels(config)
    except (TypeError, ValueError, ZeroDivisionError, KeyError) as e:
        raise UserError(
            f"{where} has a size, a crop or a mean that is not a number ({e!r}). Copy it again."
        ) from None
    if len(mean) != len(std):
        raise UserError(
            f"{where}: image_mean has {len(mean)} numbers and image_std has {len(std)}; both must "
            "have one for each channel."
        )
    if view is None:
        notes.append("bigjax does not resize and cut images in that way; set data.size and .crop")
    resample = config.get("resample", _BILINEAR)
    if config.get("do_resize", True) and resample != _BILINEAR:
        notes.append(f"resample={resample} is another filter than bigjax's, which is bilinear (2)")
    return Preprocessing(view, mean, std, [f"{where}: {note}" for note in notes])


def _kind(config: dict) -> str:
    kind = config.get("image_processor_type", config.get("feature_extractor_type")) or ""
    for ending in ("Fast", "Pil"):
        kind = kind.removesuffix(ending)
    return kind.removesuffix("ImageProcessor").removesuffix("FeatureExtractor")


def _square(size: Any) -> int:
    """Of {'height': n, 'width': n}, [n, n] or n; 0 for another shape."""
    if isinstance(size, dict):
        size = (size["height"], size["width"])
    if isinstance(size, (list, tuple)):
        return int(size[0]) if len(size) == 2 and size[0] == size[1] else 0
    return int(size)


def _view(config: dict) -> View | None:
    """Where it does not say, values are the defaults of the processor."""
    kind = _kind(config)
    if not config.get("do_resize", True):
        return None
    size = config.get("size", 384 if kind == "ConvNext" else 224)
    shortest = isinstance(size, dict) and "shortest_edge" in size
    if isinstance(size, dict) and not shortest and not {"height", "width"} <= set(size):
        return None
    if kind == "ConvNext":
        n = int(size["shortest_edge"]) if shortest else _square(size)
        if n >= _WARPED:
            return View(n, 1.0, False)
        return View(n, n / int(n / config.get("crop_pct", 224 / 256)), True)
    keep_ratio = shortest or not isinstance(size, dict) and kind != "ViT"
    edge = int(size["shortest_edge"]) if shortest else _square(size)
    cut = config.get("do_center_crop", kind in ("Bit", "CLIP"))
    shown = _square(config.get("crop_size", 224)) if cut else 0 if keep_ratio else edge
    return View(shown, shown / edge, keep_ratio) if 0 < shown <= edge else None


def _pixels(config: dict) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(x * factor - mean) / std of values of 0 to 255, as a mean and std of values of 0 to 1."""
    factor = config.get("rescale_factor", 1 / _BYTE) if config.get("do_rescale", True) else 1.0
    unit = 1.0 if factor == 1 / _BYTE else _BYTE * factor
    if not config.get("do_normalize", True):
        return (0.0,), (1 / unit,)
    as_list = lambda x: x if isinstance(x, list) else [x]
    if "image_mean" not in config or "image_std" not in config:
        return (), ()
    mean, std = as_list(config["image_mean"]), as_list(config["image_std"])
    mean, std = (tuple(float(x) / unit for x in values) for values in (mean, std))
    if not all(map(math.isfinite, mean + std)) or min(std) <= 0:
        raise ValueError("image_mean or image_std")
    return mean, std


def written(
    model: Mapping[str, Any], data: Mapping[str, Any], original: bytes | None
) -> tuple[bytes, list[str]]:
    """(content, notes): a processor that gives a model what bigjax gives it.

    model, data: the sections of the config; data without size, crop and keep_ratio: of the model.
    original: of the import; it is kept if it means the same.
    """
    size = model["image_size"]
    own = View(size, float(data.get("crop", 1.0)), bool(data.get("keep_ratio", True)))
    channels = model["channels"]
    mean, std = (_each(model[key], channels) for key in ("mean", "std"))
    if original is not None:
        before = read(original)
        same_pixels = (_each(before.mean, channels), _each(before.std, channels)) == (mean, std)
        if before.view in (None, own) and (same_pixels or not before.mean):
            return original, []
    edge = round(own.size / own.crop)
    config: dict[str, Any] = {
        "do_convert_rgb": channels == 3,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": mean,
        "image_std": std,
        "resample": _BILINEAR,
        "rescale_factor": 1 / _BYTE,
    }
    if own.keep_ratio or edge != own.size:
        config |= {
            "image_processor_type": "BitImageProcessor",
            "size": {"shortest_edge": edge} if own.keep_ratio else _sides(edge),
            "do_center_crop": True,
            "crop_size": _sides(own.size),
        }
    else:
        config |= {"image_processor_type": "ViTImageProcessor", "size": _sides(own.size)}
    notes = []
    if abs(own.size / edge - own.crop) > 1e-6:
        notes.append(
            f"data.crop={own.crop:g} of {own.size} pixels is no whole number of pixels: {FILE} "
            f"resizes to {edge}, which is {own.size / edge:.4f}"
        )
    return (json.dumps(config, indent=2, sort_keys=True) + "\n").encode(), notes


def _sides(n: int) -> dict[str, int]:
    return {"height": n, "width": n}


def _each(values: Any, channels: int) -> list[float]:
    """One value for each channel."""
    values = [*map(float, values)]
    return values * channels if len(values) == 1 else values
