"""The front end for audio, and SpecAugment."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigjax.errors import UserError
from bigjax.layers.audio import log_mel, mel_filters, spec_augment

MASKS = dict(time_masks=2, time_width=5, freq_masks=1, freq_width=3)


def test_products_are_exact_on_accelerators():
    """On a CPU nothing else shows a lower precision."""
    jaxpr = jax.make_jaxpr(log_mel)(jnp.zeros((1, 800)))
    products = [e for e in jaxpr.jaxpr.eqns if e.primitive.name == "dot_general"]
    exact = (jax.lax.Precision.HIGHEST,) * 2
    assert [e.params["precision"] for e in products] == [exact] * 3


def test_rows_do_not_depend_on_each_other_or_on_zeros_after_them():
    rng = np.random.default_rng(0)
    audio = np.zeros((3, 4000), np.float32)
    audio[0], audio[1, :2000] = rng.normal(0, 0.3, 4000), rng.normal(0, 0.01, 2000)
    run = jax.jit(log_mel)
    together = run(audio)
    np.testing.assert_allclose(run(audio[1:2])[0], together[1], atol=1e-5)
    padded = run(np.pad(audio[1:2, :2400], ((0, 0), (0, 8000))))[0]
    np.testing.assert_allclose(padded[:14], together[1, :14], atol=1e-5)
    np.testing.assert_array_equal(together[2], np.full((25, 80), -1.5))


@pytest.mark.parametrize("n, n_fft, hop", [(500, 128, 64), (501, 50, 64), (333, 200, 64)])
def test_frames_by_definition(n, n_fft, hop):
    """For sizes where the frames read the last sample or leave some unread, and n_fft < hop."""
    audio = np.random.default_rng(0).normal(0, 0.1, (2, n)).astype(np.float32)
    x = np.pad(audio.astype(np.float64), ((0, 0), (n_fft // 2, n_fft // 2)), mode="reflect")
    window = np.hanning(n_fft + 1)[:-1]
    frames = [x[:, f * hop : f * hop + n_fft] * window for f in range(n // hop)]
    power = np.abs(np.fft.rfft(np.stack(frames, 1))) ** 2
    log = np.log10(power @ mel_filters(8000, n_fft, 8))
    sizes = dict(sample_rate=8000, n_fft=n_fft, hop=hop, n_mels=8)
    ours = jax.jit(functools.partial(log_mel, **sizes))(audio)
    np.testing.assert_allclose(ours, (log + 4) / 4, atol=1e-5)


@pytest.mark.parametrize(
    "audio, options, message",
    [
        (jnp.zeros((1, 800), jnp.int32), {}, "dtype int32. Give it int16, or floating"),
        (jnp.zeros(800), {}, r"shape \(800,\); it needs \[rows, samples\]"),
        (jnp.zeros((2, 200)), {}, "at least 201 samples for n_fft=400 and hop=160. Pad"),
        (jnp.zeros((2, 200)), dict(n_fft=40, hop=256, n_mels=4), "at least 256 samples"),
        (jnp.zeros((1, 800)), dict(n_fft=401), "n_fft=401 has to be an even number"),
        (jnp.zeros((1, 800)), dict(n_fft=128), "of n_mels=80 filters have no frequency.*125 Hz"),
    ],
)
def test_refused(audio, options, message):
    with pytest.raises(UserError, match=message):
        log_mel(audio, **options)


@functools.cache
def masked(rows=20_000, length=None, **options):
    """bool [rows, 20 frames, 8 bands]: what is masked of ones."""
    lengths = None if length is None else jnp.full(rows, length)
    run = functools.partial(spec_augment, lengths_B=lengths, fill=0.0, **{**MASKS, **options})
    return np.asarray(jax.jit(run)(jnp.ones((rows, 20, 8)), jax.random.key(0))) == 0


def test_widths_and_places_are_uniform():
    spans = masked(time_masks=1, freq_masks=0)[:, :, 0]
    widths = spans.sum(1)
    np.testing.assert_allclose(np.bincount(widths) / len(spans), np.full(6, 1 / 6), atol=0.012)
    first = spans[widths == 3].argmax(1)
    np.testing.assert_allclose(np.bincount(first) / len(first), np.full(18, 1 / 18), atol=0.016)
    assert (np.abs(np.diff(np.pad(spans, ((0, 0), (1, 1))).astype(int))).sum(1) <= 2).all()
    bands = masked(time_masks=0)
    assert (bands == bands[:, :1]).all()
    counts = np.bincount(bands[:, 0].sum(1)) / len(bands)
    np.testing.assert_allclose(counts, np.full(4, 1 / 4), atol=0.012)


def test_masks_of_a_row_are_independent():
    """Two spans of up to 5 frames: what one leaves, the other masks with the same probability."""
    one, two = (masked(time_masks=n, freq_masks=0)[:, :, 0].mean(0) for n in (1, 2))
    np.testing.assert_allclose(two, 1 - (1 - one) ** 2, atol=0.012)
    both = masked(time_masks=1)
    frames, bands = both.all(2), both.all(1)
    assert (both == frames[:, :, None] | bands[:, None]).all()
    expected = frames.mean(0)[:, None] + bands.mean(0) - frames.mean(0)[:, None] * bands.mean(0)
    np.testing.assert_allclose(both.mean(0), expected, atol=0.012)


def test_frames_after_the_length_stay_and_one_mask_has_at_most_its_share():
    spans = masked(time_masks=1, freq_masks=0, length=8)[:, :, 0]
    assert spans[:, :8].any(0).all() and not spans[:, 8:].any()
    assert spans.sum(1).max() == 5
    assert masked(time_masks=1, freq_masks=0, length=8, max_share=0.25)[..., 0].sum(1).max() == 2
    assert masked(time_masks=1, freq_masks=0, length=3)[..., 0].sum(1).max() == 3
    assert not masked(time_masks=1, freq_masks=0, length=0).any()


def test_the_mean_of_the_row_fills_by_default():
    mel = np.random.default_rng(0).normal(3, 1, (64, 20, 8)).astype(np.float32)
    lengths = np.arange(64) % 20 + 1
    run = jax.jit(functools.partial(spec_augment, **MASKS))
    out = run(mel, jax.random.key(1), lengths_B=lengths)
    means = np.stack([x[:n].mean() for x, n in zip(mel, lengths)])
    changed = np.asarray(out != mel)
    assert changed.any((1, 2)).sum() > 50
    expected = np.where(changed, means[:, None, None], mel)
    np.testing.assert_allclose(out, expected, atol=1e-5)
    assert (run(mel, jax.random.key(2), lengths_B=lengths) != out).any()
