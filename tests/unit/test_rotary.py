"""Rotary positions: partial heads and scaled frequencies."""

import jax.numpy as jnp
import numpy as np
import pytest

from bigjax.layers.rotary import Scaling, rotary

X = np.random.default_rng(0).normal(size=(2, 5, 3, 8)).astype(np.float32)
POSITIONS = np.array([[0, 1, 2, 3, 4], [7, 8, 0, 1, 30]])


def turned(x, angle):
    """The pairs (j, j + half) as complex numbers, turned by angle [B, T, half]."""
    half = x.shape[-1] // 2
    z = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * angle)[:, :, None]
    return np.concatenate([z.real, z.imag], -1)


def angles(frequencies):
    return POSITIONS[..., None] * np.asarray(frequencies)


def test_only_the_first_dimensions_of_a_head_rotate():
    y = rotary(jnp.asarray(X), POSITIONS, 100.0, dims=4)
    np.testing.assert_allclose(y[..., :4], turned(X[..., :4], angles([1, 0.1])), atol=1e-5)
    np.testing.assert_array_equal(y[..., 4:], X[..., 4:])
    assert np.array_equal(rotary(X, POSITIONS, 100.0, dims=8), rotary(X, POSITIONS, 100.0))


PLAIN = 10.0 ** -np.arange(4)  # theta = 1e4
LONG = dict(original_len=16, short=(1.0, 2.0, 4.0, 8.0), long=(3.0, 5.0, 7.0, 9.0))


@pytest.mark.parametrize(
    "scaling, length, frequencies",
    [
        (Scaling("linear", factor=4.0), 5, PLAIN / 4),
        # 16 * [1, 0.1, 0.01, 0.001] / (2 pi) = [2.55, 0.25, ...] turns: kept from 2 on, scaled
        # below 0.1; of the second (0.2546 - 0.1) / 1.9 is kept.
        (
            Scaling("llama3", 8.0, low_factor=0.1, high_factor=2.0, original_len=16),
            5,
            [1, 0.1 * (0.081394 + (1 - 0.081394) / 8), 0.01 / 8, 0.001 / 8],
        ),
        (Scaling("longrope", **LONG), 16, PLAIN / LONG["short"]),
        (Scaling("longrope", **LONG), 17, PLAIN / LONG["long"]),
    ],
    ids=lambda x: x.kind if isinstance(x, Scaling) else "",
)
def test_scaled_frequencies(scaling, length, frequencies):
    got = scaling.frequencies(PLAIN, length)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, frequencies, rtol=2e-5)
    y = rotary(jnp.asarray(X), POSITIONS, 1e4, scaling=scaling, length=length)
    np.testing.assert_allclose(y, turned(X, angles(frequencies)), atol=1e-3)


def test_the_attention_factor_of_longrope_scales_what_rotates():
    options = dict(dims=4, length=3)
    long = dict(LONG, short=(1.0, 1.0), long=(1.0, 1.0))
    plain, scaled = (
        rotary(jnp.asarray(X), POSITIONS, 10.0, scaling=Scaling("longrope", **long, **f), **options)
        for f in ({}, {"attention_factor": 1.5})
    )
    np.testing.assert_allclose(scaled[..., :4], 1.5 * plain[..., :4], rtol=1e-6)
    np.testing.assert_array_equal(scaled[..., 4:], X[..., 4:])
