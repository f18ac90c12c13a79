"""Labelled images: from the config section `data` to batches of uint8 arrays."""

from collections.abc import Callable, Sequence
import dataclasses
import math
import time
from typing import Any

import numpy as np

from bigjax.bounds import SEED, SHARE, Range, at_least, check_ranges
from bigjax.data.batches import SplitData, empty_split
from bigjax.data.files import LOCAL_CACHE
from bigjax.data.images import sources
from bigjax.data.images import splits as splits_lib
from bigjax.data.images.augment import Augment
from bigjax.data.images.batches import ImageBatches
from bigjax.data.images.decode import BadImage, size_of
from bigjax.data.images.sources import Reading
from bigjax.data.images.splits import Part
from bigjax.data.kinds import Input
from bigjax.data.store import SPLITS
from bigjax.data.unreadable import Report
from bigjax.errors import UserError

_SURVEYED = 100  # images


@dataclasses.dataclass(frozen=True)
class Columns:
    """The names of columns in tables, features in TFDS and records, and keys in JSON."""

    image: str = "image"
    label: str = "label"


@dataclasses.dataclass(frozen=True)
class Config:
    """The section `data` if its name is 'images'."""

    train: str = ""  # a folder, digits, tfds:NAME, a table, *.tar, *.array_record, an IDX file
    valid: str = ""  # '' = the set's own, else a fraction of train, by a hash of the bytes
    test: str = ""
    columns: Columns = Columns()
    classes: tuple[str, ...] = ()  # only images of these; () = of all
    shots: int = 0  # training images of each class, drawn by shots_seed; 0 = all
    shots_seed: int = 0
    size: int = 224  # height and width of an image
    channels: int = 3  # 3, or 1 for grey
    crop: float = 1.0  # evaluation: the share of the sides of the largest square in the middle
    keep_ratio: bool = True  # evaluation: a square in the middle, else the image made square
    augment: Augment = Augment()  # of training images
    valid_fraction: float = 0.1  # of the images of train, without data of its own
    test_fraction: float = 0.1
    max_bad: float = 0.0  # the share of images that may be unreadable; they have no weight
    max_pixels: int = 89_478_485  # of an image, before it is decoded
    threads: int = 0  # that decode; 0 = as many as the machine has processors
    cache_dir: str = LOCAL_CACHE  # indices and hashes of files

    RANGES = {
        **dict.fromkeys(("size", "max_pixels"), at_least(1)),
        "shots": at_least(0),
        "shots_seed": SEED,
        "channels": Range(1, 3),
        "crop": Range(0, 1, open_low=True),
        **dict.fromkeys(("valid_fraction", "test_fraction", "max_bad"), SHARE),
        "threads": at_least(0),
    }
    MAY_CHANGE = ("cache_dir", "threads", "train", "valid", "test", "max_bad")
    DATA_PATHS = ("train", "valid", "test")

    def __post_init__(self):
        check_ranges("data", self)
        if self.channels == 2:
            raise UserError("data.channels is 2; it has to be 3, or 1 for grey images.")


def for_model(model: dict[str, Any]) -> dict[str, Any]:
    """Fields of config.data that `bigjax import` writes for a model of these fields."""
    fields = {"size": "image_size", "channels": "channels"}
    return {ours: model[name] for ours, name in fields.items() if name in model}


class ImageData(SplitData):
    """Images read by `load_images`: `labels`, the names of the classes, and as all SplitData."""

    def __init__(
        self, parts: dict[str, Part], data: Any, labels: Sequence[str], log: Callable[[str], None]
    ) -> None:
        fingerprints = [part.fingerprint for part in parts.values()]
        super().__init__(parts, splits_lib.digest([fingerprints, list(labels), data.size]))
        self.parts, self.labels, self._data = parts, tuple(labels), data
        self._report = Report(log)

    def batches(self, name: str, **options: Any) -> ImageBatches:
        if not len(self.parts[name]):
            raise empty_split(name, "image", own=f", set data.{name} to data of its own")
        return self._batches_of(self.parts[name], name, **options)

    def _batches_of(self, part: Part, name: str, **options: Any) -> ImageBatches:
        return ImageBatches(part, self._data, name=name, report=self._report, **options)

    def labels_of(self, name: str) -> np.ndarray:
        """The labels of a split as in Part, without reading its images."""
        self.check_split(name)
        return self.parts[name].labels

    def batches_of(self, name: str, index: np.ndarray, batch_size: int) -> ImageBatches:
        """Each of some images of a split once, as evaluation shows them, in this order."""
        self.check_split(name)
        part = self.parts[name].subset(index)
        return self._batches_of(part, name, batch_size=batch_size, shuffle=False)

    def rows(self, name: str) -> list[dict[str, Any]]:
        """[{"file", "label"}] of the images of a split, in their order; label: a name, or a list of
        names."""
        self.check_split(name)
        return self.parts[name].rows()

    def summary(self) -> str:
        """Images and labels of each split, one line each."""
        lines = []
        for name, part in self.parts.items():
            line = f"data: {name:5s} {len(part):9,} images"
            if part.labels is not None and part.labels.ndim == 1 and len(part):
                counts = np.bincount(part.labels, minlength=len(self.labels))
                line += f"; {len(self.labels)} classes of {counts.min():,} to {counts.max():,}"
            lines.append(line)
        return "\n".join(lines)


def classes(data: Any, several: bool = False) -> tuple[str, ...]:
    """The names of the classes of the training images. Raises UserError."""
    source = splits_lib.opened(data, "train", data.train, lambda line: None, several=several)
    return splits_lib.chosen(source.classes, data.classes)


def survey(data: Any, several: bool = False) -> tuple[int, float]:
    """(the number of training images, the median of their areas in pixels, of up to 100).

    data: the config section `data`. Raises UserError as load_images, and if none can be read.
    """
    part = splits_lib.parts(data, ("train",), lambda line: None, several=several)["train"]
    areas = []
    for i in part.index[:: max(1, len(part) // _SURVEYED)].tolist():
        try:
            content = part.source.read(i)
            where = part.source.name(i)
            size = size_of(content, where) if isinstance(content, bytes) else None
        except BadImage:  # training counts such files
            continue
        areas.append(math.prod(size or np.shape(content)[:2]))
    if not areas:
        raise UserError(
            f"data.train={data.train!r}: none of the images that were tried can be read."
        )
    return len(part), float(np.median(areas))


def load_images(
    data: Any,
    labels: Sequence[str] = (),
    *,
    labelled: bool = True,
    several: bool = False,
    log: Callable[[str], None] = print,
    names: Sequence[str] = SPLITS,
) -> ImageData:
    """Opens the splits `names` of `data.train`, `data.valid` and `data.test`.

    Args:
      data: the config section `data`.
      labels: the names of the classes, in order; () = those of the training data.
      labelled: whether labels are needed; without them, batches have no `label`.
      several: whether an image may have several labels.
      log: gets a few lines for people.
      names: the splits to load.

    Raises UserError for anything wrong with the config or the files that can be seen without
    decoding all images.
    """
    start = time.monotonic()
    parts = splits_lib.parts(data, names, log, labelled, several)
    of_run = bool(labels)
    labels = labels or next(iter(parts.values())).classes
    parts = {name: part.relabelled(labels, of_run) for name, part in parts.items()}
    loaded = ImageData(parts, data, labels, log)
    log(loaded.summary())
    seconds = time.monotonic() - start
    log(f"data: fingerprint {loaded.fingerprint}; {seconds:.1f} s")
    return loaded


def load_input(
    spec: str, data: Any, labels: Sequence[str], batch_size: int, log: Callable[[str], None] = print
) -> Input:
    """Images without labels to predict for, see sources.opened_input; rows have `file`, and `row`
    if they are of a table. Any number of them may be unreadable: they have no weight. Raises
    UserError."""
    columns, cache_dir = data.columns, data.cache_dir
    reading = Reading("train", "--input", columns, False, False, cache_dir, log)
    source = sources.opened_input(spec, reading)
    part = Part(source, np.arange(len(source)), None, tuple(labels))
    rows = part.rows()
    if records := getattr(source, "records", None):
        rows = [{**row, "row": record} for row, record in zip(rows, records, strict=True)]
    data = dataclasses.replace(data, max_bad=1.0)
    return Input(rows, ImageBatches(part, data, batch_size, shuffle=False, name="input"))
