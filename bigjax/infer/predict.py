"""Predictions of labelled tasks: from a model's outputs to labels, numbers, tags, answers."""

import csv
import io
import json
from typing import Any, Sequence

from etils import epath
import jax
import numpy as np

from bigjax.errors import UserError
from bigjax.parallel import sharding

FORMATS = (".tsv", ".csv", ".jsonl")


def outputs_of(task, mesh, params, extras, data, labelled: bool
               ) -> tuple[list[np.ndarray], dict[str, tuple[float, float]]]:
    """What the model gives for each example of data (LabelledData, not shuffled), and loss sums.

    An array an example: [n_labels] (classify; regress: [1]), [tokens, n_labels] (tag), [tokens, 2]
    (answer). The sums are {'loss': (sum, weight)} if the examples are labelled, else {}.
    """
    rows = sharding.local_rows(mesh, data.batch_size)

    def both(params, extras, batch):
        loss = {}
        if labelled:  # the same forward pass, so the compiler makes one of the two
            loss = {"loss": task.loss(params, extras, task.frozen(), batch, None, False)[0]}
        return task.outputs(params, extras, batch), loss

    run = jax.jit(both, out_shardings=sharding.replicated(mesh))
    found: list[Any] = [None] * data.n_examples
    total: dict = {}
    for i in range(data.n_batches):
        batch = data.batch_at(i)
        out, loss = jax.device_get(run(params, extras, sharding.put_batch(
            mesh, {k: v[rows] for k, v in batch.items()}, rows, data.batch_size)))
        for k, pair in loss.items():
            s, w = total.get(k, (0.0, 0.0))
            total[k] = s + float(pair[0]), w + float(pair[1])
        by_token = out.shape[1] == data.seq_len  # else by example
        for b, k in np.argwhere(batch["example"] >= 0):
            example, first = batch["example"][b, k], batch["first"][b, k]
            n = int(data.examples.lengths[example])
            found[example] = out[b, first:first + n] if by_token else out[b, k]
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
            p = _softmax(x)
            out[row] = {"prediction": labels[int(p.argmax())], "probability": float(p.max()),
                        "probabilities": dict(zip(labels, p.tolist()))}
    return out


def _softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max())
    return e / e.sum()


def _answers(options, rows, examples, outputs) -> list[dict]:
    """The best span of all windows of a row; with options.none_allowed '' where [CLS] beats it."""
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
        total = np.where((width >= 0) & (width < options.max_answer), total, -np.inf)
        start, end = np.unravel_index(total.argmax(), total.shape)
        if total[start, end] > best[row]["score"]:
            text = rows[row]["context"][spans[inside[start], 0]:spans[inside[end], 1]]
            best[row] = {"prediction": text, "score": float(total[start, end])}
    if options.none_allowed:
        for row, found in enumerate(best):
            if none[row] > found["score"]:
                best[row] = {"prediction": "", "score": float(none[row])}
    return best


def check_format(path: str) -> None:
    """Refuses a file name whose ending no format has."""
    if not str(path).endswith(FORMATS):
        raise UserError(f"The predictions file {path!r} must end in one of {', '.join(FORMATS)}.")


def write(path, rows: Sequence[dict], found: Sequence[dict]) -> None:
    """Rows with their predictions, in the format of the path's ending; whole or not at all.

    Lists are JSON in .tsv and .csv. Probabilities of all labels are only in .jsonl.
    """
    path = epath.Path(path)
    table = [{**{k: v for k, v in row.items() if k != "where"}, **f}
             for row, f in zip(rows, found, strict=True)]
    if path.suffix == ".jsonl":
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in table)
    else:
        keys = [k for k in dict.fromkeys(k for line in table for k in line)
                if k != "probabilities"]
        out = io.StringIO()
        writer = csv.writer(out, delimiter="\t" if path.suffix == ".tsv" else ",",
                            lineterminator="\n")
        writer.writerow(keys)
        writer.writerows([_cell(line.get(k, "")) for k in keys] for line in table)
        text = out.getvalue()
    new = path.with_name(path.name + ".tmp")
    path.parent.mkdir(parents=True, exist_ok=True)
    new.write_text(text)
    new.replace(path)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
