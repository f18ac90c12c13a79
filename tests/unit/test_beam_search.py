"""Beam search: what it finds, when it ends, what it shares between beams."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigjax.infer import beam_search as B
from bigjax.layers.attention import Attention, Cache, Memory, Span
from bigjax.layers.mask import Causal, Full, Window
from bigjax.models import Decoder, Fixed

END, PAD = 0, 9


def _step(variables, state, tokens):
    tables, _ = variables
    assert isinstance(state[1], Fixed) and state[1].value.shape == (len(tables), 3)
    rows = jnp.repeat(jnp.arange(len(tables)), len(tokens) // len(tables))
    return tables[rows, tokens], (state[0] + 1, state[1])


# Its variables are the logits [rows, V, V] of the token after each token, and the attention
# [V, S] of the step that reads a token.
DECODER = Decoder(
    lambda ids: None,
    lambda variables, context, slots: (
        jnp.zeros(len(variables[0])),
        Fixed(jnp.ones((len(variables[0]), 3))),
    ),
    _step,
    99,
    continues=False,
    attention=lambda variables, state, tokens: variables[1][tokens],
)


def search(logits, *, width, n=6, attention=None, context=None, end_id=END, **more):
    """Of texts after token 1."""
    logits = np.asarray(logits, np.float32)
    tables = logits if logits.ndim == 3 else logits[None]
    given = dict(width=width, size=6, n=n, end_id=end_id, pad_id=PAD, slots=8)
    variables = tables, np.zeros((3, 4)) if attention is None else attention
    first = np.ones(len(tables), int)
    return B.search(DECODER, variables, context, first, **{**given, **more})


def texts_of(logits, n, end_id=END):
    """{text: sum of log-probabilities} of every text of at most n tokens, by enumeration."""
    log_p = np.asarray(jax.nn.log_softmax(jnp.asarray(logits, jnp.float32)))
    found = {}
    for length in range(1, n + 1):
        for text in itertools.product(range(len(log_p)), repeat=length):
            ends = end_id in text
            if text.index(end_id) + 1 == length if ends else length == n:
                found[text] = sum(log_p[a, b] for a, b in zip((1, *text), text))
    return found


def as_text(row) -> tuple:
    row = np.asarray(row).tolist()
    return tuple(row[: row.index(END) + 1] if END in row else [x for x in row if x != PAD])


@pytest.mark.parametrize("penalty", [0.0, 1.0, 2.0, -1.0])
@pytest.mark.parametrize("vocabulary, width", [(2, 6), (3, 40)])
def test_a_beam_of_all_texts_has_each_once_and_nothing_else(vocabulary, width, penalty):
    """Also a beam that is wider than the vocabulary, and than the number of texts."""
    logits = np.random.default_rng(0).normal(size=(vocabulary, vocabulary))
    every = texts_of(logits, 3)
    scores = {t: p / len(t) ** penalty for t, p in every.items()}
    want = sorted(scores.values(), reverse=True)
    tokens, found = search(logits, width=width, n=3, length_penalty=penalty)
    assert len(want) < width
    np.testing.assert_allclose(found[0, : len(want)], want, rtol=1e-5)
    for text, score in zip(tokens[0], found[0, : len(want)]):
        assert scores.pop(as_text(text)) == pytest.approx(float(score), rel=1e-5)
    assert not scores and (found[0, len(want) :] == B.NEVER).all()
    assert (tokens[0, len(want) :] == PAD).all()


def test_without_an_end_token_all_texts_have_n():
    logits = np.random.default_rng(1).normal(size=(3, 3))
    tokens, scores = search(logits, width=27, n=3, end_id=-1)
    assert (tokens[0, :, 3:] == PAD).all() and len({tuple(t) for t in np.asarray(tokens[0])}) == 27
    every = sorted(texts_of(logits, 3, end_id=-1).values(), reverse=True)
    np.testing.assert_allclose(scores[0], np.array(every) / 3, rtol=1e-5)


def test_a_width_of_one_is_greedy():
    for seed in range(20):
        logits = np.random.default_rng(seed).normal(size=(4, 4))
        text, last = [], 1
        while len(text) < 6 and last != END:
            last = int(logits[last].argmax())
            text.append(last)
        tokens, _ = search(logits, width=1)
        assert tokens[0, 0].tolist() == text + [PAD] * (6 - len(text))


def test_rows_do_not_depend_on_each_other():
    """Rows end at different steps."""
    logits = 3 * np.random.default_rng(2).normal(size=(4, 5, 5))
    tokens, scores = search(logits, width=3)
    for row in range(4):
        alone, score = search(logits[row], width=3)
        np.testing.assert_array_equal(tokens[row], alone[0])
        np.testing.assert_allclose(scores[row], score[0], rtol=1e-6)


@pytest.fixture
def steps():
    """The number of steps that a search takes."""
    taken: list = []

    def step(*arguments):
        jax.debug.callback(lambda: taken.append(1))
        return _step(*arguments)

    counted = DECODER._replace(step=step)

    def run(logits, **options):
        taken.clear()
        given = dict(size=6, n=6, end_id=END, pad_id=PAD, slots=8) | options
        variables = np.asarray(logits, np.float32)[None], None
        jax.block_until_ready(B.search(counted, variables, None, np.ones(1, int), **given))
        jax.effects_barrier()
        return len(taken)

    return run


def test_a_search_ends_when_no_beam_can_become_better(steps):
    """1 -> end is nearly certain; of what runs on, each token is nearly certain. With a division by
    the length the sum of a longer text may still become better, until n."""
    logits = np.full((4, 4), -9.0)
    logits[1, END], logits[1, 2], logits[2, 2], logits[2, END] = 5, 1, 4.5, 5
    assert steps(logits, width=1) == 1
    assert steps(logits, width=2, length_penalty=0.0) == 2
    assert 2 < steps(logits, width=2, length_penalty=1.0) <= 6
    tokens, scores = search(logits, width=2, length_penalty=1.0)
    want = sorted((p / len(t) for t, p in texts_of(logits, 6).items()), reverse=True)[:2]
    np.testing.assert_allclose(scores[0], want, rtol=1e-5)
    assert steps(logits, width=2, end_id=-1) == 6
    # No text is left: 1 -> end, 1 -> 2 -> end.
    never = np.full((3, 3), -np.inf)
    never[1, [END, 2]] = never[2, END] = 0
    assert steps(never, width=4) == 2


def test_a_penalty_below_zero_does_not_end_a_search_too_early():
    """The best that a running beam may hope for is to end at once, and not after n tokens."""
    p = np.array([[1] * 4, [300, 5, 690, 5], [300, 50, 50, 600], [970, 10, 10, 10]])
    tokens, _ = search(np.log(p), width=2, length_penalty=-1.0)
    assert [as_text(t) for t in tokens[0]] == [(END,), (2, 3, END)]


def test_the_attention_to_a_source_is_rewarded():
    """coverage_penalty times the sum of log(min(attention, 1)) of real tokens of the source."""
    logits = np.random.default_rng(3).normal(size=(3, 3))
    attention = np.array([[0.9, 0.05, 0.05, 0], [0.7, 0.2, 0.1, 0], [0.2, 0.1, 0.6, 0.1]])
    context = {"segments": np.array([[1, 1, 1, 0]])}
    scores = {}
    for text, total in texts_of(logits, 3).items():
        got = sum(attention[token] for token in (1, *text[:-1]))[:3]
        scores[text] = total / len(text) + 0.4 * np.log(np.minimum(got, 1)).sum()
    assert any(sum(attention[t] for t in (1, *text[:-1])).max() > 1 for text in scores)
    want = sorted(scores, key=scores.get, reverse=True)
    plain = texts_of(logits, 3)
    assert want != sorted(plain, key=lambda t: plain[t] / len(t), reverse=True)
    given = dict(attention=attention, context=context, coverage_penalty=0.4)
    tokens, found = search(logits, width=30, n=3, **given)
    assert {as_text(t) for t in tokens[0, : len(want)]} == {*want}
    np.testing.assert_allclose(found[0, : len(want)], [scores[t] for t in want], rtol=1e-4)
    for text, score in zip(tokens[0], found[0, : len(want)]):
        assert scores[as_text(text)] == pytest.approx(float(score), rel=1e-4)


def test_one_program_for_all_lengths_and_penalties():
    logits = np.random.default_rng(0).normal(size=(3, 3))
    before = B.search._cache_size()
    for n, end_id, penalty in ((6, 0, 1.0), (3, -1, 0.6), (2, 1, 0.0)):
        tokens, _ = search(logits, width=5, n=n, end_id=end_id, length_penalty=penalty)
        assert tokens.shape == (1, 5, 6) and (tokens[..., n:] == PAD).all()
    assert B.search._cache_size() == before + 1


@pytest.mark.parametrize("kind", [np.float32, np.int32])  # integers: with many ties
@pytest.mark.parametrize("n, k", [(128 * 9, 2), (1100, 2), (1030, 3), (128 * 3 + 1, 1), (500, 8)])
def test_the_largest_values_are_found_in_chunks(n, k, kind):
    x = np.random.default_rng(n).normal(size=(40, n)).astype(kind)
    x[0, -1], x[1] = 99, -np.inf if kind == np.float32 else -9
    for got, want in zip(B._top_k(jnp.asarray(x, jnp.float32), k), jax.lax.top_k(x, k)):
        np.testing.assert_array_equal(got, want)


# --- Caches of beams -------------------------------------------------------------------------


@pytest.mark.parametrize("bias_rows", [0, 1, 6])
@pytest.mark.parametrize("mask, kv_heads", [(Causal(), 4), (Window(3), 2)])
def test_beams_read_the_keys_of_those_that_they_follow(mask, kv_heads, bias_rows):
    """As if each beam had its own cache, copied from the one that it follows."""
    W, slots, rng = 3, 7, np.random.default_rng(0)
    layer = Attention(4, kv_heads, 4, mask, rope_theta=100.0)
    cache = Cache.empty(2, slots, kv_heads, 4, "float32")
    prompt = rng.normal(size=(2, 2, 8)), Span(jnp.arange(2)[None])
    params = layer.init(jax.random.key(0), *prompt, cache)
    _, cache = layer.apply(params, *prompt, cache)
    cache = cache._replace(next=jnp.array([2, 1]))  # prompts of these lengths
    apart = jax.tree_util.tree_map(B.repeated(W), cache)
    shared = cache.of_beams(W)
    assert shared.slots == slots and shared.key.shape == (2, kv_heads, slots * W, 4)
    for _ in range(4):
        x = rng.normal(size=(6, 1, 8))
        bias = jnp.asarray(rng.normal(size=(bias_rows, 4, 1, slots))) if bias_rows else None
        span = Span(apart.next[:, None])
        want, apart = layer.apply(params, x, span, apart, bias=bias)
        got, shared = layer.apply(params, x, span, shared, bias=bias)
        np.testing.assert_allclose(got, want, atol=1e-6)
        np.testing.assert_array_equal(shared.next, apart.next)
        parent = rng.integers(0, W, (2, W))
        rows = (np.arange(2)[:, None] * W + parent).ravel()
        apart, shared = jax.tree_util.tree_map(lambda x: x[rows], apart), shared.follow(parent)


# --- Attention to a shorter memory ------------------------------------------------------------


@pytest.mark.parametrize("segments", [True, False])
def test_consecutive_rows_read_one_row_of_a_memory(segments):
    """As if it were repeated; and the weights of each row are those that were applied."""
    layer = Attention(4, 4, 3, Full(), use_bias=False)
    rng = np.random.default_rng(0)
    x, memory = rng.normal(size=(6, 2, 8)), rng.normal(size=(2, 5, 12))
    ids = np.array([[1, 1, 1, 1, 0], [1, 1, 0, 0, 0]]) if segments else None
    span = Span(jnp.zeros((6, 2), int))
    repeated = lambda a: None if a is None else np.repeat(a, 3, 0)
    call = lambda v, m, s, **more: layer.apply(
        v, x, span, memory=m, memory_segments=s, mutable=["intermediates"], **more
    )
    params = layer.init(jax.random.key(0), x, span, memory=repeated(memory))
    (want, long), kept = call(params, repeated(memory), repeated(ids))
    short = Memory(*(None if a is None else a[::3] for a in long))
    assert len(short.key) == 2
    (got, returned), kept_short = call(params, short, None)
    np.testing.assert_allclose(got, want, atol=1e-6)
    assert returned is short or returned.key.shape == short.key.shape
    weights, of_short = (k["intermediates"]["weights"][0] for k in (kept, kept_short))
    assert weights.shape == (6, 2, 4, 5) and weights.dtype == jnp.float32
    np.testing.assert_allclose(of_short, weights, atol=1e-6)
    np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-6)
    if segments:
        assert (np.asarray(weights)[:3, ..., 4] == 0).all()
        assert (np.asarray(weights)[3:, ..., 2:] == 0).all()
    # The output is these weights times the values.
    kernel = params["params"]["out"]["kernel"]
    kernel = getattr(kernel, "value", kernel)
    values = np.repeat(np.asarray(short.value), 3, 0)
    np.testing.assert_allclose(
        np.einsum("bths,bhsd,hdo->bto", weights, values, kernel), want, atol=1e-5
    )
