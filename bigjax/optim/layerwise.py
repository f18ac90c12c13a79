"""Selecting parameters by path and layer: frozen parameters, learning rates of layers."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bigjax.errors import UserError
from bigjax.trees import layer_names, named_leaves, path_name

# Parameters below the first layer.
_BELOW = re.compile(r"^(embed|position|token_type|patch|class_|registers|stem)")
# Those of layers: of a stack, the units of a ResNet, convolutions, the dense layers above them.
_LAYER = re.compile(
    r"(?:^|/)layer_(\d+)/|^stage_(\d+)_unit_(\d+)/|^(?:conv|norm)_(\d+)/|^(hidden)_(\d+)/"
)


def matches(pattern: str, params, key: str, required: bool = True):
    """A tree of bools: whether the regex matches (re.search) the path of a leaf.

    A leaf of a scanned stack, 'stack/layers/mlp/up/kernel', is also matched layer by layer, as
    'stack/layer_3/mlp/up/kernel'; if its layers differ, its value is bool [layers].
    Raises UserError if the regex is invalid or, if `required`, matches nothing.
    """
    try:
        regex = re.compile(pattern)
    except re.error as e:
        raise UserError(f"{key}={pattern!r} is not a regular expression: {e}.") from e

    def leaf_matches(path, x):
        name = path_name(path)
        if regex.search(name):
            return True
        by_layer = np.array([regex.search(n) is not None for n in layer_names(name, x)])
        return bool(by_layer[0]) if by_layer.all() or not by_layer.any() else by_layer

    matched = jax.tree_util.tree_map_with_path(leaf_matches, params)
    if required and not any(np.any(x) for x in jax.tree_util.tree_leaves(matched)):
        paths = list(named_leaves(params))
        raise UserError(
            f"{key}={pattern!r} matches no parameter. The parameters are: "
            f"{', '.join(paths[:8])}{', ...' if len(paths) > 8 else ''}. Set {key} to match some."
        )
    return matched


def decay_factors(params, decay: float):
    """A tree of factors: decay ** (number of layers above), 1 for heads (as in ELECTRA's
    fine-tuning, https://arxiv.org/abs/2003.10555); float32 [layers] for a scanned leaf.

    Raises UserError for a model without layers that are recognised by their names.
    """
    names = [n for name, x in named_leaves(params).items() for n in layer_names(name, x)]
    layers = {n: _layer(n) for n in names}
    order = sorted({at for at in layers.values() if at})
    if not order:
        raise UserError(
            f"optim.layer_decay={decay:g} needs parameters of layers, by names such as "
            f"layer_0/mlp or conv_1; this model has {', '.join(names[:5])}, ... Set it to 1."
        )
    top = 1 + len(order)
    number = {at: i for i, at in enumerate(order, start=1)}

    def factor(n: str) -> float:
        layer = layers[n]
        depth = number[layer] if layer else 0 if _BELOW.match(n) else top
        return decay ** (top - depth)

    def leaf_factors(path, x):
        factors = [factor(n) for n in layer_names(path_name(path), x)]
        return factors[0] if len(factors) == 1 else np.array(factors, np.float32)

    return jax.tree_util.tree_map_with_path(leaf_factors, params)


def _layer(name: str) -> tuple | None:
    """What orders the layers that parameters belong to; None for others."""
    match = _LAYER.search(name)
    if not match:
        return None
    numbers = tuple(int(n) for n in match.groups() if n and n != "hidden")
    return bool(match[5]), *numbers


def scale(factors) -> optax.GradientTransformation:
    """Multiplies each update by its factor; a factor [layers] is per layer."""
    named = named_leaves(factors)  # by name: optax.partition removes leaves from the updates

    def scaled(path, u):
        f = jnp.asarray(named[path_name(path)], u.dtype)
        return u * (f.reshape(f.shape + (1,) * (u.ndim - 1)) if f.ndim else f)

    return optax.stateless(lambda updates, _: jax.tree_util.tree_map_with_path(scaled, updates))
