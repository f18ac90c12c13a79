"""bigjax.projects.seqgan.model against PyTorch, and its oracle against an LSTM in NumPy.

make_seqgan.py froze the reference in float32. The error of a tensor is max |ours - theirs| /
max |theirs|.
"""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigjax import losses
from bigjax.projects.seqgan import model as seqgan
from bigjax.trees import named_leaves

HERE = pathlib.Path(__file__).parent
BAR = 1e-5


@functools.cache
def stored() -> dict:
    with np.load(HERE / "seqgan.npz") as f:
        return dict(f)


def reference(network: str) -> dict:
    """The stored arrays of a network; params and grads are trees."""
    flat = {k.removeprefix(network + "/"): x for k, x in stored().items() if k.startswith(network)}
    out = {k: x for k, x in flat.items() if k.split("/")[0] not in ("params", "grads")}
    for k in flat.keys() - out.keys():
        *path, last = k.split("/")
        node = out
        for part in path:
            node = node.setdefault(part, {})
        node[last] = flat[k]
    return out


CONFIG = seqgan.Config(
    vocab_size=11,
    max_len=7,
    d_model=4,
    discriminator_d_model=6,
    filter_widths=(1, 2, 4, 7),
    filters=(3, 5, 2, 4),
)


def discriminator_loss(params, ref):
    mask = jnp.ones(ref["tokens"].shape, bool)
    logits = seqgan.Discriminator(CONFIG).apply({"params": params}, ref["tokens"], mask)
    return losses.cross_entropy(logits, ref["targets"], ref["weights"])[0], logits


def generator_loss(params, ref):
    apply = functools.partial(seqgan.Generator(CONFIG).apply, {"params": params}, ref["tokens"])
    return apply(ref["targets"], ref["weights"], method="loss")[0], apply()


def errors(network: str, ref: dict) -> dict:
    """The errors of the logits, the loss, and the gradient of every parameter."""
    loss = dict(discriminator=discriminator_loss, generator=generator_loss)[network]
    (value, logits), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(ref["params"], ref)
    ours = {"loss": value, "logits": logits, **named_leaves(grads)}
    theirs = {"loss": ref["loss"], "logits": ref["logits"], **named_leaves(ref["grads"])}
    assert ours.keys() == theirs.keys()
    return {k: np.abs(ours[k] - theirs[k]).max() / np.abs(theirs[k]).max() for k in ours}


@pytest.mark.parametrize("network", ["discriminator", "generator"])
def test_logits_loss_and_gradients(network):
    relative = errors(network, reference(network))
    assert max(relative.values()) < BAR, relative


@pytest.mark.parametrize(
    "network, name",
    [("discriminator", "conv_4"), ("discriminator", "bias_2"), ("generator", "embed")],
)
def test_the_bar_notices_one_weight(network, name):
    ref = reference(network)
    ref["params"][name] = jax.tree_util.tree_map(lambda x: x * 1.01, ref["params"][name])
    relative = errors(network, ref)
    assert max(relative["logits"], relative["loss"]) > 3 * BAR


# --- The oracle -------------------------------------------------------------------------------


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def oracle_nll(arrays, tokens) -> np.ndarray:
    """The NLL of each token [B, T], by the equations of an LSTM in float64, gate by gate."""
    embedding, Wi, Ui, bi, Wf, Uf, bf, Wo, Uo, bo, Wc, Uc, bc, Wy, by = (
        x.astype(np.float64) for x in arrays
    )
    B, T = tokens.shape
    h = c = np.zeros((B, embedding.shape[1]))
    inputs, out = np.zeros(B, int), []
    for t in range(T):
        x = embedding[inputs]
        i = sigmoid(x @ Wi + h @ Ui + bi)
        f = sigmoid(x @ Wf + h @ Uf + bf)
        o = sigmoid(x @ Wo + h @ Uo + bo)
        c = f * c + i * np.tanh(x @ Wc + h @ Uc + bc)
        h = o * np.tanh(c)
        y = h @ Wy + by
        out.append(np.log(np.exp(y).sum(1)) - y[np.arange(B), tokens[:, t]])
        inputs = tokens[:, t]
    return np.stack(out, 1)


def test_the_oracle_equals_the_lstm_of_the_paper():
    rng, V, D = np.random.default_rng(3), 13, 8
    shapes = [(V, D), *[(D, D), (D, D), (D,)] * 4, (D, V), (V,)]
    arrays = [rng.standard_normal(shape).astype(np.float32) for shape in shapes]
    c, params = seqgan.oracle(arrays)
    tokens = rng.integers(0, V, (6, 9))
    inputs = np.pad(tokens[:, :-1], ((0, 0), (1, 0)))  # begins with token 0
    logits = seqgan.Generator(c).apply({"params": params}, inputs)
    log_p = jax.nn.log_softmax(logits)
    ours = -np.take_along_axis(np.asarray(log_p), tokens[..., None], -1)[..., 0]
    np.testing.assert_allclose(ours, oracle_nll(arrays, tokens), rtol=1e-5, atol=1e-5)
    for i in range(15):  # every array has an effect
        other = [x * 1.05 if k == i else x for k, x in enumerate(arrays)]
        c, params = seqgan.oracle(other)
        changed = seqgan.Generator(c).apply({"params": params}, inputs)
        assert np.abs(changed - logits).max() > 1e-4
