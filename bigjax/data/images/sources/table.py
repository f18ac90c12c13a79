"""A table of image files: data.columns.image has paths, beside the table or absolute, and
data.columns.label the label; if task.several is set several, separated by `|`, which alone means
none."""

from bigjax.data.file_list import files_of_table
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
    if reading.labelled and (row := next((row for row in rows if row[label] is None), None)):
        raise UserError(
            f"{row['where']}: column {label!r} is empty. Fill it, write {SEPARATOR!r} for an image "
            "with none of the labels, or take the row out."
        )
    paths, sizes = files_of_table(spec, rows, image, reading.key, "images")
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
