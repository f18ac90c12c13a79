"""Parameters with named axes, and taking names and values apart."""

import flax.linen as nn
import jax
import jax.numpy as jnp


def param(
    module: nn.Module, name: str, init, shape: tuple[int, ...], axes: tuple[str, ...]
) -> jax.Array:
    """Declares a float32 parameter with logical axis names (parallel/sharding.py maps them).

    Its user casts it to the compute type where it multiplies, so that gradients, which add up many
    rows or times, do so in float32.
    """
    return module.param(name, nn.with_logical_partitioning(init, axes), shape, jnp.float32)


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


def stack_layers(params):
    """{..., 'layer_0': p, 'layer_1': p} -> {..., 'layers': stacked p} (scan=False to True)."""
    names = sorted((k for k in params if k.startswith("layer_")), key=lambda k: int(k[6:]))
    rest = {k: v for k, v in params.items() if k not in names}
    stacked = jax.tree_util.tree_map(lambda *x: jax.numpy.stack(x), *[params[k] for k in names])
    return {**rest, "layers": stacked}


def unstack_layers(params):
    """The other way round: one entry a layer, each its own array."""
    rest = {k: v for k, v in params.items() if k != "layers"}
    n = jax.tree_util.tree_leaves(params["layers"])[0].shape[0]
    return {
        **rest,
        **{
            f"layer_{i}": jax.tree_util.tree_map(lambda x: x[i], params["layers"]) for i in range(n)
        },
    }
