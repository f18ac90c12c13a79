"""Rollouts: what is sampled and rewarded before a step, and the step on it."""

import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigjax import modules, tasks
from bigjax.parallel import mesh as mesh_lib
from bigjax.parallel import sharding
from bigjax.tasks import _policy
from bigjax.train import program as program_lib
from bigjax.train import rollouts as rollouts_lib
from bigjax.train.step import unpack
from tests import helpers

TINY = "tests/tiny_grpo.py"
ENDS = (257, *range(32))  # many, so that completions have all lengths
PROMPTS = [{"prompt": "Hi" * (i % 5 + 1), "answer": "abc"[: i % 3 + 1]} for i in range(20)]


def config(spec=TINY, **values):
    """The config with other values, by dotted key with '__' for dots."""
    c = helpers.load_config(spec)
    with c.unlocked():
        for key, value in values.items():
            section, _, name = key.replace("__", ".").partition(".")
            c[section][name] = value
    return helpers.filled(c)


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    """A file of prompts of several lengths."""
    path = tmp_path_factory.mktemp("prompts") / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in PROMPTS))
    return str(path)


def noisy(tree):
    """Parameters that are not so small that all tokens are about equally likely."""
    key, leaves = jax.random.key(3), jax.tree_util.tree_leaves(tree)
    keys = iter(jax.random.split(key, len(leaves)))
    add = lambda x: x + 0.3 * jax.random.normal(next(keys), x.shape)
    return jax.tree_util.tree_map(add, tree)


class Lab:
    """A run without a work folder, on a mesh of these sizes (data, fsdp, tensor)."""

    def __init__(self, c, sizes=(1, 1, 1), frozen=None):
        n = int(np.prod(sizes))
        with c.unlocked():
            c.mesh.update(dict(zip(("data", "fsdp", "tensor"), sizes)), sequence=1)
        self.config, self.lines = c, []
        self.mesh = mesh_lib.make_mesh(c.mesh, jax.devices()[:n])
        with jax.set_mesh(self.mesh):
            task = tasks.build(c)
            self.program = program_lib.make(c, task, self.mesh)
            self.state = self.program.init()
            on = lambda tree, like: jax.device_put(
                tree, jax.tree_util.tree_map(lambda x: x.sharding, like)
            )
            params = noisy(jax.device_get(self.state.params))
            self.state = self.state._replace(params=on(params, self.state.params))
        self.task = task
        self.corpus = task.load_data(lambda text: None)
        self.corpus.end_ids = ENDS
        self.frozen = SimpleNamespace(arrays=frozen or {})
        self.progress = SimpleNamespace(log=self.lines.append)
        self.batches = self.corpus.split("train", c.train.batch_size, seed=c.seed)

    def rollouts(self, start=0):
        write = lambda step, lines: self.lines.extend(lines)
        with jax.set_mesh(self.mesh):
            return rollouts_lib.Rollouts(self, start, write)

    def batch(self, rollouts, state=None, step=0):
        batch = jax.device_put(self.batches.batch_at(step), sharding.of_batch(self.mesh))
        with jax.set_mesh(self.mesh):
            return rollouts(state or self.state, batch)

    def step(self, batch):
        """(the state after a step on a complete batch, its metrics)."""
        state = jax.tree_util.tree_map(jnp.copy, self.state)
        with jax.set_mesh(self.mesh):
            state, metrics = self.program.step(state, self.frozen.arrays, batch)
        return state, unpack(jax.device_get(metrics))


@pytest.fixture(scope="module")
def lab(prompts):
    return Lab(config(data__train=prompts))


@pytest.fixture(scope="module")
def batch(lab):
    return lab.batch(lab.rollouts())


def trainer_log_probs(lab, batch):
    """Those of the task's own forward pass."""
    c = lab.config
    options = modules.options(c, "task")
    p = _policy.make_policy(c, options, valued=c.task.name == "ppo")
    return jax.jit(p.forward)(lab.state.params, lab.state.extras, batch)[0]


def test_the_trainer_gives_the_sampled_tokens_the_same_log_probabilities(lab, batch):
    mask = np.asarray(batch["mask"])
    got = np.asarray(trainer_log_probs(lab, batch)) * mask
    np.testing.assert_allclose(got, batch["sampler_log_probs"], atol=1e-5)
    assert len({*np.asarray(batch["prompt_length"]).tolist()}) > 3
    assert 0 < (got < -0.5).mean() and mask.sum() > 50


def test_a_completion_ends_with_its_end_token(batch):
    tokens, mask, ended = (np.asarray(batch[k]) for k in ("completion", "mask", "ended"))
    for ids, real, end in zip(tokens.reshape(-1, 6), mask.reshape(-1, 6), ended.reshape(-1)):
        n = int(real.sum())
        assert (real[:n] == 1).all() and (ids[n:] == 258).all()
        assert not np.isin(ids[: n - 1], ENDS).any()
        assert (ids[n - 1] in ENDS) == bool(end) and (end or n == 6)
    assert 0.2 < ended.mean() < 0.8 and len({*mask.sum(-1).reshape(-1).tolist()}) > 3


def test_rewards_are_of_the_texts(lab, batch):
    tokens, rewards = np.asarray(batch["completion"]), np.asarray(batch["rewards"])
    assert rewards.shape == (8, 4, 2)
    rows = lab.corpus.rows("train")
    for i, example in enumerate(np.asarray(batch["example"])):
        for ids, (letters, short) in zip(tokens[i], rewards[i]):
            text = lab.corpus.tokenizer.decode(i for i in ids if i not in ENDS).strip()
            assert short == np.float32(1 - len(text.encode()) / 10)
            odd = sum(b % 2 for b in text.encode()) / 6
            more = 0.1 * sum(c in text for c in rows[example]["columns"]["answer"])
            assert letters == np.float32(odd + more)


@pytest.mark.parametrize("accumulate", [pytest.param(2, marks=pytest.mark.slow), 4])
def test_the_loss_is_that_of_all_micro_batches(lab, batch, prompts, accumulate):
    first, metrics = lab.step(batch)
    assert metrics["sampler_gap"] < 1e-5 and metrics["reward_std"] > 0.01
    state, m = Lab(config(data__train=prompts, train__accumulate=accumulate)).step(batch)
    for name in metrics:
        np.testing.assert_allclose(m[name], metrics[name], rtol=1e-6, atol=1e-6, err_msg=name)
    for a, b in zip(*map(jax.tree_util.tree_leaves, (state.params, first.params))):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_the_tokens_of_a_rollout_are_those_of_its_only_update(lab, batch, prompts):
    """So dapo and bnpo are equal there, and differ from the others."""
    sums = {}
    for loss in ("dapo", "bnpo", "grpo", "dr_grpo"):
        task = tasks.build(config(data__train=prompts, task__loss=loss))
        total, weight = task.loss(lab.state.params, {}, {}, batch, None, True)[0]
        sums[loss] = float(weight)
    assert sums["dapo"] == pytest.approx(sums["bnpo"], rel=1e-6) == float(batch["mask"].sum())
    assert sums["grpo"] == 32 and sums["dr_grpo"] == 32 * 6


def test_each_step_samples_anew_and_the_same_again(lab, batch):
    one, again, two = (lab.batch(lab.rollouts(start)) for start in (0, 0, 1))
    np.testing.assert_array_equal(one["completion"], again["completion"])
    np.testing.assert_array_equal(one["completion"], batch["completion"])
    np.testing.assert_array_equal(one["prompt"], two["prompt"])
    assert (np.asarray(one["completion"]) != np.asarray(two["completion"])).mean() > 0.3


def test_updates_and_epochs_use_the_probabilities_before_the_first(lab, batch, prompts):
    """One epoch of one update after the other: the second one's ratios are no longer 1."""
    given = dict(data__train=prompts, task__clip_low=1e-3, task__clip_high=1e-3)
    other = Lab(config(task__updates=2, task__epochs=2, **given))
    state, metrics = other.step(batch)
    assert int(state.step) == 1 and 0 < metrics["clipped"] < 1
    counts = [x for x in jax.tree_util.tree_leaves(state.opt_state) if x.shape == ()]
    assert {int(x) for x in counts if x.dtype == jnp.int32} == {4}
    whole = other.task.whole_batch(other.state.params, {}, {}, batch)
    mask = np.asarray(batch["mask"])
    old = np.asarray(whole["old_log_probs"]) * mask
    np.testing.assert_allclose(old, batch["sampler_log_probs"], atol=1e-5)
    assert other.task.whole_batch(other.state.params, {}, {}, whole) is whole


@pytest.mark.parametrize(
    "sizes", [pytest.param((8, 1, 1), marks=pytest.mark.slow), (2, 2, 2)], ids=str
)
def test_eight_devices_give_the_numbers_of_one(lab, batch, prompts, sizes):
    other = Lab(config(data__train=prompts), sizes)
    theirs = other.batch(other.rollouts())
    for name in ("example", "completion", "mask", "ended", "rewards"):
        np.testing.assert_array_equal(theirs[name], batch[name], err_msg=name)
    np.testing.assert_allclose(theirs["sampler_log_probs"], batch["sampler_log_probs"], atol=1e-5)
    mine, metrics = lab.step(batch)
    state, got = other.step(theirs)
    for name in metrics:
        np.testing.assert_allclose(got[name], metrics[name], rtol=1e-5, atol=1e-6, err_msg=name)
    for a, b in zip(*map(jax.tree_util.tree_leaves, (state.params, mine.params))):
        np.testing.assert_allclose(a, b, atol=1e-4)


def test_with_lora_on_a_base_that_is_the_reference(prompts):
    """The sampler and the trainer agree, and the divergence is that from the base alone."""
    c = config(data__train=prompts, task__beta=0.1)
    with c.unlocked():
        c.peft = dict(name="lora", base="a run", rank=2, dropout=0.5)
    base = jax.eval_shape(tasks.build(helpers.filled(c)).frozen["base"].init, jax.random.key(0))
    drawn = noisy(jax.tree_util.tree_map(lambda x: jnp.zeros(x.shape), base))
    other = Lab(c, frozen={"base": drawn})
    assert {*other.task.frozen} == {"base"}
    batch = other.batch(other.rollouts())
    whole = jax.jit(other.task.whole_batch)(other.state.params, {}, other.frozen.arrays, batch)
    mask = np.asarray(batch["mask"])
    _, metrics = other.step(batch)
    assert metrics["sampler_gap"] < 1e-5 and metrics["kl"] > 0.01
    zero = jax.tree_util.tree_map(jnp.zeros_like, other.state.params)  # LoRA that adds nothing
    rng = jax.random.key(3)  # dropout is off: sampler_gap shows it as well
    loss = jax.jit(lambda p: other.task.loss(p, {}, other.frozen.arrays, batch, rng, True))
    kl, tokens = loss(zero)[1][0]["kl"]
    assert float(tokens) == mask.sum() and abs(float(kl)) < 1e-4
    assert whole["reference_log_probs"].shape == mask.shape


@pytest.mark.slow
def test_ppo_learns_values_beside_the_policy(prompts):
    c = config(f"{TINY}:ppo", data__train=prompts, task__updates=2, task__value_weight=1.0)
    ppo = Lab(c)
    assert {*ppo.state.params} == {"embed", "final_norm", "stack", "value"}
    rollouts = ppo.rollouts()
    batch = ppo.batch(rollouts)
    got = np.asarray(trainer_log_probs(ppo, batch)) * np.asarray(batch["mask"])
    np.testing.assert_allclose(got, batch["sampler_log_probs"], atol=1e-5)
    whole = jax.jit(ppo.task.whole_batch)(ppo.state.params, {}, {}, batch)
    mask = np.asarray(batch["mask"])
    returns, total = np.asarray(whole["returns"]), batch["rewards"] @ jnp.array([2.0, 1.0])
    # Without discount and with the values at 0 each return would be the reward of the completion.
    last = np.asarray(mask.sum(-1) - 1, int)[..., None]
    at_end = np.take_along_axis(returns, last, -1)[..., 0]
    np.testing.assert_allclose(at_end, total, rtol=1e-5)
    advantages = np.asarray(whole["advantages"])
    assert (
        abs((advantages * mask).sum() / mask.sum()) < 1e-5 and not (advantages * (1 - mask)).any()
    )
    state, first = ppo.step(batch)
    before = ppo.state
    losses = [first["value_loss"]]
    for _ in range(3):
        ppo.state = state
        state, metrics = ppo.step(batch)
        losses.append(metrics["value_loss"])
    ppo.state = before
    assert losses[-1] < 0.7 * losses[0] and int(state.step) == 4
    assert "value" not in ppo.task.variables(before.params, {}, {})["params"]


def test_the_divergence_lowers_the_rewards_of_ppo(prompts):
    values = dict(task__beta=0.5, task__reference="a run", task__gamma=1.0, task__decay=1.0)
    c = config(f"{TINY}:ppo", data__train=prompts, task__whiten=False, **values)
    task, rng = tasks.build(c), np.random.default_rng(0)
    params = noisy(jax.jit(task.init)(jax.random.key(0))["params"])
    params["value"] = jax.tree_util.tree_map(jnp.zeros_like, params["value"])
    other = {k: x for k, x in noisy(params).items() if k != "value"}
    lengths, shape = rng.integers(1, 7, (8, 2)), (8, 2, 6)
    batch = {
        "prompt": rng.integers(0, 256, (8, 34)),
        "prompt_length": rng.integers(1, 35, 8),
        "completion": rng.integers(0, 256, shape),
        "mask": (np.arange(6) < lengths[..., None]).astype(np.float32),
        "ended": np.ones(shape[:2], np.float32),
        "sampler_log_probs": np.zeros(shape, np.float32),
        "rewards": rng.normal(size=(8, 2, 2)).astype(np.float32),
    }
    frozen = {"reference": {"params": other}}
    whole = jax.jit(task.whole_batch)(params, {}, frozen, batch)
    far = ((whole["old_log_probs"] - whole["reference_log_probs"]) * batch["mask"]).sum(-1)
    expected = batch["rewards"] @ np.array([2.0, 1.0]) - 0.5 * far
    np.testing.assert_allclose(whole["advantages"][..., 0], expected, rtol=1e-4, atol=1e-4)
    assert np.abs(far).mean() > 0.1
