"""bigjax.models.seq2seq against a model in plain PyTorch that knows no padding.

make_seq2seq.py froze the reference in float32. The error of a tensor is max |ours - theirs| /
max |theirs|. Largest seen: 2e-7 in outputs, 8e-6 in gradients.
"""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigjax import losses
from bigjax.layers.params import unbox
from bigjax.models import seq2seq
from bigjax.trees import named_leaves
from tests.parity.test_gpt import error

HERE = pathlib.Path(__file__).parent
OUTPUT_BAR, GRADIENT_BAR, CACHE_BAR = 1e-5, 1e-4, 2e-5
CASES = {
    "lstm_additive": dict(cell="lstm", score="additive"),
    "gru_dot": dict(cell="gru", score="dot"),
    "lstm_dot_copy": dict(cell="lstm", score="dot", copy=True),
    "gru_additive_copy": dict(cell="gru", score="additive", copy=True),
}
SIZES = dict(vocab_size=23, d_model=8, n_layers=2, max_len=16, dropout=0.0)


@functools.cache
def stored() -> dict:
    with np.load(HERE / "seq2seq.npz") as f:
        return dict(f)


def part(prefix: str) -> dict:
    return {k.removeprefix(prefix): v for k, v in stored().items() if k.startswith(prefix)}


def tree(flat: dict) -> dict:
    out: dict = {}
    for path, x in flat.items():
        *parents, name = path.split("/")
        node = out
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = x
    return out


@functools.cache
def ours(case: str, dtype: str = "float32"):
    """(log-probabilities, loss, gradients) of our model."""
    model, batch = seq2seq.Model(seq2seq.Config(**SIZES, **CASES[case], dtype=dtype)), stored()
    shapes = jax.eval_shape(model.init, jax.random.key(0), batch["source"], batch["inputs"])
    params = tree(part(f"{case}/params/"))
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, unbox(shapes)["params"])

    def forward(params):
        arguments = batch["source"], batch["inputs"]
        out = model.apply(
            {"params": params}, *arguments, source_segments_BS=batch["source_segments"]
        )
        return jax.nn.log_softmax(out.logits)

    def loss(params):
        total, weight = losses.cross_entropy(forward(params), batch["targets"], batch["weights"])
        return total / weight

    return jax.jit(lambda p: (forward(p), *jax.value_and_grad(loss)(p)))(params)


@pytest.mark.parametrize("case", CASES)
def test_log_probabilities_loss_and_gradients(case):
    log_p, loss, grads = ours(case)
    real = stored()["weights"] > 0
    assert error(np.asarray(log_p)[real], stored()[f"{case}/log_p"][real]) < OUTPUT_BAR
    assert error(loss, stored()[f"{case}/loss"]) < OUTPUT_BAR
    grads, theirs = named_leaves(grads), part(f"{case}/grads/")
    errors = {name: error(grads[name], g) for name, g in theirs.items()}
    assert max(errors.values()) < GRADIENT_BAR, errors


@pytest.mark.parametrize("case", CASES)
def test_decoding_equals_teacher_forcing(case):
    """Token by token, for sources of unequal length."""
    batch = stored()
    decoder = seq2seq.decoder(seq2seq.Config(**SIZES, **CASES[case]))
    variables = {"params": tree(part(f"{case}/params/"))}
    pairs = zip(batch["source"], batch["source_segments"])
    context, first = decoder.context([row[segments > 0].tolist() for row, segments in pairs])
    np.testing.assert_array_equal(first, batch["inputs"][:, 0])
    state, found = decoder.begin(variables, context, 16), []
    step = jax.jit(lambda *x: (decoder.attention(*x), *decoder.step(*x)))
    for tokens in batch["inputs"].T:
        share, logits, state = step(variables, state, tokens)
        np.testing.assert_allclose(share.sum(-1), 1, atol=1e-5)
        assert (np.asarray(share) * (context["segments"] == 0) == 0).all()
        found.append(jax.nn.log_softmax(logits))
    found, real = np.stack(found, 1), batch["weights"] > 0
    assert error(found[real], batch[f"{case}/log_p"][real]) < CACHE_BAR


@pytest.mark.parametrize("case", CASES)
def test_bfloat16_computation(case):
    """A number is rounded to 8 bits, 2**-9 of it at most, some 10 times a token in two layers: a
    random walk of sqrt(20) * 2**-9 = 0.009 of a typical value, four times that for the worst one of
    hundreds. The lower bound shows that bfloat16 was computed in at all."""
    log_p, _, _ = ours(case, "bfloat16")
    real = stored()["weights"] > 0
    assert 1e-4 < error(np.asarray(log_p)[real], stored()[f"{case}/log_p"][real]) < 0.04
