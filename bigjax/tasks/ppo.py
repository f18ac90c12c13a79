"""Reinforcement with a value head: proximal policy optimisation (https://arxiv.org/abs/1707.06347)
of completions, as in https://arxiv.org/abs/2203.02155."""

import dataclasses

import jax.numpy as jnp

from bigjax.bounds import SHARE, at_least
from bigjax.losses import policy
from bigjax.models._valued import NAME
from bigjax.tasks import Task, _policy
from bigjax.tasks._chat import resolve as resolve

DATA, EVALUATION = "prompts", "generation"  # in a config that is generated for this task


@dataclasses.dataclass(frozen=True)
class Config(_policy.Config):
    samples: int = 1  # completions of each prompt
    epochs: int = 4  # how often the updates are repeated
    gamma: float = 1.0  # discount of the rewards of later tokens
    decay: float = 0.95  # lambda of generalised advantage estimates
    whiten: bool = True  # advantages have a mean of 0 and a variance of 1 over the batch
    value_weight: float = 0.1  # of the loss of the value head
    value_clip: float = 0.2  # values are clipped to this distance from those before; 0 = off
    entropy_weight: float = 0.0  # of the entropy, which the loss rewards

    RANGES = _policy.Config.RANGES | {
        "gamma": SHARE,
        "decay": SHARE,
        "value_weight": at_least(0),
        "value_clip": at_least(0),
        "entropy_weight": at_least(0),
    }
    MAY_CHANGE = (*_policy.Config.MAY_CHANGE, "value_*", "entropy_weight")


def build(config, options: Config) -> Task:
    """Batches: see tasks.Rollouts. The divergence from the reference lowers the reward of each
    token, by task.beta times the difference of its log-probabilities."""
    p = _policy.make_policy(config, options, valued=True)

    def of_part(params, extras, frozen, batch):
        log_p, _, values = p.forward(params, extras, batch)
        new = {"old_log_probs": log_p, "old_values": values * batch["mask"]}
        if options.beta:
            new["reference_log_probs"] = p.reference(frozen, batch)
        return new

    def whole_batch(params, extras, frozen, batch):
        new = _policy.in_parts(lambda x: of_part(params, extras, frozen, x), batch, p.parts)
        mask, values = batch["mask"], new["old_values"]
        rewards = last_tokens(mask) * _policy.total_reward(batch, options)[..., None]
        if options.beta:
            difference = new["old_log_probs"] - new["reference_log_probs"]
            rewards = rewards - options.beta * difference * mask
        advantages = policy.advantage_estimates(rewards, values, mask, options.gamma, options.decay)
        returns = advantages + values
        if options.whiten:
            learned = _policy.learned_mask(batch, options)
            advantages = policy.whitened(advantages, learned)
        return {**batch, **new, "advantages": advantages, "returns": returns}

    def loss(params, extras, frozen, batch):
        del frozen
        mask = _policy.learned_mask(batch, options)
        tokens = mask.sum()
        log_p, entropy, values = p.forward(params, extras, batch)
        per_token, metrics = _policy.policy_loss(batch, log_p, batch["advantages"], options)
        errors = policy.value_losses(
            values, batch["old_values"], batch["returns"], options.value_clip
        )
        if options.beta:
            difference = batch["old_log_probs"] - batch["reference_log_probs"]
            metrics["kl"] = (difference * mask).sum(), tokens
        metrics |= {
            "policy_loss": ((per_token * mask).sum(), tokens),
            "value_loss": ((errors * mask).sum(), tokens),
            "value": ((values * mask).sum(), tokens),
            "entropy": ((entropy * mask).sum(), tokens),
        }
        per_token = per_token + options.value_weight * errors - options.entropy_weight * entropy
        return ((per_token * mask).sum(), tokens), metrics

    task = _policy.build_task(config, options, p, loss, whole_batch)
    without = lambda params: {k: x for k, x in params.items() if k != NAME}

    def variables(params, extras, frozen):
        del frozen
        return {"params": without(params), **extras}

    return dataclasses.replace(task, variables=variables, label_head=NAME)


def last_tokens(mask):
    """1 on the last token of each completion, 0 elsewhere, like mask."""
    following = jnp.pad(mask[..., 1:], [(0, 0)] * (mask.ndim - 1) + [(0, 1)])
    return mask * (1 - following)
