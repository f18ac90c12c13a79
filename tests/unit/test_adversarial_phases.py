"""Rounds of every phase, on a tiny language, and what they read."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigjax.data.arrays import ArrayBatches
from bigjax.errors import UserError
from bigjax.projects.seqgan import train_step
from bigjax.projects.seqgan.gan import shift_right
from bigjax.projects.seqgan.round_batches import RoundBatches
from bigjax.projects.seqgan.training_options import PHASES, TrainingOptions
from tests.language import T, make_gan, make_task, nll, run_phase, text_index, texts


def test_maximum_likelihood_learns_and_sets_rollout_and_reference():
    batch = {"tokens": jnp.tile(jnp.array([0, 1, 2]), (8, 10, 1))}
    before, after, metrics = run_phase("mle", batch)
    g, p = after.params["generator"], make_gan()
    real = batch["tokens"][0]
    assert nll(p, g, real) < 0.5 * nll(p, before.params["generator"], real)
    for x in (after.extras["rollout"], after.extras["reference"]):
        np.testing.assert_array_equal(x["table"], g["table"])
    np.testing.assert_array_equal(
        after.params["discriminator"]["worth"], before.params["discriminator"]["worth"]
    )
    assert {k.split("/")[0] for k in metrics} == {"generator"}


def test_scheduled_sampling_reads_sampled_tokens():
    p, batch = make_gan(scheduled_sampling=1.0), {"tokens": jnp.ones((4, T), jnp.int32)}
    chain = 1e3 * jnp.broadcast_to(jnp.roll(jnp.eye(3), 1, 1), (T, 3, 3))  # after 0 comes 1, then 2
    own = functools.partial(
        train_step._scheduled_inputs, p, {"table": chain}, batch, rng=jax.random.key(0)
    )
    np.testing.assert_array_equal(own(0.0), shift_right(p, batch["tokens"]))
    np.testing.assert_array_equal(own(1.0), [[0, 1, 2]] * 4)
    many = {"tokens": jnp.full((5000, T), 2, jnp.int32)}
    half = train_step._scheduled_inputs(p, {"table": chain}, many, 0.5, jax.random.key(0))
    assert (half[:, 0] == 0).all() and (half[:, 1] == 1).mean() == pytest.approx(0.5, abs=0.03)


def test_the_rate_of_scheduled_sampling():
    def table(rate):
        _, after, _ = run_phase("mle", texts(8, 4), scheduled_sampling=rate, mle_rounds=1)
        return after.params["generator"]["table"]

    plain = table(0.0)
    np.testing.assert_allclose(table(1e-12), plain, atol=1e-6)
    assert np.abs(table(1.0) - plain).max() > 0.01


def test_constant_reward_leaves_the_discriminator():
    before, after, metrics = run_phase(
        "adversarial", texts(8, 1), reward="constant", generator_updates=1, discriminator_updates=4
    )
    np.testing.assert_array_equal(
        after.params["discriminator"]["worth"], before.params["discriminator"]["worth"]
    )
    assert metrics["generator/reward"] == 0.5
    assert not any(k.startswith("discriminator") for k in metrics)


@pytest.mark.parametrize("negatives", [0, 1])
def test_the_discriminator_sees_each_real_text_once_and_as_many_generated_ones(negatives):
    rate, batch = 1e-3, texts(8, 3)
    batch["tokens"] = batch["tokens"] % 2  # only generated texts have word 2, and only that
    batch["topic"] = jnp.full((8, 3), 2)
    before, after, metrics = run_phase(
        "discriminator",
        batch,
        (1.0, rate),
        pretrain_updates=6,
        negatives=negatives,
        discriminator_l2=0.0,
    )
    worth = before.params["discriminator"]["worth"]
    moved = (after.params["discriminator"]["worth"] - worth) * 8 / rate
    real = np.bincount(text_index(batch["tokens"].reshape(-1, T), 3), minlength=27)
    right = jax.nn.sigmoid(worth)
    np.testing.assert_allclose(moved[:-1], (real * (1 - right))[:-1], atol=0.02)
    np.testing.assert_allclose(moved[-1], -24 * right[-1], rtol=0.02)
    np.testing.assert_array_equal(
        after.params["generator"]["table"], before.params["generator"]["table"]
    )
    np.testing.assert_array_equal(
        after.extras["rollout"]["table"], before.params["generator"]["table"]
    )
    np.testing.assert_allclose(
        metrics["discriminator/accuracy"],
        (((worth > 0) * real).sum() + 24 * (worth[-1] < 0)) / 48,
        atol=0.01,
    )


def test_the_discriminator_reads_other_batches_than_the_generator():
    tokens = jnp.ones((8, 3, T), jnp.int32).at[:, 0].set(0)  # the generator's comes first
    batch = {"tokens": tokens, "topic": jnp.full((8, 3), 2)}
    before, after, _ = run_phase(
        "adversarial",
        batch,
        (0.0, 1e-3),
        generator_updates=1,
        rollouts=0,
        discriminator_updates=4,
        discriminator_l2=0.0,
    )
    moved = np.sign(
        after.params["discriminator"]["worth"] - before.params["discriminator"]["worth"]
    )
    want = np.zeros(27)
    want[[13, 26]] = 1, -1  # real: 1 1 1; generated: 2 2 2
    np.testing.assert_array_equal(moved, want)


def test_the_penalty_shrinks_the_discriminator():
    worth = lambda l2: run_phase(
        "discriminator", texts(8, 3), (1.0, 0.1), pretrain_updates=6, discriminator_l2=l2
    )[1].params["discriminator"]["worth"]
    np.testing.assert_allclose(
        jnp.abs(worth(1.0)).sum() / jnp.abs(worth(0.0)).sum(), 0.9**6, rtol=0.1
    )


@pytest.mark.parametrize("at_once", [1, 40, 10_000])
def test_negatives_use_the_context_of_their_row(monkeypatch, at_once):
    monkeypatch.setattr(train_step, "SAMPLE_ROWS", at_once)
    p = make_gan()
    generator = make_task(p).init(jax.random.key(0))["params"]["generator"]
    topic = np.random.default_rng(0).integers(-1, 3, (6, 16))  # -1: any words
    rows = {"tokens": jnp.zeros((6, 16, T), jnp.int32), "topic": jnp.asarray(topic)}
    got = np.array(train_step._negatives(p, generator, rows, jax.random.key(0)))
    assert (got[topic >= 0] == topic[topic >= 0][:, None]).all()
    assert len(np.unique(got[topic < 0], axis=0)) > 3


def test_the_number_of_updates():
    options = dict(
        mle_updates=3, pretrain_updates=5, generator_updates=2, discriminator_updates=3, rollouts=1
    )
    state = None
    for phase, want in (
        ("mle", (3, 0, 0)),
        ("discriminator", (3, 0, 5)),
        ("adversarial", (3, 2, 8)),
    ):
        batches = {"mle": 3, "discriminator": 3, "adversarial": 4}[phase]
        _, state, metrics = run_phase(phase, texts(8, batches), (), state=state, **options)
        counts = [int(state.opt_state[k][0].count) for k in ("mle", "adversarial", "discriminator")]
        assert tuple(counts) == want, phase
    assert int(state.step) == 3 and not state.halted


@pytest.mark.parametrize("phase", ["mle", "discriminator", "adversarial"])
def test_a_round_that_is_not_finite_changes_nothing(phase):
    before, after, metrics = run_phase(phase, texts(8, 4), (np.inf, np.inf), rollouts=1)
    assert not all(np.isfinite(x) for x in metrics.values())
    assert after.halted and after.step == 1
    for name in ("params", "extras", "opt_state"):
        jax.tree_util.tree_map(
            np.testing.assert_array_equal, getattr(before, name), getattr(after, name)
        )


def test_another_step_or_seed_gives_other_samples():
    state, first, _ = run_phase("adversarial", texts(8, 4), rollouts=1)
    same, again, other = (
        run_phase("adversarial", texts(8, 4), rollouts=1, seed=seed, state=s)[1]
        for s, seed in ((state, 0), (state._replace(step=jnp.int32(5)), 0), (state, 1))
    )
    table = lambda s: np.array(s.params["generator"]["table"])
    np.testing.assert_array_equal(table(same), table(first))
    assert (table(again) != table(first)).any() and (table(other) != table(first)).any()


# --- Which round it is, and its rows ----------------------------------------------------------


@pytest.mark.parametrize(
    "options, want",
    [
        (
            dict(
                mle_rounds=2,
                mle_updates=3,
                discriminator_rounds=1,
                pretrain_updates=5,
                generator_updates=2,
                discriminator_updates=3,
            ),
            [("mle", 3)] * 2 + [("discriminator", 3)] + [("adversarial", 4)] * 3,
        ),
        (
            dict(mle_rounds=0, discriminator_rounds=2, pretrain_updates=4, discriminator_updates=0),
            [("discriminator", 2)] * 2 + [("adversarial", 1)] * 4,
        ),
        (
            dict(
                mle_rounds=1,
                mle_updates=2,
                discriminator_rounds=3,
                reward="constant",
                generator_updates=5,
            ),
            [("mle", 2)] + [("adversarial", 5)] * 5,
        ),
    ],
)
def test_the_schedule_of_rounds(options, want):
    o, end = TrainingOptions(**options), 0
    rounds = [o.round(step) for step in range(6)]
    assert [(phase, n) for phase, n, _ in rounds] == want
    for _, n, before in rounds:  # all batches are used once
        assert before == end
        end += n
    counts = {phase: [x[0] for x in want].count(phase) for phase in PHASES}
    assert o.describe(6) == ", ".join(f"{n} {phase}" for phase, n in counts.items() if n)
    for steps in range(1, 7):
        phases = [phase for phase, _ in want[:steps]]
        assert o.phases(steps) == [
            (phase, phases.index(phase), phases.count(phase)) for phase in dict.fromkeys(phases)
        ]
    phase, first, rounds = o.phases(2**31 - 1)[-1]  # fast for any number of steps
    assert phase == "adversarial" and first + rounds == 2**31 - 1


@pytest.mark.parametrize(
    "name, value",
    [
        ("mle_rounds", -1),
        ("mle_updates", 0),
        ("pretrain_updates", 0),
        ("generator_updates", 0),
        ("discriminator_updates", -1),
        ("negatives", -1),
        ("rollouts", -1),
        ("kl", -0.1),
        ("entropy", -1),
        ("teacher_forcing", -1),
        ("discriminator_l2", -1),
        ("rollout_rate", 1.1),
        ("scheduled_sampling", -0.1),
        ("reward", "odds"),
        ("baseline", "mean"),
    ],
)
def test_refused_options(name, value):
    with pytest.raises(UserError, match=rf"task\.{name} is {value!r}"):
        TrainingOptions(**{name: value})


# --- Rows in rounds ---------------------------------------------------------------------------


def round_data(seed, n=10, batch_size=4):
    arrays = {"tokens": np.arange(n * 2).reshape(n, 2), "weights": np.ones((n, 2), np.float32)}
    options = TrainingOptions(
        mle_rounds=2, mle_updates=3, discriminator_rounds=1, pretrain_updates=2
    )
    rows = ArrayBatches(arrays, batch_size, seed=seed or 0, shuffle=seed is not None)
    return rows if seed is None else RoundBatches(rows, options.round)


def test_a_round_is_a_function_of_seed_and_step():
    a, b = round_data(1), round_data(1)
    for step in (5, 0, 2):
        ((phase, x),) = a.batch_at(step).items()
        np.testing.assert_array_equal(x["tokens"], b.batch_at(step)[phase]["tokens"])
    assert x["tokens"].shape == (4, 1, 2) and phase == "discriminator"
    assert (round_data(2).batch_at(0)["mle"]["tokens"] != a.batch_at(0)["mle"]["tokens"]).any()


@pytest.mark.parametrize("seed", [0, None])
def test_rows_of_hosts_are_parts_of_the_batch(seed):
    data = round_data(seed)
    batch, *halves = (data.batch_at(2, rows) for rows in (None, slice(0, 2), slice(2, 4)))
    joined = jax.tree_util.tree_map(lambda a, b: np.concatenate([a, b]), *halves)
    jax.tree_util.tree_map(np.testing.assert_array_equal, batch, joined)


def test_every_epoch_has_every_row():
    data, seen = round_data(0), []
    for step in range(5):
        ((_, x),) = data.batch_at(step).items()
        rows = x["tokens"].swapaxes(0, 1)[..., 0].ravel() // 2
        assert [f"train:{i}" for i in rows] == data.examples_at(step)
        seen += list(rows)
    epochs = np.array(seen)[:30].reshape(3, 10)
    assert (np.sort(epochs) == np.arange(10)).all() and (epochs[0] != epochs[1]).any()


def test_the_last_batch_of_an_evaluation_is_filled_with_weight_0():
    data = round_data(None)
    assert (data.n_batches, data.n_examples) == (3, 10)
    batches = [data.batch_at(i) for i in range(3)]
    assert np.concatenate([b["tokens"] for b in batches])[:10].ravel().tolist() == list(range(20))
    assert batches[2]["weights"].tolist() == [[1, 1], [1, 1], [0, 0], [0, 0]]
    with pytest.raises(UserError, match="no batch 3"):
        data.batch_at(3)


def test_less_than_a_batch_is_refused_for_training_only():
    with pytest.raises(UserError, match="3 examples, and a batch has 4. Lower train.batch_size"):
        round_data(0, n=3)
    assert round_data(None, n=3).n_batches == 1
