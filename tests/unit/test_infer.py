"""Sampling and decoding."""

import dataclasses
import itertools
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigjax import tasks
from bigjax.arguments import Arguments
from bigjax.cli import generate as cli
from bigjax.data.tokenizers.bytes import Bytes
from bigjax.errors import UserError
from bigjax.infer import beam_search, generate, texts
from bigjax.infer.batch import Search
from bigjax.infer.generate import Generator, Options
from bigjax.infer.sampling import sample
from bigjax.layers import params as params_lib
from bigjax.models import Decoder, gpt, rung, uncached_decoder
from bigjax.train import load

LOGITS = jnp.log(jnp.array([[0.5, 0.3, 0.15, 0.05]]))


def frequencies(**options):
    keys = jax.random.split(jax.random.key(0), 4000)
    drawn = sample(jnp.repeat(LOGITS, 4000, axis=0), keys, **options)
    return np.bincount(np.asarray(drawn), minlength=4) / 4000


def test_sampling_follows_the_probabilities():
    np.testing.assert_allclose(frequencies(), [0.5, 0.3, 0.15, 0.05], atol=0.03)
    p = np.array([0.5, 0.3, 0.15, 0.05]) ** 2
    np.testing.assert_allclose(frequencies(temperature=0.5), p / p.sum(), atol=0.03)


def test_top_k_and_top_p_remove_the_tail_and_keep_the_ratios():
    np.testing.assert_allclose(frequencies(top_k=2), [0.625, 0.375, 0, 0], atol=0.03)
    # 0.5 + 0.3 reaches 0.7, so the third token is excluded; 0.81 needs it.
    np.testing.assert_allclose(frequencies(top_p=0.7), [0.625, 0.375, 0, 0], atol=0.03)
    assert frequencies(top_p=0.81)[2] > 0 and frequencies(top_p=0.81)[3] == 0
    assert frequencies(top_p=1e-6)[0] == 1
    # The temperature is applied first: at 0.5 two tokens reach 0.9, but 0.5 + 0.3 does not.
    np.testing.assert_allclose(
        frequencies(top_p=0.9, temperature=0.5), [0.25 / 0.34, 0.09 / 0.34, 0, 0], atol=0.03
    )


def test_temperature_zero_is_greedy():
    assert frequencies(temperature=0)[0] == 1


NEVER, NAN = -np.inf, np.nan


@pytest.mark.parametrize(
    "logits, options, drawn",
    [  # of equal logits the first ones are kept, and exactly top_k
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
def test_which_tokens_can_be_sampled(logits, options, drawn):
    keys = jax.random.split(jax.random.key(0), 200)
    rows = jnp.array([logits] * 200, jnp.float32)
    assert set(sample(rows, keys, **options).tolist()) == drawn


def test_the_most_likely_of_rounded_logits_is_one_token():
    """In bfloat16 many logits are equal: greedy, top_k=1 and a tiny top_p select the same one."""
    logits = jax.random.normal(jax.random.key(0), (64, 1000)).astype(jnp.bfloat16)
    keys = jax.random.split(jax.random.key(1), 64)
    greedy = sample(logits, keys, temperature=0)
    for options in (dict(top_k=1), dict(top_p=1e-6)):
        np.testing.assert_array_equal(sample(logits, keys, **options), greedy)


def test_each_row_has_its_own_settings():
    """And samples the same tokens as alone, so that a server may batch any rows."""
    logits = jax.random.normal(jax.random.key(0), (6, 300))
    keys = jax.random.split(jax.random.key(1), 6)
    settings = dict(
        temperature=jnp.array([0.0, 1, 1, 2, 0.5, 1]),
        top_k=jnp.array([0, 0, 5, 200, 0, 1]),
        top_p=jnp.array([1, 1, 1, 0.9, 0.3, 1.0]),
    )
    together = sample(logits, keys, **settings)
    for i in range(6):
        alone = sample(logits[i : i + 1], keys[i : i + 1], **{k: x[i] for k, x in settings.items()})
        if i not in (1, 2):  # these use another branch when alone
            assert int(alone[0]) == int(together[i])
    assert int(together[0]) == int(logits[0].argmax()) and int(together[5]) == int(
        logits[5].argmax()
    )
    assert int(together[2]) in np.argsort(-np.asarray(logits[2]))[:5]


def table_decoder(max_len=32) -> Decoder:
    """Its only variable is an array of the logits [V, V] of the token after each token."""
    return Decoder(
        lambda ids: (np.array([[len(row)] for row in ids]), np.array([row[-1] for row in ids])),
        lambda logits, context, slots: context,
        lambda logits, state, tokens: (logits[tokens], state),
        max_len,
    )


CONFIG = gpt.Config(vocab_size=31, max_len=48, d_model=16, n_layers=2, n_heads=2, scan=False)


@pytest.fixture(scope="module")
def generator():
    c = CONFIG
    init = jax.jit(
        lambda k: params_lib.unbox(gpt.Model(c).init(k, jnp.zeros((1, 1), int))["params"])
    )
    params = jax.tree.map(lambda x: 5 * x, init(jax.random.key(0)))
    return Generator(gpt.decoder(c), {"params": params})


def test_greedy_decoding_is_the_uncached_argmax_for_prompts_of_several_lengths(generator):
    prompts = [[3], [5, 9, 2, 7], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17]]
    got = generator(prompts, Options(max_new_tokens=6, temperature=0))
    model = gpt.Model(CONFIG)
    logits = jax.jit(lambda t: model.apply(generator.variables, t).logits)
    for prompt, new in zip(prompts, got):
        tokens = list(prompt)
        for token in new:
            padded = np.zeros((1, 24), int)  # later tokens change nothing: the mask is causal
            padded[0, : len(tokens)] = tokens
            assert token == int(logits(padded)[0, len(tokens) - 1].argmax())
            tokens.append(token)
        assert len(new) == 6


def test_a_row_ends_at_the_end_token_and_the_others_continue(generator):
    prompts = [[3], [5, 9, 2, 7]]
    free = generator(prompts, Options(max_new_tokens=8, temperature=0))
    eos = next(t for t in free[0] if t not in free[1])  # ends the first row only
    ended = generator(prompts, Options(max_new_tokens=8, temperature=0, eos_id=eos))
    assert ended[0] == free[0][: free[0].index(eos)] and ended[1] == free[1]


def test_a_row_ends_at_any_of_several_end_tokens(generator):
    prompts = [[3], [5, 9, 2, 7]]
    free = generator(prompts, Options(max_new_tokens=8, temperature=0))
    a = next(t for t in free[0] if t not in free[1])
    b = next(t for t in free[1] if t not in free[0])
    before = [row[: row.index(end)] for row, end in zip(free, (a, b))]
    for first, more in ((a, (b,)), (b, (a, b)), (-1, (a, b))):
        options = Options(8, temperature=0, eos_id=first, end_ids=more)
        assert generator(prompts, options) == before


def test_rows_do_not_depend_on_the_other_rows_of_a_batch(generator):
    """Whatever their lengths."""
    prompts, options = [[3], [5, 9, 2, 7], [1] * 20], Options(max_new_tokens=7, temperature=0.9)
    together = generator(prompts, options, seed=4)
    assert generator(prompts[:1], options, seed=4) == together[:1]
    assert generator(prompts[:2], options, seed=4) == together[:2]


def test_log_probabilities_are_those_of_the_model_before_temperature_and_top_k(generator):
    options = Options(max_new_tokens=5, temperature=0.7, top_k=10)
    (chunk,) = generator.stream([[3, 4], [5]], options, seed=1)
    forward = jax.jit(gpt.Model(CONFIG).apply)
    for prompt, new, log_p in zip([[3, 4], [5]], chunk.tokens, chunk.log_p):
        logits = forward(generator.variables, np.array([[*prompt, *new[:-1]]])).logits
        want = jax.nn.log_softmax(logits[0, len(prompt) - 1 :])[np.arange(5), new]
        np.testing.assert_allclose(log_p, want, atol=1e-4)


def test_other_settings_and_numbers_of_tokens_need_no_compilation(generator):
    def call(prompt, **options):
        generator([prompt], Options(**options), seed=options["max_new_tokens"])

    call([3, 4], max_new_tokens=9)
    before = generate._begin._cache_size(), generate._advance._cache_size()
    call([3, 4, 5], max_new_tokens=11, temperature=0.3, top_k=7, top_p=0.2, eos_id=4)
    call([3], max_new_tokens=1, temperature=0.0)
    call([1] * 5, max_new_tokens=8, top_k=500, temperature=1, top_p=1)
    call([1] * 5, max_new_tokens=np.int64(8), top_k=np.int64(5), top_p=np.float64(0.5))
    assert (generate._begin._cache_size(), generate._advance._cache_size()) == before
    # A longer prompt exceeds the rung.
    call([1] * 20, max_new_tokens=20)
    assert generate._advance._cache_size() > before[1]


def test_the_number_of_prompts_is_padded():
    decoder, logits = table_decoder(), jax.random.normal(jax.random.key(0), (31, 31))
    generator = Generator(decoder, logits)
    call = lambda n: generator([[3 + i] for i in range(n)], Options(max_new_tokens=4))
    four = call(4)
    before = generate._begin._cache_size(), generate._advance._cache_size()
    three = call(3)
    assert len(four) == 4 and three == four[:3]
    assert (generate._begin._cache_size(), generate._advance._cache_size()) == before


def test_another_length_of_a_beam_search_needs_no_compilation():
    generator = Generator(table_decoder(), 0.1 * jax.random.normal(jax.random.key(0), (259, 259)))
    call = lambda n, eos_id=-1: texts.search(
        generator,
        Bytes(),
        [[256, 97 + i] for i in range(3)],
        Options(n, eos_id=eos_id),
        Search(2, 2),
        "abc",
    )
    texts_of_9 = call(9)
    before = beam_search.search._cache_size()
    assert call(9) == texts_of_9
    assert [len(row) for row in call(5)] == [2, 2, 2]
    call(np.int64(3), eos_id=np.int64(7))
    assert beam_search.search._cache_size() == before
    call(17)  # above the rung
    assert beam_search.search._cache_size() == before + 1


def test_many_tokens_are_generated_in_chunks(generator):
    prompts = [[3], [5, 9, 2, 7]]
    options = Options(max_new_tokens=40, temperature=0)
    generated = generator(prompts, options)
    chunks = list(generator.stream(prompts, options, at_once=7))
    assert [c.tokens.shape[1] for c in chunks] == [7, 7, 7, 7, 7, 5]
    assert np.concatenate([c.tokens for c in chunks], axis=1).tolist() == generated


def test_a_row_that_the_caller_ends_generates_no_more(generator):
    stream = generator.stream([[3], [5]], Options(max_new_tokens=20, temperature=0), at_once=4)
    next(stream)
    chunk = stream.send(np.array([False, True]))
    assert chunk.real.tolist() == [[False] * 4, [True] * 4]
    with pytest.raises(StopIteration):
        stream.send(np.array([True, False]))


def test_a_beam_of_all_texts_finds_the_best_ones():
    c = gpt.Config(vocab_size=4, max_len=8, d_model=8, n_layers=1, n_heads=2, scan=False)
    init = lambda k: params_lib.unbox(gpt.Model(c).init(k, jnp.zeros((1, 1), int))["params"])
    params = jax.tree.map(lambda x: 8 * x, jax.jit(init)(jax.random.key(2)))
    decoder, prompts = gpt.decoder(c), [[1, 2], [3]]
    context, first = decoder.context(prompts)
    given = dict(width=64, size=3, n=3, end_id=-1, pad_id=0, slots=8)
    tokens, scores = beam_search.search(decoder, {"params": params}, context, first, **given)
    forward = jax.jit(gpt.Model(c).apply)
    every = np.array(list(itertools.product(range(4), repeat=3)))
    for row, prompt in enumerate(prompts):
        inputs = np.concatenate([np.repeat([prompt], 64, 0), every], axis=1)
        logits = forward({"params": params}, inputs[:, :-1]).logits
        log_p = jax.nn.log_softmax(logits)[:, len(prompt) - 1 :]
        total = np.take_along_axis(np.asarray(log_p), every[..., None], -1)[..., 0].mean(1)
        best = np.argsort(-total)
        np.testing.assert_allclose(scores[row], total[best], atol=1e-5)
        assert tokens[row, 0].tolist() == every[best[0]].tolist()


def test_a_beam_of_a_text_with_a_padding_token_does_not_end_there():
    """Only the end token ends a text: 2 -> pad (1) -> 3 -> end (0) is the most likely one."""
    logits = jnp.full((4, 4), -20.0)
    logits = logits.at[jnp.array([2, 2, 1, 1, 3]), jnp.array([1, 3, 3, 2, 0])].set(
        [0, -1, 0, -1, 0]
    )
    given = dict(width=3, size=6, n=6, end_id=0, pad_id=1, slots=8)
    first = jnp.array([2])
    tokens, scores = beam_search.beam_search(
        table_decoder(), logits, first[:, None], first, **given
    )
    assert tokens[0, 0].tolist() == [1, 3, 0, 1, 1, 1]
    log_p = jax.nn.log_softmax(logits)
    assert float(scores[0, 0]) == pytest.approx(float(log_p[2, 1] + log_p[1, 3] + log_p[3, 0]) / 3)


def test_the_command_prints_the_texts_of_a_beam_with_their_scores(capsys):
    f = Arguments(["--prompt=a", "--prompt=b", "--max_tokens=3", "--beam=2"], cli.COMMAND).flags
    logits = jax.random.normal(jax.random.key(0), (259, 259))
    cli._write(f, Bytes(), table_decoder(), logits, {})
    lines = capsys.readouterr().out
    for i in (1, 2):
        scores = [float(x) for x in re.findall(rf"--- {i} of 2, score (-[\d.]+)\n", lines)]
        assert len(scores) == 2 and scores[0] >= scores[1]


def test_the_seed_determines_the_tokens(generator):
    a, b, c = (generator([[3]], Options(max_new_tokens=8), seed=s) for s in (1, 1, 2))
    assert a == b != c


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda g: g([[1] * 45], Options(max_new_tokens=8)), ["45", "8", "max_len=48"]),
        (lambda g: g([[]], Options()), ["no tokens"]),
        (lambda g: Options(temperature=-1.0), ["temperature", "-1"]),
        (lambda g: Options(top_p=0.0), ["top_p", "(0, 1]"]),
    ],
)
def test_invalid_requests_are_refused(generator, call, words):
    with pytest.raises(UserError) as e:
        call(generator)
    assert all(w in str(e.value) for w in words)


def test_a_decoder_without_a_cache_continues_as_one_with_a_cache(generator):
    model = gpt.Model(dataclasses.replace(CONFIG, scan=False))
    uncached = Generator(uncached_decoder(model, CONFIG.max_len), generator.variables)
    prompts, options = [[3], [5, 9, 2, 7]], Options(max_new_tokens=5, temperature=0)
    assert uncached(prompts, options) == generator(prompts, options)
    tokens = np.array([[5, 9, 2, 7]])
    scores = [g.decoder.score(g.variables, tokens).product() for g in (uncached, generator)]
    np.testing.assert_allclose(*scores, atol=1e-5)


@pytest.mark.parametrize("overrides", [[], ["--config.model.dtype=bfloat16"]])
def test_a_cpu_generates_in_float32_unless_the_dtype_is_overridden(overrides):
    """It would convert weights of bfloat16 in every call."""
    loaded = types.SimpleNamespace(
        task=tasks.Task(
            init=None,
            axes={},
            loss=None,
            load_data=None,
            batch_shapes=None,
            model_config=gpt.Config(64, 16, 8, 1, 1, dtype="bfloat16"),
        ),
        variables={"params": {"scale": jnp.ones(3, jnp.bfloat16)}},
        mesh=jax.make_mesh((1,), "x", devices=jax.devices()[:1]),
    )
    config_of = types.SimpleNamespace(decoder=lambda config: config)
    config, variables = load.decoder_of(loaded, config_of, overrides)
    dtype = "bfloat16" if overrides else "float32"
    assert config.dtype == variables["params"]["scale"].dtype == dtype


def test_rungs_are_at_most_a_fifth_longer_than_needed_and_few():
    rungs = {rung(n) for n in range(2049)}
    assert rung(0) == 0 and len(rungs) == 1 + 8 + 4 * 4
    assert all(n <= rung(n) < max(n + 16, 1.25 * n) for n in range(1, 2049))
