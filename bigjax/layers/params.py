"""Parameters with logical axis names; converting between scanned and unrolled stacks."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from bigjax.layers.quantised import Quantised
from bigjax.parallel.sharding import check_names, constrain, gathered
from bigjax.trees import TURN


def param(
    module: nn.Module, name: str, init, shape: tuple[int, ...], axes: tuple[str | None, ...]
) -> jax.Array:
    """Declares a float32 parameter with logical axis names (parallel/sharding.py maps them).

    A layer casts it to the compute dtype where it is used, so that its gradient, a sum over many
    rows or time steps, is accumulated in float32. Raises UserError if there is not one axis name
    per dimension.
    """
    check_names(shape, axes, _described(module, name))
    return module.param(name, nn.with_logical_partitioning(init, axes), shape, jnp.float32)


def weight(
    module: nn.Module,
    name: str,
    init,
    shape: tuple[int, ...],
    axes: tuple[str | None, ...],
    dtype,
    *,
    gather: str = "fsdp",
) -> Any:
    """Declares a weight and returns it as a layer uses it: in the compute dtype, gathered.

    Every layer reads its kernels and tables here, so that another form of them (LoRA, quantised)
    is implemented in one place. gather: which shards are gathered: 'fsdp', as a matrix product
    needs it; 'all', for a loop over time; 'none', for a table whose look-up gathers it. A kernel
    that is stored quantised stays so, for `product`.
    """
    if module.has_variable("params", name):
        stored = module.get_variable("params", name)
        if isinstance(stored, Quantised):
            return stored
    w = param(module, name, init, shape, axes)
    if gather == "none":
        return w.astype(dtype)
    if gather == "all":
        return constrain(w, *[None] * w.ndim).astype(dtype)
    return gathered(w, axes, dtype, _described(module, name))


def _described(module: nn.Module, name: str) -> str:
    return f"parameter {'/'.join((*module.path, name))}"


def unbox(variables):
    """The variables that `init` returns as plain arrays, without axis names."""
    return nn.meta.unbox(variables)


def logical_axes(boxed):
    """A tree of tuples of axis names, one per array, from (the shapes of) what `init` returns;
    None for each axis of an array without names."""
    has_names = lambda x: isinstance(x, nn.meta.AxisMetadata)
    return jax.tree_util.tree_map(
        lambda x: tuple(x.names) if has_names(x) else (None,) * x.ndim, boxed, is_leaf=has_names
    )


def stack_layers(params, kinds: int = 1):
    """{..., 'layer_0': p, 'layer_1': p} -> {..., 'layers': stacked p} (scan=False to True).

    kinds: number of kinds of layers that alternate; each kind is stacked separately. Layers after
    the last complete period are not stacked.
    """
    numbers = sorted(int(k.removeprefix("layer_")) for k in params if k.startswith("layer_"))
    numbers = numbers[: len(numbers) // kinds * kinds]
    stacked = {f"layer_{i}" for i in numbers}
    rest = {k: v for k, v in params.items() if k not in stacked}
    if not numbers:
        return rest

    def stack(of_kind: list[int]):
        layers = [params[f"layer_{i}"] for i in of_kind]
        return jax.tree_util.tree_map(lambda *x: jnp.stack(x), *layers)

    if kinds == 1:
        return {**rest, "layers": stack(numbers)}
    turns = {j: [i for i in numbers if i % kinds == j] for j in range(kinds)}
    layers = {f"block_{j}_of_{kinds}": stack(turn) for j, turn in turns.items()}
    return {**rest, "layers": layers}


def unstack_layers(params):
    """The inverse of `stack_layers`: one entry per layer, each with its own arrays."""
    unstacked = {k: v for k, v in params.items() if k != "layers"}
    layers = params["layers"]
    turns = {name: TURN.fullmatch(name) for name in layers}
    if not all(turns.values()):
        layers, turns = {"": layers}, {"": None}  # one kind of layer
    for name, turn in turns.items():
        kind, kinds = (int(turn[1]), int(turn[2])) if turn else (0, 1)
        n = jax.tree_util.tree_leaves(layers[name])[0].shape[0]
        for i in range(n):
            layer = jax.tree_util.tree_map(lambda x: x[i], layers[name])
            unstacked[f"layer_{kind + i * kinds}"] = layer
    return unstacked


def unrolled(tree):
    """A tree of variables in which every scanned stack is unstacked."""
    if not isinstance(tree, dict):
        return tree
    tree = {k: unrolled(x) for k, x in tree.items()}
    return unstack_layers(tree) if "layers" in tree else tree
