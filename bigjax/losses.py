"""Losses: pure numerics. Each returns (sum, weight), so that micro-batches and devices add up."""

import functools

import jax
import jax.numpy as jnp


def cross_entropy(
    logits: jax.Array, targets: jax.Array, weights: jax.Array, *, label_smoothing: float = 0.0
) -> tuple[jax.Array, jax.Array]:
    """Weighted cross-entropy in nats.

    logits [..., V], targets int [...], weights [...]. label_smoothing moves that much of the
    target's probability to all V classes alike (https://arxiv.org/abs/1512.00567).
    """
    logits = logits.astype(jnp.float32)
    log_z = jax.nn.logsumexp(logits, axis=-1)
    picked = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    loss = log_z - picked
    if label_smoothing:
        loss = (1 - label_smoothing) * loss + label_smoothing * (log_z - logits.mean(-1))
    return (loss * weights).sum(), weights.sum()


def linear_losses(
    x: jax.Array,
    kernel: jax.Array,
    bias: jax.Array | None,
    targets: jax.Array,
    weights: jax.Array,
    rows: int = 128,
    label_smoothing: float = 0.0,
    z: float = 0.0,
) -> dict[str, jax.Array]:
    """Sums over tokens of the losses of logits x @ kernel + bias, which are never all held.

    x [B, T, D], kernel [D, V], bias [V], targets and weights [B, T]; weights have no gradient.
    'nll': as cross_entropy; 'hits': as accuracy, but for equal logits, which all hit; 'total': with
    label_smoothing, and with z times z_loss.
    Only 'total' has a gradient. It is made together with the loss, for about `rows` tokens at a
    time, so that their logits are used while they are at hand: on a CPU in the cache, where the
    time is two thirds; on a TPU the memory of all is saved.
    """
    return _linear(x, kernel, bias, targets, weights, rows, label_smoothing, z)


def linear_cross_entropy(
    x: jax.Array, kernel: jax.Array, bias: jax.Array, targets: jax.Array, weights: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """cross_entropy(x @ kernel + bias, targets, weights) without holding all the logits."""
    sums = linear_losses(*bias_as_row(x, kernel, bias), targets, weights)
    return sums["total"], weights.sum()


def bias_as_row(
    x: jax.Array, kernel: jax.Array, bias: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """(x', kernel', None) with x' @ kernel' = x @ kernel + bias: a one more in x, the bias below
    kernel. As they are if x is not of the bias's type, to which the bias would be rounded.

    For a wide layer on a CPU: added afterwards, the bias costs another pass over all outputs.
    """
    if x.dtype != bias.dtype:
        return x, kernel, bias
    ones = jnp.ones((*x.shape[:-1], 1), x.dtype)
    return jnp.concatenate([x, ones], axis=-1), jnp.concatenate([kernel, bias[None]]), None


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6, 7))
def _linear(x, kernel, bias, targets, weights, rows, label_smoothing, z):
    return linear_parts(x, kernel, bias, targets, weights, rows, label_smoothing, z, False)[0]


def _linear_forward(x, kernel, bias, targets, weights, rows, label_smoothing, z):
    sums, (d_x, *d) = linear_parts(
        x, kernel, bias, targets, weights, rows, label_smoothing, z, True
    )
    return sums, (d_x, *like(d, (kernel, bias)))


def like(gradients, arrays) -> tuple:
    """Gradients in the types of the arrays they are of; None stays None."""
    return tuple(g if g is None else g.astype(x.dtype) for g, x in zip(gradients, arrays))


def _linear_backward(rows, label_smoothing, z, gradients, g):
    return *scaled(gradients, g["total"]), None, None


def scaled(gradients: tuple, by: jax.Array) -> tuple:
    """Gradients times a scalar, in their types."""
    return jax.tree_util.tree_map(lambda d: (by * d).astype(d.dtype), gradients)


_linear.defvjp(_linear_forward, _linear_backward)


def linear_parts(
    x, kernel, bias, targets, weights, rows: int, label_smoothing: float, z: float, gradients: bool
) -> tuple[dict, tuple | None]:
    """(linear_losses, gradients of 'total' for x, kernel and bias, or None). Those of kernel and
    bias are float32, so that they can be summed over devices before they are rounded."""
    V = kernel.shape[-1]

    def part(sums, item):
        x, targets, weights = item
        logits = jnp.matmul(x, kernel, preferred_element_type=jnp.float32)
        if bias is not None:
            logits = logits + bias
        largest = logits.max(-1, keepdims=True)
        e = jnp.exp(logits - largest)
        sum_e = e.sum(-1, keepdims=True)
        log_z = largest + jnp.log(sum_e)
        picked = jnp.take_along_axis(logits, targets[:, None], axis=-1)
        w = weights[:, None]
        nll = total = (w * (log_z - picked)).sum()
        if label_smoothing:
            total = (1 - label_smoothing) * nll + label_smoothing * (
                w * (log_z - logits.mean(-1, keepdims=True))
            ).sum()
        if z:
            total = total + z * (w * jnp.square(log_z)).sum()
        mine = {"nll": nll, "hits": (w * (picked >= largest)).sum(), "total": total}
        if not gradients:
            return jax.tree_util.tree_map(jnp.add, sums, mine), None
        d = e / sum_e * (1 + 2 * z * log_z) if z else e / sum_e
        hit = jnp.arange(V) == targets[:, None]
        d = d - (
            jnp.where(hit, 1 - label_smoothing, 0) + label_smoothing / V if label_smoothing else hit
        )
        d = w * d
        if bias is not None:
            mine["d_bias"] = d.sum(0)
        d = d.astype(x.dtype)
        mine["d_kernel"] = jnp.matmul(x.T, d, preferred_element_type=jnp.float32)
        return jax.tree_util.tree_map(jnp.add, sums, mine), d @ kernel.T

    B, T = targets.shape
    n = next(n for n in range(max(1, min(T, rows // B)), 0, -1) if T % n == 0)  # columns at a time

    def parts(y):  # [T / n, B n, ...]: rows first, so that they stay on their devices
        y = y.reshape(B, T // n, n, *y.shape[2:]).swapaxes(0, 1)
        return y.reshape(T // n, B * n, *y.shape[3:])

    sums = {k: jnp.float32(0) for k in ("nll", "hits", "total")}
    if gradients:
        sums["d_kernel"] = jnp.zeros(kernel.shape)
        if bias is not None:
            sums["d_bias"] = jnp.zeros(bias.shape)
    sums, d_x = jax.lax.scan(part, sums, tuple(map(parts, (x, targets, weights))))
    if not gradients:
        return sums, None
    d_x = d_x.reshape(T // n, B, n, -1).swapaxes(0, 1).reshape(x.shape)
    return sums, (d_x, sums.pop("d_kernel"), sums.pop("d_bias", None))


def z_loss(logits: jax.Array, weights: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Square of the log-partition: keeps logits near 0 (PaLM, https://arxiv.org/abs/2204.02311)."""
    log_z = jax.nn.logsumexp(logits.astype(jnp.float32), axis=-1)
    return (jnp.square(log_z) * weights).sum(), weights.sum()


def accuracy(
    logits: jax.Array, targets: jax.Array, weights: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """How many targets have the largest logit."""
    hit = (logits.argmax(-1) == targets).astype(jnp.float32)
    return (hit * weights).sum(), weights.sum()
