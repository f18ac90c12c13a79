"""Random keys: each step, micro-batch, update and token has its own."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bigjax.infer.generate import Generator, Options
from bigjax.layers import params as params_lib
from bigjax.models import gpt
from bigjax.projects.seqgan import train_step
from bigjax.train.state import make_init
from bigjax.train.step import make_step
from tests import helpers
from tests.keys import Draws
from tests.language import make_gan, make_task, texts


@pytest.fixture
def draws(monkeypatch):
    return Draws(monkeypatch)


# --- Steps and micro-batches ------------------------------------------------------------------


def numbers(steps, accumulate=1, seed=0):
    """The first random number of each micro-batch of each step, [steps, accumulate]."""

    def loss(params, extras, frozen, batch, rng, train):
        current = (batch["micro"][0] == jnp.arange(accumulate)).astype(jnp.float32)
        drawn = {
            f"{i}": (jax.random.uniform(rng) * current[i], current[i]) for i in range(accumulate)
        }
        return (params["w"].sum(), jnp.float32(1)), (drawn, extras)

    init = lambda rng: {"params": {"w": jnp.ones(1)}}
    task = helpers.task(init, loss, {"w": ("norm",)})
    tx, out = optax.sgd(0.1), []
    step = jax.jit(make_step(task, tx, lambda s: 0.1, seed=seed, accumulate=accumulate))
    state = make_init(task, tx.init, 0, False)()
    for _ in range(steps):
        state, metrics = step(state, None, {"micro": jnp.arange(2 * accumulate) % accumulate})
        out.append([float(metrics[f"{i}"]) for i in range(accumulate)])
    return np.array(out)


def test_each_step_and_micro_batch_has_its_own_numbers():
    drawn = numbers(3, accumulate=2)
    assert len(np.unique(drawn)) == drawn.size == 6


def test_random_numbers_follow_from_the_seed_and_the_step():
    """And not from earlier steps, so that a resumed run continues exactly."""
    key = jax.random.fold_in(jax.random.key(5), 2)
    assert numbers(3, seed=5)[2, 0] == pytest.approx(float(jax.random.uniform(key)))


# --- Rounds of adversarial training -----------------------------------------------------------

UPDATES = dict(mle_updates=3, pretrain_updates=4, generator_updates=2, discriminator_updates=4)
NETWORK = (
    3  # draws of a network that is given a key: with that key, and with two that it makes of it
)
# Of 8 rows of 3 tokens. A rollout after token t draws the tokens that are left.
ROUNDS = {
    # Each update: which inputs are its own, its 3 tokens, and the loss.
    "mle": (3, dict(scheduled_sampling=0.5, mle_rounds=1), 3 * (1 + 3 + NETWORK)),
    # The written texts of two batches at once, and each update's judgement.
    "discriminator": (2, {}, 3 + 4 * NETWORK),
    # Each update: its text, rollouts after the first and the second token, the loss, and that of
    # the real text. Then as above.
    "adversarial": (
        4,
        dict(rollouts=2, teacher_forcing=0.5),
        2 * (3 + 2 + 1 + 2 * NETWORK) + 3 + 4 * NETWORK,
    ),
}


def run_once(gan, task, phase, rows):
    txs = {k: optax.sgd(0.1) for k in ("mle", "adversarial", "discriminator")}
    state = make_init(task, functools.partial(train_step.init_optimizers, txs), 0, False)()
    run_round = jax.jit(train_step.make_round(task, txs, 0))
    jax.block_until_ready(run_round(state, None, {phase: rows}))


@pytest.mark.parametrize("phase", ROUNDS)
def test_no_two_draws_of_a_round_share_a_key(draws, phase):
    batches, options, n = ROUNDS[phase]
    plain = make_gan(**UPDATES, **options)

    def drawing(f, place):  # as networks with dropout do; place: of the key in the arguments
        def g(*arguments):
            rng = arguments[place]
            keys = [] if rng is None else [rng, *jax.random.split(rng)]
            nothing = sum(0 * jax.random.uniform(key) for key in keys)
            return jax.tree.map(lambda x: x + nothing, f(*arguments))

        return g

    gan = plain._replace(discriminator=drawing(plain.discriminator, 4), loss=drawing(plain.loss, 5))
    run_once(gan, make_task(gan), phase, texts(8, batches))
    draws.check_distinct(n)


def test_negatives_sampled_in_turn_have_distinct_keys(draws, monkeypatch):
    monkeypatch.setattr(train_step, "SAMPLE_ROWS", 8)  # a batch at a time
    gan = make_gan(**UPDATES)
    run_once(gan, make_task(gan), "discriminator", texts(8, 2))
    draws.check_distinct(2 * 3)


# --- Decoding ---------------------------------------------------------------------------------


def test_each_decoded_token_has_its_own_key(draws):
    c = gpt.Config(vocab_size=37, max_len=32, d_model=8, n_layers=1, n_heads=2)
    shapes = jax.eval_shape(gpt.Model(c).init, jax.random.key(0), jnp.zeros((1, 1), int))
    params = jax.tree.map(lambda x: np.ones(x.shape, x.dtype), params_lib.unbox(shapes["params"]))
    Generator(gpt.decoder(c), {"params": params})([[3], [4]], Options(max_new_tokens=5))
    draws.check_distinct(2 * 5)
