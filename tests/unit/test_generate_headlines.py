"""How headlines are searched, sampled and ranked."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigjax.data.tokenizers.wordpiece import SPECIALS, WordPiece
from bigjax.errors import UserError
from bigjax.infer.generate import Generator, Options
from bigjax.layers import params as params_lib
from bigjax.projects.seqgan import generate_headlines
from bigjax.projects.seqgan import headline as task
from bigjax.projects.seqgan import headline_model as H
from bigjax.projects.seqgan.gan import before_end, token_mask
from bigjax.projects.seqgan.generation_options import GenerationOptions
from tests.unit.test_headline_model import CLS, PAD, SEP, TOKENS, C, S, given_rows, networks

search = jax.jit(generate_headlines.search, static_argnums=(0, 3))
draw = jax.jit(generate_headlines.draw, static_argnums=(0, 4))


@pytest.fixture(scope="module")
def small():
    """Five pieces can be written: [SEP] and four words."""
    c = dataclasses.replace(C, vocab_size=9, max_len=3)
    given = {
        **given_rows(c),
        "source": given_rows(c)["source"] % 4 + 5,
        "hot": given_rows(c)["hot"] % 4 + 5,
    }
    gan = task.conditional(H, c, task.Config(), 3)
    init = jax.jit(H.Generator(c).init)
    params = params_lib.unbox(init(jax.random.key(0), TOKENS[:, :3] % 4 + 5, given)["params"])
    params = jax.tree_util.tree_map(lambda x: 4 * x, params)
    return gan, params, given


def all_texts(gan, params, context):
    """[(mean log-probability, text)] of all texts, best first, for each row."""
    texts = list(itertools.product([SEP, *range(5, 9)], repeat=3))
    texts = sorted(
        {t[: t.index(SEP) + 1] + (PAD,) * (2 - t.index(SEP)) if SEP in t else t for t in texts}
    )
    logits = jax.jit(gan.logits)
    results = []
    for row in range(4):
        one = jax.tree_util.tree_map(
            lambda x: jnp.repeat(x[row : row + 1], len(texts), axis=0), context
        )
        tokens = jnp.array(texts)
        inputs = jnp.concatenate([jnp.full((len(texts), 1), CLS), tokens[:, :-1]], axis=1)
        log_p = jax.nn.log_softmax(logits(params, one, inputs, None))
        mask = np.array(token_mask(gan, tokens))
        log_p = np.array(jnp.take_along_axis(log_p, tokens[..., None], axis=-1))[..., 0]
        mean = (log_p * mask).sum(1) / mask.sum(1)
        results.append(sorted(zip(mean.tolist(), texts), reverse=True))
    return results


@pytest.mark.slow
def test_a_wide_beam_equals_brute_force(small):
    gan, params, context = small
    texts, scores = search(gan, params, context, 5**3)
    for row, want in enumerate(all_texts(gan, params, context)):
        n = len(want)
        assert [tuple(t) for t in texts[row, :n].tolist()] == [t for _, t in want]
        np.testing.assert_allclose(scores[row, :n], [s for s, _ in want], atol=1e-4)
        assert scores[row, n] < -1e6  # there are no more texts


def test_a_beam_of_one_takes_the_likeliest_token(small):
    gan, params, context = small
    texts, _ = search(gan, params, context, 1)
    greedy = draw(gan, params, context, jax.random.key(0), 1, 0.0, 1.0)
    assert texts.tolist() == greedy.tolist()


def test_the_decoder_writes_headlines_for_token_ids(small):
    gan, params, context = small
    articles = [row[:n].tolist() for row, n in zip(context["source"], (S, 5, 1, 0))]
    ids, first = gan.decoder.context(articles)
    assert first.tolist() == [CLS] * 4
    texts, _ = search(gan, params, ids, 1)
    options = Options(max_new_tokens=3, temperature=0.0, eos_id=SEP)
    got = Generator(gan.decoder, {"params": params})(articles[:3], options)
    assert got == [before_end(row, SEP) for row in texts[:3, 0].tolist()]
    ones = {**context, **{k: 0 * context[k] for k in ("source_types", "clicks", "hot_mask")}}
    assert texts.tolist() == search(gan, params, ones, 1)[0].tolist()
    with pytest.raises(UserError, match=f"{S + 1} tokens; model.article_len={S}"):
        gan.decoder.context([[5] * (S + 1)])


def test_samples_follow_the_temperature(small):
    gan, params, context = small
    drawn = lambda t, p=1.0: np.array(draw(gan, params, context, jax.random.key(0), 64, t, p))
    different = lambda texts: len({tuple(t) for t in texts[0].tolist()})
    assert different(drawn(0.3)) < different(drawn(3.0))
    assert different(drawn(3.0, 0.3)) < different(drawn(3.0))
    texts = drawn(1.0)
    ended = np.cumsum(texts == SEP, axis=2) - (texts == SEP) > 0
    assert ended.any() and (texts[ended] == PAD).all()


@pytest.mark.slow
def test_headlines_are_different_and_ranked():
    gan, params = networks(C)
    tokenizer = WordPiece([*SPECIALS, *"abcdefg"])
    write = lambda **o: generate_headlines.HeadlineGenerator(
        gan, params, tokenizer, GenerationOptions(**o)
    )(given_rows(C))
    headlines = write(number=3, beam=8)
    assert [len(row) for row in headlines] == [3] * 4
    for row in headlines:
        assert len({h.text for h in row}) == 3 and all(h.text for h in row)
        assert [h.real for h in row] == sorted((h.real for h in row), reverse=True)
    clicked = write(number=3, beam=8, real_weight=0.0, click_weight=1.0)
    for row in clicked:
        assert [h.clicks for h in row] == sorted((h.clicks for h in row), reverse=True)
    assert write(temperature=1.0, seed=1) == write(temperature=1.0, seed=1)
    assert write(temperature=1.0, seed=1) != write(temperature=1.0, seed=2)


@pytest.mark.parametrize(
    "text, want",
    [
        ("体 验 巅 峰 ， 好 abc d", "体验巅峰，好 abc d"),
        ("don ' t stop , it ' s ( so ) .", "don't stop, it's (so)."),
        ("a n - dimensional x _ y", "a n-dimensional x_y"),
        ("", ""),
    ],
)
def test_readable(text, want):
    assert generate_headlines.readable(text) == want


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(number=0), "--number"),
        (dict(number=9), "--beam"),
        (dict(temperature=-1.0), "0 "),
        (dict(top_p=0.0), "top_p"),
        (dict(clicks="many"), "high, low"),
        (dict(click_weight=-1.0), "click_weight"),
    ],
)
def test_refused_options(changes, message):
    with pytest.raises(UserError, match=message):
        GenerationOptions(**changes)
