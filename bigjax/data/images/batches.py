"""Batches of decoded images."""

import concurrent.futures
import os
from typing import Any

import numpy as np
from PIL import Image

from bigjax.data.batches import ExampleBatches, Rows
from bigjax.data.images import transforms
from bigjax.data.images.decode import BadImage, View, decode, show, to_array
from bigjax.data.images.splits import Part
from bigjax.data.unreadable import Report, Unreadable


class ImageBatches(ExampleBatches):
    """The images of a split as batches; in training with the random changes of data.augment, which
    are a function of (seed, epoch, image).

    Batches, with B images: image uint8 [B, size, size, channels]; label int32 [B], or float32
    [B, n_classes] if an image may have several; example int32 [B], its index in the split, -1 for
    padding; weights float32 [B], 1, or 0 for padding and for an image that cannot be read.
    `examples` knows why.
    """

    def __init__(
        self,
        part: Part,
        data: Any,
        batch_size: int,
        seed: int = 0,
        shuffle: bool = True,
        name: str = "train",
        augment: bool | None = None,
        report: Report | None = None,
    ) -> None:
        """augment: by default as shuffle. report: gets the images that cannot be read. Raises
        UserError as ExampleBatches."""
        super().__init__(
            len(part), batch_size, seed, shuffle, name, fill={"example": -1}, unit="images"
        )
        self._part, self._data = part, data
        self.examples = Unreadable(len(part), part.file, data.max_bad, name, report)
        self._changes = (shuffle if augment is None else augment) and data.augment or None
        threads = data.threads or os.cpu_count()
        self._pool = concurrent.futures.ThreadPoolExecutor(threads, "bigjax-images")

    def assemble(self, rows: Rows) -> dict[str, np.ndarray]:
        first = rows.step * self.batch_size + rows.first
        epochs = np.arange(first, first + len(rows.index)) // self.n_rows
        made = [*self._pool.map(self._image, rows.index.tolist(), epochs.tolist())]
        size, channels = self._data.size, self._data.channels
        empty = np.zeros((size, size, channels), np.uint8)
        images = [empty if image is None else image for image in made]
        batch = {
            "image": np.stack(images) if images else np.zeros((0, *empty.shape), np.uint8),
            "example": rows.index.astype(np.int32),
            "weights": np.array([image is not None for image in made], np.float32),
        }
        if (labels := self._part.labels) is not None:
            kind = np.float32 if labels.ndim == 2 else np.int32
            batch["label"] = labels[rows.index].astype(kind)
        return batch

    def _image(self, i: int, epoch: int) -> np.ndarray | None:
        """Image i of the part; None if it cannot be read."""
        part, data = self._part, self._data
        number = int(part.index[i])
        rng = np.random.default_rng([self.seed, epoch, i]) if self._changes else None
        try:
            content, where = part.source.read(number), part.source.name(number)
            image = image_of(content, where, data, self._view(rng))
        except BadImage as e:
            self.examples.add(i, str(e))
            return None
        return self._changes(image, rng) if self._changes else to_array(image)

    def _view(self, rng):
        data = self._data
        if self._changes:
            return lambda w, h: self._changes.view(w, h, data.size, rng)
        return lambda w, h: evaluation_view(w, h, data)


def evaluation_view(width: int, height: int, data: Any) -> View:
    """The part of an image that evaluation shows: the same each time."""
    size = data.size, data.size
    if data.keep_ratio:
        return transforms.central_crop(width, height, size, data.crop)
    x, y = width * (1 - data.crop) / 2, height * (1 - data.crop) / 2
    return View((x, y, width - x, height - y), size)


def image_of(content: bytes | np.ndarray, where: str, data: Any, view) -> Image.Image:
    """A view of an image, decoded. Raises BadImage."""
    if isinstance(content, bytes):
        return decode(content, where, view, data.channels, data.max_pixels)
    array = np.asarray(content)
    if array.dtype != np.uint8 or array.ndim not in (2, 3):
        raise BadImage(f"{where} is {array.dtype} {list(array.shape)}, not uint8 [H, W, 1 or 3].")
    image = Image.fromarray(array[..., 0] if array.ndim == 3 and array.shape[-1] == 1 else array)
    return show(image, view(*image.size), image.size, data.channels)
