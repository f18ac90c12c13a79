"""A table of audio files, a manifest: data.columns.audio has paths, beside the table or absolute,
and data.columns.text its transcript."""

from typing import Any

from bigjax.data.audio.sources.files import UNIT, Files
from bigjax.data.file_list import files_of_table
from bigjax.data.tables import read_table
from bigjax.data.text_files import extension


def matches(spec: str) -> bool:
    return extension(spec) in (".csv", ".tsv", ".jsonl", ".parquet")


def opened(spec: str, reading) -> Files:
    audio, text = reading.columns.audio, reading.columns.text
    table = read_table(spec, [audio, text], {audio: "text", text: "label"})
    paths, sizes = files_of_table(spec, table, audio, reading.key, UNIT)
    rows = [
        {"file": path, "text": " ".join(row[text].split()), "where": row["where"]}
        for path, row in zip(paths, table)
    ]
    return Files("table", paths, sizes, rows, reading)


def paths(spec: str, reading) -> tuple[list[dict[str, Any]], list[str]]:
    """(rows, paths), as sources.opened_input."""
    audio = reading.columns.audio
    table = read_table(spec, [audio])
    paths, _ = files_of_table(spec, table, audio, reading.key, UNIT)
    return [{"file": path, "row": row["row"]} for path, row in zip(paths, table)], paths
