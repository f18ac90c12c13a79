"""What the tasks on an encoder-decoder share: the model, and its loss on targets given a source."""

from collections.abc import Callable, Mapping
import dataclasses
from typing import Any, NamedTuple

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

METRICS = ("nll", "accuracy", "ctc")
NEEDS = ("Model", "decoder", "flops_per_pair")  # of a family


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


class Source(NamedTuple):
    """How a batch gives its sources to the model.

    example: a source of one row, for `init`. keywords: of Model.__call__ for a source, as
    check_call reads them. read(batch, rng, train) -> (sources, {keyword: array}).
    shapes(batch_size) -> the arrays that `read` needs, as ShapeDtypeStructs. losses(out, batch) ->
    {metric: (sum, weight)} of the encoder's output, of which the training loss has this share.
    """

    example: Any
    keywords: str
    read: Callable[[dict, Any, bool], tuple[jax.Array, dict]]
    shapes: Callable[[int], dict]
    losses: Callable[[Any, dict], dict] = lambda out, batch: {}
    share: float = 0.0


def tokens(source_len: int, packing: bool) -> Source:
    """Sources of tokens: source and source_segment_ids [B, S], with packing source_positions."""

    def read(batch, rng, train):
        del rng, train
        segments, positions = batch["source_segment_ids"], batch.get("source_positions")
        return batch["source"], dict(source_segments_BS=segments, source_positions_BS=positions)

    def shapes(batch_size):
        names = ("source", "source_segment_ids", *(("source_positions",) if packing else ()))
        return array_shapes(dict.fromkeys(names, (batch_size, source_len)), {})

    one = jnp.zeros((1, 1), jnp.int32)
    return Source(one, ", source_segments_BS=s, source_positions_BS=p", read, shapes)


def text_task(
    config, options: Config, lengths: Mapping[str, int], load_data: Callable, packing: bool
) -> Task:
    """A Task of tokens, given those of a source.

    lengths: {config key, or what sets it: length} of source and target. load_data: as of
    encoder_decoder_task. Batches: source and source_segment_ids int [B, S]; targets and segment_ids
    int [B, T]; weights [B, T]; with packing source_positions and positions int.
    """
    family, c = family_for(config, "an encoder-decoder, such as model.name='t5'", needs=NEEDS)
    most = getattr(c, "max_len", None)  # a model of your own may have no limit
    for key, length in lengths.items():
        if most is not None and length > most:
            raise UserError(
                f"{key}={length} is longer than model.max_len={most}. Shorten it, or raise "
                "model.max_len."
            )
    if packing and config.data.packing and not getattr(family, "PACKING", True):
        raise UserError(
            f"data.packing=True puts several pairs into a row, which model.name="
            f"{config.model.name!r} cannot tell apart. Set data.packing=False."
        )
    source_len, target_len = lengths.values()
    return encoder_decoder_task(
        config,
        options,
        (family, c),
        tokens(source_len, packing),
        target_len,
        load_data,
        packing=packing,
        unit="tokens",
        units_per_example=source_len + target_len,
        attention_lengths=lengths,
        flops_per_example=family.flops_per_pair(c, source_len, target_len),
    )


def encoder_decoder_task(
    config,
    options: Config,
    model: tuple[Any, Any],
    source: Source,
    target_len: int,
    load_data: Callable,
    packing: bool = False,
    **fields,
) -> Task:
    """A Task of tokens, given a source.

    model: (module of the family, its Config). load_data(log, tokenizer, names) -> data. fields: of
    the Task. Batches: those of the source; targets int [B, T]; weights [B, T]; segment_ids int
    [B, T] if the source has segments; with packing positions int [B, T].
    """
    family, c = model
    module = family.Model(c)
    check_call(
        module.__call__,
        f"source, inputs, segments_BT=t{', positions_BT=q' * packing}, rng=rng{source.keywords}",
        f"config.model.name={config.model.name!r}: Model.__call__",
    )
    examples = source.example, jnp.zeros((1, 1), jnp.int32)
    init, axes = init_and_axes(family.Model, c, *examples)
    check_sums(config, options.sum_weights, module, init, METRICS, examples)

    def forward(params, extras, batch, inputs, read, rng, train):
        sources, keywords = read
        if packing:
            keywords = {**keywords, "positions_BT": batch["positions"]}
        return apply(
            module,
            params,
            extras,
            train,
            sources,
            inputs,
            segments_BT=batch.get("segment_ids"),
            rng=rng,
            **keywords,
        )

    def losses_of(out, targets, weights, smoothing, z):
        if getattr(out, "log_probs", None) is None:
            return linear_losses(*output_layer(out, config), targets, weights, smoothing, z)
        logits = constrain(out.log_probs, "batch", "length", "act_vocab")
        total, _ = losses.cross_entropy(logits, targets, weights, label_smoothing=smoothing)
        # They are normalised: their log-partition, and its penalty, is 0.
        nll, _ = losses.cross_entropy(logits, targets, weights)
        return {"total": total, "nll": nll, "hits": losses.accuracy(logits, targets, weights)[0]}

    def sampled(params, extras, batch, inputs, read, rng):
        """The inputs, a share of which are the model's own predictions."""
        drawn, chosen, key = jax.random.split(rng, 3)
        out, _ = forward(params, extras, batch, inputs, read, key, False)
        logits = jax.lax.stop_gradient(out.logits)
        own = categorical(logits.reshape(-1, logits.shape[-1]), drawn).reshape(inputs.shape)
        own = shifted(own, c.start_id, batch.get("positions"))
        share = jax.random.bernoulli(chosen, options.scheduled_sampling, inputs.shape)
        return jnp.where(share, own, inputs)

    def loss(params, extras, frozen, batch, rng, train):
        del frozen
        keys = jax.random.split(rng, 3) if train else (None,) * 3
        read = source.read(batch, keys[0], train)
        inputs = shifted(batch["targets"], c.start_id, batch.get("positions"))
        if train and options.scheduled_sampling:
            inputs = sampled(params, extras, batch, inputs, read, keys[1])
        out, extras = forward(params, extras, batch, inputs, read, keys[2], train)
        smoothing, z = (options.label_smoothing, options.z_loss) if train else (0.0, 0.0)
        sums = losses_of(out, batch["targets"], batch["weights"], smoothing, z)
        weight, of_source = batch["weights"].sum(), source.losses(out, batch)
        if train:
            of_loss = sum(total for total, _ in of_source.values())
            sums["total"] = (1 - source.share) * sums["total"] + source.share * of_loss
        total, metrics = add_sums((sums["total"], weight), options.sum_weights, out.sums, train)
        metrics |= of_source | {"nll": (sums["nll"], weight), "accuracy": (sums["hits"], weight)}
        return total, (metrics, extras)

    def batch_shapes(batch_size, step):
        del step
        target, of_source = (batch_size, target_len), source.shapes(batch_size)
        names = ["targets", *(["positions"] if packing else [])]
        names += ["segment_ids"] if "source_segment_ids" in of_source else []
        return of_source | array_shapes(dict.fromkeys(names, target), {"weights": target})

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
        model=module,
        model_config=c,
        **fields,
    )


def shifted(targets_BT, start_id: int, positions_BT=None) -> jax.Array:
    """The decoder's inputs: the targets one place later, after start_id, which is also at the
    first position of each packed target."""
    inputs = jnp.pad(targets_BT, ((0, 0), (1, 0)), constant_values=start_id)[:, :-1]
    return inputs if positions_BT is None else jnp.where(positions_BT == 0, start_id, inputs)


def check_start(tokenizer: Any, start_id: int) -> None:
    """Raises UserError if the token before a target is one of text."""
    is_text = lambda i: i < tokenizer.vocab_size and bool(tokenizer.pieces[i])
    if is_text(start_id):
        special: dict[int, str] = {}  # by id, as a tokenizer may use one for several
        for name in ("pad_id", "bos_id", "eos_id", "unk_id"):
            i = getattr(tokenizer, name)
            if i is not None and not is_text(i):
                special.setdefault(i, name)
        raise UserError(
            f"model.start_id={start_id} is the piece {tokenizer.decode([start_id])!r} of the "
            "tokenizer; the token before a target must not be one of text. Set it to one of "
            f"{', '.join(f'{name}={i}' for i, name in special.items())}."
        )
