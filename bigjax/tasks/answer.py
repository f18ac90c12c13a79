"""Extractive question answering: where in the context the answer begins and ends."""

import collections
from collections.abc import Sequence
import dataclasses
import re
import string
from typing import Any

import jax.numpy as jnp
import numpy as np

from bigjax import losses
from bigjax.bounds import FINITE, at_least, check_ranges
from bigjax.data import measures
from bigjax.data.examples import Examples, check_lengths, joined, offsets_of
from bigjax.data.kinds import Column, TextKind
from bigjax.data.measures import Measures
from bigjax.data.tokenizers.base import Tokenizer
from bigjax.errors import UserError
from bigjax.layers.kernels.common import MASKED
from bigjax.tasks import Task
from bigjax.tasks._encoder import labelled_task

DATA, EVALUATION = "labelled", "metrics"  # in a config that is generated for this task


@dataclasses.dataclass(frozen=True)
class Config:
    max_answer_tokens: int = 30  # tokens of the longest answer that is given
    allow_no_answer: bool = False  # predict '' for a question without an answer (SQuAD 2)
    # NAME: weight in the training loss of a sum of the model's layers, such as a router's loss
    sum_weights: dict[str, float] = dataclasses.field(default_factory=dict)

    MAY_CHANGE = ("*",)
    RANGES = {"max_answer_tokens": at_least(1), "sum_weights": FINITE}

    def __post_init__(self):
        check_ranges("task", self)


@dataclasses.dataclass
class AnswerExamples(Examples):
    _: dataclasses.KW_ONLY
    context_spans: list[np.ndarray]  # see spans_of
    context: np.ndarray
    context_from: np.ndarray

    def spans_of(self, i: int) -> np.ndarray:
        """The characters [from, to) of the row's context at each column, int32 [length, 2]; -1
        where a column is not part of the context."""
        spans = np.full((int(self.lengths[i]), 2), -1, np.int32)
        first = int(self.second[i])
        n = len(spans) - 1 - first
        begin = int(self.context_from[i])
        spans[first : first + n] = self.context_spans[self.context[i]][begin : begin + n]
        return spans


class Answer(TextKind):
    """`[CLS] question [SEP] context [SEP]`, with the columns of the answer's first and last token.

    A long context is several examples, windows that overlap by data.doc_stride. In one without the
    answer both columns are [CLS], as in https://arxiv.org/abs/1810.04805, section 4.3.
    """

    name, metrics = "answer", ("exact_match", "f1")
    inputs = {"question": Column("text"), "context": Column("text")}
    targets = {"answers": Column("answers", warn_missing=False)}
    outputs_per_token = True
    example_arrays = {"start": np.int32, "end": np.int32}

    def __init__(self, max_answer_tokens: int = 30, allow_no_answer: bool = False) -> None:
        self.max_answer_tokens, self.allow_no_answer = max_answer_tokens, allow_no_answer

    def split_text(self, row):
        """All questions about a context are in one split."""
        return row["context"]

    def encode(self, rows, data, tokenizer, with_labels) -> AnswerExamples:
        """A question longer than half of data.seq_len is truncated, if data.truncate."""
        return _encode_answers(rows, data, tokenizer, with_labels)

    def predict(self, rows, examples, outputs):
        """prediction: a row's best span over its windows, with its score; with allow_no_answer ''
        if the score of [CLS] is higher in every window."""
        best: list[dict] = [{"prediction": "", "score": -np.inf} for _ in rows]
        no_answer = np.full(len(rows), np.inf)
        for i, row in enumerate(examples.row):
            spans, scores = examples.spans_of(i), outputs[i].astype(np.float64)
            no_answer[row] = min(no_answer[row], scores[0].sum())
            inside = np.flatnonzero(spans[:, 0] >= 0)
            if not len(inside):
                continue
            n = len(inside)
            total = scores[inside, 0][:, None] + scores[inside, 1][None]
            width = np.arange(n)[None] - np.arange(n)[:, None]
            total = np.where((width >= 0) & (width < self.max_answer_tokens), total, -np.inf)
            start, end = np.unravel_index(total.argmax(), total.shape)
            if total[start, end] > best[row]["score"]:
                text = rows[row]["context"][spans[inside[start], 0] : spans[inside[end], 1]]
                best[row] = {"prediction": text, "score": float(total[start, end])}
        for row in np.flatnonzero(no_answer > [b["score"] for b in best]):
            if self.allow_no_answer:
                best[row] = {"prediction": "", "score": float(no_answer[row])}
        return best

    def measure(self, rows, predictions) -> Measures:
        answers = [[text for text, _ in row["answers"]] for row in rows]
        return measures.listed(squad_scores(answers, [p["prediction"] for p in predictions]))


KIND = Answer


def build(config, options: Config) -> Task:
    """Batches: see data.labelled_batches, kind Answer."""

    def loss(logits_BT2, batch, train):
        del train
        weights, both, right = batch["weights"], [], 1.0
        segment_BK = jnp.take_along_axis(batch["segment_ids"], batch["first"], axis=1)
        own_BKT = batch["segment_ids"][:, None] == segment_BK[..., None]
        for i, name in enumerate(("start", "end")):  # each over the tokens of its own example
            logits_BKT = jnp.where(own_BKT, logits_BT2[:, None, :, i], MASKED)
            both.append(losses.cross_entropy(logits_BKT, batch[name], weights)[0])
            right = right * (logits_BKT.argmax(-1) == batch[name])
        return (sum(both) / 2, weights.sum()), {
            "accuracy": ((right * weights).sum(), weights.sum())
        }

    kind = Answer(options.max_answer_tokens, options.allow_no_answer)
    return labelled_task(config, kind, "span", loss, sum_weights=options.sum_weights)


def squad_scores(answers: list[list[str]], predicted: list[str]) -> dict[str, float]:
    """Exact match and token F1, each the best over a question's answers, as SQuAD defines them
    (https://arxiv.org/abs/1606.05250, section 6.1): without case, punctuation and articles."""
    exact, f1 = [], []
    for golds, text in zip(answers, predicted, strict=True):
        golds = golds or [""]
        exact.append(max(_normal(gold) == _normal(text) for gold in golds))
        f1.append(max(_f1(_normal(gold).split(), _normal(text).split()) for gold in golds))
    return {"exact_match": float(np.mean(exact)), "f1": float(np.mean(f1))}


def _normal(text: str) -> str:
    text = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def _f1(gold: list[str], predicted: list[str]) -> float:
    if not gold or not predicted:
        return float(gold == predicted)
    common = sum((collections.Counter(gold) & collections.Counter(predicted)).values())
    return 2 * common / (len(gold) + len(predicted))


def _encode_answers(
    rows: Sequence[dict], data: Any, tokenizer: Tokenizer, with_labels: bool
) -> AnswerExamples:
    if not hasattr(tokenizer, "encode_with_offsets"):
        raise UserError(
            f"answers need a tokenizer that gives the position of each piece in the text: "
            f'data.tokenizer.kind="wordpiece", not "{tokenizer.kind}".'
        )
    most = data.seq_len // 2 - 3  # at least half is for the context
    questions = tokenizer.encode_batch([row["question"] for row in rows])
    truncated = check_lengths(
        np.array([len(ids) + 3 for ids in questions], np.int64),
        rows,
        most + 3,
        data.truncate,
        "question",
        remark=", of which half of data.seq_len is allowed,",
    )
    unique = {context: i for i, context in enumerate(dict.fromkeys(r["context"] for r in rows))}
    contexts = tokenizer.encode_with_offsets(list(unique))
    cls, sep = np.array([tokenizer.bos_id]), np.array([tokenizer.eos_id])
    parts, table = [], []
    for i, (row, question) in enumerate(zip(rows, questions)):
        question, which = question[:most], unique[row["context"]]
        ids, spans = contexts[which]
        answer = _answer_tokens(row, spans) if with_labels else None
        room, first = data.seq_len - len(question) - 3, len(question) + 2
        for begin in _windows(len(ids), room, data.doc_stride):
            n = min(room, len(ids) - begin)
            parts += (cls, question, sep, ids[begin : begin + n], sep)
            inside = answer is not None and begin <= answer[0] and answer[1] < begin + n
            start, end = (token - begin + first for token in answer) if inside else (0, 0)
            table.append((first + n + 1, first, i, start, end, which, begin))
    columns = np.array(table, np.int32).reshape(-1, 7).T
    return AnswerExamples(
        joined(parts),
        offsets_of(columns[0]),
        columns[1],
        columns[2],
        column_arrays={"start": columns[3], "end": columns[4]} if with_labels else {},
        truncated=truncated,
        context_spans=[spans for _, spans in contexts],
        context=columns[5],
        context_from=columns[6],
    )


def _windows(n: int, room: int, stride: int) -> list[int]:
    """Where each window of `room` tokens begins, so that together they cover `n`."""
    step = max(1, min(stride, room // 2))
    return [0, *range(step, max(0, n - room) + step, step)] if n > room else [0]


def _answer_tokens(row: dict, spans: np.ndarray) -> tuple[int, int] | None:
    """The first and last token of the context that the (first) answer touches."""
    if not row["answers"]:
        return None
    text, start = row["answers"][0]
    start += len(text) - len(text.lstrip())
    text = text.strip()
    begins = [match.start() for match in re.finditer(re.escape(text), row["context"])]
    if begins:
        begin = min(begins, key=lambda place: abs(place - start)) if start >= 0 else begins[0]
        touched = np.flatnonzero((spans[:, 1] > begin) & (spans[:, 0] < begin + len(text)))
        if len(touched):
            return int(touched[0]), int(touched[-1])
    raise UserError(
        f"{row['where']}: the answer {text[:60]!r} is not in its context. It has to be there word "
        "for word; no answer is an empty list."
    )
