"""Freezes the log-mel spectrograms of transformers and convolutions of torch for test_audio.py.

    python tests/parity/make_audio.py WHISPER    # needs PyTorch, transformers, soundfile, scipy

writes log_mel.npz beside itself; no jax, no bigjax. WHISPER: a checkout of openai/whisper, which
has the published filters and a recording in the public domain, J. F. Kennedy's inaugural address
(tests/jfk.flac). Made with torch 2.13.0 (CPU), transformers 5.24.0.

    filters/80, filters/128   as published, float32 [n_mels, 201]
    whisper/audio int16 [B, 2 s at 16 kHz], rows as of ROWS; whisper/80 float32 [B, 200, 80];
    whisper/128 [1, 200, 128] of the first row: WhisperFeatureExtractor of 2 s
    NAME/audio float32 [1, N], NAME/mel [1, frames, n_mels] for SMALL: keyed tones, by torch.stft
    conv/x [B, T, D]; conv/S/weight, bias, y, y_weights and the gradients x_grad, weight_grad,
    bias_grad of sum(y * y_weights): torch's Conv1d of kernel 3, padding 1, stride S
    sinusoids float32 [8, 16]: every 200th position of WhisperEncoder's
"""

import pathlib
import sys

import numpy as np
from scipy import signal
import soundfile
import torch
from transformers import WhisperFeatureExtractor
from transformers.audio_utils import mel_filter_bank
from transformers.models.whisper.modeling_whisper import sinusoids

HERE = pathlib.Path(__file__).parent
N = 32_000
# name: (sample rate, n_fft, hop, n_mels, samples). 200 is no multiple of 64, nor 4001 of 64.
SMALL = {"morse8k": (8000, 256, 64, 32, 4096), "morse4k": (4000, 200, 64, 16, 4001)}


def rows(recording):
    """Speech, silence, a click, half a second of noise, a short word, a loud tone in full scale."""
    rng, x = np.random.default_rng(0), np.zeros((6, N), np.int16)
    x[0] = recording[:N]
    x[2, 12_345] = 32_767
    x[3, : N // 4] = rng.normal(0, 3000, N // 4)
    x[4, :5000] = recording[5000:10_000]
    x[5, :4000] = np.round(32_767 * np.sin(2 * np.pi * 440 / 16_000 * np.arange(4000)))
    return x


def features(audio, n_mels):
    extract = WhisperFeatureExtractor(feature_size=n_mels, chunk_length=2)
    x = [row.astype(np.float32) / 32_768 for row in audio]
    y = extract(x, sampling_rate=16_000, return_tensors="np")["input_features"]
    return y.swapaxes(1, 2)


def keyed_tone(rate, samples, rng):
    t = np.arange(samples) / rate
    keyed = np.sin(2 * np.pi * 600 * t) * (t % 0.12 < 0.06)
    return (0.3 * keyed + rng.normal(0, 0.01, samples)).astype(np.float32)[None]


def by_stft(audio, rate, n_fft, hop, n_mels):
    """The steps of Whisper with other sizes; torch has no front end with Slaney's filters."""
    window = torch.hann_window(n_fft)
    spectrum = torch.stft(torch.from_numpy(audio), n_fft, hop, window=window, return_complex=True)
    bank = mel_filter_bank(n_fft // 2 + 1, n_mels, 0.0, rate / 2, rate, "slaney", "slaney")
    power = spectrum[..., :-1].abs() ** 2
    log = torch.from_numpy(bank.T.astype(np.float32)).matmul(power).clamp(min=1e-10).log10()
    return ((torch.maximum(log, log.max() - 8) + 4) / 4).numpy().swapaxes(1, 2)


def convolutions(rng):
    draw = lambda *shape: torch.from_numpy(rng.normal(0, 0.5, shape).astype(np.float32))
    x = draw(2, 9, 4)
    out = {"conv/x": x}
    for stride in (1, 2):
        weight, bias, given = draw(5, 4, 3), draw(5), x.clone()
        for t in (weight, bias, given):
            t.requires_grad_()
        y = torch.nn.functional.conv1d(given.mT, weight, bias, stride, 1).mT
        y_weights = draw(*y.shape)
        (y * y_weights).sum().backward()
        values = dict(weight=weight, bias=bias, y=y, y_weights=y_weights)
        grads = dict(x_grad=given.grad, weight_grad=weight.grad, bias_grad=bias.grad)
        out |= {f"conv/{stride}/{k}": v.detach() for k, v in {**values, **grads}.items()}
    return {k: v.numpy() for k, v in out.items()}


def main(whisper):
    rng, folder = np.random.default_rng(1), pathlib.Path(whisper)
    with np.load(folder / "whisper/assets/mel_filters.npz") as f:
        arrays = {f"filters/{n}": f[f"mel_{n}"] for n in (80, 128)}
    stereo, rate = soundfile.read(folder / "tests/jfk.flac")
    speech = signal.resample_poly(stereo.mean(1), 16_000, rate)
    audio = rows(np.round(32_767 * speech).astype(np.int16))
    arrays |= {"whisper/audio": audio, "whisper/80": features(audio, 80)}
    arrays["whisper/128"] = features(audio[:1], 128)
    for name, (*sizes, samples) in SMALL.items():
        tone = keyed_tone(sizes[0], samples, rng)
        arrays |= {f"{name}/audio": tone, f"{name}/mel": by_stft(tone, *sizes)}
    arrays |= convolutions(rng)
    arrays["sinusoids"] = sinusoids(1500, 16).numpy()[::200]
    path = HERE / "log_mel.npz"
    np.savez_compressed(path, **arrays)
    print(f"{path.name}: {path.stat().st_size / 1e3:.0f} kB, {len(arrays)} arrays")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(*sys.argv[1:])
