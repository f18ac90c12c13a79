"""Rewards and masks of completions, before the losses of losses/policy.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigjax import modules, tasks
from bigjax.errors import UserError
from bigjax.losses import policy
from bigjax.tasks import _policy
from tests import helpers

N = 6
LENGTHS = np.array([[2, 5, 6, 6], [1, 3, 4, 6]])
BATCH = {
    "mask": (np.arange(N) < LENGTHS[..., None]).astype(np.float32),
    "ended": np.array([[1, 1, 1, 0], [1, 1, 1, 0]], np.float32),
    "rewards": np.stack([LENGTHS / 10, LENGTHS * 0 + 1.0], -1).astype(np.float32),
}


def options(**values):
    c = helpers.load_config("tests/tiny_grpo.py")
    with c.unlocked():
        c.task.update(values)
    return modules.options(c, "task")  # rewards: letters with weight 2, short with weight 1


def test_the_reward_is_the_weighted_sum():
    got = _policy.total_reward(BATCH, options())
    np.testing.assert_allclose(got, 2 * LENGTHS / 10 + 1, rtol=1e-6)


def test_the_reward_falls_over_the_last_tokens():
    got = _policy.total_reward(BATCH, options(overlong_tokens=2))
    penalty = [[0, 0.5, 1, 1], [0, 0, 0, 1]]
    np.testing.assert_allclose(got, 2 * LENGTHS / 10 + 1 - penalty, rtol=1e-6)


def test_truncated_completions_may_be_left_out():
    every, some = (
        _policy.learned_mask(BATCH, options(mask_truncated=value)) for value in (False, True)
    )
    np.testing.assert_array_equal(every, BATCH["mask"])
    np.testing.assert_array_equal(some[:, :3], BATCH["mask"][:, :3])
    assert not some[:, 3].any()


def test_metrics_are_sums_over_completions_and_prompts():
    rewards = BATCH["rewards"].copy()
    rewards[1, :, 0] = 1000.1  # whose standard deviation is a rounding error
    metrics = _policy.rollout_metrics({**BATCH, "rewards": rewards}, options())
    mean = {name: float(s) / float(w) for name, (s, w) in metrics.items()}
    assert mean["truncated"] == 0.25 and mean["equal_groups"] == 0.5
    assert mean["completion_tokens"] == LENGTHS.mean()
    assert mean["rewards/short"] == 1 and mean["reward"] == pytest.approx(
        rewards[..., 0].mean() * 2 + 1
    )
    assert mean["reward_std"] == pytest.approx(np.std(LENGTHS[0] / 5, ddof=1) / 2)


def test_a_row_is_a_prompt_with_its_completion_right_after_it():
    prompt = np.array([[7, 8, 0, 0], [1, 2, 3, 4]])
    completion = np.array([[[20, 21], [22, 9]], [[23, 24], [25, 9]]])
    batch = {"prompt": prompt, "prompt_length": np.array([2, 4]), "completion": completion}
    tokens, at = _policy.rows_of(jax.tree_util.tree_map(jnp.asarray, batch))
    expected = [
        [7, 8, 20, 21, 0, 0],
        [7, 8, 22, 9, 0, 0],
        [1, 2, 3, 4, 23, 24],
        [1, 2, 3, 4, 25, 9],
    ]
    np.testing.assert_array_equal(tokens, expected)
    np.testing.assert_array_equal(at, [[1, 2], [1, 2], [3, 4], [3, 4]])


def test_parts_are_put_together_in_their_order():
    batch = {"prompt": jnp.arange(12.0).reshape(6, 2)}
    for n in (1, 2, 3):
        got = _policy.in_parts(lambda b: {"x": b["prompt"] * 2, "n": b["prompt"][:, 0]}, batch, n)
        np.testing.assert_array_equal(got["x"], batch["prompt"] * 2)
        np.testing.assert_array_equal(got["n"], batch["prompt"][:, 0])


def test_groups_of_equal_rewards_and_of_one_have_no_advantage():
    for scale in policy.SCALES:
        equal = jnp.full((2, 8), 0.1)  # whose mean differs by a rounding error
        assert not np.any(policy.group_advantages(equal, scale))
        mixed = policy.group_advantages(equal.at[1, 0].set(0.3), scale)
        assert not np.any(mixed[0]) and np.all(mixed[1])
        assert np.isfinite(policy.group_advantages(jnp.ones((1, 1)), scale)).all()


def test_the_loss_of_a_batch_without_completions_is_refused():
    task = tasks.build(helpers.load_config("tests/tiny_grpo.py"))
    batch = {name: jnp.zeros((8, 34), jnp.int32) for name in ("prompt",)}
    with pytest.raises(UserError, match="needs completions.*kind='generation'"):
        task.loss({}, {}, {}, batch, None, False)
