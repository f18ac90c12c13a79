"""Losses of reinforcement learning on sampled completions, as pure numerics.

Shapes: B prompts, G completions of each (a group), N tokens of a completion. mask [B, G, N] is 1
for the tokens that were sampled, up to the end token, and 0 after it.
"""

import jax
import jax.numpy as jnp

LOSSES = ("grpo", "dr_grpo", "dapo", "bnpo")  # how the sum over tokens is normalised
LEVELS = ("token", "sequence")
SCALES = ("group", "batch", "none")
TINY_STD = 1e-4  # added to a standard deviation of rewards


def group_advantages(rewards_BG: jax.Array, scale: str = "group") -> jax.Array:
    """Rewards minus the mean of their group [B, G], divided by a standard deviation.

    scale: that of the 'group' (GRPO, https://arxiv.org/abs/2402.03300), of the 'batch', or 'none'
    (Dr. GRPO, https://arxiv.org/abs/2503.20783). Groups of equal rewards have advantages of 0.
    """
    # The rounded mean of equal rewards may not be exactly their value.
    advantages = rewards_BG - rewards_BG.mean(1, keepdims=True)
    advantages = jnp.where(equal_groups(rewards_BG)[:, None], 0.0, advantages)
    if scale == "group":
        return advantages / (group_std(rewards_BG)[:, None] + TINY_STD)
    if scale == "batch":
        return advantages / (rewards_BG.std(ddof=min(1, rewards_BG.size - 1)) + TINY_STD)
    return advantages


def equal_groups(rewards_BG: jax.Array) -> jax.Array:
    """Whether all rewards of a group are equal, bool [B]."""
    return rewards_BG.max(1) == rewards_BG.min(1)


def group_std(rewards_BG: jax.Array) -> jax.Array:
    """The standard deviation of the rewards of each group, [B], with Bessel's correction."""
    return rewards_BG.std(1, ddof=min(1, rewards_BG.shape[1] - 1))


def masked_mean(x: jax.Array, mask: jax.Array, axis=None) -> jax.Array:
    return (x * mask).sum(axis) / jnp.maximum(mask.sum(axis), 1.0)


def log_ratio(log_p: jax.Array, old: jax.Array, mask: jax.Array, level: str) -> jax.Array:
    """Of the policy to that before the updates: of each 'token' [..., N], or [..., 1] the mean of a
    'sequence' (GSPO, https://arxiv.org/abs/2507.18071)."""
    difference = log_p - old
    return difference if level == "token" else masked_mean(difference, mask, -1)[..., None]


def clipped(
    log_ratio: jax.Array, advantages: jax.Array, low: float, high: float
) -> tuple[jax.Array, jax.Array]:
    """(loss, whether the clip determines it) of each entry (PPO, https://arxiv.org/abs/1707.06347).

    The ratio is clipped to [1 - low, 1 + high]; a high above low is DAPO's clip-higher
    (https://arxiv.org/abs/2503.14476).
    """
    ratio = jnp.exp(log_ratio)
    plain, limited = ratio * advantages, jnp.clip(ratio, 1 - low, 1 + high) * advantages
    return -jnp.minimum(plain, limited), limited < plain


def divergence_estimate(log_p: jax.Array, reference: jax.Array) -> jax.Array:
    """An estimate of KL(policy || reference) from a sampled token, never negative (k3 of
    http://joschu.net/blog/kl-approx.html)."""
    difference = reference - log_p
    return jnp.exp(difference) - difference - 1


def sampler_weights(log_p: jax.Array, sampler: jax.Array, cap: float) -> jax.Array:
    """Truncated importance weights of tokens: the probability by the trainer over that by the
    sampler, at most cap; no gradient passes through them."""
    return jax.lax.stop_gradient(jnp.minimum(jnp.exp(log_p - sampler), cap))


def summed(
    loss_BGN: jax.Array, mask: jax.Array, kind: str, tokens_B: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """(sum, weight) of the losses of tokens; parts of a batch add up, whatever the kind.

    kind: 'grpo', the mean over completions of the mean over their tokens; 'dr_grpo', divided by the
    maximum length N of all completions instead; 'dapo', the mean over tokens, by the mean number
    of tokens of all updates of the rollout; 'bnpo', by the tokens of this update.
    tokens_B: for each prompt the mean number of tokens per prompt of the complete rollout.
    """
    B, G, N = mask.shape
    if kind == "grpo":
        return masked_mean(loss_BGN, mask, -1).sum(), jnp.float32(B * G)
    weights = {"dr_grpo": jnp.float32(B * G * N), "dapo": tokens_B.sum(), "bnpo": mask.sum()}
    return (loss_BGN * mask).sum(), weights[kind]


def advantage_estimates(
    rewards: jax.Array, values: jax.Array, mask: jax.Array, gamma: float, decay: float
) -> jax.Array:
    """Generalised advantage estimates (https://arxiv.org/abs/1506.02438), like rewards [..., N].

    rewards, values: of each token, the value before it is sampled; decay: lambda. A completion ends
    with its last token of the mask: nothing follows it.
    """
    following = jnp.pad(mask[..., 1:], [(0, 0)] * (mask.ndim - 1) + [(0, 1)])
    next_values = jnp.roll(values, -1, axis=-1) * following
    errors = rewards + gamma * next_values - values

    def back(later, item):
        error, follows = item
        estimate = error + gamma * decay * follows * later
        return estimate, estimate

    first = lambda x: jnp.moveaxis(x, -1, 0)
    zero = jnp.zeros(rewards.shape[:-1])
    _, out = jax.lax.scan(back, zero, (first(errors), first(following)), reverse=True)
    return jnp.moveaxis(out, 0, -1) * mask


def whitened(x: jax.Array, mask: jax.Array) -> jax.Array:
    """x with a mean of 0 and a variance of 1 over the mask, 0 elsewhere."""
    mean = masked_mean(x, mask)
    variance = masked_mean(jnp.square(x - mean), mask)
    return (x - mean) * jax.lax.rsqrt(variance + 1e-8) * mask


def value_losses(values: jax.Array, old: jax.Array, returns: jax.Array, clip: float) -> jax.Array:
    """Half of the squared errors of values, the larger one of the values and of those clipped to
    `clip` around the old ones; 0: of the values."""
    plain = jnp.square(values - returns)
    if not clip:
        return 0.5 * plain
    near = jnp.clip(values, old - clip, old + clip)
    return 0.5 * jnp.maximum(plain, jnp.square(near - returns))
