"""One label for each word: named entities, parts of speech."""

import dataclasses

import jax.numpy as jnp

from bigjax import losses
from bigjax.data import labelled
from bigjax.errors import UserError
from bigjax.tasks import Task
from bigjax.tasks._encoder import labelled_task

DATA, EVALUATION = "labelled", "metrics"  # of a config that is made for this task


@dataclasses.dataclass(frozen=True)
class Config:
    labels: tuple[str, ...] = ()  # () = those of the training data

    RANGES = {}


def resolve(config, options: Config) -> dict:
    """What the training data decide: the labels."""
    return {"labels": options.labels or tuple(labelled.label_names(config.data, "tag"))}


def build(config, options: Config) -> Task:
    """Batches: see data.labelled.LabelledData, kind 'tag'. A word's label is predicted at its first
    piece, as in https://arxiv.org/abs/1810.04805, section 5.3."""
    if len(options.labels) < 2:
        raise UserError(f"task.labels is {list(options.labels)}: tagging needs at least two.")

    def loss(logits, batch, train):
        del train
        weights = (batch["token_labels"] >= 0).astype(jnp.float32)
        labels = jnp.maximum(batch["token_labels"], 0)
        return losses.cross_entropy(logits, labels, weights), {
            "accuracy": losses.accuracy(logits, labels, weights)
        }

    return labelled_task(config, "tag", "tagger", loss, options.labels, len(options.labels))
