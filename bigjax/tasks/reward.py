"""Learn a reward: a number for a conversation, larger for the preferred of two answers."""

import dataclasses

import jax.numpy as jnp

from bigjax.bounds import at_least, check_ranges
from bigjax.data.store import SPLITS
from bigjax.losses.preference import bradley_terry
from bigjax.models import _scored
from bigjax.tasks import (
    Task,
    apply,
    array_shapes,
    check_call,
    check_vocabulary,
    data_module,
    family_for,
    flops_per_token,
    in_tokens,
    init_and_axes,
)
from bigjax.tasks._chat import resolve as resolve

DATA, EVALUATION = "preferences", "loss"  # in a config that is generated for this task


@dataclasses.dataclass(frozen=True)
class Config:
    center: float = 0.0  # of the squared sum of a pair's rewards, added to the loss, such as 0.01
    # The content of the file data.chat_template; a run fills it in, so that it holds all of itself
    chat_template: str = ""

    RANGES = {"center": at_least(0)}
    MAY_CHANGE = ("center",)

    def __post_init__(self):
        check_ranges("task", self)


def build(config, options: Config) -> Task:
    """Batches: pairs, see data.preferences.PreferenceBatches.

    The reward is that of the last token of a conversation, by its length: padding has no say, and
    may have the id of a token. The loss is losses.preference.bradley_terry with the margins of the
    data. center: keeps rewards near 0 (https://arxiv.org/abs/2312.09244). `outputs` gives float32
    rewards [...] of batches with inputs [..., T] and lengths [...].
    """
    family, c = family_for(
        config,
        "a family that defines Model and decoder, such as model.name='gpt'",
        needs=("Model", "decoder"),
    )
    c = _scored.config_of(c)
    make = lambda c: _scored.Scored(family.Model(c))
    check_call(
        family.Model(c).__call__,
        "tokens, positions, segments, rng=rng",
        f"config.model.name={config.model.name!r}: Model.__call__",
    )
    model = make(c)
    example = jnp.zeros((1, 1), jnp.int32), jnp.zeros((1,), jnp.int32)
    init, axes = init_and_axes(make, c, *example)
    source = data_module(config, "load_preferences", "preferences")

    def rewards(params, extras, batch, rng, train):
        """(rewards [...], extras)."""
        inputs, lengths = batch["inputs"], batch["lengths"]
        rows, last = inputs.reshape(-1, inputs.shape[-1]), jnp.maximum(lengths.reshape(-1) - 1, 0)
        out, extras = apply(model, params, extras, train, rows, last, rng=rng if train else None)
        return out.reshape(lengths.shape), extras

    def loss(params, extras, frozen, batch, rng, train):
        del frozen
        both, extras = rewards(params, extras, batch, rng, train)
        chosen, rejected = both[:, 0], both[:, 1]
        real = (batch["lengths"].min(-1) > 0).astype(jnp.float32)
        values = bradley_terry(chosen, rejected, batch["margin"])
        values += options.center * jnp.square(chosen + rejected)
        mean = lambda x: ((x * real).sum(), real.sum())
        metrics = {
            "accuracy": mean((chosen > rejected).astype(jnp.float32)),
            "margin": mean(chosen - rejected),
            "reward_chosen": mean(chosen),
            "reward_rejected": mean(rejected),
        }
        return mean(values), (metrics, extras)

    def outputs(params, extras, frozen, batch):
        del frozen
        return rewards(params, extras, batch, None, False)[0]

    def load_data(log=print, tokenizer=None, splits=None):
        corpus = source.load_preferences(
            config.data,
            "pairs",
            tokenizer=tokenizer,
            log=log,
            names=splits or SPLITS,
            python_path=config.python_path,
            template=options.chat_template,
        )
        check_vocabulary(corpus.tokenizer.vocab_size, c.vocab_size)
        return corpus

    T = config.data.seq_len

    def batch_shapes(batch_size, step):
        del step
        pair = (batch_size, 2)
        return array_shapes(
            {"inputs": (*pair, T), "targets": (*pair, T), "lengths": pair},
            {"weights": (*pair, T), "margin": pair[:1]},
        )

    # Without the product with the vocabulary
    flops = flops_per_token(family, dataclasses.replace(c, vocab_size=1), T)
    return Task(
        init=init,
        axes=axes,
        loss=loss,
        load_data=load_data,
        batch_shapes=batch_shapes,
        outputs=outputs,
        label_head=_scored.HEAD,
        model=model,
        model_config=c,
        flops_per_example=2 * T * flops,
        **{**in_tokens(T), "units_per_example": 2 * T},
    )
