"""Adafactor's second moments (https://arxiv.org/abs/1804.04235), factored as matrices."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from bigjax.trees import named_leaves, path_name

MIN_SIDE = 128  # a matrix with a side below it is not factored, as in Optax and T5X
EPS = 1e-30
DECAY = 0.8  # in step t, counted from 1, the second moment decays by 1 - t ** -DECAY


class Factored(NamedTuple):
    """count: int32. Second moments in float32: v_row and v_col, means over the longer and over the
    shorter side of a matrix, with the remaining dimensions; v, for parameters that are not
    factored. The unused ones of a parameter are arrays of one zero."""

    count: jax.Array  # type: ignore[assignment]
    v_row: Any
    v_col: Any
    v: Any


def sides(shape: tuple[int, ...]) -> tuple[range, range] | None:
    """The dimensions of the shorter and of the longer side of a tensor viewed as a matrix, split so
    that the moments are smallest; None if it is not factored.

    [d, heads, head_dim] has d rows, [heads, head_dim, d] heads x head_dim.
    """
    splits = [(range(k), range(k, len(shape))) for k in range(1, len(shape))]
    size = lambda side: math.prod(shape[d] for d in side)
    if not splits:
        return None
    best = min(splits, key=lambda split: sum(map(size, split)))
    short, long = sorted(best, key=size)
    return (short, long) if size(short) >= MIN_SIDE else None


def scale_by_factored_rms() -> optax.GradientTransformation:
    """Divides gradients by the square roots of their second moments: algorithm 4 of the paper
    without its clipping. optax.scale_by_factored_rms instead factors the two largest dimensions,
    and so no attention kernel with heads narrower than MIN_SIDE."""

    def init(params) -> Factored:
        def zeros(of_side):
            return jax.tree_util.tree_map(lambda p: jnp.zeros(of_side(p.shape)), params)

        def kept(i):
            return lambda shape: tuple(shape[d] for d in s[i]) if (s := sides(shape)) else (1,)

        whole = zeros(lambda shape: (1,) if sides(shape) else shape)
        return Factored(jnp.int32(0), zeros(kept(0)), zeros(kept(1)), whole)

    def update(updates, state: Factored, params=None):
        del params
        count = state.count + 1
        decay = 1 - count.astype(jnp.float32) ** -DECAY
        v_row, v_col, v = (named_leaves(tree) for tree in state[1:])
        scaled = {}
        for name, g in named_leaves(updates).items():
            square = jnp.square(g) + EPS
            average = lambda old, new: decay * old + (1 - decay) * new
            if split := sides(g.shape):
                short, long = split
                v_row[name] = average(v_row[name], square.mean(tuple(long)))
                v_col[name] = average(v_col[name], square.mean(tuple(short)))
                by_row = jax.lax.rsqrt(v_row[name] / v_row[name].mean())
                by_col = jax.lax.rsqrt(v_col[name])
                g = g * jnp.expand_dims(by_row, tuple(long)) * jnp.expand_dims(by_col, tuple(short))
            else:
                v[name] = average(v[name], square)
                g = g * jax.lax.rsqrt(v[name])
            scaled[name] = g
        tree = lambda named: jax.tree_util.tree_map_with_path(
            lambda path, _: named[path_name(path)], updates
        )
        return tree(scaled), Factored(count, tree(v_row), tree(v_col), tree(v))

    return optax.GradientTransformation(init, update)
