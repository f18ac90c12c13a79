"""Optimizers from config.optim, as Optax gradient transformations."""

import jax
import numpy as np
import optax

from bigjax.errors import UserError
from bigjax.optim.adafactor import scale_by_factored_rms
from bigjax.optim.layerwise import decay_factors, matches, scale
from bigjax.optim.schedules import make_schedule
from bigjax.trees import count, named_leaves, path_name

NAMES = ("adamw", "lamb", "adafactor", "sgd")


def make(optim, steps: int, params) -> optax.GradientTransformation:
    """The optimizer of config.optim. params: the tree (arrays or shapes) that it will update.

    In order: clipping by the global norm, the optimizer's own direction, decoupled weight decay
    of the parameters whose path matches optim.decay_params, the learning rate. Parameters that
    match optim.freeze are not updated and do not count in the norm. See `layerwise.matches`.
    """
    if optim.name not in NAMES:
        raise UserError(f"optim.name is {optim.name!r}; allowed: {', '.join(NAMES)}.")
    schedule = make_schedule(optim, steps)
    used = optim.weight_decay or optim.name == "lamb"  # which scales the updates of these only
    decay = matches(optim.decay_params, params, "optim.decay_params", required=bool(used))
    if not all(isinstance(d, bool) for d in jax.tree_util.tree_leaves(decay)):
        raise UserError(
            f"optim.decay_params={optim.decay_params!r} matches only some layers of a scanned "
            "stack; it must match all of them or none."
        )
    # The state's tree does not depend on clip_norm, which a resumed run may change.
    parts = [optax.clip_by_global_norm(optim.clip_norm) if optim.clip_norm else optax.identity()]
    decayed = optax.add_decayed_weights(optim.weight_decay, decay)
    if optim.name == "adamw":
        parts += [optax.scale_by_adam(optim.b1, optim.b2, optim.eps), decayed]
    elif optim.name == "lamb":  # https://arxiv.org/abs/1904.00962
        # As in its authors' code, parameters without decay have no trust ratio: with the small norm
        # of a bias it would barely move.
        parts += [
            optax.scale_by_adam(optim.b1, optim.b2, optim.eps),
            decayed,
            optax.masked(per_layer(optax.scale_by_trust_ratio()), decay),
        ]
    elif optim.name == "adafactor":  # https://arxiv.org/abs/1804.04235
        parts += [
            per_layer(
                optax.chain(
                    scale_by_factored_rms(),
                    optax.clip_by_block_rms(1.0),
                    optax.scale_by_param_block_rms(),
                )
            ),
            decayed,
        ]
    else:
        parts += [optax.trace(decay=optim.b1) if optim.b1 else optax.identity(), decayed]
    parts.append(optax.scale_by_learning_rate(schedule))
    parts.append(
        scale(decay_factors(params, optim.layer_decay))
        if optim.layer_decay != 1
        else optax.identity()
    )  # which a resumed run may change, too
    return _freeze(optax.chain(*parts), optim.freeze, params)


def trained(optim, params):
    """A tree of bools: which parameters are updated in at least one layer."""
    if not optim.freeze:
        return jax.tree_util.tree_map(lambda _: True, params)
    frozen = matches(optim.freeze, params, "optim.freeze")
    return jax.tree_util.tree_map(lambda f: not np.all(f), frozen)


def count_trained(optim, params) -> int:
    """The number of parameters that are updated, of arrays or shapes."""
    if not optim.freeze:
        return count(params)
    frozen = matches(optim.freeze, params, "optim.freeze")
    trained = jax.tree_util.tree_map(lambda x, f: (1 - np.mean(f)) * x.size, params, frozen)
    return round(sum(jax.tree_util.tree_leaves(trained)))


def _freeze(tx: optax.GradientTransformation, pattern: str, params) -> optax.GradientTransformation:
    """tx without updates of matching parameters, possibly of only some layers of a stack."""
    if not pattern:
        return tx
    frozen = matches(pattern, params, "optim.freeze")
    if all(np.all(f) for f in jax.tree_util.tree_leaves(frozen)):
        raise UserError(
            f"optim.freeze={pattern!r} matches every parameter, so nothing would be trained."
        )
    trained = scale(jax.tree_util.tree_map(lambda f: 1.0 - np.float32(f), frozen))
    labels = jax.tree_util.tree_map(lambda f: "frozen" if np.all(f) else "trained", frozen)
    tx = optax.chain(trained, tx, trained)
    return optax.partition({"frozen": optax.set_to_zero(), "trained": tx}, labels)


def per_layer(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """Applies tx to each layer of a scanned stack separately.

    Trust ratios, factored moments and root mean squares are defined per parameter tensor. A scanned
    stack has one tensor for all layers (under a key `layers`, on a leading axis), which would
    otherwise share them. Stacks of the same number of layers are updated together.
    """

    def by_depth(tree) -> dict[str, dict]:
        """{number of layers: {path: leaf}}, with 'rest' for leaves outside of stacks."""
        groups: dict[str, dict] = {"rest": {}}
        for name, x in named_leaves(tree).items():
            group = f"scanned_{x.shape[0]}" if "layers" in name.split("/") else "rest"
            groups.setdefault(group, {})[name] = x
        return groups

    def init(params):
        groups = by_depth(params)
        return {
            group: (tx.init if group == "rest" else jax.vmap(tx.init))(leaves)
            for group, leaves in groups.items()
        }

    def update(updates, state, params=None):
        p, new, new_state = by_depth(params), {}, {}
        for group, u in by_depth(updates).items():
            apply = tx.update if group == "rest" else jax.vmap(tx.update)
            out, new_state[group] = apply(u, state[group], p[group])
            new |= out
        return jax.tree_util.tree_map_with_path(lambda p, _: new[path_name(p)], updates), new_state

    return optax.GradientTransformation(init, update)
