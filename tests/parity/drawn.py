"""Weights that a reference and its test both compute, so that no file has to hold them."""

import math

import numpy as np


def weights(shapes: dict, seed: int, gain: float = 1.2) -> dict:
    """Weights that expose mistakes, for {name: shape}: a function of names, shapes and seed.

    Norm scales and biases are random; dense layers are wide enough for attention to be far from
    uniform. T5 does not divide the scores by sqrt(d), hence narrower queries.
    """
    out = {}
    for i, name in enumerate(sorted(shapes)):
        rng, shape = np.random.RandomState([seed, i]), shapes[name]
        if "relative_attention_bias" in name:
            value = rng.normal(0, 0.7, shape)
        elif name in ("shared.weight", "model.shared.weight"):
            value = rng.normal(0, 0.4, shape)
        elif name.endswith("bias"):
            value = rng.normal(0, 0.2, shape)
        elif len(shape) == 1:  # scale of a norm
            value = rng.uniform(0.5, 1.5, shape)
        else:
            narrow = 0.4 if name.endswith("Attention.q.weight") else 1.0
            value = rng.normal(0, gain * narrow / math.sqrt(shape[1]), shape)
        out[name] = value.astype(np.float32)
    return out
