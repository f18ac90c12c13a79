"""A picture of many images with their labels."""

from collections.abc import Sequence
import math
from typing import NamedTuple

import numpy as np

from bigjax.report import pyplot

_SMALLEST = 96  # pixels of a shown image, at least: smaller ones are enlarged by a whole number
_LABEL = 16  # pixels of the line above an image
_GAP = 6
_TITLE = 30
_DPI = 100
_CHARACTER = 5.2  # pixels, about, of a label


class Sheet(NamedTuple):
    """images: [N, H, W, 1 or 3], values of 0 to 255. labels: a text for each."""

    title: str
    images: np.ndarray
    labels: Sequence[str]


def figure_of(sheets: Sequence[Sheet]):
    """A matplotlib figure with the sheets below each other, each pixel of enlarged images as one
    pixel. Labels are cut off where the next image begins."""
    plt = pyplot()
    drawn = [_canvas(sheet) for sheet in sheets]
    width = max(canvas.shape[1] for canvas, _ in drawn)
    height = sum(canvas.shape[0] + _TITLE for canvas, _ in drawn)
    whole = np.full((height, width, 3), 255, np.uint8)
    figure = plt.figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI)
    axis = figure.add_axes((0, 0, 1, 1))
    top = 0
    for sheet, (canvas, corners) in zip(sheets, drawn):
        axis.text(_GAP, top + _TITLE / 2, sheet.title, fontsize=9, va="center")
        top += _TITLE
        whole[top : top + len(canvas), : canvas.shape[1]] = canvas
        room = int(_cell(sheet.images)[1] / _CHARACTER)
        for label, (y, x) in zip(sheet.labels, corners):
            shown = label if len(label) <= room else f"{label[: room - 3]}..."
            axis.text(x, top + y - _LABEL / 2, shown, fontsize=7, va="center")
        top += len(canvas)
    axis.imshow(whole, interpolation="nearest")
    axis.set_axis_off()
    return figure


def _canvas(sheet: Sheet) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """(uint8 [H, W, 3] of all images, the upper left corner of each)."""
    factor = _factor(sheet.images)
    images = np.clip(np.rint(sheet.images), 0, 255).astype(np.uint8)
    images = np.broadcast_to(images, (*images.shape[:3], 3))
    images = images.repeat(factor, 1).repeat(factor, 2)
    columns = math.ceil(math.sqrt(len(images)))
    rows = math.ceil(len(images) / columns)
    height, width = _cell(sheet.images)
    canvas = np.full((rows * height + _GAP, columns * width + _GAP, 3), 255, np.uint8)
    corners = []
    for i, image in enumerate(images):
        y, x = (i // columns) * height + _LABEL, (i % columns) * width + _GAP
        canvas[y : y + image.shape[0], x : x + image.shape[1]] = image
        corners.append((y, x))
    return canvas, corners


def _factor(images: np.ndarray) -> int:
    return math.ceil(_SMALLEST / max(images.shape[1:3]))


def _cell(images: np.ndarray) -> tuple[int, int]:
    """(height, width) of an image with its label and gaps."""
    height, width = (n * _factor(images) for n in images.shape[1:3])
    return height + _LABEL + _GAP, width + _GAP
