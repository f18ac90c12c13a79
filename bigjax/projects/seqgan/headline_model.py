"""A headline from its article: an encoder, a generator that attends, and their discriminator.

The generator is recurrent and attends after the recurrence, without input feeding, so that training
sees all positions at once (https://arxiv.org/abs/1508.04025), and may copy the words it attends to
(https://arxiv.org/abs/1704.04368). It is also conditioned on earlier headlines, on the desired
quantile of clicks and on hot words.
"""

from collections.abc import Sequence
import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from bigjax import losses
from bigjax.bounds import FRACTION, at_least
from bigjax.errors import UserError
from bigjax.layers.basic import Dense, Embed, Norm, dropout
from bigjax.layers.params import param
from bigjax.layers.recurrent import Recurrent
from bigjax.models import Decoder, bert, check_fields
from bigjax.projects.seqgan import model as seqgan

# Added to the logits of tokens that are never chosen. Not infinite: 0 * infinity, in an entropy or
# under a weight of 0, is NaN.
NEVER = -1e9


check_mesh = seqgan.check_mesh


@dataclasses.dataclass(frozen=True)
class Config(seqgan.Config):
    vocab_size: int = 4096
    max_len: int = 24  # tokens of a headline with its end token
    article_len: int = 128  # tokens of the article and the earlier headlines together
    encoder: str = "lstm"  # lstm (bidirectional, d_model / 2 per direction), bert
    encoder_layers: int = 1
    generator: str = "lstm"  # lstm, gru
    d_model: int = 128  # of encoder and generator
    n_heads: int = 4  # of a bert encoder
    dropout: float = 0.1  # of encoder and generator
    click_buckets: int = 8  # levels of clicks that condition the generator; 0: none
    click_dropout: float = 0.1  # share of training rows where they are hidden
    hot_per_example: int = 8  # tokens of hot words per row; 0: none
    special_ids: tuple[int, ...] = (0, 1, 2, 3, 4)  # [PAD], [UNK], [CLS], [SEP], [MASK]

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
        parts = 2 if self.encoder == "lstm" else self.n_heads
        if self.d_model % parts:
            raise UserError(
                f"model.d_model={self.d_model} does not divide into {parts} "
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
                f"model.vocab_size={self.vocab_size}: [PAD], [UNK], [CLS], [SEP], [MASK]."
            )


class Generator(nn.Module):
    """Predicts the next token of headlines: of all positions (`logits`) or one at a time (`step`).

    A context is a dict of arrays as of `context_row`. `encode` turns it into the state of a
    decoder: memory [B, S, D] with its tokens and mask, hot ids [B, K] and their mask, and cells,
    the recurrent state.
    """

    config: Config

    def setup(self):
        c = self.config
        types = dict(init_std=c.init_std, dtype=c.dtype)
        dense = lambda n, **more: Dense((n,), ("embed",), (None,), **types, **more)
        self.embed = Embed(c.vocab_size, c.d_model, **types)
        if c.encoder == "bert":
            self.bert = bert.Model(
                seqgan.encoder_config(
                    c,
                    max_len=c.article_len,
                    d_model=c.d_model,
                    n_layers=c.encoder_layers,
                    n_heads=c.n_heads,
                    dropout=c.dropout,
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
        self, inputs_BT: jax.Array, context: dict, rng: jax.Array | None = None
    ) -> jax.Array:
        """`logits` given a context."""
        return self.logits(inputs_BT, self.encode(context, rng), rng)

    def encode(self, context: dict, rng: jax.Array | None = None) -> dict:
        """The state before the first token. rng: of the dropout."""
        c = self.config
        keys = (None, None) if rng is None else jax.random.split(jax.random.fold_in(rng, 0))
        mask = context["source_mask"] > 0
        memory = self._memory(context["source"], context["source_types"], mask, keys[0])
        summary = _mean(memory, mask)
        if c.click_buckets:
            clicks = context["clicks"]
            if keys[1] is not None:
                visible = jax.random.bernoulli(keys[1], 1 - c.click_dropout, clicks.shape)
                clicks = jnp.where(visible, clicks, 0)
            summary = summary + self.clicks(clicks)
        parts = jnp.split(
            jnp.tanh(self.initial(summary)), c.n_layers * (1 + (c.generator == "lstm")), axis=-1
        )
        return {
            "memory": memory,
            "source": context["source"],
            "mask": mask,
            "hot": context["hot"],
            "hot_mask": _first_occurrences(context["hot"], context["hot_mask"]),
            "cells": tuple(zip(parts[::2], parts[1::2]) if c.generator == "lstm" else parts),
        }

    def _memory(self, source_BS, types_BS, mask_BS, rng) -> jax.Array:
        """The encoder's output, [B, S, D]."""
        c = self.config
        if c.encoder == "bert":  # the tagging head gives one vector per token
            out = self.bert(source_BS, types_BS, mask_BS.astype(jnp.int32), rng=rng)
            return out.heads["tagger"].astype(c.dtype)
        keys = (None, None) if rng is None else jax.random.split(rng)
        x = self.embed(source_BS) + self.source_type(types_BS)
        return dropout(self.encoder(dropout(x, c.dropout, keys[0]), mask_BS)[0], c.dropout, keys[1])

    def logits(self, inputs_BT: jax.Array, state: dict, rng: jax.Array | None = None) -> jax.Array:
        """Logits float32 [B, T, V] of the token after each input. state: of `encode`."""
        rate = self.config.dropout
        keys = (None, None) if rng is None else jax.random.split(jax.random.fold_in(rng, 1))
        h, _ = self.recurrent(dropout(self.embed(inputs_BT), rate, keys[0]), state=state["cells"])
        return self._attend(h, state, keys[1])

    def loss(
        self,
        inputs_BT: jax.Array,
        targets_BT: jax.Array,
        weights_BT: jax.Array,
        context: dict,
        rng: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """losses.cross_entropy of the targets, without those that are never written ([UNK])."""
        allowed = (self._never_written()[targets_BT] == 0).astype(weights_BT.dtype)
        logits = self(inputs_BT, context, rng)
        return losses.cross_entropy(logits, targets_BT, weights_BT * allowed)

    def step(self, tokens_B: jax.Array, state: dict) -> tuple[jax.Array, dict]:
        """(logits float32 [B, V], state) after one more token."""
        h, cells = self.recurrent.step(self.embed(tokens_B), state["cells"])
        return self._attend(h[:, None], state, None)[:, 0], {**state, "cells": cells}

    def _attend(self, h_BTD, state: dict, rng) -> jax.Array:
        """Logits from h, [B, T, V].

        They are of tanh(W [attention output; h]), with a gated bias for hot words, and then mixed
        with the attention weights of the source tokens by the probability of copying.
        """
        memory, mask_B1S = state["memory"], state["mask"][:, None]
        score = jnp.einsum(
            "BTD,BSD->BTS", self.query(h_BTD), memory, preferred_element_type=jnp.float32
        )
        share = jax.nn.softmax(jnp.where(mask_B1S, score, NEVER)) * mask_B1S
        attended = jnp.einsum("BTS,BSD->BTD", share.astype(memory.dtype), memory)
        y = jnp.tanh(self.mix(jnp.concatenate([attended, h_BTD], axis=-1)))
        y = dropout(y, self.config.dropout, rng)
        logits = self.embed.output(y, self.bias).product()
        rows = jnp.arange(len(y))[:, None]
        if self.config.hot_per_example:
            bias_B1T = self.gate(y).swapaxes(1, 2)
            logits = logits.at[rows, :, state["hot"]].add(state["hot_mask"][..., None] * bias_B1T)
        copy_BT1 = jax.nn.sigmoid(self.copy(y))
        p = (1 - copy_BT1) * jax.nn.softmax(logits + self._never_written())
        p = p.at[rows, :, state["source"]].add((copy_BT1 * share).swapaxes(1, 2))
        return jnp.log(jnp.maximum(p, 1e-20)) + self._never_written()

    def _never_written(self) -> jax.Array:
        """A bias float32 [V] that excludes [PAD], [UNK], [CLS] and [MASK]."""
        pad, unk, start, _, mask = self.config.special_ids
        bias = np.zeros(self.config.vocab_size, np.float32)
        bias[[pad, unk, start, mask]] = NEVER
        return jnp.asarray(bias)


def context_row(c: Config) -> dict[str, np.ndarray]:
    """A context of one row with no source, unknown clicks and no hot words."""
    ids = lambda *shape: np.zeros((1, *shape), np.int32)
    real = lambda *shape: np.zeros((1, *shape), np.float32)
    S, K = c.article_len, c.hot_per_example
    return {
        "source": ids(S),
        "source_types": ids(S),
        "source_mask": real(S),
        "clicks": ids(),
        "hot": ids(K),
        "hot_mask": real(K),
    }


@functools.cache
def generator_decoder(c: Config) -> Decoder:
    """The generator's Decoder, for its variables: writes headlines for the token
    ids of articles, each with its final [SEP]."""
    model = Generator(c)

    def context(ids: Sequence[Sequence[int]]) -> tuple[dict, np.ndarray]:
        longest = max(map(len, ids))
        if longest > c.article_len:
            raise UserError(
                f"An article has {longest} tokens; model.article_len={c.article_len} are allowed. "
                "Shorten it."
            )
        pad, _, start, _, _ = c.special_ids
        rows = {k: np.repeat(x, len(ids), axis=0) for k, x in context_row(c).items()}
        rows["source"][:] = pad
        for i, article in enumerate(ids):
            rows["source"][i, : len(article)] = article
            rows["source_mask"][i, : len(article)] = 1
        return rows, np.full(len(ids), start, np.int32)

    def begin(variables, context, slots):
        del slots  # the state does not grow
        return model.apply(variables, context, method="encode")

    def step(variables, state, tokens_B):
        return model.apply(variables, tokens_B, state, method="step")

    return Decoder(context, begin, step, c.max_len, continues=False)


class Discriminator(nn.Module):
    """Tells real headlines from generated ones, and predicts how often they are clicked.

    It adds up the logits of two networks: SeqGAN's discriminator reads the headline alone; a small
    one compares headline and source by the means of their embeddings and the product of these
    (https://arxiv.org/abs/1512.08422), and predicts the clicks.
    """

    config: Config

    @nn.compact
    def __call__(
        self,
        tokens_BT: jax.Array,
        mask_BT: jax.Array,
        context: dict,
        rng: jax.Array | None = None,
        shared: tuple[int, int] = (0, 1),
    ) -> tuple[jax.Array, jax.Array | None]:
        """Logits float32 [B, 2] of generated and of real, and the logit [B] of the quantile of
        clicks (None without click_buckets). shared: as of SeqGAN's discriminator."""
        c, d = self.config, self.config.discriminator_d_model
        types = dict(dtype=c.dtype)
        keys = (None, None) if rng is None else jax.random.split(rng)
        logits = seqgan.Discriminator(c, name="text")(tokens_BT, mask_BT, keys[0], shared)
        embed = Embed(c.vocab_size, d, init_std=c.init_std, **types, name="embed")
        # Means of small embeddings are very small: without the norms their product would vanish.
        headline = Norm(**types, name="headline_norm")(_mean(embed(tokens_BT), mask_BT))
        source = _mean(embed(context["source"]), context["source_mask"] > 0)
        source = Norm(**types, name="source_norm")(source)
        y = jnp.concatenate([headline, source, headline * source], axis=-1)
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
    """The mean over the positions of the mask, [B, D]; zeros for a row without any."""
    weights = mask_BS.astype(x_BSD.dtype)[..., None]
    return (x_BSD * weights).sum(1) / jnp.maximum(weights.sum(1), 1)


def _first_occurrences(ids_BK: jax.Array, mask_BK: jax.Array) -> jax.Array:
    """The mask without repeated ids of a row, whose bias would otherwise be added again."""
    same = (ids_BK[:, :, None] == ids_BK[:, None]) & (mask_BK[:, None] > 0)
    return mask_BK * ~jnp.tril(same, -1).any(-1)


PRESETS = {}
