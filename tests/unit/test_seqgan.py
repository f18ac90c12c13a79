"""SeqGAN's networks, alone and in training rounds."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigjax import losses, tasks
from bigjax.errors import UserError
from bigjax.infer.rollout import sample_continuation
from bigjax.parallel import mesh as mesh_lib
from bigjax.projects.seqgan import model as seqgan
from bigjax.projects.seqgan import train_step
from bigjax.projects.seqgan.gan import empty_context, unconditional
from bigjax.projects.seqgan.training_options import TrainingOptions
from bigjax.train import program as program_lib
from bigjax.train import state as state_lib
from tests import helpers

TINY = str(pathlib.Path(__file__).parents[1] / "tiny_seqgan.py")
SIZES = dict(
    vocab_size=11,
    max_len=5,
    d_model=8,
    n_heads=2,
    discriminator_d_model=8,
    discriminator_heads=2,
    filter_widths=(1, 2, 3),
    filters=(3, 4, 5),
    init_std=0.5,
)
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 11, (3, 5)), jnp.int32)


def tiny(**sections):
    """The tiny config with changes: SECTION={key: value}."""
    c = helpers.load_config(TINY)
    with c.unlocked():
        for section, changes in sections.items():
            c[section].update(changes)
    return c


# --- Networks ---------------------------------------------------------------------------------


@functools.cache
def generator(kind, n_layers=1):
    c = seqgan.Config(generator=kind, n_layers=n_layers, **SIZES)
    model = seqgan.Generator(c)
    return c, model, jax.jit(model.init)(jax.random.key(1), TOKENS)


@pytest.mark.parametrize("kind, n_layers", [("lstm", 2), ("gru", 1), ("rnn", 1), ("gpt", 2)])
def test_decoder_steps_equal_the_full_sequence(kind, n_layers):
    c, model, variables = generator(kind, n_layers)
    want = jax.jit(model.apply)(variables, TOKENS)
    assert want.shape == (3, 5, 11) and want.dtype == jnp.float32
    decoder = seqgan.generator_decoder(c)
    step = jax.jit(decoder.step)
    state = decoder.begin(variables, empty_context(3), 5)
    for t in range(5):
        logits, state = step(variables, state, TOKENS[:, t])
        np.testing.assert_allclose(logits, want[:, t], atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gru", "gpt"])
def test_decoder_continues_prefixes_of_different_lengths(kind):
    c, model, variables = generator(kind, 2 if kind == "gpt" else 1)
    decoder = seqgan.generator_decoder(c)
    prefixes = [TOKENS[row, : row + 2].tolist() for row in range(3)]
    context, first = decoder.context(prefixes)
    logits, _ = decoder.step(variables, decoder.begin(variables, context, 5), first)
    want = model.apply(variables, TOKENS)
    for row in range(3):
        np.testing.assert_allclose(logits[row], want[row, row + 1], atol=2e-5)


@pytest.mark.parametrize("kind", ["lstm", "gpt"])
def test_loss_is_the_cross_entropy_of_the_logits(kind):
    _, model, variables = generator(kind, 2)
    targets, weights = TOKENS[:, ::-1], jnp.arange(15.0).reshape(3, 5) - 5
    got = jax.jit(lambda: model.apply(variables, TOKENS, targets, weights, method="loss"))()
    want = losses.cross_entropy(model.apply(variables, TOKENS), targets, weights)
    np.testing.assert_allclose(got, want, rtol=1e-5)


@pytest.mark.parametrize("kind", ["lstm", "gpt"])
def test_dropout_needs_an_rng(kind):
    model = seqgan.Generator(seqgan.Config(generator=kind, dropout=0.5, **SIZES))
    variables = generator(kind)[2]
    plain, a, b, c = (
        model.apply(variables, TOKENS, rng) for rng in (None, *map(jax.random.key, (0, 0, 1)))
    )
    np.testing.assert_allclose(plain, generator(kind)[1].apply(variables, TOKENS), atol=1e-6)
    assert (a == b).all() and np.abs(a - c).max() > 0.01 and np.abs(a - plain).max() > 0.01


@pytest.mark.parametrize("kind", ["cnn", "lstm", "bert"])
def test_discriminator_reads_all_unmasked_tokens_only(kind):
    model = seqgan.Discriminator(seqgan.Config(discriminator=kind, **SIZES))
    mask = jnp.arange(5) < jnp.array([5, 3, 1])[:, None]
    variables = jax.jit(
        lambda: jax.tree_util.tree_map(  # BERT's initial parameters are small
            lambda x: 3 * x, model.init(jax.random.key(0), TOKENS, mask)
        )
    )()
    score = jax.jit(lambda tokens, rng=None: model.apply(variables, tokens, mask, rng))
    want = score(TOKENS)
    assert want.shape == (3, 2) and want.dtype == jnp.float32
    np.testing.assert_allclose(score(jnp.where(mask, TOKENS, 10 - TOKENS)), want, atol=1e-5)
    for row, last in enumerate((4, 2, 0)):  # all other tokens count
        other = score(TOKENS.at[row, last].set((TOKENS[row, last] + 1) % 11))
        assert np.abs(other - want)[row].max() > 1e-4
    assert np.abs(score(TOKENS, jax.random.key(0)) - want).max() > 1e-4  # dropout


def test_the_bert_of_a_discriminator_drops_no_attention():
    c = seqgan.Config(discriminator="bert", discriminator_dropout=0.0, **SIZES)
    model, mask = seqgan.Discriminator(c), jnp.ones_like(TOKENS, bool)
    variables = model.init(jax.random.key(0), TOKENS, mask)
    scores = [model.apply(variables, TOKENS, mask, rng) for rng in (None, jax.random.key(0))]
    np.testing.assert_array_equal(*scores)


def test_the_penalty_is_half_the_sum_of_squares_of_the_last_layer():
    c = seqgan.Config(**SIZES)
    gan = unconditional(seqgan, c, TrainingOptions(), 5)
    head = {"kernel": np.array([[1.0, 2.0]]), "bias": np.array([2.0])}
    assert gan.penalty({"embed": {"embedding": np.array([9.0])}, "head": head}) == 4.5


@pytest.mark.parametrize(
    "change, words",
    [
        (dict(filter_widths=(1, 9)), ["9", "model.max_len=5", "filters"]),
        (dict(filters=(3, 4)), ["filter_widths has 3", "filters has 2"]),
        (dict(filters=(), filter_widths=()), ["filters has 0"]),
        (dict(filter_widths=(0, 1, 2)), ["positive", "(0, 1, 2)"]),
        (dict(generator="lstn"), ["generator", "lstn", "lstm", "gpt"]),
        (dict(discriminator="gru"), ["discriminator", "gru", "cnn", "bert"]),
        (dict(d_model=0), ["d_model", "0"]),
        (dict(dropout=1.5), ["dropout", "1.5"]),
    ],
)
def test_refused_configs(change, words):
    with pytest.raises(UserError) as e:
        seqgan.Config(
            **{
                **SIZES,
                **({"filters": (3, 4)} if change == dict(filter_widths=(1, 9)) else {}),
                **change,
            }
        )
    assert all(w in str(e.value) for w in words), e.value


@pytest.mark.parametrize("kind", ["cnn", "lstm", "bert"])
@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_rows_with_the_same_first_tokens_get_the_same_logits(kind, n):
    model = seqgan.Discriminator(seqgan.Config(discriminator=kind, **SIZES))
    first = jnp.repeat(TOKENS[:, :n], 4, axis=0)
    own = np.random.default_rng(1).integers(0, 11, (12, 5 - n))
    tokens = jnp.concatenate([first, own], axis=1)
    mask = jnp.repeat(jnp.arange(5) < jnp.array([5, 3, 1])[:, None], 4, axis=0)
    variables = model.init(jax.random.key(0), tokens, mask)
    score = lambda tokens, *shared: model.apply(variables, tokens, mask, None, *shared)
    want = score(tokens)
    np.testing.assert_allclose(score(tokens, (n, 4)), want, atol=1e-6)
    # The CNN reads the first tokens of the first of four rows only.
    other = tokens.at[1::4, 0].set((tokens[1::4, 0] + 1) % 11)
    read_once = kind == "cnn"
    assert (np.abs(score(other, (n, 4)) - score(other)).max() > 1e-4) == read_once


def test_sequences_shorter_than_a_filter_are_refused():
    model = seqgan.Discriminator(seqgan.Config(**SIZES))
    with pytest.raises(UserError, match="3 tokens .* sequences of 2"):
        model.init(jax.random.key(0), TOKENS[:, :2], jnp.ones((3, 2), bool))


# --- Rounds -----------------------------------------------------------------------------------


def gan_of(**changes):
    """The GAN of the tiny config with other networks, and their parameters."""
    c = tiny(model=dict(n_heads=2, discriminator_heads=2, **changes), task=dict(reward="log_odds"))
    task = tasks.build(c)
    return c, task, jax.jit(task.init)(jax.random.key(0))["params"]


@pytest.mark.parametrize("kind", ["lstm", pytest.param("rnn", marks=pytest.mark.slow), "gpt"])
def test_rollouts_continue_each_prefix_of_their_row(kind):
    _, task, params = gan_of(generator=kind, init_std=1.0)

    def step(*args):  # so peaked that each start has only one continuation
        logits, state = task.gan.decoder.step(*args)
        return 1e6 * logits, state

    decoder = task.gan.decoder._replace(step=step)
    p = task.gan._replace(decoder=decoder)
    g, d = params["generator"], params["discriminator"]
    starts = jnp.arange(8, dtype=jnp.int32)
    variables = {"params": g}

    @jax.jit
    def continued():
        state = decoder.begin(variables, empty_context(8), 4)
        _, state = decoder.step(variables, state, jnp.zeros(8, jnp.int32))
        return sample_continuation(decoder, variables, state, starts, jax.random.key(0), 3)

    rest = continued()
    tokens = jnp.concatenate([starts[:, None], rest], axis=1)
    assert len(np.unique(rest, axis=0)) > 3
    rewards = jax.jit(
        lambda: train_step._rewards(p, g, d, empty_context(8), tokens, jax.random.key(0))
    )()
    np.testing.assert_allclose(rewards, np.repeat(rewards[:, -1:], 4, 1), rtol=1e-4)
    assert len(np.unique(rewards[:, 0].round(5))) > 3


@pytest.mark.parametrize(
    "changes",
    [
        dict(generator="gru", discriminator="bert"),
        pytest.param(dict(generator="gpt", n_layers=2), marks=pytest.mark.slow),
        pytest.param(dict(discriminator="lstm"), marks=pytest.mark.slow),
        dict(dtype="bfloat16"),
    ],
    ids=str,
)
def test_all_networks_train_in_every_phase(changes):
    c, task, params = gan_of(**changes)
    txs = train_step.optimizers(c, task.gan.options, params)
    state = state_lib.make_init(task, functools.partial(train_step.init_optimizers, txs), 0, False)
    run_round = train_step.make_round(task, txs, 0)
    for phase, n in (("mle", 4), ("discriminator", 2), ("adversarial", 4)):
        batch = {"tokens": jnp.zeros((16, n, 4), jnp.int32), "weights": jnp.ones((16, n, 4))}
        after, metrics = jax.eval_shape(lambda: run_round(state(), None, {phase: batch}))
        types = lambda tree: jax.tree_util.tree_map(lambda x: (x.shape, x.dtype), tree)
        assert types(after) == types(jax.eval_shape(state))
        assert all(x.shape == () and x.dtype == jnp.float32 for x in metrics.values())


def test_rounds_of_every_phase_are_traced_when_a_program_is_made(monkeypatch):
    """This finds a round that would change the shape or dtype of its state before any has run."""
    traced = []

    def run_round(state, frozen, batch):
        traced.extend(batch)
        return state, {"loss": jnp.float32(0)}

    monkeypatch.setattr(train_step, "make_round", lambda task, txs, seed: run_round)
    c, mesh = tiny(), mesh_lib.make_mesh(dict(data=1), jax.devices()[:1])
    program_lib.make(c, tasks.build(c), mesh)
    assert traced == ["mle", "discriminator", "adversarial"]


@pytest.mark.slow
def test_frozen_parameters_of_the_generator_stay_in_every_phase():
    c, task, params = gan_of()
    with c.unlocked():
        c.optim.freeze = "generator/embed"
    for kind, tx in train_step.optimizers(c, task.gan.options, params).items():
        network = {"discriminator": "discriminator"}.get(kind, "generator")
        mine = {network: params[network]}
        ones = jax.tree_util.tree_map(jnp.ones_like, mine)
        updates, _ = tx.update(ones, tx.init(mine), mine)
        moved = np.abs(updates[network]["embed"]["embedding"]).max() > 0
        assert moved == (network == "discriminator"), kind
