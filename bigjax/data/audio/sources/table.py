"""A table of audio files, a manifest: data.columns.audio has paths, beside the table or absolute,
and data.columns.text its transcript."""

from bigjax.data.audio.sources.files import UNIT, Files
from bigjax.data.file_list import files_of_table, paths_of_table
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
    return Files("table", spec.rpartition("/")[0], paths, sizes, rows, reading)


def paths(spec: str, column: str) -> list[str]:
    """As sources.input_paths; files may be missing."""
    return paths_of_table(spec, read_table(spec, [column]), column)
