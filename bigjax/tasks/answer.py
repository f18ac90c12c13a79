"""Extractive question answering: where in the context the answer begins and ends."""

import dataclasses

import jax.numpy as jnp

from bigjax import losses
from bigjax.bounds import at_least, check_ranges
from bigjax.layers.kernels import MASKED
from bigjax.tasks import Task
from bigjax.tasks._encoder import labelled_task

DATA, EVALUATION = "labelled", "metrics"  # of a config that is made for this task


@dataclasses.dataclass(frozen=True)
class Config:
    max_answer_tokens: int = 30  # tokens of the longest answer that is given
    allow_no_answer: bool = False  # the answer may be that there is none (SQuAD 2)

    MAY_CHANGE = ("*",)
    RANGES = {"max_answer_tokens": at_least(1)}

    def __post_init__(self):
        check_ranges("task", self)


def build(config, options: Config) -> Task:
    """Batches: see data.labelled.LabelledData, kind 'answer' (a window without the answer has it at
    its [CLS], as in https://arxiv.org/abs/1810.04805, section 4.3)."""
    del options  # for predictions, see infer/predict.py

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

    return labelled_task(config, "answer", "span", loss)
