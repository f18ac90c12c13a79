"""Losses as pure numerics, of logits. Those of a batch return (sum, weight), so that micro-batches
and devices add up. Of an output layer over a large vocabulary see vocabulary.py."""

import jax
import jax.numpy as jnp
import optax


def cross_entropy(
    logits: jax.Array, targets: jax.Array, weights: jax.Array, *, label_smoothing: float = 0.0
) -> tuple[jax.Array, jax.Array]:
    """Weighted cross-entropy in nats.

    logits [..., V], targets int [...], weights [...]. label_smoothing moves that much of the
    target's probability to all V classes alike (https://arxiv.org/abs/1512.00567).
    """
    logits = logits.astype(jnp.float32)
    log_z = jax.nn.logsumexp(logits, axis=-1)
    loss = log_z - _at(logits, targets)
    if label_smoothing:
        loss = (1 - label_smoothing) * loss + label_smoothing * (log_z - logits.mean(-1))
    return (loss * weights).sum(), weights.sum()


def soft_cross_entropy(
    logits: jax.Array, targets: jax.Array, weights: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Weighted cross-entropy in nats with the probabilities `targets` [..., V] of all classes.

    logits [..., V], weights [...].
    """
    loss = -(targets * jax.nn.log_softmax(logits.astype(jnp.float32))).sum(-1)
    return (loss * weights).sum(), weights.sum()


def sigmoid_cross_entropy(
    logits: jax.Array, targets: jax.Array, weights: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Weighted binary cross-entropy in nats, summed over classes that do not exclude each other.

    logits [..., V]; targets [..., V], the probability of each class; weights [...].
    """
    logits = logits.astype(jnp.float32)
    loss = jax.nn.softplus(logits) - targets * logits
    return (loss.sum(-1) * weights).sum(), weights.sum()


def z_loss(logits: jax.Array, weights: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Square of the log-partition: keeps logits near 0 (PaLM, https://arxiv.org/abs/2204.02311)."""
    log_z = jax.nn.logsumexp(logits.astype(jnp.float32), axis=-1)
    return (jnp.square(log_z) * weights).sum(), weights.sum()


def accuracy(
    logits: jax.Array, targets: jax.Array, weights: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """(Weight of the targets that have the largest logit, total weight)."""
    hit = (logits.argmax(-1) == targets).astype(jnp.float32)
    return (hit * weights).sum(), weights.sum()


def ctc(
    logits: jax.Array,
    lengths: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
    blank_id: int,
) -> tuple[jax.Array, jax.Array]:
    """Connectionist temporal classification (https://doi.org/10.1145/1143844.1143891): (negative
    log-likelihood in nats of targets emitted in order within a longer row, number of targets).

    logits [B, S, V]; lengths int [B], of the rows; targets int [B, T]; weights [B, T], 1 for the
    targets, then 0. blank_id, of V, is emitted between targets; a target may be emitted repeatedly.
    A row that is too short for its targets, which would make the loss infinite, counts for nothing.
    """
    n = weights.sum(-1).astype(jnp.int32)
    repeated = ((targets[:, 1:] == targets[:, :-1]) * weights[:, 1:]).sum(-1)
    fits = lengths >= n + repeated  # equal neighbours need a blank in between
    padding = (jnp.arange(logits.shape[1]) >= lengths[:, None]).astype(jnp.float32)
    logits = logits.astype(jnp.float32)
    loss = optax.ctc_loss(logits, padding, targets, 1.0 - weights, blank_id=blank_id)
    return jnp.where(fits & (n > 0), loss, 0.0).sum(), jnp.where(fits, n, 0).sum()


def top_k(
    logits: jax.Array, targets: jax.Array, weights: jax.Array, k: int
) -> tuple[jax.Array, jax.Array]:
    """(Weight of the targets that are among the k largest logits, total weight). Of equal logits
    the first one is the largest, as for `accuracy`; NaN is larger than any number, and no hit."""
    own = _at(logits, targets)[..., None]
    before = jnp.arange(logits.shape[-1]) < targets[..., None]
    above = (~(logits <= own) | ((logits == own) & before)).sum(-1)
    return ((above < k) * weights).sum(), weights.sum()


def log_probs(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Log-probabilities [...] of targets [...], in nats. logits [..., V]."""
    return _at(logits, targets) - jax.nn.logsumexp(logits, axis=-1)


def log_probs_and_hits(logits: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`log_probs`, and bool [...]: whether the target has the largest of the logits [..., V], the
    first one of equal ones."""
    return log_probs(logits, targets), logits.argmax(-1) == targets


def log_probs_and_entropy(logits: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`log_probs`, and the entropy [...] of the distribution that logits [..., V] give, in nats."""
    log_p = jax.nn.log_softmax(logits)
    return _at(log_p, targets), -(jnp.exp(log_p) * log_p).sum(-1)


def divergence(
    student: jax.Array, teacher: jax.Array, temperature: float = 1.0, reverse: bool = False
) -> jax.Array:
    """Kullback-Leibler divergence [...] of two distributions by their logits [..., V], in nats.

    KL(teacher || student), or with `reverse` KL(student || teacher), both of the logits divided by
    temperature. Not multiplied by temperature^2, which makes the gradients of different
    temperatures comparable (https://arxiv.org/abs/1503.02531, section 2).
    """
    log_q = jax.nn.log_softmax(student / temperature)
    log_p = jax.nn.log_softmax(teacher / temperature)
    if reverse:
        log_p, log_q = log_q, log_p
    return (jnp.exp(log_p) * (log_p - log_q)).sum(-1)


def _at(x: jax.Array, targets: jax.Array) -> jax.Array:
    """x [..., V] at targets [...]."""
    return jnp.take_along_axis(x, targets[..., None], axis=-1)[..., 0]
