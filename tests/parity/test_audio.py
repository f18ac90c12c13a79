"""Log-mel spectrograms against transformers' WhisperFeatureExtractor and torch.stft, Conv against
torch's Conv1d, and the positions of Whisper's encoder, frozen by make_audio.py.

Largest seen: 2e-5 in features, whose range is 2 for 80 dB; of many recordings see check_audio.py.
3e-7 in convolutions and their gradients.
"""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigjax.layers.audio import log_mel, mel_filters
from bigjax.layers.conv import Conv
from bigjax.layers.positions import sinusoids

HERE = pathlib.Path(__file__).parent
BAR = 1e-4
SMALL = {
    "morse8k": dict(sample_rate=8000, n_fft=256, hop=64, n_mels=32),
    "morse4k": dict(sample_rate=4000, n_fft=200, hop=64, n_mels=16),
}


@functools.cache
def frozen() -> dict[str, np.ndarray]:
    with np.load(HERE / "log_mel.npz") as f:
        return dict(f)


@functools.cache
def compiled(**sizes):
    return jax.jit(functools.partial(log_mel, **sizes))


def difference(ours, theirs) -> float:
    ours = np.asarray(ours)
    assert ours.shape == theirs.shape and ours.dtype == theirs.dtype == np.float32
    return np.abs(ours - theirs).max()


@pytest.mark.parametrize("n_mels", [80, 128])
def test_the_filters_are_those_published_with_whisper(n_mels):
    np.testing.assert_array_equal(mel_filters(16_000, 400, n_mels).T, frozen()[f"filters/{n_mels}"])


@pytest.mark.parametrize("n_mels", [80, 128])
def test_features_of_whisper(n_mels):
    """Speech, silence, a click, noise, a short word, a tone; rows with zeros at their end."""
    expected = frozen()[f"whisper/{n_mels}"]
    audio, run = frozen()["whisper/audio"][: len(expected)], compiled(n_mels=n_mels)
    ours = run(audio)
    assert difference(ours, expected) < BAR
    np.testing.assert_array_equal(run((audio / 32_768).astype(np.float32)), ours)


@pytest.mark.parametrize("name", SMALL)
def test_features_of_other_sizes(name):
    ours = compiled(**SMALL[name])(frozen()[f"{name}/audio"])
    assert difference(ours, frozen()[f"{name}/mel"]) < BAR


@pytest.mark.parametrize("mistake", ["late", "quiet", "bfloat16"])
def test_the_bar_notices(mistake):
    """Audio that is one sample late, quieter by a thousandth, or rounded to eight bits."""
    audio = jnp.asarray(frozen()["whisper/audio"], jnp.float32) / 32_768
    wrong = dict(
        late=jnp.roll(audio, 1, axis=1),
        quiet=audio * 0.999,
        bfloat16=audio.astype(jnp.bfloat16).astype(jnp.float32),
    )
    assert difference(compiled(n_mels=80)(wrong[mistake]), frozen()["whisper/80"]) > BAR


@pytest.mark.parametrize("stride", [1, 2])
def test_a_convolution_with_padding_is_that_of_torch(stride):
    ref = {k.rsplit("/")[-1]: x for k, x in frozen().items() if k.startswith(f"conv/{stride}/")}
    kernel = lambda weight: weight.transpose(2, 1, 0).reshape(-1, len(weight))
    conv = Conv(5, 3, stride=stride, padding=1)
    params = {"kernel": kernel(ref["weight"]), "bias": ref["bias"]}

    @jax.jit
    def run(params, x):
        def loss(params, x):
            y = conv.apply({"params": params}, x)
            return (y * ref["y_weights"]).sum(), y

        return jax.grad(loss, argnums=(0, 1), has_aux=True)(params, x)

    (grads, x_grad), y = run(params, frozen()["conv/x"])
    assert difference(y, ref["y"]) < 1e-6
    assert difference(x_grad, ref["x_grad"]) < 1e-6
    assert difference(grads["kernel"], kernel(ref["weight_grad"])) < 2e-6  # sums of 18 products
    assert difference(grads["bias"], ref["bias_grad"]) < 2e-6


def test_positions_of_whispers_encoder():
    """torch computes angles up to 1400 in float32, which rounds them to 6e-5."""
    ours = sinusoids(1500, 16, halves=True, inclusive=True)[::200]
    assert difference(ours, frozen()["sinusoids"]) < 1.5e-4
