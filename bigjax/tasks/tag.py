"""One label for each word: named entities, parts of speech."""

import dataclasses

import jax.numpy as jnp

from bigjax import losses
from bigjax.data import labelled
from bigjax.errors import UserError
from bigjax.tasks import Task
from bigjax.tasks._encoder import build_encoder, load_labelled


@dataclasses.dataclass(frozen=True)
class Config:
    labels: tuple[str, ...] = ()  # () = those of the training data


def resolve(config, options: Config) -> dict:
    """What the training data decide: the labels."""
    return {"labels": options.labels or tuple(labelled.label_names(config.data, "tag"))}


def build(config, options: Config) -> Task:
    """Batches: see data.labelled.LabelledData, kind 'tag'. A word's label is predicted at its first
    piece, as in https://arxiv.org/abs/1810.04805, section 5.3."""
    if len(options.labels) < 2:
        raise UserError(f"task.labels is {list(options.labels)}: tagging needs at least two.")
    encoder = build_encoder(config, ("tagger",), len(options.labels))

    def outputs(params, extras, batch, rng=None):
        del extras
        return encoder.model.apply(
            {"params": params}, batch["tokens"], batch["types"], batch["segment_ids"],
            batch["positions"], rng=rng)["tagger"]

    def loss(params, extras, frozen, batch, rng, train):
        del frozen
        logits = outputs(params, extras, batch, rng if train else None)
        weights = (batch["token_labels"] >= 0).astype(jnp.float32)
        labels = jnp.maximum(batch["token_labels"], 0)
        return losses.cross_entropy(logits, labels, weights), (
            {"accuracy": losses.accuracy(logits, labels, weights)}, extras)

    return Task(encoder.init, loss, lambda: None, encoder.axes, encoder.model, encoder.config,
                encoder.flops_per_row, load_labelled(config, "tag", options.labels, encoder),
                outputs=outputs)
