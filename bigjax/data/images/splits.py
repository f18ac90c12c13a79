"""The training, validation and test images of a config."""

from collections.abc import Callable, Sequence
import concurrent.futures
import dataclasses
import hashlib
import io
import json
import os
from typing import Any

import numpy as np

from bigjax.data.files import cache_folder, write_cached
from bigjax.data.images import sources
from bigjax.data.images.decode import BadImage
from bigjax.data.images.sources import Reading, Source
from bigjax.data.row_data import check_names
from bigjax.data.store import SPLITS, check_fractions, place_of, split_at
from bigjax.errors import UserError

_MANY = 20_000  # images, from which on reading them is reported
_AT_ONCE = 4096


@dataclasses.dataclass(frozen=True)
class Part:
    """The images `index` of a source. labels: int32 [n], or bool [n, n_classes], of these images;
    None without labels."""

    source: Source
    index: np.ndarray
    labels: np.ndarray | None
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.index)

    @property
    def fingerprint(self) -> str:
        labels = b"" if self.labels is None else np.ascontiguousarray(self.labels).tobytes()
        return digest([self.source.fingerprint, _hash(self.index.tobytes()), _hash(labels)])

    def file(self, i: int) -> str:
        """The file of image i of the part."""
        return self.source.name(int(self.index[i]))

    def rows(self) -> list[dict[str, Any]]:
        """[{"file"}] of the images, with "label", the name of the class, or a list of names if an
        image may have several."""
        rows: list[dict[str, Any]] = [{"file": self.source.name(i)} for i in self.index.tolist()]
        if self.labels is not None:
            several = self.labels.ndim == 2
            for row, label in zip(rows, self.labels):
                names = [self.classes[i] for i in (np.flatnonzero(label) if several else [label])]
                row["label"] = names if several else names[0]
        return rows

    def subset(self, index: np.ndarray) -> "Part":
        labels = None if self.labels is None else self.labels[index]
        return dataclasses.replace(self, index=self.index[index], labels=labels)

    def of_classes(self, classes: Sequence[str]) -> "Part":
        """Its images of these classes, which are all that it then has; all for ()."""
        if not classes:
            return self
        kept = chosen(self.classes, classes)
        wanted = np.isin(self.labels, [self.classes.index(name) for name in kept])
        return self.subset(np.flatnonzero(wanted)).relabelled(kept)

    def few(self, n: int, seed: int) -> "Part":
        """n images of each class, drawn by the seed, in their order; all for n = 0. Numbers that no
        label has are no classes here. Raises UserError for a class that has fewer."""
        if not n:
            return self
        rng, index = np.random.default_rng(seed), []
        for name, its in zip(self.classes, by_label(self.labels, len(self.classes))):
            if 0 < len(its) < n:
                raise UserError(
                    f"data.shots is {n}, but the class {name!r} has {len(its)} training images."
                )
            index.append(rng.permutation(its)[:n])
        return self.subset(np.sort(np.concatenate(index)))

    def relabelled(self, classes: Sequence[str], of_run: bool = False) -> "Part":
        """The same images with labels that are indices into `classes`. Raises UserError for an
        image with a label that is not one of them. of_run: whether they are task.labels, else they
        are those of the training data."""
        classes = tuple(classes)
        if self.labels is None or self.classes == classes:
            return dataclasses.replace(self, classes=classes)
        number = {name: i for i, name in enumerate(classes)}
        several = self.labels.ndim == 2
        used = (
            self.labels.any(0) if several else np.bincount(self.labels, minlength=len(self.classes))
        )
        others = [name for name, n in zip(self.classes, used) if n and name not in number]
        if others:
            known, remedy = (
                ("the labels of this run (task.labels)", "All data of a run need these names.")
                if of_run
                else (
                    "the training data",
                    "Training, validation and test data need the same names.",
                )
            )
            numbers = [self.classes.index(name) for name in others]
            has = self.labels[:, numbers].any(1) if several else np.isin(self.labels, numbers)
            first = self.source.name(int(self.index[has.argmax()]))
            raise UserError(
                f"{first} and others have the classes {', '.join(others[:5])}"
                f"{' and more' * (len(others) > 5)}, which {known} do not have: "
                f"{', '.join(classes[:10])}{', ...' * (len(classes) > 10)}. {remedy}"
            )
        to = np.array([number.get(name, -1) for name in self.classes], np.int32)
        if several:
            labels = np.zeros((len(self), len(classes)), bool)
            labels[:, to[to >= 0]] = self.labels[:, to >= 0]
        else:
            labels = to[self.labels]
        return dataclasses.replace(self, labels=labels, classes=classes)


def by_label(labels: np.ndarray, n_classes: int) -> list[np.ndarray]:
    """For each class the indices of its images, ascending. labels: int [n]."""
    order = np.argsort(labels, kind="stable")
    return np.split(order, np.cumsum(np.bincount(labels, minlength=n_classes))[:-1])


def chosen(classes: Sequence[str], names: Sequence[str]) -> tuple[str, ...]:
    """Those of `classes` that data.classes names, in their own order; all for ()."""
    if unknown := [name for name in names if name not in classes]:
        raise UserError(
            f"data.classes names {', '.join(unknown[:5])}, which the images do not have: their "
            f"classes are {', '.join(classes[:10])}{', ...' * (len(classes) > 10)}."
        )
    return tuple(name for name in classes if not names or name in names)


def digest(content: Any) -> str:
    """16 hex digits of what JSON can write."""
    return _hash(json.dumps(content).encode())


def parts(
    data: Any,
    names: Sequence[str],
    log: Callable[[str], None],
    labelled: bool = True,
    several: bool = False,
) -> dict[str, Part]:
    """The parts `names` of the config section `data`; labelled, several: as of a Reading.

    Validation and test images are those of data.valid and data.test, or the set's own, or a
    fraction of the training images, by a hash of their bytes. Raises UserError.
    """
    names = check_names(names)
    if (data.classes or data.shots) and (several or not labelled):
        raise UserError(
            "data.classes and data.shots are for images with one label each, of a task that needs "
            "labels: remove them."
        )
    check_fractions(data.valid_fraction, data.test_fraction)
    own = {part: getattr(data, part) for part in ("valid", "test") if getattr(data, part)}
    if data.train:
        has = [part for part in ("valid", "test") if sources.has(data.train, part)]
        own = dict.fromkeys(has, data.train) | own

    def whole(name: str, spec: str) -> Part:
        source = opened(data, name, spec, log, labelled, several)
        return Part(
            source,
            np.arange(len(source)),
            source.labels if labelled else None,
            source.classes if labelled else (),
        )

    by_name = {name: whole(name, own[name]) for name in names if name in own}
    if rest := [name for name in names if name not in own]:
        undivided = whole("train", data.train)
        fractions = [
            0.0 if part in own else getattr(data, f"{part}_fraction") for part in ("valid", "test")
        ]
        which = _which(undivided.source, fractions, data, log)
        for name in rest:
            by_name[name] = undivided.subset(np.flatnonzero(which == SPLITS.index(name)))
        if "train" in rest:
            _check_classes(by_name["train"], undivided)
    by_name = {name: by_name[name].of_classes(data.classes) for name in names}
    if "train" in by_name:
        by_name["train"] = by_name["train"].few(data.shots, data.shots_seed)
    return by_name


def _check_classes(train: Part, undivided: Part) -> None:
    """Raises UserError if all images of a class are for validation or testing."""
    if train.labels is None or train.labels.ndim > 1:
        return
    count = lambda part: np.bincount(part.labels, minlength=len(undivided.classes))
    lost = np.flatnonzero((count(undivided) > 0) & (count(train) == 0))
    if lost.size:
        names = [f"{undivided.classes[i]} ({count(undivided)[i]})" for i in lost[:5]]
        raise UserError(
            f"No image is left to train on of {', '.join(names)}{' and more' * (lost.size > 5)} "
            "(in brackets: its images): all are in validation or test data. Add images to these "
            "classes, set data.valid and data.test to data of their own, or lower "
            "data.valid_fraction and data.test_fraction."
        )


def opened(
    data: Any,
    name: str,
    spec: str,
    log: Callable[[str], None],
    labelled: bool = True,
    several: bool = False,
) -> Source:
    """The source `spec` of the part `name`, undivided. Raises UserError."""
    if not spec:
        raise UserError(f"data.train is empty. Set it to {sources.EXAMPLES}.")
    key = f"data.{name}" if getattr(data, name) else "data.train"
    source = sources.opened(
        spec, Reading(name, key, data.columns, labelled, several, data.cache_dir, log)
    )
    if labelled and (unknown := int((source.labels < 0).sum())):
        raise UserError(
            f"{key}={spec!r}: {unknown:,} of {len(source):,} images have a label below 0, which in "
            "sets such as ImageNet's test images means that it is not public. Give images with "
            "labels, such as those of another split."
        )
    return source


def _which(source: Source, fractions: Sequence[float], data: Any, log) -> np.ndarray:
    """int [n], for each image the index in SPLITS: equal files are in one split."""
    if not any(fractions):
        return np.full(len(source), SPLITS.index("train"))
    names = [split_at(u, *fractions) for u in _places(source, data, log).tolist()]
    return np.array([SPLITS.index(name) for name in names])


def _places(source: Source, data: Any, log) -> np.ndarray:
    """float64 [n], `store.place_of` the bytes of each image; cached."""
    cached = cache_folder(data.cache_dir, "images") / f"places-{source.fingerprint}.npy"
    try:
        places = np.load(cached)
        if places.shape == (len(source),):
            return places
    except (OSError, ValueError, EOFError):  # absent or damaged
        pass
    if len(source) > _MANY:
        log(f"data: reading {len(source):,} images to divide them by their content")

    def of_image(i: int) -> float:
        try:
            content = source.read(i)
        except BadImage:  # training counts such files
            content = source.name(i).encode()
        raw = content if isinstance(content, bytes) else np.ascontiguousarray(content).tobytes()
        return place_of(raw)

    n, places = len(source), []
    with concurrent.futures.ThreadPoolExecutor(data.threads or os.cpu_count()) as pool:
        for start in range(0, n, _AT_ONCE):  # `map` makes an object for each at once
            places += pool.map(of_image, range(start, min(n, start + _AT_ONCE)))
    places = np.array(places, np.float64)
    buffer = io.BytesIO()
    np.save(buffer, places)
    write_cached(cached, buffer.getvalue())
    return places


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
