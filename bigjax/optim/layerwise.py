"""Choosing parameters by path and layer: which are frozen, how fast each layer learns."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bigjax.errors import UserError
from bigjax.trees import layer_names, named_leaves, path_name

_BELOW = re.compile(r"^(embed|position|token_type)")  # what stands below the first layer


def matches(pattern: str, params, key: str):
    """A tree of bools: whose path the regex is found in.

    A leaf of a scanned stack, 'stack/layers/mlp/up/kernel', is also matched layer by layer, as
    'stack/layer_3/mlp/up/kernel'; where its layers differ it gets bool [layers].
    Raises UserError if the regex is not one, or finds nothing.
    """
    try:
        regex = re.compile(pattern)
    except re.error as e:
        raise UserError(f"{key}={pattern!r} is not a regular expression: {e}.") from e

    def one(path, x):
        name = path_name(path)
        if regex.search(name):
            return True
        found = np.array([regex.search(n) is not None for n in layer_names(name, x)])
        return bool(found[0]) if found.all() or not found.any() else found

    found = jax.tree_util.tree_map_with_path(one, params)
    if not any(np.any(x) for x in jax.tree_util.tree_leaves(found)):
        paths = list(named_leaves(params))
        raise UserError(
            f"{key}={pattern!r} matches no parameter. There are: "
            f"{', '.join(paths[:8])}{', ...' if len(paths) > 8 else ''}"
        )
    return found


def decay_factors(params, decay: float):
    """A tree of factors: decay ** (layers above), 1 for the heads (ELECTRA's fine-tuning,
    https://arxiv.org/abs/2003.10555). float, or float32 [layers] for a scanned leaf."""
    depth = {}
    for name, x in named_leaves(params).items():
        for n in layer_names(name, x):
            found = re.search(r"/layer_(\d+)/", n)
            depth[n] = int(found[1]) + 1 if found else 0 if _BELOW.match(n) else None
    top = 1 + max((d for d in depth.values() if d), default=0)

    def one(path, x):
        factors = [
            decay ** (top - (top if depth[n] is None else depth[n]))
            for n in layer_names(path_name(path), x)
        ]
        return factors[0] if len(factors) == 1 else np.array(factors, np.float32)

    return jax.tree_util.tree_map_with_path(one, params)


def scale(factors) -> optax.GradientTransformation:
    """Multiplies each update by its factor; a factor [layers] by layer."""
    named = named_leaves(factors)  # by name: a partition takes leaves out of the updates

    def one(path, u):
        f = jnp.asarray(named[path_name(path)], u.dtype)
        return u * (f.reshape(f.shape + (1,) * (u.ndim - 1)) if f.ndim else f)

    return optax.stateless(lambda updates, _: jax.tree_util.tree_map_with_path(one, updates))
