"""bigjax.models.whisper against Hugging Face's Whisper.

make_whisper.py froze the reference: weights, audio of several lengths, its features, logits, loss
and gradients, in float32. The error of a tensor is max |ours - theirs| / max |theirs|, as in
test_gpt.py. Largest seen: 4e-7 in features and logits, 5e-6 in gradients, 5e-7 with a cache.
"""

import functools
import json
import pathlib
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest

from bigjax import losses
from bigjax.layers.positions import sinusoids
from bigjax.models import whisper
from tests.parity.test_gpt import error, gradient_errors
from tests.parity.test_t5 import tree

HERE = pathlib.Path(__file__).parent
OUTPUT_BAR, GRADIENT_BAR, CACHE_BAR = 1e-5, 1e-4, 2e-5
(FAMILY,) = whisper.HUGGING_FACE


class Reference(NamedTuple):
    c: Any  # our model's Config
    params: dict  # {our path: array}, unrolled names
    grads: dict
    arrays: dict  # of the file


@functools.cache
def reference() -> Reference:
    with np.load(HERE / "whisper.npz") as f:
        stored = dict(f)
    c = whisper.Config(**FAMILY.model_fields(json.loads(str(stored["config"]))))
    entries = FAMILY.entries("WhisperForConditionalGeneration", vars(c), 2)
    assert {e.name for e in entries} == {k[7:] for k in stored if k.startswith("params/")}
    part = lambda kind: {
        name: x
        for e in entries
        if f"{kind}/{e.name}" in stored
        for name, x in e.to_ours(stored[f"{kind}/{e.name}"]).items()
    }
    return Reference(c, part("params"), part("grads"), stored)


def config_of(ref: Reference, **more) -> whisper.Config:
    return whisper.Config(**{f: getattr(ref.c, f) for f in ref.c.__dataclass_fields__} | more)


def real(ref: Reference) -> np.ndarray:
    return ref.arrays["weights"] > 0


@functools.cache
def compiled(**more):
    """run(params, arrays) -> logits, loss, gradients, from audio."""
    c = config_of(reference(), **more)

    def forward(params, arrays):
        mel = whisper.features(c, arrays["audio"])
        variables = {"params": tree(params, c.scan)}
        rng = jax.random.key(0)
        return whisper.Model(c).apply(variables, mel, arrays["inputs"], rng=rng).logits

    def loss(params, arrays):
        logits = forward(params, arrays)
        total, weight = losses.cross_entropy(logits, arrays["targets"], arrays["weights"])
        return total / weight

    return jax.jit(
        lambda params, arrays: (forward(params, arrays), *jax.value_and_grad(loss)(params, arrays))
    )


def inputs_of(ref: Reference) -> dict:
    return {k: ref.arrays[k] for k in ("audio", "inputs", "targets", "weights")}


def test_features():
    """Of int16, and of the same audio as floating-point numbers."""
    ref = reference()
    features = jax.jit(functools.partial(whisper.features, ref.c))
    mel = features(ref.arrays["audio"])
    assert error(mel, ref.arrays["mel"]) < OUTPUT_BAR
    np.testing.assert_array_equal(mel, features(ref.arrays["audio"].astype(np.float32) / 32768))


def test_positions():
    """Theirs are computed in float32: the frequencies times a position, at most 50, round."""
    ref = reference()
    ours = sinusoids(ref.c.n_positions, ref.c.d_model, halves=True, inclusive=True)
    assert error(ours, ref.params["encoder/position"]) < 50 * 2.0**-23


@pytest.mark.parametrize(
    "scan, attention", [(True, "auto"), (False, "einsum")], ids=["scanned", "unrolled-einsum"]
)  # auto on a CPU: blocked
def test_logits_loss_and_gradients(scan, attention):
    ref = reference()
    logits, loss, grads = compiled(scan=scan, attention=attention)(ref.params, inputs_of(ref))
    assert logits.dtype == np.float32
    assert error(np.asarray(logits)[real(ref)], ref.arrays["logits"][real(ref)]) < OUTPUT_BAR
    assert error(loss, ref.arrays["loss"]) < OUTPUT_BAR
    assert {*grads} - {*ref.grads} == {"encoder/position"}
    assert not grads["encoder/position"].any()
    errors = gradient_errors({n: grads[n] for n in ref.grads}, ref.grads)
    assert max(errors.values()) < GRADIENT_BAR, errors


def test_bfloat16_computation():
    """Within 0.08 of the largest logit, as test_gpt.py explains."""
    ref = reference()
    logits, _, _ = compiled(dtype="bfloat16")(ref.params, inputs_of(ref))
    assert 1e-4 < error(np.asarray(logits)[real(ref)], ref.arrays["logits"][real(ref)]) < 0.08


@pytest.mark.parametrize("given", [1, 4])
def test_cached_decoding_equals_teacher_forcing(given):
    """By step of the Decoder, after `given` tokens; in two of four rows one more or less."""
    ref = reference()
    decoder = whisper.decoder(config_of(ref))
    variables = {"params": tree(ref.params, False)}
    inputs, B = ref.arrays["inputs"], len(ref.arrays["inputs"])
    starts = np.array([given] * B) + ([0, 0, 0, 0] if given == 1 else [0, 1, -1, 0])
    rows = [
        (audio[:n], row[:start].tolist())
        for audio, n, row, start in zip(ref.arrays["audio"], ref.arrays["lengths"], inputs, starts)
    ]
    context, token = decoder.context(rows)
    state = jax.jit(decoder.begin, static_argnums=2)(variables, context, 9)
    step = jax.jit(decoder.step)
    for i in range(9):
        logits, state = step(variables, state, token)
        for b, at in enumerate(starts - 1 + i):
            if real(ref)[b, at]:
                assert error(logits[b], ref.arrays["logits"][b, at]) < CACHE_BAR, (i, b)
        token = inputs[range(B), starts + i]
