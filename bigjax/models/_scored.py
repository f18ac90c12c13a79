"""A decoder with one number for a row of tokens, such as a reward, in place of next tokens."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from bigjax.layers.basic import Dense

HEAD = "score"  # the path of its parameters


class Scored(nn.Module):
    """A family's Model with a dense layer [D, 1] without bias on the features of one token.

    model: a Flax module that returns a ModelOutput with `linear`, whose x are the features. Its
    parameters have the same paths as without the head; the layer is score/kernel.
    """

    model: nn.Module

    def setup(self):
        nn.share_scope(self, self.model)
        self.score = Dense((1,), ("embed",), (None,), use_bias=False, out_dtype="float32")

    def __call__(
        self, tokens_BT: jax.Array, at_B: jax.Array, rng: jax.Array | None = None
    ) -> jax.Array:
        """float32 [B], the scores of the rows, read at the tokens with the indices at_B. rng: for
        dropout; None turns it off."""
        # The product with the vocabulary is left to losses, so that it is not computed here.
        features = self.model(tokens_BT, None, None, rng=rng).linear.x
        last = jnp.take_along_axis(features, at_B[:, None, None], axis=1)[:, 0]
        return self.score(last)[:, 0]


def config_of(c: Any) -> Any:
    """The Config of a family without an output layer of its own, which no score needs."""
    tied = {"tie_embeddings": True} if hasattr(c, "tie_embeddings") else {}
    return dataclasses.replace(c, **tied)
