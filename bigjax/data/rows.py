"""Labelled rows of `data.train`, `data.valid` and `data.test`: of files, TFDS, or docstrings."""

import collections
from collections.abc import Iterator, Sequence
import hashlib
import re
from typing import Any

import numpy as np

from bigjax.data import dates, docstrings, tfds_sets
from bigjax.data.kinds import RowKind
from bigjax.data.store import SPLITS, check_fractions, split_of
from bigjax.data.tables import read_table
from bigjax.data.values import convert
from bigjax.errors import UserError

_TFDS_BATCH = 1024
_MIN_BODY_CHARS = 40  # a shorter body says too little about its library
_EXAMPLES = (
    'a file such as "train.tsv", "tfds:NAME", or a set that every installation has, such as '
    '"docstrings:library"'
)


def read_rows(
    spec: str, data: Any, kind: RowKind, part: str = "train", with_labels: bool = True
) -> list[dict[str, Any]]:
    """The rows of one of `data.train`, `data.valid`, `data.test`, or of a file to predict for.

    A row has "where" (file:line, for messages) and the kind's inputs and targets under their own
    names, whatever the file calls its columns (`data.columns`). Rows of files and TFDS also have
    "row": the complete record under its own names (`read_table`).

    Args:
      spec: a file (see `read_table`); "tfds:NAME" with the split of this `part`, or
        "tfds:NAME[SPLIT]" (NAME may be the folder of a set); "docstrings:library", the text of
        each docstring and the library that it is from; "docstrings:title", its first line and its
        body or the body of another one, labelled "together" or "apart"; "docstrings:summary", its
        body as the source and its first line as the target. Docstrings are split as for
        pre-training on them; "dates", as people and as computers write them (data/dates.py).
      part: "train", "valid" or "test".
      with_labels: False leaves out the targets, and does not require them.
    """
    columns = _columns(data, kind, with_labels)
    if spec.startswith("docstrings:"):
        return _docstring_rows(spec, data, kind, part, with_labels)
    if spec == "dates":
        return _for_kind(spec, [*dates.rows()], kind, with_labels)
    types = {key: column.type for key, column in {**kind.inputs, **kind.targets}.items()}
    if spec.startswith("tfds:"):
        rows = _tfds_rows(spec, columns, types, part)
    else:
        table = read_table(
            spec, list(columns.values()), {column: types[name] for name, column in columns.items()}
        )
        rows = [
            {name: row[column] for name, column in columns.items()}
            | {"where": row["where"], "row": row["row"]}
            for row in table
        ]
    for row in rows:
        kind.check_row(row)
    return rows


def read_parts(
    data: Any, kind: RowKind, names: Sequence[str] = SPLITS
) -> dict[str, list[dict[str, Any]]]:
    """The rows of the splits `names`; [] for one into which nothing falls.

    If `data.valid` is empty, it is the TFDS set's own validation split, if there is one, and else
    the `data.valid_fraction` of the training rows, chosen by a hash of their text (`split_of`), so
    that equal texts are in one split; `data.test` likewise (a test split whose labels are all -1,
    as GLUE's, is not used). `data.train` is read only if one of `names` needs it.
    """
    check_fractions(data.valid_fraction, data.test_fraction)
    if not data.train and not any(data[part] for part in names if part != "train"):
        raise UserError(f"data.train is empty. Set it to {_EXAMPLES}.")
    specs = _specs(data, kind, names)
    if data.train.startswith("docstrings:"):
        specs = dict.fromkeys(SPLITS, data.train) | specs  # split as for pre-training
    parts = {part: read_rows(specs[part], data, kind, part) for part in names if part in specs}
    if not data.train:  # an imported model that is only evaluated
        return {part: parts.get(part, []) for part in names}
    if len(parts) < len(names):
        fractions = [
            0.0 if part in specs else data[f"{part}_fraction"] for part in ("valid", "test")
        ]
        split: dict[str, list] = {part: [] for part in SPLITS}
        for row in read_rows(data.train, data, kind, "train"):
            split[split_of(kind.split_text(row), *fractions)].append(row)
        parts |= {part: split[part] for part in names if part not in parts}
    return parts


def _specs(data: Any, kind: RowKind, names: Sequence[str]) -> dict[str, str]:
    """What 'valid' and 'test' are read from if not from train; complete for `names`."""
    specs = {part: data[part] for part in ("valid", "test") if data[part]}
    if set(names) <= set(specs):
        return specs
    if data.train.startswith("tfds:") and not data.train.endswith("]"):
        splits = tfds_sets.builder(data.train).info.splits
        if not data.valid and tfds_sets.SPLIT["valid"] in splits:
            specs["valid"] = data.train
        if not (data.test or set(names) <= set(specs)) and tfds_sets.SPLIT["test"] in splits:
            rows = read_rows(data.train, data, kind, "test")
            if not all(row[name] in ("-1", "-1.0") for row in rows for name in kind.targets):
                specs["test"] = data.train
    return specs


def label_counts(data: Any, kind: RowKind) -> dict[str, int]:
    """How often the training rows have each label, sorted by label (as numbers if all are).

    {} for a kind without labels. Raises UserError as `read_rows` does.
    """
    if not kind.has_labels:
        return {}
    rows = read_parts(data, kind, ["train"])["train"]
    counts = collections.Counter(label for row in rows for label in kind.labels_in(row))
    integers = all(re.fullmatch(r"-?\d+", label) for label in counts)
    key = (lambda label: (int(label), label)) if integers else None
    return {label: counts[label] for label in sorted(counts, key=key)}


def _columns(data: Any, kind: RowKind, with_labels: bool) -> dict[str, str]:
    """{key: its column in the file} of the kind's inputs and targets."""
    columns = {**kind.inputs, **(kind.targets if with_labels else {})}
    for key, column in columns.items():
        if key not in data.columns:
            raise UserError(
                f"data.columns has no {key!r}, which {kind.name} needs. The module of task.name "
                f"must name its kind of data: KIND = {type(kind).__name__}."
            )
        if not (data.columns[key] or column.optional):
            raise UserError(
                f"data.columns.{key} is empty; {kind.name} needs it. Set it to the name "
                "(or, without a header, the number from 0) of that column."
            )
    return {key: data.columns[key] for key in columns if data.columns[key]}


def _docstring_rows(
    spec: str, data: Any, kind: RowKind, part: str, with_labels: bool
) -> list[dict[str, Any]]:
    makers = {
        "docstrings:library": _libraries,
        "docstrings:title": _titles,
        "docstrings:summary": _summaries,
    }
    if spec not in makers:
        raise UserError(f"there is no set {spec!r}; docstrings give {', '.join(makers)}.")
    fractions = data.valid_fraction, data.test_fraction
    records = [
        record
        for record in docstrings.records(data.cache_dir)
        if split_of(record.text, *fractions) == part
    ]
    return _for_kind(spec, list(makers[spec](records)), kind, with_labels)


def _for_kind(spec: str, rows: list, kind: RowKind, with_labels: bool) -> list[dict[str, Any]]:
    """Rows of a set of bigjax's own. Raises UserError if they lack what the kind needs."""
    needed = [key for key, column in {**kind.inputs, **kind.targets}.items() if not column.optional]
    if rows and set(needed) - set(rows[0]):
        has = ", ".join(key for key in rows[0] if key != "where")
        raise UserError(
            f"{spec} has {has}, and cannot be used to {kind.name}, which needs "
            f"{', '.join(needed)}. Set data.train to another set."
        )
    if with_labels:
        return rows
    return [{name: row[name] for name in row if name not in kind.targets} for row in rows]


def _libraries(records: list[docstrings.Record]) -> Iterator[dict[str, Any]]:
    for record in records:
        if record.doc.strip():
            yield {
                "text": record.doc,
                "label": record.library,
                "where": f"docstring of {record.name}",
            }


def _titles(records: list[docstrings.Record]) -> Iterator[dict[str, Any]]:
    """Half of the rows are "apart": a title with another body, chosen by a hash of the record."""
    halves: list[tuple[docstrings.Record, str, str]] = []
    of_library: dict[str, list[str]] = {}
    for record in records:
        title, _, body = record.doc.strip().partition("\n")
        if len(body.strip()) >= _MIN_BODY_CHARS:
            halves.append((record, title.strip(), body.strip()))
            of_library.setdefault(record.library, []).append(body.strip())
    every = [body for _, _, body in halves]
    for record, title, body in halves:
        digest = hashlib.blake2b(record.text.encode(), digest_size=16, person=b"title").digest()
        u, v = (int.from_bytes(half, "little") for half in (digest[:8], digest[8:]))
        other = body
        if u % 2:
            mine = of_library[record.library]
            other = _another(mine, body, v) or _another(every, body, v) or body
        yield {
            "text": title,
            "pair": other,
            "label": "together" if other is body else "apart",
            "where": f"docstring of {record.name}",
        }


def _summaries(records: list[docstrings.Record]) -> Iterator[dict[str, Any]]:
    """The body of a docstring as the source, and its first line as the target."""
    for record in records:
        title, _, body = record.doc.strip().partition("\n")
        if len(body.strip()) >= _MIN_BODY_CHARS and len(title.split()) > 1:
            where = f"docstring of {record.name}"
            yield {"source": body.strip(), "target": title.strip(), "where": where}


def _another(bodies: list[str], body: str, start: int) -> str | None:
    """The first one from index `start` on that is not `body`."""
    for i in range(len(bodies)):
        other = bodies[(start + i) % len(bodies)]
        if other != body:
            return other
    return None


def _tfds_rows(
    spec: str, names: dict[str, str], types: dict[str, str], part: str
) -> list[dict[str, Any]]:
    builder = tfds_sets.builder(spec)
    name, split = tfds_sets.parse(spec)
    split = split or tfds_sets.SPLIT[part]
    try:
        builder.info.splits[split]
        source = builder.as_data_source(split=split)
    except Exception as e:  # no such split, a wrong file format, missing shards
        raise UserError(
            f"tfds:{name}: cannot read split {split!r}: {tfds_sets.reason(e)} The set has "
            f"{', '.join(builder.info.splits) or 'no prepared split'}; name another as "
            f'"tfds:{name}[SPLIT]". It has to be prepared with file_format="array_record".'
        ) from None
    features = builder.info.features
    for column in names.values():
        if column not in features:
            raise UserError(
                f"tfds:{name}: no feature {column!r}; it has "
                f"{', '.join(features)}. Set data.columns to them."
            )
    labels = {column: getattr(features[column], "names", None) for column in features}
    rows = []
    for start in range(0, len(source), _TFDS_BATCH):
        indices = range(start, min(start + _TFDS_BATCH, len(source)))
        for i, example in zip(indices, source.__getitems__(list(indices))):
            where = f"tfds:{name}[{split}] example {i}"
            for column in names.values():
                _check_utf8(example[column], column, where)
            record = {column: _plain(value, labels[column]) for column, value in example.items()}
            rows.append(
                {
                    key: convert(record[column], types[key], column, where)
                    for key, column in names.items()
                }
                | {"where": where, "row": record}
            )
    return rows


def _check_utf8(value: Any, column: str, where: str) -> None:
    for part in np.ravel(value) if isinstance(value, np.ndarray) else [value]:
        if isinstance(part, bytes):
            try:
                part.decode()
            except UnicodeDecodeError as e:
                raise UserError(
                    f"{where}: byte {e.start} (0x{part[e.start]:02X}) of feature {column!r} is not "
                    "UTF-8. Prepare the set with text in UTF-8."
                ) from None


def _plain(value: Any, names: list[str] | None) -> Any:
    """Python's own types, and a ClassLabel's name in place of its number."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, dict):
        return {key: _plain(item, None) for key, item in value.items()}
    if isinstance(value, (list, tuple)) or (isinstance(value, np.ndarray) and value.ndim):
        return [_plain(item, names) for item in value]
    if isinstance(value, (np.generic, np.ndarray)):
        value = value.item()
        return _plain(value, names)
    if names is not None and isinstance(value, int):
        return names[value] if 0 <= value < len(names) else str(value)
    return value
