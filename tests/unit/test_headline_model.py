"""The networks of headlines."""

import dataclasses
import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bigjax.errors import UserError
from bigjax.layers import params as params_lib
from bigjax.layers.sampling import categorical
from bigjax.projects.seqgan import headline as task
from bigjax.projects.seqgan import headline_model as H
from bigjax.projects.seqgan import train_step
from bigjax.projects.seqgan.gan import discriminate, sample_texts, token_mask
from bigjax.train.state import State
from bigjax.trees import named_leaves

PAD, UNK, CLS, SEP, MASK = range(5)
V, S, T, K = 12, 8, 4, 3
C = H.Config(
    vocab_size=V,
    max_len=T,
    article_len=S,
    d_model=8,
    n_heads=2,
    dropout=0.0,
    click_buckets=3,
    hot_per_example=K,
    discriminator_d_model=8,
    discriminator_heads=2,
    filter_widths=(1, 2),
    filters=(4, 4),
)
KINDS = {
    "lstm": {},
    "two layers": dict(n_layers=2, encoder_layers=2),
    "gru": dict(generator="gru", discriminator="lstm"),
    "bert": dict(encoder="bert", discriminator="bert"),
    "bare": dict(click_buckets=0, hot_per_example=0),
}


def config_of(kind):
    return dataclasses.replace(C, **KINDS[kind])


@pytest.fixture(params=KINDS)
def c(request):
    return config_of(request.param)


def given_rows(c):
    """Four rows; the last has no source, the third no hot words."""
    rng = np.random.default_rng(0)
    hot = np.array([[7, 7, 9], [7, 8, 9], [PAD, PAD, PAD], [5, 6, 6]])[:, : c.hot_per_example]
    hot_mask = np.array([[1, 1, 1], [1, 1, 0], [0, 0, 0], [0, 0, 1]], np.float32)
    return {
        "source": rng.integers(5, V, (4, S)),
        "source_types": rng.integers(0, 2, (4, S)),
        "source_mask": (np.arange(S) < np.array([S, 5, 1, 0])[:, None]).astype(np.float32),
        "clicks": np.array([1, 2, 0, 3]),
        "hot": hot,
        "hot_mask": hot_mask[:, : c.hot_per_example],
    }


TOKENS = np.random.default_rng(1).integers(5, V, (4, T))


@functools.cache
def networks(c):
    """The GAN with compiled functions, and parameters without zeros."""
    options = task.Config(rollouts=2, discriminator_l2=0.1)
    gan = task.conditional(H, c, options, T)
    static = {"logits": (), "loss": (), "discriminator": (5,)}  # `shared` is a shape
    gan = gan._replace(**{k: jax.jit(getattr(gan, k), static_argnums=v) for k, v in static.items()})
    step = jax.jit(gan.decoder.step)
    gan = gan._replace(decoder=gan.decoder._replace(step=step))
    given = given_rows(c)
    params = params_lib.unbox(
        {
            "generator": jax.jit(H.Generator(c).init)(jax.random.key(0), TOKENS, given)["params"],
            "discriminator": jax.jit(H.Discriminator(c).init)(
                jax.random.key(1), TOKENS, TOKENS > 0, given
            )["params"],
        }
    )
    noise = lambda i, x: x + 0.3 * jax.random.normal(jax.random.key(i), x.shape)
    leaves, tree = jax.tree_util.tree_flatten(params)
    return gan, jax.tree_util.tree_unflatten(tree, map(noise, range(len(leaves)), leaves))


def of_one(given, row):
    return {k: x[row : row + 1] for k, x in given.items()}


# The model.


def test_decoder_steps_equal_the_full_pass(c):
    gan, params = networks(c)
    g, given = params["generator"], given_rows(c)
    want = jax.jit(gan.logits)(g, given, TOKENS, None)
    state = jax.jit(gan.decoder.begin, static_argnums=2)({"params": g}, given, T)
    step, got = jax.jit(gan.decoder.step), []
    for t in range(T):
        logits, state = step({"params": g}, state, TOKENS[:, t])
        got.append(logits)
    assert np.isfinite(want).all()
    np.testing.assert_allclose(np.stack(got, 1)[..., 5:], want[..., 5:], atol=1e-5)


def test_every_parameter_learns(c):
    gan, params = networks(c)
    given = given_rows(c)

    def of_generator(g):
        return gan.loss(g, given, TOKENS, TOKENS[::-1], jnp.ones((4, T)), None)[0]

    def of_discriminator(d):
        logits, clicks = discriminate(gan, d, given, TOKENS)
        return jax.nn.log_softmax(logits)[:, 0].sum() + (0 if clicks is None else clicks.sum())

    for network, loss in (("generator", of_generator), ("discriminator", of_discriminator)):
        gradients = named_leaves(jax.jit(jax.grad(loss))(params[network]))
        assert all(np.isfinite(x).all() for x in gradients.values())
        # A bias of all keys does not change the attention: its gradient is rounding.
        assert [
            k
            for k, x in gradients.items()
            if not np.abs(x).max() > 1e-8 and not k.endswith("key/bias")
        ] == []


@pytest.mark.parametrize("encoder", ["lstm", "bert"])
def test_the_generator_reads_all_of_its_context_but_padding(encoder):
    gan, params = networks(dataclasses.replace(C, encoder=encoder))
    g, given = params["generator"], given_rows(C)
    logits = lambda given: np.array(gan.logits(g, given, TOKENS, None))
    want = logits(given)
    for name, row, at, changes in (
        ("source", 0, 3, True),
        ("source", 1, 4, True),
        ("source", 1, 5, False),
        ("source_types", 0, 0, True),
        ("hot", 0, 2, True),
        ("hot", 1, 2, False),
    ):
        other = {k: x.copy() for k, x in given.items()}
        other[name][row, at] = 1 - other[name][row, at] if name == "source_types" else 10
        different = np.abs(logits(other) - want).max((1, 2)) > 1e-6
        assert different.tolist() == [changes and i == row for i in range(4)], (name, row, at)
    assert np.abs(logits({**given, "clicks": np.array([2, 2, 0, 3])}) - want).max((1, 2))[0] > 1e-4


def copying(g, bias):
    """The generator's parameters with another bias of how much is copied."""
    return {**g, "copy": {**g["copy"], "bias": jnp.full(1, float(bias))}}


def test_attended_words_may_be_copied():
    gan, params = networks(C)
    given = given_rows(C)

    def p(bias):
        g = copying(params["generator"], bias)
        logits = gan.logits(g, given, TOKENS, None)
        return np.array(jax.nn.softmax(logits))

    own, both, copied = p(-30), p(0), p(30)
    for row, n in enumerate((S, 5, 1)):  # the last has no source
        words = sorted(set(given["source"][row, :n]))
        assert [np.flatnonzero(x > 1e-9).tolist() for x in copied[row]] == [words] * T
    np.testing.assert_allclose(own.sum(-1), 1, atol=1e-6)
    for x, y in zip((both - own)[:3].reshape(-1, V), (copied - own)[:3].reshape(-1, V)):
        seen = np.abs(y) > 1e-3
        share = x[seen] / y[seen]  # how much is copied: the same for all words
        np.testing.assert_allclose(share, share[0], rtol=1e-3)
        assert 0.05 < share[0] < 0.95


def test_a_hot_word_is_biased_once():
    gan, params = networks(C)
    g, given = copying(params["generator"], -30), given_rows(C)
    logits = lambda given: np.array(gan.logits(g, given, TOKENS, None))
    more = logits(given) - logits({**given, "hot_mask": 0 * given["hot_mask"]})
    more = more[..., 5:] - more[..., 11:]  # against a word that is not hot
    assert np.abs(more[0, :, [2, 4]]).min() > 1e-4
    np.testing.assert_allclose(more[0, :, 2], more[0, :, 4], atol=1e-5)
    assert [(5 + np.flatnonzero(np.abs(row).max(0) > 1e-5)).tolist() for row in more] == [
        [7, 9],
        [7, 8],
        [],
        [6],
    ]


def test_special_pieces_are_neither_written_nor_learned():
    gan, params = networks(C)
    g, given = params["generator"], given_rows(C)
    draw = jax.jit(
        lambda key: sample_texts(
            gan, g, given, key, choose=functools.partial(categorical, temperature=5.0)
        )
    )
    texts = np.concatenate([draw(jax.random.key(i)) for i in range(20)])
    written = set(texts[np.array(token_mask(gan, texts))].tolist())
    assert written == {SEP, *range(5, V)}
    targets = TOKENS.copy()
    targets[:, 1] = UNK
    ones = jnp.ones((4, T))
    total, weight = gan.loss(g, given, TOKENS, targets, ones, None)
    want, _ = gan.loss(g, given, TOKENS, targets, ones.at[:, 1].set(0), None)
    assert weight == 4 * (T - 1) and total == pytest.approx(float(want)) and total < 1e3


def test_clicks_are_dropped_at_the_configured_rate():
    model = H.Generator(dataclasses.replace(C, click_dropout=0.5))
    _, params = networks(C)
    given = {k: np.repeat(x[:1], 400, axis=0) for k, x in given_rows(C).items()}
    context = jax.jit(
        lambda clicks, rng: model.apply(
            {"params": params["generator"]}, {**given, "clicks": clicks}, rng, method="encode"
        )
    )
    state = lambda clicks, rng: np.array(context(np.full(400, clicks), rng)["cells"][0][0])
    dropped = np.abs(state(1, jax.random.key(0)) - state(0, None)).max(1) < 1e-6
    assert 0.4 < dropped.mean() < 0.6
    assert np.abs(state(1, None) - state(0, None)).max(1).min() > 1e-3


def test_the_discriminator_compares_headline_and_source():
    gan, params = networks(C)
    given, d = given_rows(C), params["discriminator"]
    want = discriminate(gan, d, given, TOKENS)
    other = {**given, "source": given["source"][:, ::-1].copy()}
    other["source"][:, :5] = 10
    got = discriminate(gan, d, other, TOKENS)
    for a, b in zip(want, got):
        different = np.abs(np.array(a - b).reshape(4, -1)).max(1) > 1e-6
        assert different[:2].all() and not different[3]


def test_quantiles_of_clicks_and_their_loss():
    gan, _ = networks(C)
    quantile, known = gan.clicks({"clicks": jnp.array([0, 1, 2, 3])})
    np.testing.assert_allclose(quantile[1:], [1 / 6, 3 / 6, 5 / 6], rtol=1e-6)
    assert known.tolist() == [0, 1, 1, 1]
    logits = jnp.array([9.0, 0.5, -1.0, 2.0])
    got = train_step._click_loss(quantile, known, logits, jnp.array([1, 1, 0, 1]))
    p = 1 / (1 + np.exp(-np.array([0.5, 2.0])))
    q = np.array([1 / 6, 5 / 6])
    assert got == pytest.approx(-(q * np.log(p) + (1 - q) * np.log(1 - p)).mean(), rel=1e-5)


def test_clicks_are_part_of_the_reward():
    gan, params = networks(C)
    given = {k: jnp.array(x) for k, x in given_rows(C).items()}
    g, d = params["generator"], params["discriminator"]

    @jax.jit
    def more_and_clicks():
        plain, clicked = (
            train_step._rewards(p, g, d, given, TOKENS, jax.random.key(0))[:, -1]
            for p in (gan, gan._replace(click_reward=0.5))
        )
        return clicked - plain, discriminate(gan, d, given, TOKENS)[1]

    more, clicks = more_and_clicks()
    np.testing.assert_allclose(more, 0.5 * jax.nn.sigmoid(clicks), rtol=1e-4)


def test_a_discriminator_learns_without_hot_words_and_clicks():
    gan, params = networks(config_of("bare"))
    tx = optax.sgd(0.1)
    opt_state = {"discriminator": tx.init({"discriminator": params["discriminator"]})}
    state = State(jnp.int32(0), params, opt_state, {}, None, jnp.bool_(False))
    rows = {
        k: jnp.stack([x, x]) for k, x in {**given_rows(config_of("bare")), "tokens": TOKENS}.items()
    }
    task_ = types.SimpleNamespace(gan=gan)
    new, metrics = jax.eval_shape(
        lambda: train_step._train_discriminator(
            task_, {"discriminator": tx}, state, rows, jax.random.key(0), 3
        )
    )
    assert metrics["discriminator/accuracy"].shape == (3,)


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(generator="gpt"), "generator"),
        (dict(encoder="cnn"), "encoder"),
        (dict(d_model=7), "2 directions"),
        (dict(encoder="bert", n_heads=3), "3 heads"),
        (dict(click_buckets=-1), "click_buckets"),
        (dict(click_dropout=1.0), "click_dropout"),
        (dict(special_ids=(0, 1, 2, 3)), "special_ids"),
        (dict(special_ids=(0, 1, 2, 3, V)), "below"),
        (dict(article_len=0), "article_len"),
    ],
)
def test_refused_models(changes, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(C, **changes)
