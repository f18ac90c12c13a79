"""Parameters with named axes, and taking names and values apart."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from bigjax.parallel.sharding import constrain, gathered
from bigjax.trees import TURN


def param(
    module: nn.Module, name: str, init, shape: tuple[int, ...], axes: tuple[str, ...]
) -> jax.Array:
    """Declares a float32 parameter with logical axis names (parallel/sharding.py maps them).

    Its user casts it to the compute type where it multiplies, so that gradients, which add up many
    rows or times, do so in float32.
    """
    return module.param(name, nn.with_logical_partitioning(init, axes), shape, jnp.float32)


def weight(
    module: nn.Module,
    name: str,
    init,
    shape: tuple[int, ...],
    axes: tuple[str | None, ...],
    dtype,
    *,
    whole: bool = False,
) -> jax.Array:
    """Declares a parameter, and gives it as a layer uses it: in the compute type, and gathered from
    the devices that it is cut over at rest.

    Every layer reads its weights here, so that another form of them (a quantised one) has one place
    to be put. whole: on each device, as a loop over time wants it; else cut as the activations are.
    """
    w = param(module, name, init, shape, axes)
    if whole:
        return constrain(w, *[None] * w.ndim).astype(dtype)
    return gathered(w, axes, dtype)


def unbox(variables):
    """Plain arrays from what `init` returns."""
    return nn.meta.unbox(variables)


def logical_axes(boxed):
    """A tree of axis-name tuples, one an array, from (the abstract form of) what `init` gave;
    None for each axis of an array without names."""
    named = lambda x: isinstance(x, nn.meta.AxisMetadata)
    return jax.tree_util.tree_map(
        lambda x: tuple(x.names) if named(x) else (None,) * x.ndim, boxed, is_leaf=named
    )


def stack_layers(params, kinds: int = 1):
    """{..., 'layer_0': p, 'layer_1': p} -> {..., 'layers': stacked p} (scan=False to True).

    kinds: of layers that take turns, which are stacked by themselves.
    """
    numbers = sorted(int(k.removeprefix("layer_")) for k in params if k.startswith("layer_"))
    rest = {k: v for k, v in params.items() if not k.startswith("layer_")}

    def stack(of_kind: list[int]):
        layers = [params[f"layer_{i}"] for i in of_kind]
        return jax.tree_util.tree_map(lambda *x: jnp.stack(x), *layers)

    if kinds == 1:
        return {**rest, "layers": stack(numbers)}
    turns = {j: [i for i in numbers if i % kinds == j] for j in range(kinds)}
    layers = {f"block_{j}_of_{kinds}": stack(turn) for j, turn in turns.items() if turn}
    return {**rest, "layers": layers}


def unstack_layers(params):
    """The other way round: one entry a layer, each its own array."""
    unstacked = {k: v for k, v in params.items() if k != "layers"}
    layers = params["layers"]
    turns = {name: TURN.fullmatch(name) for name in layers}
    if not all(turns.values()):
        layers, turns = {"": layers}, {"": None}  # all of one kind
    for name, turn in turns.items():
        kind, kinds = (int(turn[1]), int(turn[2])) if turn else (0, 1)
        n = jax.tree_util.tree_leaves(layers[name])[0].shape[0]
        for i in range(n):
            layer = jax.tree_util.tree_map(lambda x: x[i], layers[name])
            unstacked[f"layer_{kind + i * kinds}"] = layer
    return unstacked


def unrolled(tree):
    """A tree of variables with every scanned stack in it unstacked."""
    if not isinstance(tree, dict):
        return tree
    tree = {k: unrolled(x) for k, x in tree.items()}
    return unstack_layers(tree) if "layers" in tree else tree
