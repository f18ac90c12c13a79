"""What the tasks on an encoder-decoder share: the model, and its loss on targets given a source."""

from collections.abc import Callable, Mapping
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from bigjax import losses
from bigjax.bounds import FINITE, FRACTION, SHARE, at_least, check_ranges
from bigjax.errors import UserError
from bigjax.layers.output import linear_losses
from bigjax.layers.sampling import categorical
from bigjax.parallel.sharding import constrain
from bigjax.tasks import (
    Task,
    add_sums,
    apply,
    array_shapes,
    check_call,
    check_sums,
    check_vocabulary,
    family_for,
    init_and_axes,
    output_layer,
)

METRICS = ("nll", "accuracy")


@dataclasses.dataclass(frozen=True)
class Config:
    label_smoothing: float = 0.0
    z_loss: float = 0.0  # weight of the squared log-partition, such as 1e-4
    # Share of the decoder's inputs in training that are drawn from the model's own predictions
    scheduled_sampling: float = 0.0
    # NAME: weight in the training loss of a sum of the model's layers, such as a router's loss
    sum_weights: dict[str, float] = dataclasses.field(default_factory=dict)

    RANGES = {
        "label_smoothing": FRACTION,
        "z_loss": at_least(0),
        "scheduled_sampling": SHARE,
        "sum_weights": FINITE,
    }
    MAY_CHANGE = ("*",)

    def __post_init__(self):
        check_ranges("task", self)


def encoder_decoder_task(
    config, options: Config, lengths: Mapping[str, int], load_data: Callable, packing: bool
) -> Task:
    """A Task of tokens, given those of a source.

    lengths: {config key, or what sets it: length} of source and target. load_data(log, tokenizer,
    names) -> data. Batches: source and source_segment_ids int [B, S]; targets and segment_ids int
    [B, T]; weights [B, T]; with packing source_positions and positions int.
    """
    family, c = family_for(
        config,
        "an encoder-decoder, such as model.name='t5'",
        needs=("Model", "decoder", "flops_per_pair"),
    )
    source_len, target_len = lengths.values()
    check_lengths(c, lengths)
    if packing and config.data.packing and not getattr(family, "PACKING", True):
        raise UserError(
            f"data.packing=True puts several pairs into a row, which model.name="
            f"{config.model.name!r} cannot tell apart. Set data.packing=False."
        )
    model = family.Model(c)
    check_call(
        model.__call__,
        "source, inputs, source_segments_BS=s, source_positions_BS=p, segments_BT=t, "
        "positions_BT=q, rng=rng",
        f"config.model.name={config.model.name!r}: Model.__call__",
    )
    one = jnp.zeros((1, 1), jnp.int32)
    init, axes = init_and_axes(family.Model, c, one, one)
    check_sums(config, options.sum_weights, model, init, METRICS, (one, one))

    def forward(params, extras, batch, inputs, rng, train):
        return apply(
            model,
            params,
            extras,
            train,
            batch["source"],
            inputs,
            source_segments_BS=batch["source_segment_ids"],
            source_positions_BS=batch.get("source_positions"),
            segments_BT=batch["segment_ids"],
            positions_BT=batch.get("positions"),
            rng=rng,
        )

    def losses_of(out, targets, weights, smoothing, z):
        if getattr(out, "log_probs", None) is None:
            return linear_losses(*output_layer(out, config), targets, weights, smoothing, z)
        logits = constrain(out.log_probs, "batch", "length", "act_vocab")
        total, _ = losses.cross_entropy(logits, targets, weights, label_smoothing=smoothing)
        # They are normalised: their log-partition, and its penalty, is 0.
        nll, _ = losses.cross_entropy(logits, targets, weights)
        return {"total": total, "nll": nll, "hits": losses.accuracy(logits, targets, weights)[0]}

    def inputs_of(params, extras, batch, rng, train):
        inputs = shifted(batch["targets"], c.start_id, batch.get("positions"))
        rate = options.scheduled_sampling
        if not (train and rate):
            return inputs
        drawn, chosen = jax.random.split(jax.random.fold_in(rng, 1))
        out, _ = forward(params, extras, batch, inputs, jax.random.fold_in(rng, 2), False)
        logits = jax.lax.stop_gradient(out.logits)
        own = categorical(logits.reshape(-1, logits.shape[-1]), drawn).reshape(inputs.shape)
        own = shifted(own, c.start_id, batch.get("positions"))
        return jnp.where(jax.random.bernoulli(chosen, rate, inputs.shape), own, inputs)

    def loss(params, extras, frozen, batch, rng, train):
        del frozen
        inputs = inputs_of(params, extras, batch, rng, train)
        out, extras = forward(params, extras, batch, inputs, rng if train else None, train)
        smoothing, z = (options.label_smoothing, options.z_loss) if train else (0.0, 0.0)
        sums = losses_of(out, batch["targets"], batch["weights"], smoothing, z)
        weight = batch["weights"].sum()
        total, metrics = add_sums((sums["total"], weight), options.sum_weights, out.sums, train)
        return total, (
            {**metrics, "nll": (sums["nll"], weight), "accuracy": (sums["hits"], weight)},
            extras,
        )

    def batch_shapes(batch_size, step):
        del step
        source, target = (batch_size, source_len), (batch_size, target_len)
        positions = {"source_positions": source, "positions": target} if packing else {}
        ids = {"source": source, "source_segment_ids": source}
        ids |= {"targets": target, "segment_ids": target}
        return array_shapes(ids | positions, {"weights": target})

    def checked_data(log=print, tokenizer=None, splits=None):
        data = load_data(log, tokenizer, splits)
        check_vocabulary(data.tokenizer.vocab_size, c.vocab_size)
        check_start(data.tokenizer, c.start_id)
        return data

    return Task(
        init=init,
        axes=axes,
        loss=loss,
        load_data=checked_data,
        batch_shapes=batch_shapes,
        model=model,
        model_config=c,
        unit="tokens",
        units_per_example=source_len + target_len,
        attention_lengths=lengths,
        flops_per_example=family.flops_per_pair(c, source_len, target_len),
    )


def shifted(targets_BT, start_id: int, positions_BT=None) -> jax.Array:
    """The decoder's inputs: the targets one place later, after start_id, which is also at the
    first position of each packed target."""
    inputs = jnp.pad(targets_BT, ((0, 0), (1, 0)), constant_values=start_id)[:, :-1]
    return inputs if positions_BT is None else jnp.where(positions_BT == 0, start_id, inputs)


def check_lengths(c, lengths: Mapping[str, int]) -> None:
    """Raises UserError for a source or target that is longer than the model's positions."""
    most = getattr(c, "max_len", None)  # a model of your own may have no limit
    for key, length in lengths.items():
        if most is not None and length > most:
            raise UserError(
                f"{key}={length} is longer than model.max_len={most}. Shorten it, or raise "
                "model.max_len."
            )


def check_start(tokenizer: Any, start_id: int) -> None:
    """Raises UserError if the token before a target is one of text."""
    if start_id < tokenizer.vocab_size and tokenizer.pieces[start_id]:
        ids = {name: getattr(tokenizer, name) for name in ("pad_id", "bos_id", "eos_id")}
        raise UserError(
            f"model.start_id={start_id} is the piece {tokenizer.decode([start_id])!r} of the "
            "tokenizer; the token before a target must not be one of text. Set it to one of "
            f"{', '.join(f'{name}={i}' for name, i in ids.items())}."
        )
