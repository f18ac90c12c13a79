"""SeqGAN's synthetic experiment (https://arxiv.org/abs/1609.05473, section 4).

An oracle LSTM (oracle_data.py) samples the data, and its likelihood of the generator's sequences
measures how good they are, which no real text allows.
"""

import dataclasses

import jax.numpy as jnp

from bigjax.projects.seqgan.gan import unconditional
from bigjax.projects.seqgan.task import adversarial_task, check_batch_size
from bigjax.projects.seqgan.training_options import TrainingOptions
from bigjax.tasks import Task, data_module, family_for


@dataclasses.dataclass(frozen=True)
class Config(TrainingOptions):
    pass


def build(config, options: Config) -> Task:
    """The task. Batches: tokens int, weights [B, T]; in training see round_batches.py."""
    check_batch_size(config)
    family, c = family_for(
        config,
        "a generator and a discriminator (model.name='seqgan.model')",
        lambda family: hasattr(family, "generator_decoder") and hasattr(family, "last_layer"),
    )
    source = data_module(config, "OracleText", "seqgan.oracle_data")
    T = config.data.seq_len
    tokens, mask = jnp.zeros((1, T), jnp.int32), jnp.ones((1, T), bool)

    return adversarial_task(
        c,
        unconditional(family, c, options, T),
        {"generator": family.Generator(c), "discriminator": family.Discriminator(c)},
        {"generator": (tokens,), "discriminator": (tokens, mask)},
        {},
        lambda log=print, tokenizer=None, splits=None: source.OracleText(config, options, log),
    )
