"""Losses: pure numerics. Each returns (sum, weight), so that micro-batches and devices add up."""

import jax
import jax.numpy as jnp


def cross_entropy(logits: jax.Array, targets: jax.Array, weights: jax.Array, *,
                  label_smoothing: float = 0.0) -> tuple[jax.Array, jax.Array]:
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


def linear_cross_entropy(x: jax.Array, kernel: jax.Array, bias: jax.Array, targets: jax.Array,
                         weights: jax.Array) -> tuple[jax.Array, jax.Array]:
    """cross_entropy(x @ kernel + bias, targets, weights) without holding all the logits.

    x [B, T, D], kernel [D, V], bias [V], targets and weights [B, T]; weights have no gradient.
    The gradient is made together with the loss, some columns of x at a time, so that the logits of
    a part are used while they are in the cache. On a CPU the time is two thirds.
    """
    return _linear_nll(*bias_as_row(x, kernel, bias), targets, weights), weights.sum()


def bias_as_row(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(x', kernel') with x' @ kernel' = x @ kernel + bias: a one more in x, the bias below kernel.

    For a wide layer on a CPU: added afterwards, the bias costs another pass over all outputs.
    """
    ones = jnp.ones((*x.shape[:-1], 1), x.dtype)
    return jnp.concatenate([x, ones], axis=-1), jnp.concatenate([kernel, bias[None]])


@jax.custom_vjp
def _linear_nll(x, kernel, targets, weights):
    return cross_entropy(x @ kernel, targets, weights)[0]


def _linear_nll_forward(x, kernel, targets, weights):
    def part(sums, item):
        x, targets, weights = item
        logits = (x @ kernel).astype(jnp.float32)
        largest = logits.max(-1, keepdims=True)
        e = jnp.exp(logits - largest)
        z = e.sum(-1, keepdims=True)
        picked = jnp.take_along_axis(logits, targets[:, None], axis=-1)
        nll = (weights[:, None] * (largest + jnp.log(z) - picked)).sum()
        d = weights[:, None] * (e / z - (jnp.arange(logits.shape[-1]) == targets[:, None]))
        d = d.astype(x.dtype)
        mine = nll, (x.T @ d).astype(jnp.float32)
        return jax.tree_util.tree_map(jnp.add, sums, mine), d @ kernel.T

    B, T = targets.shape
    n = next(n for n in range(max(1, 128 // B), 0, -1) if T % n == 0)  # columns at a time

    def parts(y):  # [T / n, B n, ...]: rows first, so that they stay on their devices
        y = y.reshape(B, T // n, n, *y.shape[2:]).swapaxes(0, 1)
        return y.reshape(T // n, B * n, *y.shape[3:])

    (nll, d_kernel), d_x = jax.lax.scan(part, (jnp.float32(0), jnp.zeros(kernel.shape)),
                                        tuple(map(parts, (x, targets, weights))))
    d_x = d_x.reshape(T // n, B, n, -1).swapaxes(0, 1).reshape(x.shape)
    return nll, (d_x, d_kernel.astype(kernel.dtype))


def _linear_nll_backward(gradients, g):
    return (*((g * d).astype(d.dtype) for d in gradients), None, None)


_linear_nll.defvjp(_linear_nll_forward, _linear_nll_backward)


def z_loss(logits: jax.Array, weights: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Square of the log-partition: keeps logits near 0 (PaLM, https://arxiv.org/abs/2204.02311)."""
    log_z = jax.nn.logsumexp(logits.astype(jnp.float32), axis=-1)
    return (jnp.square(log_z) * weights).sum(), weights.sum()


def accuracy(logits: jax.Array, targets: jax.Array, weights: jax.Array
             ) -> tuple[jax.Array, jax.Array]:
    """How many targets have the largest logit."""
    hit = (logits.argmax(-1) == targets).astype(jnp.float32)
    return (hit * weights).sum(), weights.sum()
