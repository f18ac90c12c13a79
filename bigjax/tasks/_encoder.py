"""What the tasks on an encoder share: the model with its heads, and its parameters."""

from collections.abc import Callable, Mapping
import functools
from typing import Any, NamedTuple

import jax
import numpy as np

from bigjax.data.kinds import TextKind
from bigjax.data.labelled_batches import TOKEN_ARRAYS
from bigjax.data.store import SPLITS
from bigjax.tasks import (
    Task,
    add_sums,
    apply,
    check_sums,
    check_vocabulary,
    data_module,
    family_for,
    flops_per_token,
    in_tokens,
    init_and_axes,
)

PACKED_TOKENS = 16  # assumed length of examples that share a row, where the data are not read
ASSUMED_LABELS = ("LABEL_0", "LABEL_1")  # in a plan, which does not read the data


class Encoder(NamedTuple):
    """model, config: the Flax module and its Config. init, axes: as in Task.

    flops_per_row: of a training step on a row of data.seq_len tokens, without heads;
    flops_per_masked: of the vocabulary projection, per masked token.
    """

    model: Any
    config: Any
    init: Callable
    axes: Any
    flops_per_row: float
    flops_per_masked: float

    def check_vocabulary(self, tokenizer) -> None:
        check_vocabulary(tokenizer.vocab_size, self.config.vocab_size)

    def task(self, **fields) -> Task:
        """A Task of this model with its other fields."""
        return Task(
            init=self.init, axes=self.axes, model=self.model, model_config=self.config, **fields
        )


def build_encoder(config, heads: tuple[str, ...], n_labels: int = 2) -> Encoder:
    """The encoder of config.model with these heads; n_labels: outputs of classifier and tagger.

    Raises UserError if the model has no such heads, or data.seq_len exceeds its positions.
    """
    family, c = family_for(
        config,
        "an encoder, such as model.name='bert'",
        lambda family: set(heads) <= set(family.HEADS),
        needs=("Model", "HEADS"),
    )
    make = functools.partial(family.Model, heads=heads, n_labels=n_labels)
    init, axes = init_and_axes(make, c)
    seq_len = config.data.seq_len
    per_row = seq_len * flops_per_token(family, c, seq_len)
    per_masked = family.head_flops(c) if hasattr(family, "head_flops") else 0.0
    return Encoder(make(c), c, init, axes, per_row, per_masked)


def labelled_task(
    config,
    kind: TextKind,
    head: str,
    loss: Callable,
    n_outputs: int = 2,
    *,
    sum_weights: Mapping[str, float],
) -> Task:
    """A task with labelled examples of this kind, see data.labelled_batches.

    loss(logits, batch, train) -> ((sum, weight), metrics), of which it may have an `accuracy`.
    logits: those of `head`, of n_outputs. sum_weights: of the config.
    """
    encoder = build_encoder(config, (head,), n_outputs)
    check_sums(config, sum_weights, encoder.model, encoder.init, ("accuracy",))
    source = data_module(config, "load_labelled", "labelled")

    def forward(params, extras, batch, rng, train):
        return apply(
            encoder.model,
            params,
            extras,
            train,
            batch["tokens"],
            batch["types"],
            batch["segment_ids"],
            batch["positions"],
            first_BK=batch["first"],
            rng=rng if train else None,
        )

    def outputs(params, extras, frozen, batch):
        del frozen
        return forward(params, extras, batch, None, False)[0].heads[head]

    def loss_of_batch(params, extras, frozen, batch, rng, train):
        del frozen
        out, extras = forward(params, extras, batch, rng, train)
        total, metrics = loss(out.heads[head], batch, train)
        total, layer_metrics = add_sums(total, sum_weights, out.sums, train)
        return total, ({**layer_metrics, **metrics}, extras)

    def load_data(log=print, tokenizer=None, splits=SPLITS):
        corpus = source.load_labelled(
            config.data,
            kind,
            tokenizer=tokenizer,
            log=log,
            names=splits,
            python_path=config.python_path,
        )
        encoder.check_vocabulary(corpus.tokenizer)
        return corpus

    def load_input(spec, log, tokenizer):
        size = config.train.batch_size
        return source.load_input(spec, config.data, kind, tokenizer, size, log)

    def batch_shapes(batch_size, step):
        del step
        row, K = (batch_size, config.data.seq_len), 1
        if config.data.packing:  # only the data determine how many fit
            K = max(1, config.data.seq_len // PACKED_TOKENS)
        per_example = {"first": np.int32, "example": np.int32, "weights": np.float32}
        return {
            name: jax.ShapeDtypeStruct(shape, dtype)
            for shape, arrays in (
                (row, dict.fromkeys(TOKEN_ARRAYS, np.int32) | dict(kind.token_arrays)),
                ((batch_size, K), per_example | dict(kind.example_arrays)),
            )
            for name, dtype in arrays.items()
        }

    return encoder.task(
        loss=loss_of_batch,
        load_data=load_data,
        load_input=load_input,
        batch_shapes=batch_shapes,
        flops_per_example=encoder.flops_per_row,
        outputs=outputs,
        label_head=head,
        kind=kind,
        **in_tokens(config.data.seq_len),
    )
