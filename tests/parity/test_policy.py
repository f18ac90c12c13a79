"""Losses of reinforcement against those of TRL, frozen by check_policy.py."""

import pathlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigjax.losses import policy

FROZEN = pathlib.Path(__file__).parent / "policy.npz"
MORE = 6  # tokens that the second of two updates has more than the first
GAMMA, DECAY, VALUE_CLIP = 0.9, 0.8, 0.3


class Case(NamedTuple):
    """A kind of loss; cap: of the sampler's weights, 0 = none; updates: of a rollout."""

    loss: str
    level: str = "token"
    beta: float = 0.0
    low: float = 0.2
    high: float = 0.28
    cap: float = 0.0
    updates: int = 1

    @property
    def name(self) -> str:
        return " ".join(map(str, self))


CASES = [
    *(Case(loss, beta=beta) for loss in policy.LOSSES for beta in (0.0, 0.04)),
    *(Case(loss, "sequence", low=0.02, high=0.03) for loss in policy.LOSSES),
    Case("grpo", "sequence", beta=0.04, low=0.02, high=0.03),
    Case("dapo", beta=0.04, cap=1.2),
    Case("grpo", cap=1.2),
    Case("dapo", updates=2),
]


def our_loss(x: dict, case: Case):
    """(loss, its gradient by the log-probabilities)."""

    def loss(log_p):
        ratio = policy.log_ratio(log_p, x["old"], x["mask"], case.level)
        advantages = x["advantages group"][..., None]
        per_token, _ = policy.clipped(ratio, advantages, case.low, case.high)
        if case.cap:
            weights = policy.sampler_weights(x["old"], x["sampler"], case.cap)
            per_token = per_token * weights
        if case.beta:
            kl = policy.divergence_estimate(log_p, x["reference"])
            per_token = per_token + case.beta * kl
        of_update = x["mask"].sum() + MORE * (case.updates - 1) / case.updates
        tokens = jnp.full(len(log_p), of_update / len(log_p))
        total, weight = policy.summed(per_token, x["mask"], case.loss, tokens)
        return total / weight

    return jax.value_and_grad(loss)(x["log_p"])


def our_ppo(x: dict) -> dict:
    mask = x["mask"]
    old = x["old_values"] * mask
    gae = policy.advantage_estimates(  # whatever is after the end
        x["token_rewards"], x["old_values"], mask, GAMMA, DECAY
    )
    mean = lambda v: policy.masked_mean(policy.value_losses(v, old, gae + old, VALUE_CLIP), mask)
    loss, gradient = jax.value_and_grad(mean)(x["values"])
    return {
        "gae": gae,
        "whitened": policy.whitened(gae, mask),
        "value_loss": loss,
        "value_gradient": gradient,
    }


def pairs(x: dict):
    """(name, ours) of all that is frozen."""
    for scale in policy.SCALES:
        yield f"advantages {scale}", policy.group_advantages(jnp.array(x["rewards"]), scale)
    for case in CASES:
        loss, gradient = our_loss(x, case)
        yield f"{case.name} loss", loss
        yield f"{case.name} gradient", gradient
    yield from our_ppo(x).items()


def compare_all(x: dict) -> float:
    """The largest difference."""
    return max(float(np.abs(np.asarray(ours) - x[name]).max()) for name, ours in pairs(x))


@pytest.fixture(scope="module")
def frozen():
    return dict(np.load(FROZEN))


def test_losses_gradients_and_advantages_are_those_of_trl(frozen):
    for name, ours in pairs(frozen):
        np.testing.assert_allclose(ours, frozen[name], atol=1e-5, err_msg=name)


def test_the_cases_are_clipped_on_both_sides_and_differ(frozen):
    advantages, mask = frozen["advantages group"][..., None], frozen["mask"]
    for case in CASES:
        ratio = policy.log_ratio(frozen["log_p"], frozen["old"], mask, case.level)
        _, clipped = policy.clipped(ratio, advantages, case.low, case.high)
        sides = np.asarray(clipped * mask), np.sign(np.broadcast_to(advantages, mask.shape))
        assert (sides[0][sides[1] > 0] > 0).any() and (sides[0][sides[1] < 0] > 0).any(), case
    losses = [float(frozen[f"{case.name} loss"]) for case in CASES]
    same = 3  # dapo and bnpo in a rollout of one update
    assert len({round(loss, 6) for loss in losses}) == len(CASES) - same
