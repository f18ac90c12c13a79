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


def z_loss(logits: jax.Array, weights: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Square of the log-partition: keeps logits near 0 (PaLM, https://arxiv.org/abs/2204.02311)."""
    log_z = jax.nn.logsumexp(logits.astype(jnp.float32), axis=-1)
    return (jnp.square(log_z) * weights).sum(), weights.sum()


def accuracy(logits: jax.Array, targets: jax.Array, weights: jax.Array
             ) -> tuple[jax.Array, jax.Array]:
    """How many targets have the largest logit."""
    hit = (logits.argmax(-1) == targets).astype(jnp.float32)
    return (hit * weights).sum(), weights.sum()
