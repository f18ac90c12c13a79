"""Predictions of labelled tasks: a model's outputs for each example, and files of predictions."""

from collections.abc import Callable, Sequence
import os
from typing import Any

from etils import epath
import jax
import numpy as np

from bigjax import json_text, paths
from bigjax.data.tables import free_name
from bigjax.errors import UserError
from bigjax.parallel import sharding

FORMATS = (".tsv", ".csv", ".jsonl")
_WIDEST = 60  # characters of a cell that people read


def make_outputs(task, mesh, labelled: bool) -> Callable:
    """outputs(params, extras, frozen, data) -> (outputs of each example, loss sums).

    Make it once for each model: calls with data of the same batch shapes share a compiled program.
    data: batches of labelled rows or of Task.load_input, not shuffled. The outputs are those of
    Kind.collect, an array per example, and None for one that it leaves out. The sums are {'loss':
    (sum, weight)} if the examples are labelled, else {}.
    """

    def outputs_and_loss(params, extras, frozen, batch):
        loss = {}
        if labelled:  # the compiler merges the two forward passes
            loss = {"loss": task.loss(params, extras, frozen, batch, None, False)[0]}
        own = {name: batch[name] for name in task.kind.collected}  # of the batches of all hosts
        return task.outputs(params, extras, frozen, batch), loss, own

    run = jax.jit(outputs_and_loss, out_shardings=sharding.replicated(mesh))

    def of_data(
        params, extras, frozen, data
    ) -> tuple[list[np.ndarray | None], dict[str, tuple[float, float]]]:
        outputs: list[np.ndarray | None] = [None] * data.n_examples
        total: dict = {}
        for batch in sharding.device_batches(mesh, data, data.batch_size, data.n_batches):
            out, loss, own = jax.device_get(run(params, extras, frozen, batch))
            for k, pair in loss.items():
                s, w = total.get(k, (0.0, 0.0))
                total[k] = s + float(pair[0]), w + float(pair[1])
            for example, output in task.kind.collect(out, own, data.examples):
                outputs[example] = output
        return outputs, total

    return of_data


def check_output(
    path: str,
    input_path: str = "",
    formats: tuple[str, ...] = FORMATS,
    what: str = "predictions file",
) -> None:
    """Raises UserError for a file that cannot be written or is the input. what: it, for messages.

    Its folder has to exist and be writable; paths such as gs:// are checked only by `write`.
    """
    if not str(path).endswith(formats):
        raise UserError(f"The {what} {str(path)!r} must end in one of {', '.join(formats)}.")
    if "://" in str(path):
        if str(path) == str(input_path):
            raise UserError(f"The {what} {path!r} is the input. Give another name.")
        return
    file = os.path.expanduser(path)
    folder, source = os.path.dirname(file) or ".", os.path.expanduser(input_path)
    if not os.path.isdir(folder):
        raise UserError(
            f"The {what} {path!r} cannot be written: {folder!r} is not a folder (the "
            f"current one is {os.getcwd()!r}). Create it, or name another file."
        )
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(
            f"The {what} {path!r} cannot be written: there is no permission "
            f"to write in {folder!r}. Name a file in another folder."
        )
    if os.path.isdir(file):
        raise UserError(f"The {what} {path!r} is a folder. Name a file.")
    if (
        source
        and os.path.realpath(source) == os.path.realpath(file)
        or (os.path.exists(source) and os.path.exists(file) and os.path.samefile(source, file))
    ):
        raise UserError(
            f"The {what} {path!r} is the input. Give another name: the input is not overwritten."
        )


def check_rows(path: str, rows: Sequence[dict]) -> None:
    """Raises UserError if `write` could not write these rows, whatever their predictions: for a
    text with a tab or line end in .tsv."""
    if path.endswith(".tsv"):
        _unquoted(epath.Path(path), _table(*_columns(rows, [{}] * len(rows))))


def escaped(text: str) -> str:
    r"""A text for .tsv: its backslashes, tabs and line ends are \\, \t, \n and \r."""
    for character, code in (("\\", r"\\"), ("\t", r"\t"), ("\n", r"\n"), ("\r", r"\r")):
        text = text.replace(character, code)
    return text


def write(path, rows: Sequence[dict], predictions: Sequence[dict]) -> None:
    """Writes rows with their predictions, in the format of the path's ending, atomically.

    A row's columns are those of row["row"], as in its file (without it, the row's own except
    "where"), followed by those of its prediction. If a row already has a column of that name, it is
    called prediction_2 and so on. Lists are JSON in .tsv and .csv; .tsv has no quoting, as
    `read_table` reads it. Values that are dicts, such as the probabilities of all labels, are only
    in .jsonl. Of several hosts the first one writes.

    Raises UserError for a text with a tab or line end in .tsv, and if it cannot be written.
    """
    path = epath.Path(path).expanduser()
    columns, new, pairs = _columns(rows, predictions)
    if path.suffix == ".jsonl":
        text = "".join(
            json_text.dumps(
                {**record, **{new[k]: v for k, v in p.items()}}, ensure_ascii=False, default=str
            )
            + "\n"
            for record, p in pairs
        )
    else:
        table = _table(columns, new, pairs)
        text = _unquoted(path, table) if path.suffix == ".tsv" else _quoted(table)
    if jax.process_index() == 0:
        _replace(path, text)


def as_text(rows: Sequence[dict], predictions: Sequence[dict]) -> str:
    """The table of `write` for people: aligned columns, without the middle of long cells."""
    half = (_WIDEST - 3) // 2
    table = [
        [" ".join(cell.split()) for cell in line] for line in _table(*_columns(rows, predictions))
    ]
    table = [
        [cell if len(cell) <= _WIDEST else f"{cell[:half]}...{cell[-half:]}" for cell in line]
        for line in table
    ]
    widths = [max(map(len, column)) for column in zip(*table)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in table
    )


def _columns(
    rows: Sequence[dict], predictions: Sequence[dict]
) -> tuple[list[str], dict[str, str], list[tuple[dict, dict]]]:
    """(columns of the rows, {key of a prediction: its column}, [(record, prediction)])."""
    records = [
        row.get("row") or {k: v for k, v in row.items() if k not in ("where", "row")}
        for row in rows
    ]
    columns = list(dict.fromkeys(k for record in records for k in record))
    new: dict[str, str] = {}
    for key in dict.fromkeys(k for p in predictions for k in p):
        new[key] = free_name(key, {*columns, *new.values()})
    return columns, new, list(zip(records, predictions, strict=True))


def _table(
    columns: Sequence[str], new: dict[str, str], pairs: Sequence[tuple[dict, dict]]
) -> list[list[str]]:
    """A header and rows of cells, without the columns whose values are dicts."""
    new = {k: v for k, v in new.items() if not any(isinstance(p.get(k), dict) for _, p in pairs)}
    return [[*columns, *new.values()]] + [
        [*(_cell(record.get(k, "")) for k in columns), *(_rounded(p.get(k, "")) for k in new)]
        for record, p in pairs
    ]


def _replace(path: epath.Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # In JSON this escapes a lone surrogate, the one character that UTF-8 cannot encode.
        paths.write_atomically(path, text.encode("utf-8", "backslashreplace"))
    except OSError as e:
        raise UserError(
            f"The predictions file {str(path)!r} cannot be written: "
            f"{e.strerror or e}. Name a file in a folder with space and with write permission."
        ) from None


def _quoted(table: Sequence[Sequence[str]]) -> str:
    # The csv module leaves a lone carriage return unquoted, and then cannot read it.
    quote = lambda cell: '"' + cell.replace('"', '""') + '"' if set(cell) & {*',"\r\n'} else cell
    return "".join(",".join(map(quote, line)) + "\n" for line in table)


def _unquoted(path: epath.Path, table: Sequence[Sequence[str]]) -> str:
    for number, line in enumerate(table):
        for name, cell in zip(table[0], line):
            if any(end in cell for end in "\t\n\r"):
                raise UserError(
                    f"{path}: column {name!r} of {f'row {number:,}' if number else 'the header'} "
                    f"has a tab or a line end ({cell[:40]!r}), which .tsv cannot hold. Use .csv "
                    "or .jsonl."
                )
    return "".join("\t".join(line) + "\n" for line in table)


def _rounded(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}" if np.isfinite(value) else ""
    return _cell(value)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return (
        value if isinstance(value, str) else json_text.dumps(value, ensure_ascii=False, default=str)
    )
