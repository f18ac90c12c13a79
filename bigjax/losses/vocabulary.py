"""Losses of an output layer over a large vocabulary, computed a part of the tokens at a time."""

from collections.abc import Callable
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bigjax.linear import Linear, cap_slope
from bigjax.losses import divergence, log_probs, log_probs_and_entropy


class Parts(NamedTuple):
    """How many tokens a loss over a large vocabulary processes at a time.

    logits: whose float32 logits are held. gradients: whose gradients of the logits are held, in the
    dtype of x, to add one product to the kernel's gradient; at least as many.
    """

    logits: int = 128  # they stay in a CPU's cache
    gradients: int = 128


PARTS = Parts()


def linear_log_probs(
    x: jax.Array,
    kernel: jax.Array,
    bias: jax.Array | None,
    softcap: jax.Array | None,
    targets: jax.Array,
    parts: Parts = PARTS,
) -> jax.Array:
    """Log-probabilities [B, T] of targets [B, T] in nats, with gradients for x, kernel and bias.

    See `map_logits` for the memory that it needs.
    """
    return map_logits(log_probs, Linear(x, kernel, bias, softcap), targets, parts=parts)


def linear_log_probs_and_entropy(
    x: jax.Array,
    kernel: jax.Array,
    bias: jax.Array | None,
    softcap: jax.Array | None,
    targets: jax.Array,
    parts: Parts = PARTS,
) -> tuple[jax.Array, jax.Array]:
    """`linear_log_probs`, and the entropy [B, T] of each token's distribution in nats."""
    linear = Linear(x, kernel, bias, softcap)
    return map_logits(log_probs_and_entropy, linear, targets, parts=parts)


def linear_divergence(
    student: Linear,
    teacher: Linear,
    temperature: float = 1.0,
    reverse: bool = False,
    parts: Parts = PARTS,
) -> jax.Array:
    """`divergence` [B, T] of two output layers over the same vocabulary, whose D may differ.

    Only the student has gradients. See `map_logits` for the memory that it needs.
    """
    measure = divergence_from(temperature, reverse)
    return map_logits(measure, student, teacher[0], teacher[1:], parts)


@functools.cache
def at_temperature(measure: Callable, temperature: float) -> Callable:
    """A `measure` of map_logits, of the logits divided by a temperature."""
    if temperature == 1:
        return measure
    return lambda logits, per_token: measure(logits / temperature, per_token)


@functools.cache  # equal arguments give the same function, which jax compiles once
def divergence_from(temperature: float, reverse: bool) -> Callable:
    """`divergence` as a `measure` of map_logits: per_token is x of the teacher, shared its kernel,
    bias and softcap."""

    def measure(logits, x, layer):
        return divergence(logits, Linear(x, *layer).product(), temperature, reverse)

    return measure


def map_logits(
    measure: Callable, linear: Linear, per_token: Any, shared: Any = None, parts: Parts = PARTS
) -> Any:
    """measure(logits, per_token[, shared]) of all tokens: a tree of arrays [B, T].

    measure: a pure function of the logits [N, V] of N tokens, of their entries of `per_token` (a
    tree of [B, T, ...], passed as [N, ...]) and of `shared` (any tree; left out if None), to a tree
    of [N]. Gradients are for `linear` only; those of kernel and bias are summed in float32.
    `parts` of the logits are held at a time; the backward pass recomputes them.
    """
    return _map_logits(measure, parts, tuple(Linear(*linear)), per_token, shared)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _map_logits(measure, parts, linear, per_token, shared):
    x, *layer = linear

    def part(_, item):
        x, per_token = item
        return None, _measured(measure, shared, per_token)(Linear(x, *layer).product())

    split, join = _split_and_join(x.shape[:2], parts.logits)
    _, out = jax.lax.scan(part, None, jax.tree_util.tree_map(split, (x, per_token)))
    return jax.tree_util.tree_map(join, out)


def map_logits_gradients(measure, parts, linear, per_token, shared, g) -> tuple:
    """Gradients for x, kernel and bias of `map_logits`, whose result has the gradients g.

    Those of kernel and bias are float32, so that they can be summed over devices before they are
    rounded.
    """
    x, kernel, bias, softcap = linear

    def part(d_bias, item):
        x, per_token, g = item
        logits = Linear(x, kernel, bias, softcap).product()
        _, backward = jax.vjp(_measured(measure, shared, per_token), logits)
        (d,) = backward(g)
        d = d if softcap is None else d * cap_slope(logits, softcap)
        return (None if bias is None else d_bias + d.sum(0)), d

    zeros = None if bias is None else jnp.zeros(bias.shape)
    d_bias, d_x, d_kernel = _with_gradients(part, zeros, (x, per_token, g), kernel, parts)
    return d_x, d_kernel, d_bias


def _with_gradients(part: Callable, sums: Any, arrays: tuple, kernel, parts: Parts) -> tuple:
    """(sums, gradient of x, gradient of kernel) of part(sums, item) -> (sums, gradients of logits),
    over the parts of arrays, whose first is x."""
    split, join = _split_and_join(arrays[0].shape[:2], parts.logits)
    items = jax.tree_util.tree_map(split, arrays)
    n, rows, D = items[0].shape
    together = next(k for k in range(max(1, min(n, parts.gradients // rows)), 0, -1) if n % k == 0)

    def gradients(sums, item):
        sums, d = part(sums, item)
        # Two products read it: without the barrier a TPU computes it in both, from the logits.
        d = jax.lax.optimization_barrier(d.astype(item[0].dtype))
        return sums, (d, d @ kernel.T)

    def add(carry, items):
        sums, d_kernel = carry
        sums, (d, d_x) = jax.lax.scan(gradients, sums, items)
        x_ND, d_NV = items[0].reshape(-1, D), d.reshape(-1, d.shape[-1])
        d_kernel += jnp.matmul(x_ND.T, d_NV, preferred_element_type=jnp.float32)
        return (sums, d_kernel), d_x

    grouped = lambda x: x.reshape(n // together, together, *x.shape[1:])
    carry = sums, jnp.zeros(kernel.shape)
    (sums, d_kernel), d_x = jax.lax.scan(add, carry, jax.tree_util.tree_map(grouped, items))
    return sums, join(d_x.reshape(n, rows, D)), d_kernel


def _measured(measure, shared, per_token) -> Callable:
    return lambda logits: measure(logits, per_token, *(() if shared is None else (shared,)))


def _map_logits_forward(measure, parts, linear, per_token, shared):
    inputs = linear, per_token, shared
    return _map_logits(measure, parts, *inputs), inputs


def _map_logits_backward(measure, parts, inputs, g):
    d_x, *d = map_logits_gradients(measure, parts, *inputs, g)
    return (d_x, *like(d, inputs[0][1:3]), None), None, None


_map_logits.defvjp(_map_logits_forward, _map_logits_backward)


def _split_and_join(shape: tuple[int, int], rows: int) -> tuple[Callable, Callable]:
    """(split, join): [B, T, ...] to [parts, about `rows`, ...] and back.

    A part has some columns of all rows of the batch, so that rows stay on their devices.
    """
    B, T = shape
    n = next(n for n in range(max(1, min(T, rows // B)), 0, -1) if T % n == 0)  # columns at a time

    def split(y):
        y = y.reshape(B, T // n, n, *y.shape[2:]).swapaxes(0, 1)
        return y.reshape(T // n, B * n, *y.shape[3:])

    def join(y):
        y = y.reshape(T // n, B, n, *y.shape[2:]).swapaxes(0, 1)
        return y.reshape(B, T, *y.shape[3:])

    return split, join


def linear_losses(
    x: jax.Array,
    kernel: jax.Array,
    bias: jax.Array | None,
    softcap: jax.Array | None,
    targets: jax.Array,
    weights: jax.Array,
    parts: Parts = PARTS,
    label_smoothing: float = 0.0,
    z: float = 0.0,
) -> dict[str, jax.Array]:
    """Sums over tokens of the losses of the logits of a Linear, which are never all held.

    x [B, T, D], kernel [D, V], bias [V] and softcap are those of Linear; targets and weights are
    [B, T]. softcap and weights have no gradient.
    'nll': as cross_entropy; 'hits': as accuracy, except that of equal largest logits each counts;
    'total': 'nll' with label_smoothing, plus z times z_loss.
    'total' has a gradient, and 'nll' where it is the same; with label_smoothing or z the gradient
    of 'nll' is NaN. The gradient is computed together with the loss, for `parts` of the tokens at a
    time, so that the logits are computed once. On a CPU they stay in the cache, which takes two
    thirds of the time; on a TPU the memory of all logits is saved.
    """
    return _linear(x, kernel, bias, softcap, targets, weights, parts, label_smoothing, z)


def linear_cross_entropy(
    x: jax.Array,
    kernel: jax.Array,
    bias: jax.Array | None,
    softcap: jax.Array | None,
    targets: jax.Array,
    weights: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """cross_entropy of the logits of a Linear, targets and weights, without holding all logits."""
    linear = bias_as_row(Linear(x, kernel, bias, softcap))
    sums = linear_losses(*linear, targets, weights)
    return sums["total"], weights.sum()


def bias_as_row(linear: Linear) -> Linear:
    """The same logits without a bias: ones beside x, the bias below kernel. Unchanged if x has
    another type than the bias, which would be rounded to it.

    For a wide layer on a CPU: adding the bias afterwards costs another pass over all outputs.
    """
    x, _, bias, _ = linear
    if bias is None or x.dtype != bias.dtype:
        return linear
    ones = jnp.ones((*x.shape[:-1], 1), x.dtype)
    return linear._replace(bias=None).plus(ones, bias[None])


@functools.partial(jax.custom_vjp, nondiff_argnums=(6, 7, 8))
def _linear(x, kernel, bias, softcap, targets, weights, *options):
    return linear_parts(x, kernel, bias, softcap, targets, weights, *options, False)[0]


def _linear_forward(x, kernel, bias, softcap, targets, weights, *options):
    sums, (d_x, *d) = linear_parts(x, kernel, bias, softcap, targets, weights, *options, True)
    return sums, (d_x, *like(d, (kernel, bias)))


def like(gradients, arrays) -> tuple:
    """Gradients cast to the types of their arrays; None stays None."""
    return tuple(g if g is None else g.astype(x.dtype) for g, x in zip(gradients, arrays))


def _linear_backward(parts, label_smoothing, z, gradients, g):
    return *scaled(gradients, total_cotangent(g, label_smoothing, z)), None, None, None


def total_cotangent(g: dict, label_smoothing: float, z: float) -> jax.Array:
    """The cotangent of 'total' from those of linear_losses.

    Where 'nll' differs from it, a gradient of 'nll' is not available: NaN rather than a silent 0.
    """
    if label_smoothing or z:
        return g["total"] + jnp.where(g["nll"] == 0, 0.0, jnp.nan)
    return g["total"] + g["nll"]


def scaled(gradients: tuple, by: jax.Array) -> tuple:
    """Gradients times a scalar, in their own types."""
    return jax.tree_util.tree_map(lambda d: (by * d).astype(d.dtype), gradients)


_linear.defvjp(_linear_forward, _linear_backward)


def linear_parts(
    x,
    kernel,
    bias,
    softcap,
    targets,
    weights,
    parts: Parts,
    label_smoothing: float,
    z: float,
    gradients: bool,
) -> tuple[dict, tuple | None]:
    """(linear_losses, gradients of 'total' for x, kernel and bias, or None).

    Those of kernel and bias are float32, so that they can be summed over devices before they are
    rounded.
    """
    V = kernel.shape[-1]

    def part(sums, item):
        x, targets, weights = item
        logits = Linear(x, kernel, bias, softcap).product()
        largest = logits.max(-1, keepdims=True)
        e = jnp.exp(logits - largest)
        sum_e = e.sum(-1, keepdims=True)
        log_z = largest + jnp.log(sum_e)
        target_logit = jnp.take_along_axis(logits, targets[:, None], axis=-1)
        w = weights[:, None]
        nll = total = (w * (log_z - target_logit)).sum()
        if label_smoothing:
            total = (1 - label_smoothing) * nll + label_smoothing * (
                w * (log_z - logits.mean(-1, keepdims=True))
            ).sum()
        if z:
            total = total + z * (w * jnp.square(log_z)).sum()
        part_sums = {"nll": nll, "hits": (w * (target_logit >= largest)).sum(), "total": total}
        if not gradients:
            return jax.tree_util.tree_map(jnp.add, sums, part_sums), None
        d = e / sum_e * (1 + 2 * z * log_z) if z else e / sum_e
        hit = jnp.arange(V) == targets[:, None]
        d = d - (
            jnp.where(hit, 1 - label_smoothing, 0) + label_smoothing / V if label_smoothing else hit
        )
        d = w * d if softcap is None else w * d * cap_slope(logits, softcap)
        if bias is not None:
            part_sums["d_bias"] = d.sum(0)
        return jax.tree_util.tree_map(jnp.add, sums, part_sums), d

    sums, arrays = dict.fromkeys(("nll", "hits", "total"), jnp.float32(0)), (x, targets, weights)
    if not gradients:
        split, _ = _split_and_join(targets.shape, parts.logits)
        return jax.lax.scan(part, sums, tuple(map(split, arrays)))[0], None
    if bias is not None:
        sums["d_bias"] = jnp.zeros(bias.shape)
    sums, d_x, d_kernel = _with_gradients(part, sums, arrays, kernel, parts)
    return sums, (d_x, d_kernel, sums.pop("d_bias", None))
