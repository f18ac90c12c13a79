"""SeqGAN's synthetic experiment: learn from what an oracle LSTM wrote, and let it judge.

The oracle is another LSTM (oracle_data.py). Its sequences are the data; how likely it finds the
generator's is a measure that real text does not have. https://arxiv.org/abs/1609.05473, section 4.
"""

import dataclasses

import jax.numpy as jnp

from bigjax.projects.seqgan.gan import Options
from bigjax.projects.seqgan.networks import make_gan
from bigjax.projects.seqgan.task import adversarial_task, check_training
from bigjax.tasks import Task, data_module, family_for


@dataclasses.dataclass(frozen=True)
class Config(Options):
    pass


def build(config, options: Config) -> Task:
    """Batches: tokens int, weights [B, T]; in training several at once, see round_batches.py."""
    check_training(config)
    family, c = family_for(
        config,
        "a generator and a discriminator (model.name='seqgan.model')",
        lambda family: hasattr(family, "Discriminator"),
    )
    source = data_module(config, "OracleText", "seqgan.oracle_data")
    T = config.data.seq_len
    tokens, mask = jnp.zeros((1, T), jnp.int32), jnp.ones((1, T), bool)

    return adversarial_task(
        c,
        make_gan(family, c, options, T),
        {"generator": family.Generator(c), "discriminator": family.Discriminator(c)},
        {"generator": (tokens,), "discriminator": (tokens, mask)},
        {},
        lambda log=print, tokenizer=None, splits=None: source.OracleText(config, options, log),
    )
