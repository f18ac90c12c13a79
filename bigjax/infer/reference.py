"""Log-probabilities of the answers of preferences by a reference, for the columns of a file."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from bigjax.data.batches import pad_rows
from bigjax.data.chat_template import ChatTemplate
from bigjax.data.preference_examples import encode
from bigjax.data.preference_rows import ANSWERS, read_rows
from bigjax.data.preferences import PreferenceBatches
from bigjax.data.row_plan import shuffled
from bigjax.errors import UserError
from bigjax.infer import files
from bigjax.parallel import sharding


def form_of(record: Mapping[str, Any], columns: Any) -> str:
    """Of the rows of a file, by its first record: 'pairs' or 'ratings'."""
    return "pairs" if record.get(columns.chosen) is not None else "ratings"


def rows_of(path: str, data: Any, form: str, seed: int) -> list[dict[str, Any]]:
    """The rows of a file, each rating with an answer to another prompt: its own, or that of another
    row by a permutation that follows from the seed.

    Raises UserError as `read_rows`, and for a column that is to be written and exists.
    """
    rows = read_rows(path, data, form)
    for key in ANSWERS[form]:
        column = data.columns[f"reference_{key}"]
        if row := next((row for row in rows if column in row["row"]), None):
            raise UserError(
                f"{row['where']} already has the column {column!r}. Remove it, or set "
                f"data.columns.reference_{key} to another name."
            )
    if form == "ratings":
        cycle = shuffled(len(rows), seed)
        for i, other in zip(cycle, np.roll(cycle, -1)):
            rows[i].setdefault("mismatched", rows[other]["completion"])
    return [{**row, "index": i} for i, row in enumerate(rows)]


def log_probs(
    rows: Sequence[dict[str, Any]],
    data: Any,
    form: str,
    template: ChatTemplate,
    outputs: Callable[[dict], jax.Array],
    mesh: Any,
    batch_size: int,
    output: str = "",
    settings: Any = None,
    log: Callable[[str], None] = print,
) -> list[dict[str, Any]]:
    """The new columns of each row; {} for one that data.truncate leaves out.

    rows: of `rows_of`. outputs(batch) -> float32 [B, 2], of Task.outputs. output: the file that
    they are for, see files.generate_all; settings: what the results depend on besides the tokens.
    """
    kept, answers = encode(rows, data, form, template)
    for line in answers.lines:
        log(f"data: {line}")
    pad = template.tokenizer.pad_id
    batches = PreferenceBatches(
        answers, ["rows"], {}, pad, data.seq_len, batch_size, shuffle=False, name="input"
    )

    def score(which: list[int]) -> list[files.Texts]:
        batch = batches.batch_of(np.array(which))
        batch = {k: pad_rows(x, batch_size, batches.fill.get(k, 0)) for k, x in batch.items()}
        on_device = sharding.put_batch(mesh, batch, slice(0, batch_size), batch_size)
        numbers = np.asarray(jax.device_get(outputs(on_device)))
        return [[("", float(x)) for x in row] for row in numbers[: len(which)]]

    inputs = [
        np.concatenate([one.ids for one in answers.encoded[2 * i : 2 * i + 2]])
        for i in range(len(kept))
    ]
    results = files.generate_all(
        inputs, score, batch_size, output, settings, log, verb="scor", unit="row"
    )
    columns: list[dict[str, Any]] = [{} for _ in rows]
    for row, result in zip(kept, results):
        new = columns[row["index"]]
        if form == "ratings" and data.columns.mismatched not in row["row"]:
            message = row["mismatched"]
            new[data.columns.mismatched] = message if len(message) > 2 else message["content"]
        for key, (_, number) in zip(ANSWERS[form], result):
            new[data.columns[f"reference_{key}"]] = number
    return columns
