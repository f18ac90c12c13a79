"""Reinforcement by comparing the completions of a prompt with each other: GRPO and its variants."""

import dataclasses

import jax.numpy as jnp

from bigjax.errors import UserError
from bigjax.losses import policy
from bigjax.tasks import Task, _policy
from bigjax.tasks._chat import resolve as resolve

DATA, EVALUATION = "prompts", "generation"  # in a config that is generated for this task


@dataclasses.dataclass(frozen=True)
class Config(_policy.Config):
    """dapo, dr_grpo with scale='none', and grpo with level='sequence' are the losses of DAPO,
    Dr. GRPO and GSPO; see bigjax/losses/policy.py."""

    loss: str = "dapo"  # how the losses of tokens are normalised: grpo, dr_grpo, dapo, bnpo
    level: str = "token"  # of the ratio of probabilities: token, sequence
    scale: str = "group"  # advantages are divided by the standard deviation of: group, batch, none

    def __post_init__(self):
        super().__post_init__()
        for key, allowed in (
            ("loss", policy.LOSSES),
            ("level", policy.LEVELS),
            ("scale", policy.SCALES),
        ):
            if getattr(self, key) not in allowed:
                raise UserError(
                    f"task.{key} is {getattr(self, key)!r}; allowed: {', '.join(allowed)}."
                )
        if self.samples < 2:
            raise UserError(
                f"task.samples={self.samples}: completions are compared with the others of their "
                "prompt. Set it to at least 2, or use task.name='ppo'."
            )


def build(config, options: Config) -> Task:
    """Batches: see tasks.Rollouts."""
    p = _policy.make_policy(config, options)
    several = options.updates * options.epochs > 1

    def of_part(params, extras, frozen, batch):
        """What is computed once with the parameters that sampled the batch."""
        new = {}
        if several:
            new["old_log_probs"] = p.forward(params, extras, batch)[0]
        if options.beta:
            new["reference_log_probs"] = p.reference(frozen, batch)
        return new

    def whole_batch(params, extras, frozen, batch):
        reward = _policy.total_reward(batch, options)
        tokens = _policy.learned_mask(batch, options).sum() / len(reward)
        new = {
            "advantages": policy.group_advantages(reward, options.scale),
            "tokens": jnp.full(len(reward), tokens),
        }
        if several or options.beta:
            new |= _policy.in_parts(lambda x: of_part(params, extras, frozen, x), batch, p.parts)
        return {**batch, **new}

    def loss(params, extras, frozen, batch):
        del frozen
        mask = _policy.learned_mask(batch, options)
        log_p, entropy, _ = p.forward(params, extras, batch)
        advantages = batch["advantages"][..., None]
        per_token, metrics = _policy.policy_loss(batch, log_p, advantages, options, options.level)
        if options.beta:
            kl = policy.divergence_estimate(log_p, batch["reference_log_probs"])
            per_token = per_token + options.beta * kl
            metrics["kl"] = (kl * mask).sum(), mask.sum()
        metrics["entropy"] = (entropy * mask).sum(), mask.sum()
        return policy.summed(per_token, mask, options.loss, batch["tokens"]), metrics

    return _policy.build_task(config, options, p, loss, whole_batch)
