"""The generator's updates against exact sums over all texts of a tiny language."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigjax.layers.sampling import categorical
from bigjax.projects.seqgan import train_step
from bigjax.projects.seqgan.gan import sample_texts, shift_right, token_mask
from bigjax.projects.seqgan.training_options import TrainingOptions
from tests.language import (
    END,
    LANGUAGES,
    PAD,
    T,
    all_texts,
    log_probability,
    make_gan,
    make_task,
    nll,
    reward_of,
    run_phase,
    text_index,
    texts,
)

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("language", LANGUAGES)
def test_sampled_texts_follow_their_probabilities(language):
    V, end_id = LANGUAGES[language]
    p = make_gan(V, end_id)
    params = make_task(p, V).init(jax.random.key(1))["params"]["generator"]
    every, n = jnp.array(all_texts(V, end_id)), 20_000
    none = {"tokens": jnp.zeros((n, T), jnp.int32)}
    for temperature in (1.0, 0.5):
        at = {"table": params["table"] / temperature}
        want = np.exp(log_probability(p, at, every))
        np.testing.assert_allclose(want.sum(), 1, rtol=1e-5)
        samples = sample_texts(
            p,
            params,
            p.context(none),
            jax.random.key(0),
            choose=functools.partial(categorical, temperature=temperature),
        )
        counts = np.bincount(text_index(samples, V), minlength=V**T)[text_index(every, V)]
        assert counts.sum() == n  # nothing else, such as words after the end
        assert (np.abs(counts - n * want) < 5 * np.sqrt(n * want) + 1).all()


def test_the_mask_ends_with_the_end_token():
    p = make_gan(4, END)
    tokens = jnp.array([[0, 1, 0], [0, 2, 3], [2, 3, 3], [2, 2, 0], [1, 0, 2]])
    want = [[1, 1, 1], [1, 1, 0], [1, 0, 0], [1, 0, 0], [1, 1, 1]]
    np.testing.assert_array_equal(token_mask(p, tokens), np.array(want, bool))
    np.testing.assert_array_equal(token_mask(make_gan(), tokens), np.ones((5, 3), bool))


def test_inputs_are_the_start_token_and_the_tokens():
    p = make_gan()._replace(start_id=7)
    np.testing.assert_array_equal(
        shift_right(p, jnp.array([[1, 2, 3], [4, 5, 6]])), [[7, 1, 2], [7, 4, 5]]
    )


# --- The generator's update -------------------------------------------------------------------


@pytest.mark.parametrize(
    "language, reward",
    [
        ("fixed length", "probability"),
        ("with an end", "log_odds"),
        pytest.param("fixed length", "log_odds", marks=pytest.mark.slow),
        pytest.param("with an end", "probability", marks=pytest.mark.slow),
    ],
)
def test_rollouts_converge_to_the_expected_reward(language, reward):
    V, end_id = LANGUAGES[language]
    n = 4000
    p = make_gan(V, end_id, rollouts=n, reward=reward)
    params = make_task(p, V).init(jax.random.key(2))["params"]
    policy, discriminator = params["generator"], params["discriminator"]
    every = jnp.array(all_texts(V, end_id))
    worth = reward_of(p, discriminator, every)
    got = jax.jit(functools.partial(train_step._rewards, p))(
        policy, discriminator, p.context({"tokens": every}), every, jax.random.key(0)
    )
    for i, text in enumerate(np.array(every)):
        for t in range(T):
            if t and text[t] == PAD:
                continue  # padding has weight 0
            same = (np.array(every)[:, : t + 1] == text[: t + 1]).all(1)
            chance = np.exp(log_probability(p, policy, every, t + 1))[same]
            mean = (chance * worth[same]).sum()
            deviation = np.sqrt((chance * (worth[same] - mean) ** 2).sum() / n)
            assert abs(got[i, t] - mean) < 4.5 * deviation + 1e-5, (text, t)


def test_without_rollouts_each_token_gets_the_reward_of_its_text():
    p = make_gan(rollouts=0)
    params = make_task(p).init(jax.random.key(2))["params"]
    every = jnp.array(all_texts(3, -1))
    got = train_step._rewards(
        p,
        params["generator"],
        params["discriminator"],
        p.context({"tokens": every}),
        every,
        jax.random.key(0),
    )
    want = reward_of(p, params["discriminator"], every)
    np.testing.assert_allclose(got, np.repeat(want[:, None], T, 1), rtol=1e-6)


def test_rollouts_use_the_context_of_their_row():
    p = make_gan(rollouts=5)
    params = make_task(p).init(jax.random.key(2))["params"]
    topic = jnp.array([2, 0, 1])
    tokens = jnp.array([[0, 1, 2], [1, 1, 1], [2, 0, 0]])
    rewards = train_step._rewards(
        p,
        params["generator"],
        params["discriminator"],
        {"topic": topic},
        tokens,
        jax.random.key(0),
    )
    rest = jnp.repeat(topic[:, None], T, 1)
    for t in range(T):
        text = jnp.where(jnp.arange(T) <= t, tokens, rest)
        np.testing.assert_allclose(
            rewards[:, t], reward_of(p, params["discriminator"], text), rtol=1e-5
        )


@pytest.mark.parametrize(
    "language, options",
    [
        ("fixed length", dict(rollouts=4)),
        ("fixed length", dict(rollouts=0, reward="log_odds")),
        pytest.param("fixed length", dict(rollouts=4, baseline="batch"), marks=pytest.mark.slow),
        ("fixed length", dict(rollouts=2, baseline="batch", standardize=True)),
        pytest.param(
            "fixed length",
            dict(rollouts=0, reward="log_odds", likelihood=0.5, kl=1.0),
            marks=pytest.mark.slow,
        ),
        ("with an end", dict(rollouts=4, baseline="batch")),
        ("with an end", dict(rollouts=0, baseline="batch", likelihood=1.0, kl=0.5)),
        pytest.param("with an end", dict(rollouts=0), marks=pytest.mark.slow),
    ],
)
def test_an_update_follows_the_gradient_of_the_expected_reward(language, options):
    V, end_id = LANGUAGES[language]
    p = make_gan(V, end_id, **options)
    before, after, metrics = run_phase(
        "adversarial",
        texts(20_000, 1, V),
        (1.0, 1.0),
        V,
        end_id,
        generator_updates=1,
        discriminator_updates=0,
        **options,
    )
    g, d = before.params["generator"], before.params["discriminator"]
    every = jnp.array(all_texts(V, end_id))

    def expected(params, values):
        return (jnp.exp(log_probability(p, params, every)) * values).sum()

    log_p, log_q = (log_probability(p, x, every) for x in (g, before.extras["reference"]))
    worth = reward_of(p, d, every) + p.options.likelihood * log_q - p.options.kl * (log_p - log_q)
    want = jax.grad(expected)(g, worth)["table"]
    got = after.params["generator"]["table"] - g["table"]
    cosine = (want * got).sum() / jnp.linalg.norm(want.ravel()) / jnp.linalg.norm(got.ravel())
    assert cosine > 0.97
    if not options.get("standardize"):  # the loss is a mean over tokens
        length = expected(g, token_mask(p, every).sum(1))
        factor = jnp.linalg.norm(got.ravel()) * length / jnp.linalg.norm(want.ravel())
        assert factor == pytest.approx(1, abs=0.15)
    if not options["rollouts"] and end_id < 0:
        assert metrics["generator/reward"] == pytest.approx(
            float(expected(g, reward_of(p, d, every))), abs=0.05
        )


def test_rollouts_come_from_the_rollout_policy():
    start, _, _ = run_phase(
        "adversarial",
        texts(20_000, 1),
        **(options := dict(rollouts=2, generator_updates=1, discriminator_updates=0)),
    )
    ones = {"table": jnp.full((T, 3, 3), -1e3).at[..., 1].set(0.0)}  # writes 1 and nothing else
    before, _, metrics = run_phase(
        "adversarial",
        texts(20_000, 1),
        **options,
        state=start._replace(extras={**start.extras, "rollout": ones}),
    )
    p, every = make_gan(), jnp.array(all_texts(3, -1))
    chance = jnp.exp(log_probability(p, before.params["generator"], every))
    want = np.mean(
        [
            (
                chance
                * reward_of(
                    p, before.params["discriminator"], jnp.where(jnp.arange(T) <= t, every, 1)
                )
            ).sum()
            for t in range(T)
        ]
    )
    assert metrics["generator/reward"] == pytest.approx(float(want), abs=0.01)


@pytest.mark.parametrize("baseline", ["none", "batch"])
@pytest.mark.parametrize("standardize", [False, True])
def test_advantage(baseline, standardize):
    rewards = RNG.normal(size=(6, T)).astype(np.float32)
    mask = np.array([[1, 1, 1], [1, 1, 0], [1, 0, 0]] * 2, bool)
    got = np.array(
        train_step._advantage(
            TrainingOptions(baseline=baseline, standardize=standardize),
            jnp.array(rewards),
            jnp.array(mask),
        )
    )
    means = [rewards[mask[:, t], t].mean() for t in range(T)]
    want = rewards - (np.array(means) if baseline == "batch" else 0)
    want = want / want[mask].std() if standardize else want
    np.testing.assert_allclose(got[mask], want[mask], rtol=1e-4, atol=1e-6)


def test_advantage_of_equal_rewards_is_finite():
    got = train_step._advantage(
        TrainingOptions(baseline="batch", standardize=True),
        jnp.full((4, T), 0.5),
        jnp.ones((4, T), bool),
    )
    assert (np.abs(got) < 1e-3).all()


def test_tokens_after_the_end_do_not_change_the_reward():
    p = make_gan(4, END)
    params = make_task(p, 4).init(jax.random.key(0))["params"]
    every = jnp.array(all_texts(4, END))
    assert (np.array(every)[~np.array(token_mask(p, every))] == PAD).all()
    other = jnp.where(token_mask(p, every), every, 1)  # words where the padding was
    of = lambda texts: train_step._rewards(
        make_gan(4, END, rollouts=0),
        params["generator"],
        params["discriminator"],
        p.context({"tokens": texts}),
        texts,
        jax.random.key(0),
    )
    np.testing.assert_array_equal(of(every), of(other))


GENTLE = dict(generator_updates=20, discriminator_updates=0, rollouts=0, reward="log_odds")


def divergence(params, reference) -> float:
    """Of the texts of two generators."""
    p, every = make_gan(), jnp.array(all_texts(3, -1))
    a, b = (log_probability(p, x, every) for x in (params, reference))
    return float((jnp.exp(a) * (a - b)).sum())


@functools.cache
def after_updates(**options):
    """(the generator before, after some updates on the same real texts, metrics)."""
    batch = {"tokens": jnp.tile(jnp.array([0, 1, 2]), (64, 20, 1))}
    before, after, metrics = run_phase("adversarial", batch, (0.3, 1.0), **GENTLE, **options)
    reference = before.extras["reference"]
    return before.params["generator"], after.params["generator"], reference, metrics


@pytest.mark.parametrize("option", ["kl", "teacher_forcing", "entropy"])
def test_terms_of_the_generator_loss(option):
    _, free, reference, _ = after_updates()
    _, held, _, metrics = after_updates(**{option: 3.0})
    p, real = make_gan(), jnp.array([[0, 1, 2]])
    entropy = lambda g: divergence(g, {"table": jnp.zeros((T, 3, 3))})  # the lower, the more
    measure = {
        "kl": lambda g: divergence(g, reference),
        "teacher_forcing": lambda g: nll(p, g, real),
        "entropy": entropy,
    }[option]
    assert measure(held) < 0.3 * measure(free)
    assert option == "teacher_forcing" or f"generator/{option}" in metrics


@pytest.mark.parametrize("rate", [0.0, 0.25, 1.0])
def test_the_rollout_policy_follows_the_generator(rate):
    before, after, _ = run_phase(
        "adversarial",
        texts(8, 1),
        rollout_rate=rate,
        generator_updates=1,
        discriminator_updates=0,
        rollouts=2,
    )
    old, new = before.extras["rollout"]["table"], after.params["generator"]["table"]
    assert np.abs(new - old).max() > 1e-3
    np.testing.assert_allclose(
        after.extras["rollout"]["table"], rate * old + (1 - rate) * new, atol=1e-6
    )
    np.testing.assert_array_equal(
        after.extras["reference"]["table"], before.extras["reference"]["table"]
    )
