"""The rules of Whisper's decoding, compared with those of transformers, and around a decoder."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigjax.errors import UserError
from bigjax.infer import batch, beam_search, speech
from bigjax.infer.generate import Generator, Options
from bigjax.layers.params import unbox
from bigjax.models import whisper

FROZEN = pathlib.Path(__file__).parents[1] / "parity" / "timestamps.npz"
SMALL = dict(n_mels=8, max_seconds=0.2, d_model=16, n_layers=1, n_heads=2, scan=False)
# Text 0 to 19, the end 20, the start 21, a language 22, a task 23, no speech 24, times from 26
C = whisper.Config(vocab_size=46, max_len=40, start_id=21, **SMALL)
RULES = speech.Rules(21, 20, 24, 25, 26, (3, 21, 22, 23, 24), (4, 20), timestamps=True, max_first=5)
AUDIO = np.random.default_rng(1).normal(0, 2000, 3200).astype(np.int16)
GIVEN = [21, 22, 23]


@pytest.fixture(scope="module")
def variables():
    mel, inputs = jnp.zeros((1, 8, 8)), jnp.zeros((1, 1), jnp.int32)
    return unbox(jax.jit(whisper.Model(C).init)(jax.random.key(1), mel, inputs))


def frozen():
    with np.load(FROZEN) as f:
        return dict(f)


@pytest.mark.parametrize("n", range(10))
def test_timestamps_are_those_of_transformers(n):
    """Random logits after random texts and times, in 40 rows, of which many break the rules."""
    stored = frozen()
    end, no_timestamps, max_first = map(int, stored["ids"])
    rules = speech.Rules(
        -1, end, -1, no_timestamps, no_timestamps + 1, timestamps=True, max_first=max_first
    )
    logits, tokens = stored[f"logits_{n}"], stored[f"history_{n}"]
    history = speech.History.empty(len(tokens))
    for column in tokens.T:
        history = history.with_token(rules, column)
    found = np.asarray(jax.jit(speech.apply, static_argnums=0)(rules, history, logits))
    allowed = stored[f"allowed_{n}"]
    assert allowed.any(1).all() and not allowed.all()
    np.testing.assert_array_equal(found > -np.inf, allowed)
    np.testing.assert_array_equal(found[allowed], logits[allowed])


def test_frozen_cases_reach_every_rule():
    """In some rows a time has to follow, in some only text, in some both may."""
    stored, start = frozen(), int(frozen()["ids"][1]) + 1
    kinds = set()
    for n in range(1, 10):
        allowed = stored[f"allowed_{n}"]
        kinds |= {(bool(r[:start].any()), bool(r[start:].any())) for r in allowed}
    assert kinds == {(True, True), (True, False), (False, True)}


def test_suppressed_tokens_without_times():
    rules = RULES._replace(timestamps=False)
    history = speech.History.empty(2)._replace(n=jnp.array([0, 1]))
    logits = np.arange(92, dtype=np.float32).reshape(2, 46)
    found = np.asarray(speech.apply(rules, history, logits))
    first, later = ({*np.flatnonzero(row == -np.inf).tolist()} for row in found)
    assert later == {*rules.suppressed} and first == later | {4, 20}
    np.testing.assert_array_equal(found[found > -np.inf], logits[found > -np.inf])


def test_a_decoder_with_rules_reads_the_ids_before_a_text(variables):
    """No speech is that of the start token's step, wherever it stands; the first token of the text
    follows the last id that is given. In one row after a previous text."""
    rows = [(AUDIO, GIVEN), (AUDIO[:900], [30, 7, 8, *GIVEN])]
    ruled = speech.ruled(whisper.decoder(C), RULES)
    context, first = ruled.context(rows)
    np.testing.assert_array_equal(first, [23, 23])
    state = jax.jit(ruled.begin, static_argnums=2)(variables, context, 8)
    logits, after = jax.jit(ruled.step)(variables, state, first)
    for b, (audio, ids) in enumerate(rows):
        audio = np.pad(audio, (0, C.n_samples - len(audio)))[None]
        inputs = jnp.array([ids])
        model = lambda v: whisper.Model(C).apply(v, whisper.features(C, audio), inputs)  # noqa: B023
        expected = np.asarray(jax.jit(lambda v: model(v).logits)(variables))[0]  # noqa: B023
        start = ids.index(21)
        probability = jax.nn.softmax(expected[start])[24]
        np.testing.assert_allclose(state.no_speech[b], probability, rtol=1e-4)
        one = speech.apply(RULES, speech.History.empty(1), expected[None, -1])
        np.testing.assert_allclose(logits[b], one[0], rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(after.history.n, [0, 0])
    np.testing.assert_array_equal(after.no_speech, state.no_speech)
    share = ruled.attention(variables, state, first)
    np.testing.assert_allclose(share.sum(1), 1, rtol=1e-5)


def test_the_ids_before_a_text_take_none_of_its_slots(variables):
    ruled = speech.ruled(whisper.decoder(C), RULES)
    context, first = ruled.context([(AUDIO, GIVEN)])
    state, step = jax.jit(ruled.begin, static_argnums=2)(variables, context, 3), jax.jit(ruled.step)
    for token in (*first, 26, 5):
        logits, state = step(variables, state, jnp.array([token]))
    mel, inputs = whisper.features(C, AUDIO[None]), jnp.array([[*GIVEN, 26, 5]])
    expected = jax.jit(lambda v: whisper.Model(C).apply(v, mel, inputs).logits)(variables)[:, -1]
    history = speech.History.empty(1).with_token(RULES, jnp.array([26]))
    expected = speech.apply(RULES, history.with_token(RULES, jnp.array([5])), expected)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)


def test_the_start_token_alone(variables):
    """Of an English-only model with times: its step is that of no speech and of the first token."""
    inner = whisper.decoder(C)
    ruled = speech.ruled(inner, RULES)
    context, first = ruled.context([AUDIO])
    np.testing.assert_array_equal(first, [21])
    state = jax.jit(ruled.begin, static_argnums=2)(variables, context, 8)
    logits, _ = jax.jit(ruled.step)(variables, state, first)
    context, first = inner.context([AUDIO])
    p = speech.start_probabilities(inner, variables, context, first)
    np.testing.assert_allclose(p.sum(1), 1, rtol=1e-5)
    np.testing.assert_allclose(state.no_speech, p[:, 24], rtol=1e-5)
    allowed = np.asarray(logits[0]) > -np.inf
    assert np.flatnonzero(allowed).tolist() == [*range(26, 32)]
    ours = jax.nn.softmax(logits[0])[26:32]
    np.testing.assert_allclose(ours, p[0, 26:32] / p[0, 26:32].sum(), rtol=1e-4)


def check_text(ids: list[int]) -> None:
    """Begins with a time, in pairs, which do not decrease, without what is suppressed."""
    assert 26 <= ids[0] <= 31 and not {*ids} & {*RULES.suppressed, 20, 25}
    times = [i for i in ids if i >= 26]
    assert times == sorted(times)
    runs = "".join("t" if i >= 26 else "." for i in ids).strip(".").split(".")
    inner = [run for run in runs[1:] if run]
    assert runs[0] == "t" and all(len(run) <= 2 for run in inner), ids
    assert all(len(run) == 2 for run in inner[:-1])


def test_sampled_and_searched_texts_keep_the_rules(variables):
    ruled = speech.ruled(whisper.decoder(C), RULES)
    inputs = [(AUDIO, GIVEN), (AUDIO[:900], GIVEN), (AUDIO[900:], GIVEN)]
    options = Options(max_new_tokens=24, temperature=2.0, eos_id=20)
    sampled = Generator(ruled, variables)(inputs, options, 3)
    more = dict(end_id=20, pad_id=0, run=beam_search.search)
    found = batch.search(ruled, variables, inputs, 24, batch.Search(3, 3), **more)
    texts = [*sampled, *(text.ids for row in found for text in row)]
    assert len({tuple(t) for t in texts}) > 6
    assert max(sum(i >= 26 for i in ids) for ids in texts) > 4
    for ids in texts:
        check_text(ids)


def test_a_text_ends_where_the_model_has_no_more_positions(variables):
    """The ids before it count too; sampling and beams go on for other rows."""
    c = whisper.Config(**{**vars(C), "max_len": 12})
    v = jax.tree_util.tree_map(lambda x: x, variables)
    v["params"]["decoder"]["position"] = {
        "embedding": variables["params"]["decoder"]["position"]["embedding"][:12]
    }
    never = RULES._replace(suppressed=(*RULES.suppressed, 20))  # no text ends by itself
    ruled = speech.ruled(whisper.decoder(c), never)
    inputs = [(AUDIO, GIVEN), (AUDIO, [30, 7, 8, *GIVEN])]
    found = Generator(ruled, v)(inputs, Options(max_new_tokens=12, eos_id=20), 0)
    assert [len(ids) for ids in found] == [9, 6]
    options = dict(end_id=20, pad_id=0, run=beam_search.search)
    found = batch.search(ruled, v, inputs, 12, batch.Search(2, 2), **options)
    assert [[len(text.ids) for text in row] for row in found] == [[9, 9], [6, 6]]
    assert all(np.isfinite(text.score) for row in found for text in row)
    with pytest.raises(UserError, match="12 ids before a text leave no room"):
        ruled.context([(AUDIO, [*range(9), *GIVEN])])


def test_refused_ids():
    ruled = speech.ruled(whisper.decoder(C), RULES)
    with pytest.raises(UserError, match="lack the start token 21"):
        ruled.context([(AUDIO, [22, 23])])
    with pytest.raises(UserError, match=r"\[2, 3\] ids after the start token"):
        ruled.context([(AUDIO, GIVEN), (AUDIO, [*GIVEN, 25])])
