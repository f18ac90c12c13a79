"""From audio to the log-mel spectrogram of Whisper, on the device; SpecAugment."""

import jax
import jax.numpy as jnp
import numpy as np

from bigjax.errors import UserError

# By default a TPU rounds the factors of a product to bfloat16, a GPU to TF32. The features span
# eight powers of ten of power, and rounding is noise in all bands, which covers the quiet ones: of
# speech, samples in bfloat16 change features by up to 0.25, an eighth of their range.
EXACT = jax.lax.Precision.HIGHEST


def log_mel(
    audio_BN: jax.Array,
    *,
    sample_rate: int = 16_000,
    n_fft: int = 400,
    hop: int = 160,
    n_mels: int = 80,
) -> jax.Array:
    """The features of Whisper (https://arxiv.org/abs/2212.04356), float32 [B, N // hop, n_mels].

    audio_BN: int16, or floating with values in [-1, 1]; sample_rate in Hz. Frame f is centred on
    sample f * hop; a frame that reaches over an end of the array sees it reflected, as in
    torch.stft(center=True). The logarithm of the power in each band is at least that of the row's
    largest less 80 dB, and scaled to a range of 2. Shorter rows are padded with zeros, as Whisper
    does up to 30 seconds; their lengths are not needed. Raises UserError for another dtype or
    shape, too few samples, and for what `mel_filters` refuses.

    The power is computed by products with cosines and sines, for the matrix units of a TPU, and not
    by a fast Fourier transform.
    """
    filters = mel_filters(sample_rate, n_fft, n_mels)
    frames_BFN = _frames(_samples(audio_BN, n_fft, hop), n_fft, hop)
    power_BFK = _power(frames_BFN, n_fft)
    mel_BFM = jnp.matmul(power_BFK, filters, precision=EXACT)
    log_BFM = jnp.log10(jnp.maximum(mel_BFM, 1e-10))
    log_BFM = jnp.maximum(log_BFM, log_BFM.max((1, 2), keepdims=True) - 8.0)
    return (log_BFM + 4.0) / 4.0


def _samples(audio_BN: jax.Array, n_fft: int, hop: int) -> jax.Array:
    """The audio as float32, checked."""
    dtype, shape = audio_BN.dtype, audio_BN.shape
    if dtype != jnp.int16 and not jnp.issubdtype(dtype, jnp.floating):
        raise UserError(
            f"log_mel got audio of dtype {dtype}. Give it int16, or floating-point samples between "
            "-1 and 1."
        )
    fewest = max(hop, n_fft // 2 + 1)
    if len(shape) != 2 or shape[1] < fewest:
        raise UserError(
            f"log_mel got audio of shape {shape}; it needs [rows, samples] with at least {fewest} "
            f"samples for n_fft={n_fft} and hop={hop}. Pad shorter rows with zeros."
        )
    audio_BN = audio_BN.astype(jnp.float32)
    return audio_BN / 32_768.0 if dtype == jnp.int16 else audio_BN


def _frames(audio_BN: jax.Array, n_fft: int, hop: int) -> jax.Array:
    """[B, N // hop, n_fft]: overlapping frames, centred on every hop-th sample.

    Put together of blocks of hop samples: slices, where a TPU would loop over a gather.
    """
    B, N = audio_BN.shape
    n, n_blocks = N // hop, -(-n_fft // hop)  # frames, and the blocks that each of them touches
    x = jnp.pad(audio_BN, ((0, 0), (n_fft // 2, n_fft // 2)), mode="reflect")
    used = (n - 1 + n_blocks) * hop
    x = jnp.pad(x[:, :used], ((0, 0), (0, max(0, used - x.shape[1]))))  # zeros no frame reads
    blocks = x.reshape(B, -1, hop)
    parts = [blocks[:, i : i + n, : n_fft - i * hop] for i in range(n_blocks)]
    return jnp.concatenate(parts, axis=-1)


def _power(frames_BFN: jax.Array, n_fft: int) -> jax.Array:
    """[..., n_fft // 2 + 1]: the squared magnitudes of the Fourier transform of windowed frames.

    The window and the cosines are even about the middle of a frame, the sines odd: samples at the
    same distance from it are added or subtracted first. That is half of the products, and as exact
    as torch's transform; with whole frames the error is twice as large.
    """
    cosines, sines = _transform(n_fft)
    half = n_fft // 2  # the window is 0 at sample 0, which has no partner
    left, right = frames_BFN[..., 1:half], frames_BFN[..., :half:-1]
    middle = frames_BFN[..., half : half + 1]
    even = jnp.concatenate([left + right, middle], axis=-1)
    real = jnp.matmul(even, cosines, precision=EXACT)
    imaginary = jnp.matmul(left - right, sines, precision=EXACT)
    return jnp.square(real) + jnp.square(imaginary)


def _transform(n_fft: int) -> tuple[np.ndarray, np.ndarray]:
    """Cosines [n_fft / 2, n_fft / 2 + 1] and sines [n_fft / 2 - 1, n_fft / 2 + 1] of samples 1 to
    the middle of a frame, times the periodic Hann window."""
    n, k = np.arange(1, n_fft // 2 + 1), np.arange(n_fft // 2 + 1)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * n / n_fft)
    angles = 2 * np.pi * (np.outer(n, k) % n_fft) / n_fft
    cosines, sines = window[:, None] * np.cos(angles), window[:, None] * np.sin(angles)
    return cosines.astype(np.float32), sines[:-1].astype(np.float32)


def mel_filters(sample_rate: int, n_fft: int, n_mels: int) -> np.ndarray:
    """Triangular filters from 0 Hz to sample_rate / 2, float32 [n_fft // 2 + 1, n_mels].

    They are equally spaced on Slaney's mel scale, and each has the area 1 over Hz. Transposed, they
    are those published with Whisper, of librosa.filters.mel, to the last bit. Raises UserError for
    an odd n_fft, and if a filter is so narrow that it contains no frequency of the transform.
    """
    if n_fft < 2 or n_fft % 2:
        raise UserError(f"n_fft={n_fft} has to be an even number of samples of at least 2.")
    frequencies = np.arange(n_fft // 2 + 1) * (sample_rate / n_fft)
    edges = _hertz(np.linspace(0.0, _mels(sample_rate / 2), n_mels + 2))
    widths, distances = np.diff(edges), edges[:, None] - frequencies
    rising, falling = -distances[:-2] / widths[:-1, None], distances[2:] / widths[1:, None]
    heights = np.maximum(0, np.minimum(rising, falling)).astype(np.float32)  # as librosa rounds
    if empty := int((heights.max(1) == 0).sum()):
        raise UserError(
            f"{empty} of n_mels={n_mels} filters have no frequency: n_fft={n_fft} at "
            f"sample_rate={sample_rate} gives one every {sample_rate / n_fft:.4g} Hz. Use fewer "
            "filters or a larger n_fft."
        )
    areas = (edges[2:] - edges[:-2]) / 2
    return (heights / areas[:, None]).astype(np.float32).T


# Slaney's scale: 3 mels for 200 Hz up to 1 kHz, above it 27 mels for a factor of 6.4.
_KNEE, _STEP = 15.0, np.log(6.4) / 27.0


def _mels(hertz: float) -> float:
    return hertz * 3 / 200 if hertz < 1000 else _KNEE + np.log(hertz / 1000) / _STEP


def _hertz(mels: np.ndarray) -> np.ndarray:
    return np.where(mels < _KNEE, mels * 200 / 3, 1000 * np.exp(_STEP * (mels - _KNEE)))


def spec_augment(
    mel_BTF: jax.Array,
    rng: jax.Array,
    *,
    time_masks: int,
    time_width: int,
    freq_masks: int,
    freq_width: int,
    lengths_B: jax.Array | None = None,
    max_share: float = 1.0,
    fill: float | None = None,
) -> jax.Array:
    """SpecAugment without time warping (https://arxiv.org/abs/1904.08779): each row with time_masks
    spans of frames and freq_masks spans of bands set to `fill`.

    The width of a span is uniform between 0 and time_width or freq_width, its place among all where
    it fits. lengths_B: frames of each row, within which the spans of frames lie, by default all.
    max_share: the largest share of these that one span may have (p of the paper). fill: None for
    the mean of the row's frames, which are 0 on average in the paper, but not those of `log_mel`.
    """
    B, T, F = mel_BTF.shape
    lengths_B = jnp.full(B, T) if lengths_B is None else lengths_B
    time_rng, freq_rng = jax.random.split(rng)
    widest_B = jnp.minimum(time_width, (max_share * lengths_B).astype(jnp.int32))
    frames_BT = _spans(time_rng, time_masks, widest_B, lengths_B, T)
    bands_BF = _spans(freq_rng, freq_masks, jnp.full(B, min(freq_width, F)), jnp.full(B, F), F)
    masked_BTF = frames_BT[:, :, None] | bands_BF[:, None, :]
    if fill is None:
        real_BT = jnp.arange(T) < lengths_B[:, None]
        sums_B = jnp.where(real_BT[..., None], mel_BTF, 0).sum((1, 2), dtype=jnp.float32)
        value = (sums_B / jnp.maximum(1, lengths_B * F))[:, None, None].astype(mel_BTF.dtype)
    else:
        value = jnp.asarray(fill, mel_BTF.dtype)
    return jnp.where(masked_BTF, value, mel_BTF)


def _spans(rng, n: int, widest_B: jax.Array, lengths_B: jax.Array, size: int) -> jax.Array:
    """bool [B, size]: n spans a row, of at most widest_B, within the first lengths_B."""
    width_rng, start_rng = jax.random.split(rng)
    shape = len(lengths_B), n
    width_BS = jax.random.randint(width_rng, shape, 0, widest_B[:, None] + 1)
    start_BS = jax.random.randint(start_rng, shape, 0, lengths_B[:, None] - width_BS + 1)
    place = jnp.arange(size)[:, None]
    inside_BPS = (start_BS[:, None] <= place) & (place < (start_BS + width_BS)[:, None])
    return inside_BPS.any(-1)
