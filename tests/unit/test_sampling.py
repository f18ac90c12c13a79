"""Sampling in two levels, against softmax."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import chisquare

from bigjax.layers.sampling import categorical

RNG = np.random.default_rng(0)
draw = jax.jit(categorical)


def draws(logits, n: int, seed: int = 0) -> np.ndarray:
    """n tokens of the same logits [V]."""
    rows = jnp.broadcast_to(jnp.asarray(logits, jnp.float32), (n, len(logits)))
    return np.asarray(draw(rows, jax.random.key(seed)))


def softmax(logits) -> np.ndarray:
    p = np.exp(np.asarray(logits, np.float64) - np.max(logits))
    return p / p.sum()


def assert_drawn_from(tokens, p):
    """A chi-square test over the entries with p > 0; no other was sampled."""
    counts = np.bincount(tokens, minlength=len(p))
    assert len(counts) == len(p) and not counts[p == 0].any()
    assert chisquare(counts[p > 0], p[p > 0] * len(tokens)).pvalue > 1e-3


@pytest.mark.parametrize("V", [2, 7, 13, 16, 30])  # primes, a square, others
@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_frequencies_are_softmax(V, scale):
    logits = RNG.normal(size=V) * scale + 100
    assert_drawn_from(draws(logits, 30_000), softmax(logits))


def test_frequencies_of_many_words():
    logits = RNG.normal(size=5000)
    tokens = np.concatenate([draws(logits, 2000, seed) for seed in range(10)])
    p = softmax(logits).reshape(50, 100)
    assert tokens.min() >= 0 and tokens.max() < 5000
    assert_drawn_from(tokens // 100, p.sum(1))
    assert_drawn_from(tokens % 100, p.sum(0))


def test_each_row_samples_from_its_own_logits():
    best = RNG.integers(0, 30, 64)
    assert (draw(200 * jax.nn.one_hot(best, 30), jax.random.key(0)) == best).all()


@pytest.mark.parametrize("V", [7, 12, 16])
def test_impossible_tokens_are_never_sampled(V):
    logits = np.where(np.arange(V) % 3 == 1, RNG.normal(size=V), -np.inf)  # not the first token
    logits[-2:] = -np.inf  # nor the last
    assert_drawn_from(draws(logits, 10_000), softmax(logits))


@pytest.mark.parametrize("V", [1, 2, 7, 12])
def test_the_only_possible_token(V):
    only = jnp.where(jnp.eye(V, dtype=bool), 0.0, -jnp.inf)
    assert (draw(only, jax.random.key(3)) == np.arange(V)).all()


@pytest.mark.parametrize("u", ["least", "largest"])
def test_the_extreme_uniform_numbers(monkeypatch, u):
    def uniform(key, shape, dtype=jnp.float32, minval=0.0, maxval=1.0):
        return jnp.full(shape, minval if u == "least" else np.nextafter(np.float32(maxval), 0))

    monkeypatch.setattr(jax.random, "uniform", uniform)
    for V in (2, 7, 16, 101):
        logits = np.where(RNG.random((500, V)) < 0.5, RNG.normal(size=(500, V)) * 5, -np.inf)
        logits[:, V // 2] = 0.0  # at least one is possible
        tokens = np.asarray(jax.jit(lambda x: categorical(x, jax.random.key(0)))(logits))
        assert np.isfinite(logits[np.arange(500), tokens]).all()
        p = np.array([softmax(row) for row in logits])
        beyond = np.cumsum(p if u == "least" else p[:, ::-1], axis=1)  # with the token itself
        at = tokens if u == "least" else V - 1 - tokens
        before = beyond[np.arange(500), at] - p[np.arange(500), tokens]
        assert before.max() < 1e-5  # the probability between the token and that end


def test_peaked_logits_give_the_largest():
    logits = RNG.permutation(30) * 1e4
    assert (draws(logits, 100) == logits.argmax()).all()
    assert (draws(-1e30 + logits * 1e26, 100) == logits.argmax()).all()


@pytest.mark.parametrize("V", [1, 5, 13, 25])
def test_every_token_is_reached(V):
    assert set(draws(np.zeros(V), 2000)) == set(range(V))


def test_unlikely_tokens_have_their_probability():
    logits = np.zeros(13)
    logits[[0, 6, 12]] = -6.0
    assert_drawn_from(draws(logits, 100_000), softmax(logits))


def test_same_rng_same_tokens():
    logits = RNG.normal(size=30)
    a, b, c = (draws(logits, 200, seed) for seed in (1, 1, 2))
    assert (a == b).all() and (a != c).any() and a.dtype == np.int32


def test_a_temperature_that_overflows():
    tokens = categorical(jnp.array([[1.0, 2, 2, 1.99]] * 50), jax.random.key(0), 1e-40)
    assert set(np.asarray(tokens)) == {1, 2}


def test_half_precision_logits():
    logits = RNG.normal(size=(50, 30)).astype(jnp.bfloat16)
    np.testing.assert_array_equal(
        draw(logits, jax.random.key(0)), draw(logits.astype(np.float32), jax.random.key(0))
    )
