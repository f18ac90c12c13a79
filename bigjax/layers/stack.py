"""A stack of layers: scanned (compile time does not grow with depth) or unrolled."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from bigjax.errors import UserError
from bigjax.layers.remat import policy
from bigjax.parallel.mesh import platform

# A CPU copies what a scan keeps for the backward pass in and out of stacked arrays, a seventh of a
# step. Compiling takes about a second more for each layer.
UNROLLED_ON_CPU = 12


class Period(nn.Module):
    """One layer of each kind, in order: the body of the scan of a stack with several kinds."""

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

    blocks: the kinds of layers, which alternate: layer i is blocks[i % len(blocks)]. sums:
    {name: number} of a layer, such as a router's loss; {} for most. Variables may be in any
    collection.

    scan=True: variables are under `layers`, each with a leading axis of n; with several kinds under
    `layers/block_0_of_2` and so on, with an axis of n // kinds. The n % kinds layers after the last
    complete period are not scanned: their variables are under layer_6, layer_7, ... as with
    scan=False, where those of all layers are (`params.stack_layers` converts). Both give the same
    numbers, dropout included: layer i folds its index i into rng. On a CPU the scan of a few layers
    is compiled without a loop.
    """

    blocks: tuple[type[nn.Module], ...]
    config: Any
    n: int
    scan: bool = True
    remat: str = "none"

    @nn.compact
    def __call__(self, x: jax.Array, shared: Any, cache: list | None = None, rng=None):
        """shared: passed to every layer; cache: a list of n (only with scan=False), or None.

        Returns (x, cache, sums over all layers). Raises UserError for a cache that does not have n
        entries, or with scan=True.
        """
        kinds = len(self.blocks)
        periods = self.n // kinds if self.scan else 0
        if cache is not None and (self.scan or len(cache) != self.n):
            raise UserError(
                f"A stack of {self.n} layers with scan={self.scan} got a cache of {len(cache)}: "
                "decode with scan=False, and one cache for each layer."
            )
        out, total = [], {}
        if periods:
            blocks = self._blocks(prevent_cse=False)
            layers = nn.scan(
                blocks[0] if kinds == 1 else Period,
                variable_axes={True: 0},
                split_rngs={"params": True},
                length=periods,
                unroll=periods if _unrolled(self.n, self.remat) else 1,
                in_axes=(0, nn.broadcast, nn.broadcast, nn.broadcast),
                metadata_params={nn.meta.PARTITION_NAME: "layers"},
            )
            options = (self.config,) if kinds == 1 else (blocks, self.config)
            indices = jnp.arange(periods)
            x, (_, sums) = layers(*options, name="layers")(x, indices, shared, None, rng)
            total = jax.tree_util.tree_map(lambda s: s.sum(0), sums)
        blocks = self._blocks(prevent_cse=True)
        for i in range(periods * kinds, self.n):
            layer = blocks[i % kinds](self.config, name=f"layer_{i}")
            x, (c, sums) = layer(x, jnp.int32(i), shared, cache[i] if cache else None, rng)
            out.append(c)
            total = add_sums(total, sums)
        return x, out if cache else None, total

    def _blocks(self, prevent_cse: bool) -> tuple[type[nn.Module], ...]:
        """The kinds of layers, with remat."""
        if self.remat == "none":
            return self.blocks
        keep = policy(self.remat)
        return tuple(nn.remat(b, policy=keep, prevent_cse=prevent_cse) for b in self.blocks)


def _unrolled(n: int, remat: str) -> bool:
    """Whether the scan of n layers is compiled as n copies of the layer, not as a loop.

    Not with remat: without the loop the compiler would keep what is to be recomputed.
    """
    return n <= UNROLLED_ON_CPU and remat == "none" and platform() == "cpu"


def add_sums(a: Mapping, b: Mapping) -> dict:
    """The sums of both, added by name."""
    return {k: a.get(k, 0) + b.get(k, 0) for k in {**a, **b}}
