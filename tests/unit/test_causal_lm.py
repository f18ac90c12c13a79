"""Task causal_lm: its loss and its metrics."""

import dataclasses
import functools
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bigjax import config, evals, losses, tasks
from bigjax.data.tokenizers.bytes import Bytes
from bigjax.errors import UserError
from bigjax.layers.basic import Dense
from bigjax.linear import Linear
from bigjax.models import Decoder, ModelOutput, gpt
from bigjax.train.state import make_init
from bigjax.train.step import make_step
from tests import helpers


def build(**options):
    c = config.new_config()
    c.model = dict(
        name="gpt", vocab_size=16, max_len=8, d_model=8, n_layers=1, n_heads=2, dropout=0.5
    )
    c.task = dict(name="causal_lm", **options)
    c.data = dict(name="text", seq_len=8)
    return tasks.build(helpers.filled(c))


BATCH = dict(
    inputs=jnp.arange(16).reshape(2, 8),
    targets=(jnp.arange(16).reshape(2, 8) * 7) % 16,
    weights=jnp.array([[1.0] * 8, [1.0] * 3 + [0.0] * 5]),
    target_bytes=jnp.array([9, 2]),
)


@pytest.fixture(scope="module")
def params():
    init = jax.jit(lambda k: build().init(k)["params"])(jax.random.key(0))
    return jax.tree.map(lambda x: 20 * x, init)


def loss(task, params, train):
    key = jax.random.key(1)
    return jax.jit(lambda params: task.loss(params, {}, None, BATCH, key, train))(params)


def test_smoothing_and_z_loss_are_in_the_training_loss_only(params):
    plain, both = build(), build(label_smoothing=0.2, z_loss=0.1)
    (want, weight), (metrics, _) = loss(plain, params, False)
    (evaluated, _), (same, _) = loss(both, params, False)
    assert evaluated == want and same["nll"] == metrics["nll"] and weight == 11
    # In training the loss has both terms, with logits under dropout with this key
    (trained, _), (metrics, _) = loss(both, params, True)
    forward = jax.jit(both.model.apply)
    logits = forward({"params": params}, BATCH["inputs"], rng=jax.random.key(1)).logits
    want = (
        losses.cross_entropy(logits, BATCH["targets"], BATCH["weights"], label_smoothing=0.2)[0]
        + 0.1 * losses.z_loss(logits, BATCH["weights"])[0]
    )
    np.testing.assert_allclose(trained, want, rtol=1e-6)
    np.testing.assert_allclose(
        metrics["nll"][0],
        losses.cross_entropy(logits, BATCH["targets"], BATCH["weights"])[0],
        rtol=1e-6,
    )
    assert abs(trained - metrics["nll"][0]) > 0.1


def test_dropout_is_only_in_training(params):
    task = build()
    assert loss(task, params, True)[0][0] != loss(task, params, False)[0][0]


def test_bits_per_byte_are_over_the_bytes_of_the_targets(params):
    _, (metrics, _) = loss(build(), params, False)
    assert metrics["nats_per_byte"] == (metrics["nll"][0], 11.0)


class Centred:
    """A family whose model keeps a running mean, which evaluation and generation subtract."""

    @dataclasses.dataclass(frozen=True)
    class Config:
        vocab_size: int = 264
        max_len: int = 64
        scan: bool = False

    class Model(nn.Module):
        config: "Centred.Config"

        @nn.compact
        def __call__(self, tokens, positions=None, segment_ids=None, rng=None):
            x = nn.Embed(self.config.vocab_size, 4)(tokens)
            mean = self.variable("statistics", "mean", jnp.zeros, (4,))
            if self.is_mutable_collection("statistics") and not self.is_initializing():
                mean.value = 0.5 * mean.value + 0.5 * x.mean((0, 1))
            kernel = self.param("kernel", nn.initializers.normal(1.0), (4, self.config.vocab_size))
            return ModelOutput(Linear(x - mean.value, kernel))

    @staticmethod
    @functools.cache
    def decoder(c):
        def step(variables, state, tokens):
            return Centred.Model(c).apply(variables, tokens[:, None]).logits[:, 0], state

        context = lambda ids: (np.zeros(len(ids)), np.array([row[-1] for row in ids]))
        return Decoder(context, lambda variables, context, slots: context, step, c.max_len)


def test_a_decoder_with_statistics_trains_and_generates():
    c = config.new_config()
    c.model = dict(name=f"{__name__}.Centred")
    c.data = dict(name="text", seq_len=8)
    c.evals = dict(shown=dict(kind="sample", prompt="a", max_new_tokens=4))
    c = helpers.filled(c)
    task = tasks.build(c)
    variables = task.init(jax.random.key(0))
    params, extras = variables["params"], {"statistics": variables["statistics"]}
    loss = jax.jit(task.loss, static_argnums=5)
    _, (_, new) = loss(params, extras, {}, BATCH, jax.random.key(1), True)
    x = params["Embed_0"]["embedding"][BATCH["inputs"]]
    np.testing.assert_allclose(new["statistics"]["mean"], x.mean((0, 1)) / 2, rtol=1e-6)
    pair, (_, same) = loss(params, new, {}, BATCH, jax.random.key(1), False)
    assert jax.tree.all(jax.tree.map(jnp.array_equal, same, new))
    assert pair[0] != loss(params, extras, {}, BATCH, jax.random.key(1), False)[0][0]

    # The mean decides which token is the most likely one, so that sampling depends on it.
    kernel = jnp.zeros((4, 264)).at[:, ord("y")].set(-1000.0)
    lines = []
    corpus = types.SimpleNamespace(tokenizer=Bytes())
    context = evals.Context(c, task, corpus, None, lines.append, None, {})
    extras = {"statistics": {"mean": jnp.full(4, 100.0)}}
    evals.build("shown", context)({**params, "kernel": kernel}, extras, 1)
    assert lines[0].endswith("ayyyy"), lines


class Penalised(nn.Module):
    """A layer with the sums 'size', which has a gradient, and 'count'."""

    config: gpt.Config

    @nn.compact
    def __call__(self, x, i, span, cache, rng):
        y = Dense((8,), ("embed",), ("norm",), name="a")(x)
        return x + y, (cache, {"size": jnp.square(y).mean(), "count": jnp.float32(1)})


def test_sums_of_layers_are_weighted_in_the_training_loss(monkeypatch):
    monkeypatch.setattr(gpt, "Block", Penalised)
    plain, task = build(), build(sum_weights=dict(size=0.5, count=0.0))
    params = jax.jit(task.init)(jax.random.key(0))["params"]
    evaluate = lambda p, task, train: jax.jit(lambda p: loss(task, p, train))(p)
    (want, weight), (metrics, _) = evaluate(params, plain, True)
    (total, _), (more, _) = evaluate(params, task, True)
    size, one = more["size"]
    np.testing.assert_allclose(total, want + 0.5 * size * weight, rtol=1e-6)
    assert size > 0 and one == 1 and more["count"] == (1, 1) and more["nll"] == metrics["nll"]
    assert "size" not in metrics
    evaluated = evaluate(params, task, False)
    assert evaluated[0][0] == evaluated[1][0]["nll"][0] and evaluated[1][0]["size"][0] > 0
    g = [
        jax.jit(jax.grad(lambda p: loss(t, p, True)[0][0]))(params)["stack"]["layers"]["a"]
        for t in (plain, task)
    ]
    assert jnp.abs(g[0]["bias"] - g[1]["bias"]).max() > 0
    with pytest.raises(UserError, match="sum_weights.sise.*other sums. Did you mean 'size'"):
        build(sum_weights=dict(sise=1.0))


def test_sums_that_no_layer_returns_are_refused():
    with pytest.raises(UserError, match="sum_weights.size.*'gpt' return no sums"):
        build(sum_weights=dict(size=1.0))


@pytest.mark.parametrize("name", ["nll", "accuracy", "nats_per_byte", "loss", "grad_norm"])
def test_a_sum_with_the_name_of_a_metric_is_refused(name):
    with pytest.raises(UserError, match=f"sum_weights.{name}.*name of a metric.*another name"):
        build(sum_weights={name: 1.0})


def test_sums_of_layers_are_weighted_as_the_tokens_of_their_micro_batch(monkeypatch):
    monkeypatch.setattr(gpt, "Block", Penalised)
    task = build(sum_weights=dict(size=0.5))
    loss = lambda params, extras, frozen, batch, rng, train: task.loss(
        params,
        extras,
        frozen,
        batch,
        None,
        train,  # without dropout
    )
    without_dropout = dataclasses.replace(task, loss=loss)
    tx = optax.sgd(0.1)
    state = make_init(without_dropout, tx.init, 0, False)()
    step = make_step(without_dropout, tx, lambda s: 0.1, seed=0, accumulate=2)
    _, metrics = jax.jit(step)(state, None, BATCH)
    of_row = jax.jit(lambda row: loss(state.params, {}, {}, row, None, True))
    rows = [of_row({k: v[i : i + 1] for k, v in BATCH.items()}) for i in (0, 1)]
    total = sum(total for (total, _), _ in rows)
    np.testing.assert_allclose(metrics["loss"], total / 11, rtol=1e-6)
    size = [m["size"][0] for _, (m, _) in rows]
    np.testing.assert_allclose(metrics["size"], sum(size) / 2, rtol=1e-6)
    nll = sum(m["nll"][0] for _, (m, _) in rows)
    np.testing.assert_allclose(total, nll + 0.5 * (8 * size[0] + 3 * size[1]), rtol=1e-6)


class Incomplete:
    @dataclasses.dataclass(frozen=True)
    class Config:
        RANGES = {}


def test_all_that_a_family_lacks_is_named():
    c = config.new_config()
    c.model, c.data = dict(name=f"{__name__}.Incomplete"), dict(name="text", seq_len=8)
    c = helpers.filled(c)
    with pytest.raises(UserError, match="does not define Model, decoder, Config.vocab_size"):
        tasks.build(c)
