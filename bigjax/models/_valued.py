"""A decoder with a value head, which estimates the reward that will follow each token."""

from typing import Any

import flax.linen as nn
import jax

from bigjax.layers.basic import Dense
from bigjax.models import ModelOutput

NAME = "value"  # of its parameters, beside those of the family


class Valued(nn.Module):
    """A family's Model with a linear layer on the inputs of its output layer.

    Its parameters have the family's own names, with those of the head in `value`.
    """

    model: nn.Module

    def setup(self) -> None:
        nn.share_scope(self, self.model)
        head = dict(features=(1,), in_axes=("embed",), out_axes=(None,), out_dtype="float32")
        self.value = Dense(**head, init_std=0.0, dtype="float32", name=NAME)

    def __call__(
        self, tokens_BT: jax.Array, positions_BT: Any = None, segments_BT: Any = None, rng=None
    ) -> tuple[ModelOutput, jax.Array]:
        """(the family's output, values float32 [B, T])."""
        out = self.model(tokens_BT, positions_BT, segments_BT, rng=rng)
        return out, self.value(out.linear.x.astype("float32"))[..., 0]
