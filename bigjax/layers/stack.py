"""A stack of equal layers: scanned (compile time does not grow with depth) or unrolled."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

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


class Stack(nn.Module):
    """n layers of block(config), called as (x, i, span, cache, rng) -> (x, cache).

    scan=True: parameters under `layers`, each with a leading axis of n. scan=False: under
    layer_0, layer_1, ... (`params.stack_layers` converts). Both give the same numbers, dropout
    included: layer i is told its i and folds it into rng.
    """

    block: type[nn.Module]
    config: Any
    n: int
    scan: bool = True
    remat: str = "none"

    @nn.compact
    def __call__(self, x: jax.Array, span: Any, cache: list | None = None, rng=None):
        """span: what every layer gets; cache: a list of n (unrolled only), or None.

        Returns (x, cache).
        """
        block = self.block
        if self.remat != "none":
            block = nn.remat(block, policy=REMAT[self.remat], prevent_cse=not self.scan)
        if self.scan:
            layers = nn.scan(
                block,
                variable_axes={"params": 0},
                split_rngs={"params": True},
                length=self.n,
                in_axes=(0, nn.broadcast, nn.broadcast, nn.broadcast),
                metadata_params={nn.meta.PARTITION_NAME: "layers"},
            )
            return layers(self.config, name="layers")(x, jnp.arange(self.n), span, None, rng)
        out = []
        for i in range(self.n):
            x, c = block(self.config, name=f"layer_{i}")(
                x, jnp.int32(i), span, cache[i] if cache else None, rng
            )
            out.append(c)
        return x, out if cache else None
