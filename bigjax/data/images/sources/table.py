"""A table of image files: data.columns.image has paths, beside the table or absolute, and
data.columns.label the label; if task.several is set several, separated by `|`, which alone means
none."""

import os

from etils import epath

from bigjax.data.images.sources.files import Files
from bigjax.data.images.sources.labels import numbered, several
from bigjax.data.tables import read_table
from bigjax.data.text_files import extension
from bigjax.errors import UserError

SEPARATOR = "|"


def matches(spec: str) -> bool:
    return extension(spec) in (".csv", ".tsv", ".jsonl", ".parquet")


def opened(spec: str, reading) -> Files:
    image, label = reading.columns.image, reading.columns.label
    columns = {image: "text"}
    if reading.labelled:
        columns[label] = "optional" if reading.several else "label"
    rows = read_table(spec, [*columns], columns)
    folder = spec.rpartition("/")[0]
    paths, sizes, missing = [], [], []
    for row in rows:
        name = row[image]
        path = name if "://" in name or os.path.isabs(name) or not folder else f"{folder}/{name}"
        if reading.labelled and row[label] is None:
            raise UserError(
                f"{row['where']}: column {label!r} is empty. Fill it, write {SEPARATOR!r} for an "
                "image with none of the labels, or take the row out."
            )
        try:
            sizes.append(int(epath.Path(path).stat().length))
        except OSError:
            missing.append(f"{row['where']}: {path}")
        paths.append(path)
    if missing:
        raise UserError(
            f"{reading.key}: {len(missing):,} of {len(rows):,} images of {spec} do not exist, such "
            f"as {missing[0]}. Paths are relative to the table's folder."
        )
    if not reading.labelled:
        return Files("images", paths, sizes, None, (), records=[row["row"] for row in rows])
    texts = [row[label] for row in rows]
    if reading.several:
        labels, classes = several(
            [[t.strip() for t in x.split(SEPARATOR) if t.strip()] for x in texts]
        )
    else:
        labels, classes = numbered(texts)
        if joined := [name for name in classes if SEPARATOR in name]:
            reading.log(
                f"data: {spec}: {len(joined):,} of {len(classes):,} labels contain {SEPARATOR!r}, "
                f"such as {joined[0]!r}, and each is a class of its own: set task.several=True for "
                "several labels an image"
            )
    return Files("table", paths, sizes, labels, classes)
