"""Predict the next token."""

from collections.abc import Callable
import dataclasses

import jax.numpy as jnp

from bigjax.bounds import FINITE, FRACTION, at_least, check_ranges
from bigjax.layers.output import linear_losses
from bigjax.tasks import (
    Task,
    add_sums,
    apply,
    array_shapes,
    check_call,
    check_sums,
    check_vocabulary,
    data_module,
    family_for,
    flops_per_token,
    in_tokens,
    init_and_axes,
    output_layer,
)

DATA, EVALUATION = "text", "loss"  # in a config that is generated for this task


@dataclasses.dataclass(frozen=True)
class Config:
    label_smoothing: float = 0.0
    z_loss: float = 0.0  # weight of the squared log-partition, such as 1e-4
    # NAME: weight in the training loss of a sum of the model's layers, such as a router's loss
    sum_weights: dict[str, float] = dataclasses.field(default_factory=dict)

    RANGES = {"label_smoothing": FRACTION, "z_loss": at_least(0), "sum_weights": FINITE}
    MAY_CHANGE = ("*",)

    def __post_init__(self):
        check_ranges("task", self)


def build(config, options: Config) -> Task:
    """Batches: inputs, targets int [B, T]; weights [B, T]; with packing segment_ids, positions
    int [B, T]; target_bytes int [B]."""
    source = data_module(config, "load_text", "text")

    def load_data(log=print, tokenizer=None, splits=None):
        del splits  # a store has all of them
        return source.load_text(config.data, log, tokenizer, python_path=config.python_path)

    return decoder_task(config, options, load_data, counts_bytes=True)


def decoder_task(config, options: Config, load_data: Callable, counts_bytes: bool) -> Task:
    """The task of predicting those next tokens that have a weight.

    load_data: of the Task, but for the check of the vocabulary. counts_bytes: whether batches have
    target_bytes.
    """
    family, c = family_for(
        config,
        "a family that defines Model and decoder, such as model.name='gpt'",
        needs=("Model", "decoder"),
    )
    seq_len = config.data.seq_len
    model = family.Model(c)
    check_call(
        model.__call__,
        "tokens, positions, segments, rng=rng",
        f"config.model.name={config.model.name!r}: Model.__call__",
    )
    init, axes = init_and_axes(family.Model, c)
    names = ("nll", "accuracy", *(("nats_per_byte",) if counts_bytes else ()))
    check_sums(config, options.sum_weights, model, init, names)

    def loss(params, extras, frozen, batch, rng, train):
        del frozen
        out, extras = apply(
            model,
            params,
            extras,
            train,
            batch["inputs"],
            batch.get("positions"),
            batch.get("segment_ids"),
            rng=rng if train else None,
        )
        smoothing, z = (options.label_smoothing, options.z_loss) if train else (0.0, 0.0)
        linear = output_layer(out, config)
        sums = linear_losses(*linear, batch["targets"], batch["weights"], smoothing, z)
        weight = batch["weights"].sum()
        total, layer_metrics = add_sums(
            (sums["total"], weight), options.sum_weights, out.sums, train
        )
        metrics = {
            **layer_metrics,
            "nll": (sums["nll"], weight),
            "accuracy": (sums["hits"], weight),
        }
        if counts_bytes:
            n_bytes = batch["target_bytes"].sum().astype(jnp.float32)
            metrics["nats_per_byte"] = (sums["nll"], n_bytes)
        return total, (metrics, extras)

    def batch_shapes(batch_size, step):
        del step
        row = (batch_size, seq_len)
        packed = {"segment_ids": row, "positions": row} if config.data.packing else {}
        counted = {"target_bytes": row[:1]} if counts_bytes else {}
        return array_shapes({"inputs": row, "targets": row, **counted, **packed}, {"weights": row})

    def load_checked(log=print, tokenizer=None, splits=None):
        corpus = load_data(log, tokenizer, splits)
        check_vocabulary(corpus.tokenizer.vocab_size, c.vocab_size)
        return corpus

    return Task(
        init=init,
        axes=axes,
        loss=loss,
        load_data=load_checked,
        batch_shapes=batch_shapes,
        model=model,
        model_config=c,
        flops_per_example=seq_len * flops_per_token(family, c, seq_len),
        **in_tokens(seq_len),
    )
