"""Compares the log-mel spectrograms of recordings with those of transformers. Run by hand:

    python tests/parity/check_audio.py FOLDER    # needs PyTorch, transformers, scipy, bigjax

FOLDER has WAV files of 16 bits, one channel and any rate, also in folders of its own. It prints for
bands of 80 and 128 the largest difference in features of 30 s, of bigjax and of transformers, from
a computation in float64, and of both from each other, and fails if bigjax is further from
transformers than BAR.
Last run with torch 2.13.0, transformers 5.24.0 on the 568 recordings of Debian's package
asterisk-core-sounds-en-wav (8 kHz): with 80 and 128 bands bigjax differs by 8.3e-5 and 6.2e-5 from
float64, transformers by 7.2e-5 and 7.2e-5, and both from each other by 8.4e-5 and 6.7e-5.
"""

import functools
import math
import pathlib
import sys

import jax
import numpy as np
from scipy import signal
from scipy.io import wavfile
import transformers

from bigjax.layers.audio import log_mel, mel_filters

BAR, BATCH, N = 1e-4, 8, 480_000


def recording(path) -> np.ndarray:
    """30 s at 16 kHz, cut or padded with zeros."""
    rate, x = wavfile.read(path)
    common = math.gcd(16_000, rate)
    x = signal.resample_poly(x / 32_768, 16_000 // common, rate // common)[:N]
    return np.pad(x, (0, N - len(x))).astype(np.float32)


def in_float64(audio: np.ndarray, n_mels: int) -> np.ndarray:
    x = np.pad(audio.astype(np.float64), ((0, 0), (200, 200)), mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(x, 400, axis=1)[:, :-1:160]
    power = np.abs(np.fft.rfft(frames * np.hanning(401)[:-1])) ** 2
    log = np.log10(np.maximum(power @ mel_filters(16_000, 400, n_mels).astype(float), 1e-10))
    return (np.maximum(log, log.max((1, 2), keepdims=True) - 8) + 4) / 4


def main(folder):
    paths = sorted(pathlib.Path(folder).rglob("*.wav"))
    for n_mels in (80, 128):
        run = jax.jit(functools.partial(log_mel, n_mels=n_mels))
        extract = transformers.WhisperFeatureExtractor(feature_size=n_mels)
        largest = np.zeros(3)
        for start in range(0, len(paths), BATCH):
            audio = np.stack([recording(path) for path in paths[start : start + BATCH]])
            ours, exact = np.asarray(run(audio)), in_float64(audio, n_mels)
            theirs = np.asarray(extract(list(audio), sampling_rate=16_000)["input_features"])
            theirs = theirs.swapaxes(1, 2)
            pairs = (ours, exact), (theirs, exact), (ours, theirs)
            largest = np.maximum(largest, [np.abs(a - b).max() for a, b in pairs])
        print(f"{len(paths)} recordings, {n_mels} bands: bigjax {largest[0]:.1e} from float64,")
        print(f"transformers {largest[1]:.1e}, bigjax {largest[2]:.1e} from transformers")
        assert largest[2] < BAR


if __name__ == "__main__":
    main(*sys.argv[1:])
