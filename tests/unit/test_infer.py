"""Sampling and decoding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigjax.errors import UserError
from bigjax.infer.generate import Generator, Options
from bigjax.infer.sampling import sample
from bigjax.layers import params as params_lib
from bigjax.models import gpt

LOGITS = jnp.log(jnp.array([[0.5, 0.3, 0.15, 0.05]]))


def frequencies(**options):
    keys = jax.random.split(jax.random.key(0), 4000)
    drawn = jax.vmap(lambda k: sample(LOGITS, k, **options))(keys)
    return np.bincount(np.asarray(drawn).ravel(), minlength=4) / 4000


def test_sampling_follows_the_probabilities():
    np.testing.assert_allclose(frequencies(), [0.5, 0.3, 0.15, 0.05], atol=0.03)
    p = np.array([0.5, 0.3, 0.15, 0.05]) ** 2
    np.testing.assert_allclose(frequencies(temperature=0.5), p / p.sum(), atol=0.03)


def test_top_k_and_top_p_cut_the_tail_and_keep_the_ratios():
    np.testing.assert_allclose(frequencies(top_k=2), [0.625, 0.375, 0, 0], atol=0.03)
    # 0.5 + 0.3 reaches 0.7, so the third is out; 0.81 needs it.
    np.testing.assert_allclose(frequencies(top_p=0.7), [0.625, 0.375, 0, 0], atol=0.03)
    assert frequencies(top_p=0.81)[2] > 0 and frequencies(top_p=0.81)[3] == 0
    assert frequencies(top_p=1e-6)[0] == 1
    # The temperature comes first: at 0.5 two reach 0.9, where 0.5 + 0.3 alone do not.
    np.testing.assert_allclose(
        frequencies(top_p=0.9, temperature=0.5), [0.25 / 0.34, 0.09 / 0.34, 0, 0], atol=0.03
    )


def test_temperature_zero_is_greedy():
    assert frequencies(temperature=0)[0] == 1


NEVER, NAN = -np.inf, np.nan


@pytest.mark.parametrize(
    "logits, options, drawn",
    [  # of equal logits the first ones stay, and no more than asked for
        ([0, 0, 0, 0], dict(top_k=1), {0}),
        ([0, 0, 0, 0], dict(top_k=3), {0, 1, 2}),
        ([1, 2.5, 2, 2, 2], dict(top_k=3), {1, 2, 3}),
        ([1, 2, 1, 2], dict(top_k=4), {0, 1, 2, 3}),
        ([1, 2, 1, 2], dict(top_k=99), {0, 1, 2, 3}),
        ([0, 0, 0, 0], dict(top_p=0.5), {0, 1}),
        ([0, 0, 0, 0], dict(top_p=0.51), {0, 1, 2}),
        ([0, 0, 0, 0], dict(top_p=1e-9), {0}),
        ([0, 0, 0, 0], dict(top_p=1.0), {0, 1, 2, 3}),
        (np.log([0.15, 0.5, 0.05, 0.3]), dict(top_p=0.8), {1, 3}),
        ([0, 0, 0, 0], dict(top_k=3, top_p=0.5), {0, 1}),
        ([NEVER, 0, NEVER, 0], dict(), {1, 3}),
        ([NEVER, 0, NEVER, 0], dict(top_k=3), {1, 3}),
        ([NEVER, 0, NEVER, 0], dict(top_p=0.9), {1, 3}),
        ([NAN, 0, NAN, 0], dict(), {1, 3}),
        ([NAN, 0, NAN, 1], dict(temperature=0), {3}),
        ([NAN, 0, NAN, 0], dict(top_k=1), {1}),
        ([NAN, 0, NAN, 0], dict(top_p=0.2), {1}),
        ([np.inf, 0, 1, 2], dict(top_p=0.9), {0}),
        ([NEVER, NEVER], dict(top_p=0.9, top_k=2), {0}),
        ([1, 2, 2, 1.99], dict(temperature=1e-40), {1, 2}),
        ([3e38, -3e38, 3e38], dict(temperature=0.01), {0, 2}),
        ([-3e38, -3e38, -3.1e38], dict(temperature=0.01, top_k=2), {0, 1}),
    ],
    ids=str,
)
def test_who_can_be_drawn(logits, options, drawn):
    keys = jax.random.split(jax.random.key(0), 200)
    row = jnp.array([logits], jnp.float32)
    assert set(np.ravel(jax.vmap(lambda k: sample(row, k, **options))(keys)).tolist()) == drawn


def test_the_likeliest_of_rounded_logits_is_one_token():
    """In bfloat16 many logits are equal: greedy, top_k=1 and a tiny top_p then choose the same."""
    logits = jax.random.normal(jax.random.key(0), (64, 1000)).astype(jnp.bfloat16)
    greedy = sample(logits, jax.random.key(1), temperature=0)
    for options in (dict(top_k=1), dict(top_p=1e-6)):
        np.testing.assert_array_equal(sample(logits, jax.random.key(2), **options), greedy)


@pytest.fixture(scope="module")
def generator():
    c = gpt.Config(vocab_size=31, max_len=48, d_model=16, n_layers=2, n_heads=2)
    init = jax.jit(
        lambda k: params_lib.unbox(gpt.Model(c).init(k, jnp.zeros((1, 1), int))["params"])
    )
    params = jax.tree.map(lambda x: 5 * x, init(jax.random.key(0)))
    return Generator(gpt, c, params)


def test_greedy_decoding_is_the_uncached_argmax_for_prompts_of_several_lengths(generator):
    prompts = [[3], [5, 9, 2, 7], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17]]
    got = generator(prompts, Options(max_new=6, temperature=0))
    model = gpt.Model(generator.config)
    logits = jax.jit(lambda t: model.apply({"params": generator.params}, t)[0])
    for prompt, new in zip(prompts, got):
        tokens = list(prompt)
        for token in new:
            padded = np.zeros((1, 24), int)  # later tokens change nothing: the mask is causal
            padded[0, : len(tokens)] = tokens
            assert token == int(logits(padded)[0, len(tokens) - 1].argmax())
            tokens.append(token)
        assert len(new) == 6


def test_a_row_ends_at_the_end_token_and_the_others_go_on(generator):
    prompts = [[3], [5, 9, 2, 7]]
    free = generator(prompts, Options(max_new=8, temperature=0))
    eos = next(t for t in free[0] if t not in free[1])  # ends the first row only
    ended = generator(prompts, Options(max_new=8, temperature=0, eos_id=eos))
    assert ended[0] == free[0][: free[0].index(eos)] and ended[1] == free[1]


def test_the_seed_decides(generator):
    a, b, c = (generator([[3]], Options(max_new=8), seed=s) for s in (1, 1, 2))
    assert a == b != c


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda g: g([[1] * 45], Options(max_new=8)), ["45", "8", "max_len=48"]),
        (lambda g: g([[]], Options()), ["no tokens"]),
        (lambda g: Options(temperature=-1.0), ["temperature", "-1"]),
        (lambda g: Options(top_p=0.0), ["top_p", "(0, 1]"]),
    ],
)
def test_bad_requests(generator, call, words):
    with pytest.raises(UserError) as e:
        call(generator)
    assert all(w in str(e.value) for w in words)
