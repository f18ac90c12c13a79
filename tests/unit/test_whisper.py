"""Whisper: parameter counts, FLOPs, what a decoder reads, and positions of another length."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigjax.errors import UserError
from bigjax.layers.params import unbox
from bigjax.layers.positions import sinusoids
from bigjax.models import whisper
from bigjax.trees import count

SMALL = dict(
    vocab_size=31,
    n_mels=8,
    max_seconds=0.2,
    max_len=12,
    d_model=16,
    n_layers=1,
    n_heads=2,
    start_id=3,
)
C = whisper.Config(**SMALL)
AUDIO = np.random.default_rng(1).normal(0, 2000, 3200).astype(np.int16)


def shapes(c, frames=8, tokens=2):
    return (
        jax.ShapeDtypeStruct((1, frames, c.n_mels), jnp.float32),
        jax.ShapeDtypeStruct((1, tokens), jnp.int32),
    )


def variables(c=C, seed=0):
    return unbox(jax.jit(whisper.Model(c).init)(jax.random.key(seed), *map(zeros, shapes(c))))


def zeros(x):
    return jnp.zeros(x.shape, x.dtype)


@pytest.mark.parametrize(
    "preset, n",
    {
        "tiny": 37_760_640,
        "base": 72_593_920,
        "small": 241_734_912,
        "medium": 763_857_920,
        "large": 1_543_304_960,
        "large-v3": 1_543_490_560,
    }.items(),
)
def test_parameters(preset, n):
    """Of the published weights, with the encoder's positions, which are not trained."""
    c = whisper.Config(**whisper.PRESETS[preset])
    assert (c.n_positions, c.n_samples) == (1500, 480_000)
    init = whisper.Model(c).init
    assert count(jax.eval_shape(init, jax.random.key(0), *shapes(c))["params"]) == n


def test_flops():
    """Six per weight of a product for each place where it is used, and of attention."""
    c = whisper.Config(**{**SMALL, "n_decoder_layers": 2})
    d, S, T = 16, 10, 6
    attention, mlp = 4 * d * d, 8 * d * d
    weights = 20 * 3 * 8 * d + S * (3 * d * d + attention + mlp) + 31 * d * T
    weights += 2 * (T * (attention + attention / 2 + mlp) + S * attention / 2)
    keys = S * S + 2 * (T * (T + 1) / 2 + T * S)
    assert whisper.flops_per_pair(c, 20, T) == 6 * weights + 12 * d * keys


def test_audio_of_any_length_and_type_is_padded():
    context, first = whisper.decoder(C).context([AUDIO[:1000], AUDIO, AUDIO[:1]])
    assert context["audio"].dtype == np.int16 and context["audio"].shape == (3, 3200)
    np.testing.assert_array_equal(context["audio"][0, :1000], AUDIO[:1000])
    assert not context["audio"][0, 1000:].any()
    np.testing.assert_array_equal(context["segments"].sum(1), [4, 10, 1])  # of 320 samples
    np.testing.assert_array_equal(first, [3, 3, 3])
    assert context["tokens"].shape == (3, 0)
    for rows in ([AUDIO, AUDIO / 32768], [AUDIO, AUDIO.astype(np.float32) / 32768]):
        audio = whisper.decoder(C).context(rows)[0]["audio"]
        assert audio.dtype == np.float32
        np.testing.assert_array_equal(audio[0], audio[1])


@pytest.mark.parametrize(
    "row, message",
    [
        (AUDIO.astype(np.int32), "array int32 of shape"),
        (AUDIO[None], r"int16 of shape \(1, 3200\)"),
        (AUDIO[:0], "0 samples; allowed: 1 to 3200"),
        (np.zeros(3201, np.float32), "3201 samples; allowed: 1 to 3200"),
        ((AUDIO, [*range(13)]), "13 tokens before a text"),
    ],
)
def test_refused_inputs(row, message):
    with pytest.raises(UserError, match=message):
        whisper.decoder(C).context([AUDIO, row])


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(n_heads=3), "does not divide"),
        (dict(d_model=3, n_heads=1), "even number"),
        (dict(max_seconds=0.01), "less than 2"),
        (dict(start_id=31), "less than model.vocab_size"),
        (dict(attention="?"), "model.attention"),
    ],
)
def test_refused_configs(options, message):
    with pytest.raises(UserError, match=message):
        whisper.Config(**{**SMALL, **options})


def test_too_many_frames_are_refused():
    with pytest.raises(UserError, match="22 frames, but model.max_seconds=0.2 allows 20"):
        jax.eval_shape(whisper.Model(C).init, jax.random.key(0), *shapes(C, 22))


def test_shorter_features_use_the_first_positions():
    """A batch may be shorter than max_seconds: positions after its end are not read."""
    v, mel = variables(), jax.random.normal(jax.random.key(1), (1, 9, 8))
    encode = jax.jit(lambda v: whisper.Model(C).apply(v, mel, method="encode")[0])
    before = encode(v)
    assert before.shape == (1, 5, 16)
    position = v["params"]["encoder"]["position"]
    v["params"]["encoder"]["position"] = position.at[5:].set(jnp.nan)
    np.testing.assert_array_equal(before, encode(v))
    v["params"]["encoder"]["position"] = position.at[4:].add(1)
    assert (before != encode(v)).any()


def test_padding_before_a_token_is_not_seen():
    v, model = variables(), whisper.Model(C)
    mel, inputs = jnp.ones((1, 8, 8)), jnp.array([[5, 3, 7, 9]])
    logits = jax.jit(lambda x, s: model.apply(v, mel, x, segments_BT=s).logits)
    segments = jnp.array([[0, 1, 1, 1]])
    other = inputs.at[0, 0].set(6)
    np.testing.assert_array_equal(logits(inputs, segments)[:, 1:], logits(other, segments)[:, 1:])
    assert (logits(inputs, None)[:, 1:] != logits(other, None)[:, 1:]).any()


def test_dropout_acts_on_the_encoder_and_the_decoder():
    v, mel, inputs = variables(), jnp.ones((1, 8, 8)), jnp.array([[3, 7]])
    for name in ("dropout", "attention_dropout", "mlp_dropout"):
        model = whisper.Model(whisper.Config(**SMALL, **{name: 0.5}))
        run = jax.jit(lambda key: model.apply(v, mel, inputs, rng=key).logits)  # noqa: B023
        encode = jax.jit(lambda key: model.apply(v, mel, key, method="encode")[0])  # noqa: B023
        a, b = jax.random.key(0), jax.random.key(1)
        assert (run(a) != run(b)).any() and (encode(a) != encode(b)).any(), name


def test_attention_to_the_audio():
    """The share of each position of the audio, which sums to 1, for a step that is not taken."""
    c = whisper.Config(**{**SMALL, "scan": False})
    decoder, v = whisper.decoder(c), variables(c)
    context, first = decoder.context([AUDIO, AUDIO[:900]])
    state = jax.jit(decoder.begin, static_argnums=2)(v, context, 4)
    share = jax.jit(decoder.attention)(v, state, jnp.asarray(first))
    assert share.shape == context["segments"].shape == (2, 10)
    np.testing.assert_allclose(share.sum(1), 1, rtol=1e-5)


@pytest.mark.parametrize("seconds", [0.1, 0.3])
def test_positions_of_another_length(seconds):
    table = np.arange(160, dtype=np.float32).reshape(10, 16)
    c, name = whisper.Config(**{**SMALL, "max_seconds": seconds}), "encoder/position"
    adapted = whisper.adapt(vars(C), c, [name])[name]
    assert adapted.shape == (c.n_positions, 16)
    ours = adapted.change(table)
    np.testing.assert_array_equal(ours[:10], table[: c.n_positions])
    rest = sinusoids(c.n_positions, 16, halves=True, inclusive=True)[10:]
    np.testing.assert_array_equal(ours[10:], rest)
    assert not whisper.adapt(vars(C), C, [name])
    assert not whisper.adapt(vars(C), c, ["encoder/conv_1/kernel"])
