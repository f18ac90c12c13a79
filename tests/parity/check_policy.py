"""Checks the losses of reinforcement against TRL and plain PyTorch, and freezes them for the tests.

    python tests/parity/check_policy.py [--write]

Needs trl and torch. Losses and gradients of GRPO's kinds are those of TRL's own
GRPOTrainer._compute_loss, called on log-probabilities in place of a model's; advantages are those
of the lines that compute them there. TRL has no PPO any more: its estimates of advantages, value
loss and whitening are direct formulas, below. --write: policy.npz.
"""

import collections
import inspect
import pathlib
import sys
import textwrap
from types import SimpleNamespace

import numpy as np
import torch
from trl.trainer import grpo_trainer
from trl.trainer.grpo_trainer import GRPOTrainer

from tests.parity import test_policy

FROZEN = pathlib.Path(__file__).parent / "policy.npz"
B, G, N = 3, 4, 7


def drawn() -> dict[str, np.ndarray]:
    """Log-probabilities whose ratios are clipped on both sides, and completions of all lengths."""
    rng = np.random.default_rng(0)
    log_p = rng.normal(-2, 0.7, (B, G, N))
    lengths = rng.integers(1, N + 1, (B, G))
    lengths[0, 0] = N
    near = lambda scale: log_p + rng.normal(0, scale, (B, G, N))
    rewards = rng.integers(0, 3, (B, G)).astype(float)
    rewards[1] = 1.0  # a group of equal rewards
    arrays = {
        "log_p": log_p,
        "old": near(0.3),
        "reference": near(0.4),
        "sampler": near(0.3),
        "mask": np.arange(N) < lengths[..., None],
        "rewards": rewards,
        "values": rng.normal(0, 1, (B, G, N)),
        "old_values": rng.normal(0, 1, (B, G, N)),
        "token_rewards": rng.normal(0, 1, (B, G, N)),
    }
    return {name: x.astype(np.float32) for name, x in arrays.items()}


def rows(x: np.ndarray) -> torch.Tensor:
    return torch.tensor(x.reshape(B * G, *x.shape[2:]))


def advantages(x: dict, scale: str) -> np.ndarray:
    """By TRL's own lines."""
    source = inspect.getsource(GRPOTrainer._generate_and_score_completions)
    begin = source.index("        unscorable_mask = torch.isnan(rewards_per_func)")
    end = source.index("        process_slice = slice(", begin)
    names = {
        "torch": torch,
        "nanstd": grpo_trainer.nanstd,
        "rewards_per_func": rows(x["rewards"])[:, None],
        "num_generations": G,
        "device": "cpu",
        "self": SimpleNamespace(
            multi_objective_aggregation="sum_then_normalize",
            scale_rewards=scale,
            reward_weights=torch.ones(1),
        ),
    }
    exec(textwrap.dedent(source[begin:end]), names)
    return names["advantages"].numpy().reshape(B, G)


def trl_loss(x: dict, case: test_policy.Case) -> tuple[float, np.ndarray]:
    """(loss, its gradient by the log-probabilities) of TRL."""
    log_p = rows(x["log_p"]).requires_grad_()
    mask = rows(x["mask"])
    ratio = torch.exp(rows(x["old"]) - rows(x["sampler"])).clamp(max=case.cap or 1.0)
    accelerator = SimpleNamespace(
        num_processes=1, gather=lambda x: x, reduce=lambda x, reduction: x, sync_gradients=True
    )
    stub = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *a, **k: (log_p, torch.zeros_like(log_p), None),
        aux_loss_enabled=False,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        importance_sampling_level=case.level,
        beta=case.beta,
        loss_type=case.loss,
        epsilon_low=case.low,
        epsilon_high=case.high,
        use_vllm=case.cap > 0,
        vllm_importance_sampling_correction=True,
        model=SimpleNamespace(training=True),
        current_gradient_accumulation_steps=1,
        max_completion_length=N,
        accelerator=accelerator,
        args=SimpleNamespace(
            use_bias_correction_kl=False, delta=None, steps_per_generation=case.updates
        ),
        _entropy_bonus_enabled=False,
        _metrics=collections.defaultdict(lambda: collections.defaultdict(list)),
    )
    inputs = {
        "prompt_ids": torch.zeros(B * G, 1),
        "prompt_mask": torch.ones(B * G, 1),
        "completion_ids": torch.zeros(B * G, N),
        "completion_mask": mask,
        "advantages": rows(x["advantages"]),
        "old_per_token_logps": rows(x["old"]),
        "ref_per_token_logps": rows(x["reference"]),
        "importance_sampling_ratio": ratio,
        # Of the rollout: another update of it has more tokens than this one.
        "num_items_in_batch": mask.sum() * case.updates + test_policy.MORE * (case.updates - 1),
    }
    loss = GRPOTrainer._compute_loss(stub, None, inputs)
    loss.backward()
    return loss.item(), log_p.grad.numpy().reshape(B, G, N)


def ppo(x: dict, gamma: float, decay: float, clip: float) -> dict[str, np.ndarray]:
    """Estimates of advantages, whitened ones, and the value loss with its gradient."""
    mask, values = rows(x["mask"]), rows(x["values"]).requires_grad_()
    old, rewards = rows(x["old_values"]) * mask, rows(x["token_rewards"]) * mask
    out = torch.zeros_like(old)
    for row in range(B * G):
        length, later = int(mask[row].sum()), 0.0
        for t in reversed(range(length)):
            following = old[row, t + 1] if t + 1 < length else 0.0
            later = rewards[row, t] + gamma * following - old[row, t] + gamma * decay * later
            out[row, t] = later
    returns = out + old
    chosen = out[mask > 0]
    white = (out - chosen.mean()) / (chosen.var(unbiased=False) + 1e-8).sqrt() * mask
    near = torch.clamp(values, old - clip, old + clip)
    error = 0.5 * torch.max((values - returns) ** 2, (near - returns) ** 2)
    loss = (error * mask).sum() / mask.sum()
    loss.backward()
    shaped = lambda t: t.detach().numpy().reshape(B, G, N)
    return {
        "gae": shaped(out),
        "whitened": shaped(white),
        "value_loss": np.float32(loss.item()),
        "value_gradient": shaped(values.grad),
    }


def main() -> None:
    x = drawn()
    frozen = dict(x)
    for scale in ("group", "batch", "none"):
        frozen[f"advantages {scale}"] = advantages(x, scale)
    x["advantages"] = frozen["advantages group"]
    for case in test_policy.CASES:
        loss, gradient = trl_loss(x, case)
        frozen[f"{case.name} loss"], frozen[f"{case.name} gradient"] = np.float32(loss), gradient
    frozen |= ppo(x, test_policy.GAMMA, test_policy.DECAY, test_policy.VALUE_CLIP)
    if "--write" in sys.argv:
        np.savez_compressed(FROZEN, **frozen)
        print(f"wrote {FROZEN}: {FROZEN.stat().st_size:,} bytes")
    worst = test_policy.compare_all(frozen)
    print(f"largest difference: {worst:.2e}")
    assert worst < 1e-5


if __name__ == "__main__":
    main()
