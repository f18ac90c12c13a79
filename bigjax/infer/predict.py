"""Predictions of labelled tasks: from a model's outputs to labels, numbers, tags, answers."""

from collections.abc import Sequence
import os
from typing import Any

from etils import epath
import jax
import numpy as np
from scipy import special

from bigjax import cloud, json_text
from bigjax.data.tables import free_name
from bigjax.errors import UserError
from bigjax.parallel import sharding

FORMATS = (".tsv", ".csv", ".jsonl")


def outputs_of(
    task, mesh, params, extras, frozen, data, labelled: bool
) -> tuple[list[np.ndarray], dict[str, tuple[float, float]]]:
    """What the model gives for each example of data (LabelledData, not shuffled), and loss sums.

    An array an example: [n_labels] (classify; regress: [1]), [tokens, n_labels] (tag), [tokens, 2]
    (answer). The sums are {'loss': (sum, weight)} if the examples are labelled, else {}.
    """
    rows = sharding.local_rows(mesh, data.batch_size)

    def both(params, extras, frozen, batch):
        loss = {}
        if labelled:  # the same forward pass, so the compiler makes one of the two
            loss = {"loss": task.loss(params, extras, frozen, batch, None, False)[0]}
        return task.outputs(params, extras, frozen, batch), loss

    run = jax.jit(both, out_shardings=sharding.replicated(mesh))
    found: list[Any] = [None] * data.n_examples
    total: dict = {}
    for i in range(data.n_batches):
        batch = data.batch_at(i)
        out, loss = jax.device_get(
            run(
                params,
                extras,
                frozen,
                sharding.put_batch(
                    mesh, {k: v[rows] for k, v in batch.items()}, rows, data.batch_size
                ),
            )
        )
        for k, pair in loss.items():
            s, w = total.get(k, (0.0, 0.0))
            total[k] = s + float(pair[0]), w + float(pair[1])
        by_token = out.shape[1] == data.seq_len  # else by example
        for b, k in np.argwhere(batch["example"] >= 0):
            example, first = batch["example"][b, k], batch["first"][b, k]
            n = int(data.examples.lengths[example])
            found[example] = out[b, first : first + n] if by_token else out[b, k]
    return found, total


def predictions(config, rows: Sequence[dict], examples, outputs: list[np.ndarray]) -> list[dict]:
    """One dict a row: `prediction`, and by task `probability`, `probabilities`, `score`.

    prediction: a label; a float (regress); a list of a label a word, None where the row was cut
    before it (tag); a text, '' for none (answer).
    """
    name, options = config.task.name, config.task
    if name == "answer":
        return _answers(options, rows, examples, outputs)
    labels = list(options.labels)
    out: list[dict] = [{} for _ in rows]
    for i, row in enumerate(examples.row):
        x = outputs[i].astype(np.float64)
        if name == "tag":
            tags = [labels[j] for j in x[examples.words_of(i)].argmax(-1)]
            missing = len(rows[row]["tokens"]) - len(tags)
            out[row] = {"prediction": tags + [None] * missing}
        elif options.kind == "regress":
            out[row] = {"prediction": float(x[0])}
        else:
            p = special.softmax(x)
            out[row] = {
                "prediction": labels[int(p.argmax())],
                "probability": float(p.max()),
                "probabilities": dict(zip(labels, p.tolist())),
            }
    return out


def _answers(options, rows, examples, outputs) -> list[dict]:
    """A row's best span over its windows; with options.allow_no_answer '' where [CLS] beats it."""
    best: list[dict] = [{"prediction": "", "score": -np.inf} for _ in rows]
    none = np.full(len(rows), np.inf)
    for i, row in enumerate(examples.row):
        spans, scores = examples.spans_of(i), outputs[i].astype(np.float64)
        none[row] = min(none[row], scores[0].sum())
        inside = np.flatnonzero(spans[:, 0] >= 0)
        if not len(inside):
            continue
        n = len(inside)
        total = scores[inside, 0][:, None] + scores[inside, 1][None]
        width = np.arange(n)[None] - np.arange(n)[:, None]
        total = np.where((width >= 0) & (width < options.max_answer_tokens), total, -np.inf)
        start, end = np.unravel_index(total.argmax(), total.shape)
        if total[start, end] > best[row]["score"]:
            text = rows[row]["context"][spans[inside[start], 0] : spans[inside[end], 1]]
            best[row] = {"prediction": text, "score": float(total[start, end])}
    if options.allow_no_answer:
        for row, found in enumerate(best):
            if none[row] > found["score"]:
                best[row] = {"prediction": "", "score": float(none[row])}
    return best


def check_output(path: str, input_path: str = "") -> None:
    """Refuses a predictions file that could not be written, or would take the input's place.

    Its folder has to exist and be writable; gs:// and the like are only looked at by `write`.
    """
    if not str(path).endswith(FORMATS):
        raise UserError(
            f"The predictions file {str(path)!r} must end in one of {', '.join(FORMATS)}."
        )
    if "://" in str(path):
        if str(path) == str(input_path):
            raise UserError(f"The predictions file {path!r} is the input. Give another name.")
        return
    file = os.path.expanduser(path)
    folder, source = os.path.dirname(file) or ".", os.path.expanduser(input_path)
    if not os.path.isdir(folder):
        raise UserError(
            f"The predictions file {path!r} has no folder to go to: {folder!r} is not "
            f"one (looked from {os.getcwd()!r}). Make it, or name another file."
        )
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(
            f"The predictions file {path!r} cannot be written: there is no permission "
            f"to write in {folder!r}. Name a file in another folder."
        )
    if os.path.isdir(file):
        raise UserError(f"The predictions file {path!r} is a folder. Name a file.")
    if (
        source
        and os.path.realpath(source) == os.path.realpath(file)
        or (os.path.exists(source) and os.path.exists(file) and os.path.samefile(source, file))
    ):
        raise UserError(
            f"The predictions file {path!r} is the input. Give another name: the "
            "input is not overwritten."
        )


def write(path, rows: Sequence[dict], found: Sequence[dict]) -> None:
    """Rows with their predictions, in the format of the path's ending; whole or not at all.

    A row's columns are those of row["row"], as its file has them (without it, the row's own but
    "where"); those of `found` come after them. One whose name a row has already is called
    prediction_2 and so on. Lists are JSON in .tsv and .csv; .tsv has no quoting, as `read_table`
    reads it. Probabilities of all labels are only in .jsonl. Of several hosts the first writes.

    Raises UserError for a text with a tab or line end in .tsv, and if it cannot be written.
    """
    path = epath.Path(path).expanduser()
    records = [
        row.get("row") or {k: v for k, v in row.items() if k not in ("where", "row")}
        for row in rows
    ]
    columns = dict.fromkeys(k for record in records for k in record)
    new = {}
    for key in dict.fromkeys(k for f in found for k in f):
        new[key] = free_name(key, {*columns, *new.values()})
    if path.suffix == ".jsonl":
        text = "".join(
            json_text.dumps(
                {**record, **{new[k]: v for k, v in f.items()}}, ensure_ascii=False, default=str
            )
            + "\n"
            for record, f in zip(records, found, strict=True)
        )
    else:
        new.pop("probabilities", None)
        table = [[*columns, *new.values()]] + [
            [*(_cell(record.get(k, "")) for k in columns), *(_rounded(f.get(k, "")) for k in new)]
            for record, f in zip(records, found, strict=True)
        ]
        text = _unquoted(path, table) if path.suffix == ".tsv" else _quoted(table)
    if jax.process_index() == 0:
        _replace(path, text)


def _replace(path: epath.Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # In JSON this is the escape of a lone surrogate, the one character UTF-8 has no form for.
        cloud.write_atomically(path, text.encode("utf-8", "backslashreplace"))
    except OSError as e:
        raise UserError(
            f"The predictions file {str(path)!r} cannot be written: "
            f"{e.strerror or e}. Name a file in a folder that has room and that you "
            "may write to."
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
