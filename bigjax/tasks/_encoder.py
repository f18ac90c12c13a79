"""What the tasks on an encoder share: the model with its heads, and its parameters."""

from collections.abc import Callable
import functools
from typing import Any, NamedTuple

from bigjax.data.store import SPLITS
from bigjax.tasks import (
    Task,
    array_shapes,
    check_vocabulary,
    data_module,
    family_for,
    in_tokens,
    init_and_axes,
)

PACKED_TOKENS = 16  # of a short example in a row with several, where the data are not read


class Encoder(NamedTuple):
    """model, config: the Flax module and its Config. init, axes: as in Task.

    flops_per_row: of a training step on a row of data.seq_len tokens, heads left out;
    flops_per_masked: of the vocabulary projection, a masked token.
    """

    model: Any
    config: Any
    init: Callable
    axes: Any
    flops_per_row: float
    flops_per_masked: float

    def check_vocabulary(self, tokenizer) -> None:
        check_vocabulary(tokenizer.vocab_size, self.config.vocab_size)


def build_encoder(config, heads: tuple[str, ...], n_labels: int = 2) -> Encoder:
    """The encoder of config.model with these heads; n_labels: outputs of classifier and tagger.

    Raises UserError if the model has no such heads, or data.seq_len exceeds its positions.
    """
    family, c = family_for(
        config,
        "an encoder, such as model.name='bert'",
        lambda family: set(heads) <= set(getattr(family, "HEADS", ())),
    )
    make = functools.partial(family.Model, heads=heads, n_labels=n_labels)
    init, axes = init_and_axes(make, c)
    seq_len = config.data.seq_len
    return Encoder(
        make(c), c, init, axes, seq_len * family.flops_per_token(c, seq_len), family.head_flops(c)
    )


def labelled_task(
    config, kind: str, head: str, loss: Callable, labels: tuple[str, ...] = (), n_outputs: int = 2
) -> Task:
    """A task with labelled examples, see data.labelled.LabelledData of this kind.

    loss(logits, batch, train) -> ((sum, weight), metrics), from what `head` with n_outputs gives.
    """
    encoder = build_encoder(config, (head,), n_outputs)
    source = data_module(config, "load_labelled", "labelled")

    def outputs(params, extras, frozen, batch, rng=None):
        del extras, frozen
        return encoder.model.apply(
            {"params": params},
            batch["tokens"],
            batch["types"],
            batch["segment_ids"],
            batch["positions"],
            first_BK=batch["first"],
            rng=rng,
        )[head]

    def loss_of_batch(params, extras, frozen, batch, rng, train):
        logits = outputs(params, extras, frozen, batch, rng if train else None)
        pair, metrics = loss(logits, batch, train)
        return pair, (metrics, extras)

    def load_data(log=print, tokenizer=None, splits=SPLITS):
        corpus = source.load_labelled(
            config.data, kind, labels, tokenizer=tokenizer, log=log, names=splits
        )
        encoder.check_vocabulary(corpus.tokenizer)
        return corpus

    def batch_shapes(batch_size, step):
        del step
        row, K = (batch_size, config.data.seq_len), 1
        if config.data.packing:  # how many fit only the data say
            K = max(1, config.data.seq_len // PACKED_TOKENS)
        each = (batch_size, K)
        names = {
            "classify": {"label": each},
            "tag": {"token_labels": row},
            "answer": {"start": each, "end": each},
        }.get(kind, {})
        return array_shapes(
            {
                "tokens": row,
                "types": row,
                "segment_ids": row,
                "positions": row,
                "first": each,
                "example": each,
                **names,
            },
            {"weights": each, **({"label": each} if kind == "regress" else {})},
        )

    return Task(
        init=encoder.init,
        axes=encoder.axes,
        loss=loss_of_batch,
        load_data=load_data,
        batch_shapes=batch_shapes,
        model=encoder.model,
        model_config=encoder.config,
        flops_per_example=encoder.flops_per_row,
        outputs=outputs,
        **in_tokens(config.data.seq_len),
    )
