"""SeqGAN's networks, alone and in rounds, and the oracle's task."""

import functools
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigjax import losses, tasks
from bigjax.errors import UserError
from bigjax.parallel import mesh as mesh_lib
from bigjax.projects.seqgan import model as seqgan
from bigjax.projects.seqgan import oracle_data, train_step
from bigjax.projects.seqgan.gan import Options, sample_continuation
from bigjax.projects.seqgan.networks import make_gan
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
def test_step_by_step_equals_the_whole_sequence(kind, n_layers):
    c, model, variables = generator(kind, n_layers)
    want = jax.jit(model.apply)(variables, TOKENS)
    assert want.shape == (3, 5, 11) and want.dtype == jnp.float32
    step = jax.jit(lambda tokens, state: model.apply(variables, tokens, state, method="step"))
    state = seqgan.begin(c, 3)
    for t in range(5):
        logits, state = step(TOKENS[:, t], state)
        np.testing.assert_allclose(logits, want[:, t], atol=2e-5)


@pytest.mark.parametrize("kind", ["lstm", "gpt"])
def test_loss_is_the_cross_entropy_of_the_logits(kind):
    _, model, variables = generator(kind, 2)
    targets, weights = TOKENS[:, ::-1], jnp.arange(15.0).reshape(3, 5) - 5
    got = jax.jit(lambda: model.apply(variables, TOKENS, targets, weights, method="loss"))()
    want = losses.cross_entropy(model.apply(variables, TOKENS), targets, weights)
    np.testing.assert_allclose(got, want, rtol=1e-5)


@pytest.mark.parametrize("kind", ["lstm", "gpt"])
def test_dropout_only_with_an_rng(kind):
    model = seqgan.Generator(seqgan.Config(generator=kind, dropout=0.5, **SIZES))
    variables = generator(kind)[2]
    plain, a, b, c = (
        model.apply(variables, TOKENS, rng) for rng in (None, *map(jax.random.key, (0, 0, 1)))
    )
    np.testing.assert_allclose(plain, generator(kind)[1].apply(variables, TOKENS), atol=1e-6)
    assert (a == b).all() and np.abs(a - c).max() > 0.01 and np.abs(a - plain).max() > 0.01


@pytest.mark.parametrize("kind", ["cnn", "lstm", "bert"])
def test_discriminator_reads_what_is_not_masked(kind):
    model = seqgan.Discriminator(seqgan.Config(discriminator=kind, **SIZES))
    mask = jnp.arange(5) < jnp.array([5, 3, 1])[:, None]
    variables = jax.jit(
        lambda: jax.tree_util.tree_map(  # BERT's are small to begin with
            lambda x: 3 * x, model.init(jax.random.key(0), TOKENS, mask)
        )
    )()
    score = jax.jit(lambda tokens, rng=None: model.apply(variables, tokens, mask, rng))
    want = score(TOKENS)
    assert want.shape == (3, 2) and want.dtype == jnp.float32
    np.testing.assert_allclose(score(jnp.where(mask, TOKENS, 10 - TOKENS)), want, atol=1e-5)
    for row, last in enumerate((4, 2, 0)):  # and all that is not
        other = score(TOKENS.at[row, last].set((TOKENS[row, last] + 1) % 11))
        assert np.abs(other - want)[row].max() > 1e-4
    assert np.abs(score(TOKENS, jax.random.key(0)) - want).max() > 1e-4  # dropout


def test_the_penalty_is_half_the_squares_of_the_last_layer():
    c = seqgan.Config(**SIZES)
    p = make_gan(seqgan, c, Options(), 5)
    head = {"kernel": np.array([[1.0, 2.0]]), "bias": np.array([2.0])}
    assert p.penalty({"embed": {"embedding": np.array([9.0])}, "head": head}) == 4.5


@pytest.mark.parametrize(
    "change, words",
    [
        (dict(filter_widths=(1, 9)), ["9", "model.max_len=5", "filters"]),
        (dict(filters=(3, 4)), ["filter_widths has 3", "filters 2"]),
        (dict(filters=(), filter_widths=()), ["filters 0"]),
        (dict(filter_widths=(0, 1, 2)), ["positive", "(0, 1, 2)"]),
        (dict(generator="lstn"), ["generator", "lstn", "lstm", "gpt"]),
        (dict(discriminator="gru"), ["discriminator", "gru", "cnn", "bert"]),
        (dict(d_model=0), ["d_model", "0"]),
        (dict(dropout=1.5), ["dropout", "1.5"]),
    ],
)
def test_configs_that_are_refused(change, words):
    with pytest.raises(UserError) as e:
        seqgan.Config(
            **{
                **SIZES,
                **({"filters": (3, 4)} if change == dict(filter_widths=(1, 9)) else {}),
                **change,
            }
        )
    assert all(w in str(e.value) for w in words), e.value


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


@pytest.mark.parametrize("kind", ["lstm", "rnn", "gpt"])
def test_rollouts_go_on_from_each_token_of_their_row(kind):
    _, task, params = gan_of(generator=kind, init_std=1.0)
    p = task.gan

    def step(*args):  # so peaked that there is one text to write after each start
        logits, state = task.gan.step(*args)
        return 1e6 * logits, state

    p = p._replace(step=step)
    g, d = params["generator"], params["discriminator"]
    starts = jnp.arange(8, dtype=jnp.int32)
    rest = sample_continuation(
        p,
        g,
        (),
        p.step(g, (), p.begin(8), jnp.zeros(8, jnp.int32))[1],
        starts,
        jax.random.key(0),
        3,
    )
    tokens = jnp.concatenate([starts[:, None], rest], axis=1)
    assert len(np.unique(rest, axis=0)) > 3
    rewards = jax.jit(lambda: train_step._rewards(p, g, d, {}, tokens, jax.random.key(0)))()
    np.testing.assert_allclose(rewards, np.repeat(rewards[:, -1:], 4, 1), rtol=1e-4)
    assert len(np.unique(rewards[:, 0].round(5))) > 3


@pytest.mark.parametrize(
    "changes",
    [
        dict(generator="gru"),
        dict(generator="gpt", n_layers=2),
        dict(discriminator="lstm"),
        dict(discriminator="bert"),
        dict(dtype="bfloat16"),
    ],
    ids=str,
)
def test_all_networks_play_every_phase(changes):
    c, task, params = gan_of(**changes)
    txs = train_step.optimizers(c, task.gan.options, params)
    state = state_lib.make_init(task, functools.partial(train_step.init_optimizers, txs), 0, False)
    one_round = train_step.make_round(task, txs, 0)
    for phase, n in (("mle", 4), ("discriminator", 2), ("adversarial", 4)):
        batch = {"tokens": jnp.zeros((16, n, 4), jnp.int32), "weights": jnp.ones((16, n, 4))}
        after, metrics = jax.eval_shape(lambda: one_round(state(), None, {phase: batch}))
        types = lambda tree: jax.tree_util.tree_map(lambda x: (x.shape, x.dtype), tree)
        assert types(after) == types(jax.eval_shape(state))
        assert all(x.shape == () and x.dtype == jnp.float32 for x in metrics.values())


def test_rounds_of_every_phase_are_traced_when_a_program_is_made(monkeypatch):
    """Which finds a round that would change the shape or type of its state, before any has run."""
    traced = []

    def one_round(state, frozen, batch):
        traced.extend(batch)
        return state, {"loss": jnp.float32(0)}

    monkeypatch.setattr(train_step, "make_round", lambda task, txs, seed: one_round)
    c, mesh = tiny(), mesh_lib.make_mesh(dict(data=1), jax.devices()[:1])
    program_lib.make(c, tasks.build(c), mesh)
    assert traced == ["mle", "discriminator", "adversarial"]


def test_what_is_frozen_of_the_generator_stays_in_every_phase():
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


# --- The oracle's task ------------------------------------------------------------------------


def load(cache, logged=None, **sections):
    """OracleText of the tiny config with changes."""
    c = tiny(**{**sections, "data": {"cache_dir": str(cache), **sections.get("data", {})}})
    return tasks.build(c).load_data(log=lambda text: (logged or []).append(text))


def sequences(text, split="train"):
    return text.split(split, batch_size=200).batch_at(0)["tokens"]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """The arrays of the tiny oracle, the folder of its sequences, and the text."""
    cache = tmp_path_factory.mktemp("oracle")
    text = load(cache)
    return oracle_data.oracle_arrays(tiny()), cache, text


def saved(path, arrays, names=None) -> str:
    np.savez(path, **dict(zip(names or [f"param_{i}" for i in range(15)], arrays)))
    return str(path)


def test_sequences_are_written_by_the_oracle(drawn):
    arrays, _, text = drawn
    c, params = seqgan.oracle(arrays)
    found = [sequences(text, split) for split in ("train", "valid", "test")]
    assert all(x.shape == (200, 4) for x in found)
    assert (found[0] != found[1]).any() and (found[1] != found[2]).any()
    first = seqgan.Generator(c).apply({"params": params}, jnp.zeros((1, 1), jnp.int32))[0, 0]
    counts = np.bincount(np.concatenate(found)[:, 0], minlength=30)
    p = np.asarray(jax.nn.softmax(first))
    assert (np.abs(counts - 600 * p) < 5 * np.sqrt(600 * p) + 1).all()


def test_cached_sequences_are_reused(drawn, monkeypatch):
    _, cache, text = drawn
    monkeypatch.setattr(oracle_data, "write", None)  # drawing would fail
    logged = ["it is not empty"]
    again = load(cache, logged)
    assert again.fingerprint == text.fingerprint and len(logged) == 1
    np.testing.assert_array_equal(sequences(again), sequences(text))
    with pytest.raises(TypeError):
        load(cache, data=dict(seed=1))


@pytest.mark.parametrize("change", [dict(seed=1), dict(sequences=201), dict(d_model=4)])
def test_sequences_depend_on_the_oracle(drawn, change):
    _, cache, text = drawn
    before, logged = len(os.listdir(cache)), ["it is not empty"]
    other = load(cache, logged, data=change)
    assert other.fingerprint != text.fingerprint and len(logged) == 2
    assert len(os.listdir(cache)) == before + 1
    if "sequences" not in change:  # those begin alike
        assert (sequences(other) != sequences(text)).any()


def test_an_oracle_from_a_file_equals_the_drawn_one(drawn, tmp_path, monkeypatch):
    arrays, cache, text = drawn
    path = saved(tmp_path / "oracle.npz", arrays)
    monkeypatch.setattr(oracle_data, "write", None)  # even its sequences are found
    assert load(cache, data=dict(params=path, d_model=99)).fingerprint == text.fingerprint


def bad_files(folder, arrays) -> dict:
    """{name: (path, words of the message)}"""
    path = lambda name: folder / name
    path("text.npz").write_text("these are no arrays")
    path("empty.npz").write_bytes(b"")
    np.save(path("one.npy"), arrays[0])
    whole = pathlib.Path(saved(path("whole.npz"), arrays)).read_bytes()
    path("cut.npz").write_bytes(whole[: len(whole) // 2])
    changed = lambda i, x: [x if k == i else a for k, a in enumerate(arrays)]
    return {
        "missing": (path("nothing.npz"), ["nothing.npz", "cannot be read"]),
        "folder": (folder, ["cannot be read"]),
        "text": (path("text.npz"), ["text.npz", "cannot be read"]),
        "empty": (path("empty.npz"), ["empty.npz", "cannot be read"]),
        "one array": (path("one.npy"), ["one.npy"]),
        "cut": (path("cut.npz"), ["cut.npz", "cannot be read"]),
        "fewer": (saved(path("a.npz"), arrays[:14]), ["param_0 to param_14"]),
        "names": (saved(path("b.npz"), arrays, [f"w{i}" for i in range(15)]), ["w0", "param_14"]),
        "flat": (
            saved(path("c.npz"), changed(0, arrays[0].ravel())),
            ["param_0", "[words, width]"],
        ),
        "gate": (
            saved(path("d.npz"), changed(4, arrays[4][:, :3])),
            ["param_4", "(8, 3)", "(8, 8)"],
        ),
        "bias": (
            saved(path("e.npz"), changed(14, arrays[14][:-1])),
            ["param_14", "(29,)", "(30,)"],
        ),
        "not finite": (saved(path("f.npz"), changed(3, arrays[3] * np.nan)), ["param_3"]),
        "too large": (
            saved(path("h.npz"), changed(3, arrays[3].astype(np.float64) * 1e300)),
            ["param_3", "float64", "not finite real numbers in float32"],
        ),
        "texts": (saved(path("g.npz"), changed(3, np.array(["x"]))), ["param_3", "real number"]),
    }


@pytest.mark.parametrize(
    "which",
    [
        "missing",
        "folder",
        "text",
        "empty",
        "one array",
        "cut",
        "fewer",
        "names",
        "flat",
        "gate",
        "bias",
        "not finite",
        "too large",
        "texts",
    ],
)
def test_oracle_files_that_are_refused(drawn, tmp_path, which):
    path, words = bad_files(tmp_path, drawn[0])[which]
    with pytest.raises(UserError) as e:
        load(tmp_path, data=dict(params=str(path)))
    assert all(w in str(e.value) for w in (*words, "data.params")), e.value


def test_a_vocabulary_that_is_not_the_oracles_is_refused(drawn, tmp_path):
    path = saved(tmp_path / "oracle.npz", drawn[0])
    with pytest.raises(UserError, match="30 words, but model.vocab_size is 40"):
        load(tmp_path, data=dict(params=path), model=dict(vocab_size=40))


def test_sequences_of_another_vocabulary_are_refused(drawn, tmp_path):
    load(tmp_path)
    (path,) = tmp_path.glob("oracle-*.npz")
    np.savez(path, **{split: np.full((200, 4), 30) for split in ("train", "valid", "test")})
    with pytest.raises(UserError, match="word 30, outside the vocabulary of 30.*delete"):
        load(tmp_path)


def test_longer_sequences_than_the_model_reads_are_refused(tmp_path):
    with pytest.raises(UserError, match="data.seq_len=9 .* model.max_len=4"):
        load(tmp_path, data=dict(seq_len=9))


@pytest.mark.parametrize("key, value", [("seed", -1), ("sequences", 0), ("d_model", 0)])
def test_an_oracle_that_cannot_be_is_refused(key, value):
    with pytest.raises(UserError, match=f"config.data.{key} is {value}"):
        helpers.filled(tiny(data={key: value}))


def test_a_reward_that_is_nothing_is_refused():
    changes = dict(reward="constant", baseline="batch")
    with pytest.raises(UserError, match="is 0 everywhere"):
        tasks.build(tiny(task=changes))
    tasks.build(tiny(task={**changes, "likelihood": 0.1}))


def test_another_model_is_refused(tmp_path):
    with pytest.raises(UserError, match="generator and a discriminator .*'gpt'"):
        load(tmp_path, model=dict(name="gpt"))


@pytest.mark.parametrize(
    "key, value, said",
    [
        ("batch_size", 15, "must be even"),
        ("accumulate", 2, "train.accumulate=1"),
        ("ema", 0.9, "train.ema=0"),
    ],
)
def test_what_rounds_cannot_do_is_refused(key, value, said):
    with pytest.raises(UserError, match=said):
        tasks.build(tiny(train={key: value}))
