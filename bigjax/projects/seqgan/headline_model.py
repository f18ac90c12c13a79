"""A headline from its article: an encoder, a generator that attends, and their discriminator.

The generator is recurrent and attends after the recurrence, without input feeding, so that training
sees all positions at once (https://arxiv.org/abs/1508.04025). What it attends to it may also copy
(https://arxiv.org/abs/1704.04368). It is told what was published before, how much readers shall
click, and hot words.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from bigjax import losses
from bigjax.bounds import FRACTION, at_least
from bigjax.errors import UserError
from bigjax.layers.basic import Dense, Embed, Norm, dropout
from bigjax.layers.params import param
from bigjax.layers.recurrent import Recurrent, empty_state
from bigjax.models import bert, check_fields
from bigjax.projects.seqgan import model as seqgan

# What is added to logits of what is never chosen. Not infinite: 0 * infinity, in an entropy or
# under a weight of 0, is not a number.
NEVER = -1e9


@dataclasses.dataclass(frozen=True)
class Config(seqgan.Config):
    vocab_size: int = 4096
    max_len: int = 24  # of a headline, its end included
    article_len: int = 128  # tokens of the article and of previous headlines
    encoder: str = "lstm"  # lstm (bidirectional, each way half of d_model), bert
    encoder_layers: int = 1
    generator: str = "lstm"  # lstm, gru
    d_model: int = 128  # of encoder and generator
    n_heads: int = 4  # of a bert that encodes
    dropout: float = 0.1  # of encoder and generator
    click_buckets: int = 8  # levels of clicks that the generator is told; 0: none
    click_dropout: float = 0.1  # how often it is not told, so that it can do without
    hot_per_example: int = 8  # tokens of hot words; 0: none
    special_ids: tuple[int, ...] = (0, 1, 2, 3, 4)  # of [PAD], [UNK], [CLS], [SEP], [MASK]

    RANGES = {
        **seqgan.Config.RANGES,
        **dict.fromkeys(("article_len", "encoder_layers"), at_least(1)),
        "click_dropout": FRACTION,
        **dict.fromkeys(("click_buckets", "hot_per_example", "special_ids"), at_least(0)),
    }

    def __post_init__(self):
        super().__post_init__()
        check_fields(
            self,
            {"encoder": ("lstm", "bert"), "generator": ("lstm", "gru")},
        )
        ways = 2 if self.encoder == "lstm" else self.n_heads
        if self.d_model % ways:
            raise UserError(
                f"model.d_model={self.d_model} does not divide into {ways} "
                + (
                    "directions of an lstm encoder."
                    if self.encoder == "lstm"
                    else "heads of a bert encoder (model.n_heads)."
                )
            )
        if len(self.special_ids) != 5 or not (
            0 <= min(self.special_ids) and max(self.special_ids) < self.vocab_size
        ):
            raise UserError(
                f"model.special_ids is {self.special_ids}; it must be five ids below "
                f"model.vocab_size={self.vocab_size}: of [PAD], [UNK], [CLS], [SEP], "
                "[MASK]."
            )


class Generator(nn.Module):
    """The next token of each headline; read whole (`logits`) or token by token (`step`).

    `given` is a batch of data.headlines. What `context` makes of it has rows first: memory
    [B, S, D], its tokens and its mask, the state to begin with, hot ids [B, K] and their mask.
    """

    config: Config

    def setup(self):
        c = self.config
        types = dict(init_std=c.init_std, dtype=c.dtype)
        dense = lambda n, **more: Dense((n,), ("embed",), (None,), **types, **more)
        self.embed = Embed(c.vocab_size, c.d_model, **types)
        if c.encoder == "bert":
            self.bert = bert.Model(
                bert.Config(
                    vocab_size=c.vocab_size,
                    max_len=c.article_len,
                    d_model=c.d_model,
                    n_layers=c.encoder_layers,
                    n_heads=c.n_heads,
                    dropout=c.dropout,
                    attention_dropout=0.0,
                    scan=False,
                    attention=c.attention,
                    remat=c.remat,
                    dtype=c.dtype,
                ),
                ("tagger",),
                c.d_model,
            )
        else:
            self.source_type = Embed(2, c.d_model, axis="position", **types)
            self.encoder = Recurrent(
                "lstm", c.d_model // 2, c.encoder_layers, bidirectional=True, **types
            )
        if c.click_buckets:
            self.clicks = Embed(c.click_buckets + 1, c.d_model, axis="position", **types)
        if c.hot_per_example:
            self.gate = dense(1, out_dtype="float32")
        self.initial = dense(c.d_model * c.n_layers * (1 + (c.generator == "lstm")))
        self.recurrent = Recurrent(c.generator, c.d_model, c.n_layers, **types)
        self.query = dense(c.d_model, use_bias=False)
        self.mix = dense(c.d_model)
        self.copy = dense(1, out_dtype="float32")
        self.bias = param(self, "bias", nn.initializers.zeros, (c.vocab_size,), ("vocab",))

    def __call__(
        self, inputs_BT: jax.Array, given: dict, rng: jax.Array | None = None
    ) -> jax.Array:
        """`logits` in the context of `given`."""
        return self.logits(inputs_BT, self.context(given, rng), rng)

    def context(self, given: dict, rng: jax.Array | None = None) -> dict:
        """What headlines are written from. given: source, source_types, source_mask [B, S],
        clicks [B], hot, hot_mask [B, K]. rng: for dropout."""
        c = self.config
        keys = (None, None) if rng is None else jax.random.split(jax.random.fold_in(rng, 0))
        mask = given["source_mask"] > 0
        memory = self._encode(given["source"], given["source_types"], mask, keys[0])
        summary = _mean(memory, mask)
        if c.click_buckets:
            clicks = given["clicks"]
            if keys[1] is not None:
                told = jax.random.bernoulli(keys[1], 1 - c.click_dropout, clicks.shape)
                clicks = jnp.where(told, clicks, 0)
            summary = summary + self.clicks(clicks)
        parts = jnp.split(
            jnp.tanh(self.initial(summary)), c.n_layers * (1 + (c.generator == "lstm")), axis=-1
        )
        state = tuple(zip(parts[::2], parts[1::2]) if c.generator == "lstm" else parts)
        return {
            "memory": memory,
            "source": given["source"],
            "mask": mask,
            "state": state,
            "hot": given["hot"],
            "hot_mask": _once(given["hot"], given["hot_mask"]),
        }

    def _encode(self, source_BS, types_BS, mask_BS, rng) -> jax.Array:
        """[B, S, D]."""
        c = self.config
        if c.encoder == "bert":  # what tags tokens gives a vector of each
            return self.bert(source_BS, types_BS, mask_BS.astype(jnp.int32), rng=rng)[
                "tagger"
            ].astype(c.dtype)
        keys = (None, None) if rng is None else jax.random.split(rng)
        x = self.embed(source_BS) + self.source_type(types_BS)
        return dropout(self.encoder(dropout(x, c.dropout, keys[0]), mask_BS)[0], c.dropout, keys[1])

    def logits(
        self, inputs_BT: jax.Array, context: dict, rng: jax.Array | None = None
    ) -> jax.Array:
        """Logits float32 [B, T, V] of the token after each input. rng: for dropout."""
        rate = self.config.dropout
        keys = (None, None) if rng is None else jax.random.split(jax.random.fold_in(rng, 1))
        h, _ = self.recurrent(dropout(self.embed(inputs_BT), rate, keys[0]), state=context["state"])
        return self._attend(h, context, keys[1])

    def loss(
        self,
        inputs_BT: jax.Array,
        targets_BT: jax.Array,
        weights_BT: jax.Array,
        context: dict,
        rng: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """losses.cross_entropy of the targets; of those that it never writes, [UNK], none."""
        allowed = (self._never()[targets_BT] == 0).astype(weights_BT.dtype)
        return losses.cross_entropy(
            self.logits(inputs_BT, context, rng), targets_BT, weights_BT * allowed
        )

    def step(self, tokens_B: jax.Array, state: dict, context: dict) -> tuple[jax.Array, dict]:
        """Logits float32 [B, V] after one more token, and the state then."""
        first = state["first"][:, None]
        cells = jax.tree_util.tree_map(
            lambda a, b: jnp.where(first, a, b), context["state"], state["cells"]
        )
        h, cells = self.recurrent.step(self.embed(tokens_B), cells)
        logits = self._attend(h[:, None], context, None)[:, 0]
        return logits, {"first": jnp.zeros_like(state["first"]), "cells": cells}

    def _attend(self, h_BTD, context: dict, rng) -> jax.Array:
        """Logits from states: of tanh(W [what they attend to; h]), and a bias of hot words that
        the gate sizes; mixed with the words attended to, by how much these are copied."""
        memory, mask_B1S = context["memory"], context["mask"][:, None]
        score = jnp.einsum(
            "BTD,BSD->BTS", self.query(h_BTD), memory, preferred_element_type=jnp.float32
        )
        share = jax.nn.softmax(jnp.where(mask_B1S, score, NEVER)) * mask_B1S
        read = jnp.einsum("BTS,BSD->BTD", share.astype(memory.dtype), memory)
        y = jnp.tanh(self.mix(jnp.concatenate([read, h_BTD], axis=-1)))
        y = dropout(y, self.config.dropout, rng)
        logits = self.embed.attend(y) + self.bias
        rows = jnp.arange(len(y))[:, None]
        if self.config.hot_per_example:
            more_B1T = self.gate(y).swapaxes(1, 2)
            logits = logits.at[rows, :, context["hot"]].add(
                context["hot_mask"][..., None] * more_B1T
            )
        copied_BT1 = jax.nn.sigmoid(self.copy(y))
        p = (1 - copied_BT1) * jax.nn.softmax(logits + self._never())
        p = p.at[rows, :, context["source"]].add((copied_BT1 * share).swapaxes(1, 2))
        return jnp.log(jnp.maximum(p, 1e-20)) + self._never()

    def _never(self) -> jax.Array:
        """float32 [V]: what keeps [PAD], [UNK], [CLS] and [MASK] from being written."""
        pad, unk, start, _, mask = self.config.special_ids
        bias = np.zeros(self.config.vocab_size, np.float32)
        bias[[pad, unk, start, mask]] = NEVER
        return jnp.asarray(bias)


def begin(c: Config, batch: int) -> Any:
    """The generator's state before the first token. What that is only the context knows, so rows
    are marked as first; `step` then takes the context's."""
    return {
        "first": jnp.ones(batch, bool),
        "cells": empty_state(c.generator, c.n_layers, batch, c.d_model, c.dtype),
    }


class Discriminator(nn.Module):
    """Is a headline real, and how often is it clicked?

    SeqGAN's discriminator reads the headline alone. Beside it a small network compares the words of
    headline and source: the means of their embeddings and the product of these
    (https://arxiv.org/abs/1512.08422). It also gives the clicks.
    """

    config: Config

    @nn.compact
    def __call__(
        self, tokens_BT: jax.Array, mask_BT: jax.Array, given: dict, rng: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array | None]:
        """Logits float32 [B, 2] of generated and of real, and the logit [B] of the quantile of
        clicks (None without click_buckets). given: source, source_mask [B, S]."""
        c, d = self.config, self.config.discriminator_d_model
        types = dict(dtype=c.dtype)
        keys = (None, None) if rng is None else jax.random.split(rng)
        logits = seqgan.Discriminator(c, name="text")(tokens_BT, mask_BT, keys[0])
        embed = Embed(c.vocab_size, d, init_std=c.init_std, **types, name="embed")
        # Means of small embeddings are smaller still: without the norm their product is nothing.
        said = Norm(**types, name="headline_norm")(_mean(embed(tokens_BT), mask_BT))
        source = _mean(embed(given["source"]), given["source_mask"] > 0)
        told = Norm(**types, name="source_norm")(source)
        y = jnp.concatenate([said, told, said * told], axis=-1)
        y = jax.nn.relu(
            Dense((d,), ("embed",), (None,), init_std=c.init_std, **types, name="match")(y)
        )
        y = Dense(
            (2 + (c.click_buckets > 0),),
            ("embed",),
            (None,),
            init_std=c.init_std,
            **types,
            out_dtype="float32",
            name="head",
        )(dropout(y, c.discriminator_dropout, keys[1]))
        return logits + y[:, :2], y[:, 2] if c.click_buckets else None


def _mean(x_BSD: jax.Array, mask_BS: jax.Array) -> jax.Array:
    """[B, D]: the mean where the mask is; zeros where it is nowhere."""
    weights = mask_BS.astype(x_BSD.dtype)[..., None]
    return (x_BSD * weights).sum(1) / jnp.maximum(weights.sum(1), 1)


def _once(ids_BK: jax.Array, mask_BK: jax.Array) -> jax.Array:
    """The mask without an id's further occurrences in its row: its bias would count again."""
    same = (ids_BK[:, :, None] == ids_BK[:, None]) & (mask_BK[:, None] > 0)
    return mask_BK * ~jnp.tril(same, -1).any(-1)


PRESETS = {}
