"""A stack of layers: scanned (compile time does not grow with depth) or unrolled."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from bigjax.errors import UserError
from bigjax.layers.kernels import KERNEL_RESIDUALS

# What the forward pass keeps for the backward pass; the rest is computed again. 'none': all is
# kept, gathered weights too. 'dots': products with weights, and what an attention kernel gives.
REMAT = {
    "none": jax.checkpoint_policies.everything_saveable,
    "dots": jax.checkpoint_policies.save_from_both_policies(
        jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
        jax.checkpoint_policies.save_only_these_names(KERNEL_RESIDUALS),
    ),
    "full": jax.checkpoint_policies.nothing_saveable,
}


class Period(nn.Module):
    """Some unlike layers, one after the other: what is scanned where a stack has several kinds."""

    blocks: tuple[type[nn.Module], ...]
    config: Any

    @nn.compact
    def __call__(self, x, i, shared, cache, rng):
        total: dict = {}
        n = len(self.blocks)
        for j, block in enumerate(self.blocks):
            layer = block(self.config, name=f"block_{j}_of_{n}")
            x, (_, sums) = layer(x, i * n + j, shared, None, rng)
            total = add_sums(total, sums)
        return x, (cache, total)


class Stack(nn.Module):
    """n layers, called as block(config)(x, i, shared, cache, rng) -> (x, (cache, sums)).

    blocks: the kinds of layers, which take turns: layer i is blocks[i % len(blocks)], and n is a
    multiple of their number. sums: {name: number} that a layer hands up, such as a router's loss;
    {} for most. All collections of variables travel.

    scan=True: variables under `layers`, each with a leading axis of n; where there are several
    kinds under `layers/block_0_of_2` and so on, with an axis of n / kinds. scan=False: under
    layer_0, layer_1, ... (`params.stack_layers` converts). Both give the same numbers, dropout
    included: layer i is told its i and folds it into rng.
    """

    blocks: tuple[type[nn.Module], ...]
    config: Any
    n: int
    scan: bool = True
    remat: str = "none"

    @nn.compact
    def __call__(self, x: jax.Array, shared: Any, cache: list | None = None, rng=None):
        """shared: what every layer gets; cache: a list of n (unrolled only), or None.

        Returns (x, cache, sums over all layers). Raises UserError for an n that is no multiple.
        """
        kinds = len(self.blocks)
        if self.n % kinds:
            raise UserError(
                f"A stack of {self.n} layers cannot have {kinds} kinds that take turns: set "
                f"model.n_layers to a multiple of {kinds}."
            )
        blocks = self.blocks
        if self.remat != "none":
            policy = REMAT[self.remat]
            blocks = tuple(nn.remat(b, policy=policy, prevent_cse=not self.scan) for b in blocks)
        if self.scan:
            layers = nn.scan(
                blocks[0] if kinds == 1 else Period,
                variable_axes={True: 0},
                split_rngs={"params": True},
                length=self.n // kinds,
                in_axes=(0, nn.broadcast, nn.broadcast, nn.broadcast),
                metadata_params={nn.meta.PARTITION_NAME: "layers"},
            )
            given = (self.config,) if kinds == 1 else (blocks, self.config)
            steps = jnp.arange(self.n // kinds)
            x, (_, sums) = layers(*given, name="layers")(x, steps, shared, None, rng)
            return x, None, jax.tree_util.tree_map(lambda s: s.sum(0), sums)
        out, total = [], {}
        for i in range(self.n):
            layer = blocks[i % kinds](self.config, name=f"layer_{i}")
            x, (c, sums) = layer(x, jnp.int32(i), shared, cache[i] if cache else None, rng)
            out.append(c)
            total = add_sums(total, sums)
        return x, out if cache else None, total


def add_sums(a: Mapping, b: Mapping) -> dict:
    """{name: number} of both, added."""
    return {k: a.get(k, 0) + b.get(k, 0) for k in {**a, **b}}
