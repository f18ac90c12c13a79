"""The section data.augment: how training recordings are changed."""

import dataclasses

import numpy as np

from bigjax.bounds import FINITE, FRACTION, at_least, check_ranges
from bigjax.data.audio.decode import resample
from bigjax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Augment:
    """In the order in which they are applied; each is off at its default."""

    speed: float = 0.0  # factors from 1 - x to 1 + x, which change the pitch too
    gain: float = 0.0  # dB, louder or softer
    shift: float = 0.0  # seconds of silence before it, up to this
    noise: tuple[float, ...] = ()  # white: lowest and highest SNR in dB; () = none

    RANGES = {
        "speed": FRACTION,
        **dict.fromkeys(("gain", "shift"), at_least(0)),
        "noise": FINITE,
    }

    def __post_init__(self):
        check_ranges("data.augment", self)
        if self.noise and (len(self.noise) != 2 or self.noise[0] > self.noise[1]):
            raise UserError(
                f"data.augment.noise is {self.noise}; it has to be the lowest and the highest "
                "signal-to-noise ratio in dB, such as (10.0, 30.0), or () for none."
            )

    def __call__(
        self, samples: np.ndarray, rng: np.random.Generator, sample_rate: int, max_samples: int
    ) -> np.ndarray:
        """float32 [M] of a training recording float32 [N], changed; M is at most max_samples.

        The power of the noise is that of the recording, averaged over its length, over the ratio.
        """
        if self.speed:
            slowest = max(1 - self.speed, len(samples) / max_samples)
            speed = rng.uniform(slowest, 1 + self.speed)
            samples = resample(samples, speed * sample_rate, sample_rate)[:max_samples]
        if self.gain:
            samples = samples * np.float32(10 ** (rng.uniform(-self.gain, self.gain) / 20))
        if self.shift:
            most = min(self.shift * sample_rate, max_samples - len(samples))
            silence = np.zeros(int(rng.uniform(0, most)), np.float32)
            samples = np.concatenate([silence, samples])
        if self.noise:
            power = np.square(samples).mean() / 10 ** (rng.uniform(*self.noise) / 10)
            drawn = rng.standard_normal(len(samples), np.float32)
            samples = samples + np.float32(np.sqrt(power)) * drawn
        return samples
