"""Parameters with named axes, and taking names and values apart."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp

from bigjax.parallel.sharding import constrain, gathered


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

    kinds: of layers that take turns.
    """
    names = sorted((k for k in params if k.startswith("layer_")), key=lambda k: int(k[6:]))
    rest = {k: v for k, v in params.items() if k not in names}
    stack = lambda names: jax.tree_util.tree_map(
        lambda *x: jnp.stack(x), *[params[name] for name in names]
    )
    if kinds == 1:
        return {**rest, "layers": stack(names)}
    turns = {f"block_{j}_of_{kinds}": stack(names[j::kinds]) for j in range(kinds)}
    return {**rest, "layers": turns}


def unstack_layers(params):
    """The other way round: one entry a layer, each its own array."""
    rest = {k: v for k, v in params.items() if k != "layers"}
    layers = params["layers"]
    turns = [k for k in layers if re.fullmatch(r"block_\d+_of_\d+", k)]
    kinds = [layers[k] for k in sorted(turns, key=lambda k: int(k.split("_")[1]))] or [layers]
    n = jax.tree_util.tree_leaves(kinds[0])[0].shape[0]
    unstacked = {
        f"layer_{i * len(kinds) + j}": jax.tree_util.tree_map(lambda x: x[i], kind)
        for i in range(n)
        for j, kind in enumerate(kinds)
    }
    return {**rest, **unstacked}


def unrolled(tree):
    """A tree of variables with every scanned stack in it unstacked."""
    if not isinstance(tree, dict):
        return tree
    tree = {k: unrolled(x) for k, x in tree.items()}
    return unstack_layers(tree) if "layers" in tree else tree
