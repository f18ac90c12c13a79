"""BERT's pre-training: masked language modelling, and which text follows which."""

import dataclasses
import functools

import jax.numpy as jnp

from bigjax import losses
from bigjax.bounds import FINITE, SHARE, Range, at_least, check_ranges
from bigjax.data import pairs as pairs_lib
from bigjax.layers.output import linear_losses
from bigjax.tasks import (
    Task,
    add_sums,
    apply,
    array_shapes,
    check_sums,
    data_module,
    in_tokens,
    output_layer,
)
from bigjax.tasks._encoder import build_encoder

DATA, EVALUATION = "text", "loss"  # in a config that is generated for this task


@dataclasses.dataclass(frozen=True)
class Config:
    pairs: str = "nsp"  # nsp (next sentence), sop (sentence order), none (one text per row)
    mask_rate: float = 0.15  # of the tokens, special ones included
    mask_unit: str = "token"  # token, word, span
    max_predictions: int = 20  # masked tokens per row, gathered before the vocabulary projection
    dynamic: bool = True  # new masks in each epoch
    short_fraction: float = 0.1  # of the rows, truncated to a random length
    # NAME: weight in the training loss of a sum of the model's layers, such as a router's loss
    sum_weights: dict[str, float] = dataclasses.field(default_factory=dict)

    RANGES = {
        "mask_rate": Range(0, 1, open_low=True, open_high=True),
        "max_predictions": at_least(1),
        "short_fraction": SHARE,
        "sum_weights": FINITE,
    }
    MAY_CHANGE = ("mask_*", "max_predictions", "dynamic", "short_fraction", "sum_weights.*")

    def __post_init__(self):
        check_ranges("task", self)


def build(config, options: Config) -> Task:
    """Batches: see data.pairs.PairBatches.

    The loss is the mean over masked tokens plus the mean over pairs. Its sum is kept in units of
    masked tokens; `next_scale` [B], masked tokens per pair, makes it exact over micro-batches.
    """
    heads = ("mlm",) if options.pairs == "none" else ("mlm", "nsp")
    encoder = build_encoder(config, heads)
    names = tuple(f"{head}_{metric}" for head in heads for metric in ("loss", "accuracy"))
    check_sums(config, options.sum_weights, encoder.model, encoder.init, names)
    source = data_module(config, "load_text", "text")

    def loss(params, extras, frozen, batch, rng, train):
        batch = whole_batch(params, extras, frozen, batch)
        out, extras = apply(
            encoder.model,
            params,
            extras,
            train,
            batch["tokens"],
            batch["types"],
            batch["segment_ids"],
            masked_positions_BM=batch["masked_positions"],
            rng=rng if train else None,
        )
        sums = linear_losses(*output_layer(out, config), batch["targets"], batch["weights"])
        total, weight = sums["total"], batch["weights"].sum()
        metrics = {"mlm_loss": (sums["nll"], weight), "mlm_accuracy": (sums["hits"], weight)}
        if "nsp" in heads:
            pairs = batch["next_label"], batch["next_weight"]
            scaled = batch["next_label"], batch["next_weight"] * batch["next_scale"][:, None]
            nsp = out.heads["nsp"]
            total = total + losses.cross_entropy(nsp, *scaled)[0]
            metrics["nsp_loss"] = losses.cross_entropy(nsp, *pairs)
            metrics["nsp_accuracy"] = losses.accuracy(nsp, *pairs)
        total, layer_metrics = add_sums((total, weight), options.sum_weights, out.sums, train)
        return total, ({**layer_metrics, **metrics}, extras)

    def whole_batch(params, extras, frozen, batch):
        del params, extras, frozen
        if "next_label" not in batch or "next_scale" in batch:
            return batch
        scale = batch["weights"].sum() / jnp.maximum(batch["next_weight"].sum(), 1)
        return {**batch, "next_scale": jnp.broadcast_to(scale, batch["tokens"].shape[:1])}

    def batch_shapes(batch_size, step):
        del step
        row = (batch_size, config.data.seq_len)
        masked = (batch_size, min(options.max_predictions, config.data.seq_len))
        pair = (batch_size, 1)
        pairs = [{"next_label": pair}, {"next_weight": pair}] if "nsp" in heads else [{}, {}]
        return array_shapes(
            {
                "tokens": row,
                "types": row,
                "segment_ids": row,
                "masked_positions": masked,
                "targets": masked,
                **pairs[0],
            },
            {"weights": masked, **pairs[1]},
        )

    fields = {f.name: getattr(options, f.name) for f in dataclasses.fields(pairs_lib.Options)}

    def load_data(log=print, tokenizer=None, splits=None):
        del splits  # a store has all of them
        make = functools.partial(pairs_lib.PairBatches, options=pairs_lib.Options(**fields))
        corpus = source.load_text(config.data, log, tokenizer, make, config.python_path)
        encoder.check_vocabulary(corpus.tokenizer)
        for name, store in corpus.stores.items():
            piece, share = pairs_lib.most_common_token(store.split("train"), corpus.tokenizer)
            log(
                f"data: {name}: always guessing its most common token, {piece!r}, would give an "
                f"mlm_accuracy of {share:.3f}"
            )
        return corpus

    flops = encoder.flops_per_row + options.max_predictions * encoder.flops_per_masked
    return encoder.task(
        loss=loss,
        load_data=load_data,
        batch_shapes=batch_shapes,
        flops_per_example=flops,
        whole_batch=whole_batch,
        **in_tokens(config.data.seq_len),
    )
