"""What the tasks on an encoder share: the model with its heads, and its parameters."""

import functools
from typing import Any, Callable, NamedTuple

from bigjax import models
from bigjax.data import labelled
from bigjax.data.store import SPLITS
from bigjax.errors import UserError
from bigjax.tasks import check_vocabulary, init_and_axes


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
    family = models.module(config.model.name)
    if not set(heads) <= set(getattr(family, "HEADS", ())):
        raise UserError(f"config.task.name={config.task.name!r} needs an encoder, such as "
                        f"model.name='bert'; model.name is {config.model.name!r}.")
    c = models.build_config(config.model)
    seq_len = config.data.seq_len
    if seq_len > c.max_len:
        raise UserError(f"data.seq_len={seq_len} is longer than model.max_len={c.max_len}.")
    make = functools.partial(family.Model, heads=heads, n_labels=n_labels)
    init, axes = init_and_axes(make, c)
    return Encoder(make(c), c, init, axes, seq_len * family.flops_per_token(c, seq_len),
                   family.head_flops(c))


def load_labelled(config, kind: str, labels: tuple[str, ...], encoder: Encoder) -> Callable:
    """Task.load_data of a task with labelled examples."""
    def load_data(log=print, tokenizer=None, splits=SPLITS):
        found = labelled.load_labelled(config.data, kind, labels, tokenizer=tokenizer, log=log,
                                       names=splits)
        encoder.check_vocabulary(found.tokenizer)
        return found
    return load_data
