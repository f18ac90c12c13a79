"""The task 'preference': its losses, references and parts of a batch."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigjax import config as config_lib
from bigjax import tasks
from bigjax.data.tokenizers.bytes import Bytes
from bigjax.errors import UserError
from bigjax.losses import preference as losses
from bigjax.losses.preference import Answers
from bigjax.parallel import mesh as mesh_lib
from bigjax.parallel import sharding
from bigjax.tasks import preference
from bigjax.train import needed
from bigjax.train.step import micro_batches
from bigjax.trees import named_leaves
from tests import helpers
from tests.unit.test_conversation_rows import write
from tests.unit.test_peft import drawn

BYTES = Bytes()
T = 32


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Of pairs.jsonl and ratings.jsonl, with rows of several lengths."""
    root = tmp_path_factory.mktemp("preferences")
    pairs = [
        {"prompt": f"{i}", "chosen": "a" * (i % 3 + 1), "rejected": "b" * (i % 4 + 1)}
        for i in range(12)
    ]
    for i, row in enumerate(pairs):
        row |= {"reference_chosen": -9.0 - i, "reference_rejected": -8.5}
    ratings = [
        {"prompt": f"{i}", "completion": "ab"[i % 2] * (i % 3 + 1), "label": i % 2 == 0}
        for i in range(12)
    ]
    for i, row in enumerate(ratings):
        row |= {"mismatched": "c" * (i % 2 + 1)}
        row |= {"reference_completion": -9.0 - i, "reference_mismatched": -14.0}
    write(root / "pairs.jsonl", pairs)
    write(root / "ratings.jsonl", ratings)
    return root


def config_of(folder, model=(), accumulate=1, **options):
    c = config_lib.new_config()
    c.model = dict(name="gpt", vocab_size=264, max_len=32, d_model=8, n_layers=1, n_heads=2)
    c.model.update(dict(model))
    c.task = dict(name="preference", **options)
    c.init_from = "a folder"
    c.train.accumulate, c.train.batch_size = accumulate, 4
    file = "ratings.jsonl" if options.get("loss") == "kto" else "pairs.jsonl"
    c.data = dict(
        name="preferences",
        train=f"{folder}/{file}",
        chat_template="plain",
        seq_len=T,
        tokenizer=dict(kind="bytes"),
        valid_fraction=0.0,
        test_fraction=0.0,
    )
    return helpers.filled(c)


def batch_of(task, size=4):
    data = task.load_data(lambda line: None, None, splits=["train"])
    return data.split("train", size, shuffle=False).batch_at(0)


def params_of(task, std=0.3):
    v = drawn(jax.eval_shape(task.init, jax.random.key(0)), std)["params"]
    scale = {"scale": 1.0}  # of norms
    return jax.tree_util.tree_map_with_path(lambda p, x: x + scale.get(p[-1].key, 0.0), v)


def run(task, params, frozen, batch, train=True):
    """(mean loss, metrics, gradients of the mean loss)."""

    def mean(params):
        (total, weight), (metrics, _) = task.loss(
            params, {}, frozen, batch, jax.random.key(0), train
        )
        return total / weight, metrics

    (loss, metrics), grads = jax.jit(jax.value_and_grad(mean, has_aux=True))(params)
    return float(loss), {k: float(s / w) for k, (s, w) in metrics.items()}, grads


def log_probs_of(task, params, batch, prefix=""):
    """By all logits of the model."""
    inputs, targets, weights = (batch[prefix + k] for k in ("inputs", "targets", "weights"))
    logits = task.model.apply({"params": params}, inputs.reshape(-1, T)).logits
    logp = jax.nn.log_softmax(logits).reshape(*inputs.shape, -1)
    own = jnp.take_along_axis(logp, targets[..., None], -1)[..., 0]
    return (own * weights).sum(-1)


PAIR_LOSSES = {
    "sigmoid": dict(label_smoothing=0.1, nll_weight=0.5),
    "robust": dict(label_smoothing=0.2),
    "ipo": dict(beta=0.5),
    "hinge": {},
    "orpo": {},
    "simpo": dict(beta=2.0, gamma=0.3),
}


SLOW = tuple(PAIR_LOSSES)[1:]  # tests/parity/test_preference.py has all of them


@pytest.mark.parametrize(
    "loss", [pytest.param(x, marks=pytest.mark.slow) if x in SLOW else x for x in PAIR_LOSSES]
)
def test_pairs_by_all_logits(folder, loss):
    """The loss, metrics and outputs are those of log-probabilities from all logits."""
    o = preference.Config(loss=loss, **PAIR_LOSSES[loss])
    task = tasks.build(config_of(folder, **{"loss": loss, **PAIR_LOSSES[loss]}))
    batch, params = batch_of(task), params_of(task)
    shapes = {k: (x.shape, x.dtype) for k, x in task.batch_shapes(4, 0).items()}
    assert {k: (x.shape, x.dtype) for k, x in batch.items()} == shapes
    other = jax.tree.map(lambda x: 0.9 * x, params)
    frozen = {"reference": {"params": other}} if task.frozen else {}
    assert bool(frozen) == (loss not in ("orpo", "simpo"))
    got, metrics, grads = run(task, params, frozen, batch)
    logp = log_probs_of(task, params, batch)
    np.testing.assert_allclose(task.outputs(params, {}, frozen, batch), logp, rtol=1e-5)
    n = batch["weights"].sum(-1)
    reference = log_probs_of(task, other, batch) if frozen else None
    a, b = (
        Answers(logp[:, i], n[:, i], None if reference is None else reference[:, i]) for i in (0, 1)
    )
    want = preference._PAIR_LOSSES[loss](a, b, o).mean()
    nll = -logp[:, 0].sum() / n[:, 0].sum()
    if loss == "orpo":
        complete = {**batch, "weights": (batch["targets"] != BYTES.pad_id).astype(np.float32)}
        want -= log_probs_of(task, params, complete)[:, 0].sum() / complete["weights"][:, 0].sum()
    want += o.nll_weight * nll
    np.testing.assert_allclose(got, want, rtol=2e-6)
    rewards = o.beta * (logp - reference if frozen else logp / n)
    assert metrics["accuracy"] == (rewards[:, 0] > rewards[:, 1]).mean()
    for name, value in {
        "nll": nll,
        "reward_chosen": rewards[:, 0].mean(),
        "reward_rejected": rewards[:, 1].mean(),
        "margin": (rewards[:, 0] - rewards[:, 1]).mean(),
    }.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-4, atol=1e-6)
    assert all(jnp.abs(g).max() > 0 for n, g in named_leaves(grads).items() if "key/bias" not in n)


def test_ratings_by_all_logits(folder):
    options = dict(loss="kto", beta=0.4, desirable_weight=1.5, undesirable_weight=0.5)
    task = tasks.build(config_of(folder, **options))
    batch, params = batch_of(task), params_of(task)
    shapes = {k: (x.shape, x.dtype) for k, x in task.batch_shapes(4, 0).items()}
    assert {k: (x.shape, x.dtype) for k, x in batch.items()} == shapes
    other = jax.tree.map(lambda x: 0.9 * x, params)
    signs = set()
    for policy, reference in ((params, other), (other, params)):  # one of the KL is below 0
        got, metrics, _ = run(task, policy, {"reference": {"params": reference}}, batch)
        ratio, kl = (
            log_probs_of(task, policy, batch, p) - log_probs_of(task, reference, batch, p)
            for p in ("", "kl_")
        )
        signs.add(bool(kl.mean() > 0))
        point = max(float(kl.mean()), 0.0)
        gain = 0.4 * (ratio - point)
        values = jnp.where(
            batch["label"] > 0, 1.5 * (1 - jax.nn.sigmoid(gain)), 0.5 * (1 - jax.nn.sigmoid(-gain))
        )
        np.testing.assert_allclose(got, values.mean(), rtol=1e-5)
        np.testing.assert_allclose(metrics["kl"], point, rtol=1e-4)
        rewards = 0.4 * ratio
        np.testing.assert_allclose(
            metrics["reward_chosen"], rewards[batch["label"] > 0].mean(), rtol=1e-4
        )
        assert metrics["accuracy"] == ((gain > 0) == (batch["label"] > 0)).mean()
    assert signs == {True, False}


@pytest.mark.parametrize("loss", ["sigmoid", "kto"])
def test_at_the_reference_the_loss_is_known(folder, loss):
    task = tasks.build(config_of(folder, loss=loss))
    params = params_of(task)
    got, metrics, _ = run(task, params, {"reference": {"params": params}}, batch_of(task))
    assert abs(got - (math.log(2) if loss == "sigmoid" else 0.5)) < 1e-6
    assert metrics["reward_chosen"] == 0


@pytest.mark.parametrize("loss", ["sigmoid", pytest.param("orpo", marks=pytest.mark.slow), "kto"])
def test_parts_of_a_batch_add_up(folder, loss):
    options = dict(nll_weight=0.5) if loss == "sigmoid" else {}
    make = lambda n: tasks.build(config_of(folder, accumulate=n, loss=loss, **options))
    one = make(1)
    params, batch = params_of(one), batch_of(one)
    frozen = {"reference": {"params": jax.tree.map(lambda x: 0.9 * x, params)}}
    frozen = frozen if one.frozen else {}
    want, _, grads = run(one, params, frozen, batch)
    for n in (2, 4):
        task = make(n)

        def summed(params):
            whole = jax.lax.stop_gradient(task.whole_batch(params, {}, frozen, batch))
            parts = micro_batches({k: jnp.asarray(x) for k, x in whole.items()}, n)
            part_sums = lambda part: task.loss(params, {}, frozen, part, None, False)[0]
            total, weight = jax.lax.map(part_sums, parts)
            return total.sum() / weight.sum()

        if n == 2:
            assert abs(jax.jit(summed)(params) - want) < 1e-6
            continue
        got, others = jax.jit(jax.value_and_grad(summed))(params)
        assert abs(got - want) < 1e-6
        for name, g in named_leaves(others).items():
            np.testing.assert_allclose(g, named_leaves(grads)[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("loss", [pytest.param("sigmoid", marks=pytest.mark.slow), "kto"])
def test_rows_of_padding_count_for_nothing(folder, loss):
    task = tasks.build(config_of(folder, loss=loss))
    params = params_of(task)
    frozen = {"reference": {"params": jax.tree.map(lambda x: 0.9 * x, params)}}
    batch = batch_of(task)
    padded = {k: np.concatenate([x, np.zeros_like(x)]) for k, x in batch.items()}
    want, metrics, _ = run(task, params, frozen, batch, False)
    got, others, _ = run(task, params, frozen, padded, False)
    assert got == pytest.approx(want, rel=1e-6)
    for name, value in metrics.items():
        assert others[name] == pytest.approx(value, rel=1e-4, abs=1e-6), name


@pytest.mark.parametrize("loss", [pytest.param("sigmoid", marks=pytest.mark.slow), "kto"])
def test_a_mesh_gives_the_same_numbers(folder, loss):
    task = tasks.build(config_of(folder, accumulate=2, loss=loss))
    params, batch = params_of(task), batch_of(task, 8)
    frozen = {"reference": {"params": jax.tree.map(lambda x: 0.9 * x, params)}}
    want, metrics, grads = run(task, params, frozen, batch)
    mesh = mesh_lib.make_mesh(dict(data=2, fsdp=2, tensor=2))
    put = lambda tree: jax.device_put(
        tree, sharding.of_params(mesh, jax.eval_shape(lambda: tree), task.axes["params"])
    )
    with jax.set_mesh(mesh):
        parts = {"reference": {"params": put(frozen["reference"]["params"])}}
        on_mesh = sharding.put_batch(mesh, batch, slice(0, 8), 8)
        got, others, sharded = run(task, put(params), parts, on_mesh)
    assert got == pytest.approx(want, rel=1e-5)
    for name, value in metrics.items():
        assert others[name] == pytest.approx(value, rel=1e-3, abs=1e-5), name
    for name, g in named_leaves(sharded).items():
        np.testing.assert_allclose(g, named_leaves(grads)[name], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("loss", ["sigmoid", "kto"])
def test_stored_log_probabilities_are_the_reference(folder, loss):
    task = tasks.build(config_of(folder, loss=loss, reference="data"))
    assert not task.frozen
    batch, params = batch_of(task), params_of(task)
    shapes = {k: (x.shape, x.dtype) for k, x in task.batch_shapes(4, 0).items()}
    assert {k: (x.shape, x.dtype) for k, x in batch.items()} == shapes
    _, metrics, _ = run(task, params, {}, batch)
    logp = log_probs_of(task, params, batch)
    if loss == "sigmoid":
        want = 0.1 * (logp[:, 0] + 9 + np.arange(4))
    else:
        want = 0.1 * (logp + 9 + np.arange(4))[batch["label"] > 0]
        kl = (log_probs_of(task, params, batch, "kl_") + 14).mean()
        np.testing.assert_allclose(metrics["kl"], max(kl, 0), rtol=1e-4)
    np.testing.assert_allclose(metrics["reward_chosen"], want.mean(), rtol=1e-4)


def test_the_base_of_lora_is_the_reference_without_a_copy(folder):
    c = config_of(folder)
    plain = tasks.build(c)
    with c.unlocked():
        c.peft, c.init_from = dict(name="lora", base="a folder", rank=2, dropout=0.5), ""
    task = tasks.build(helpers.filled(c))
    assert [*task.frozen] == ["base"] and not task.frozen["base"].as_read
    base, batch = params_of(plain), batch_of(plain)
    params = jax.jit(task.init)(jax.random.key(1))["params"]
    got, metrics, _ = run(task, params, {"base": {"params": base}}, batch)
    assert abs(got - math.log(2)) < 1e-6
    mesh, every = mesh_lib.make_mesh({}, jax.devices()[:1]), jax.tree.map(lambda x: True, params)
    assert 0.5 < needed.share(c, mesh, jax.eval_shape(lambda: params), every) < 1
    params = jax.tree.map(lambda x: x + 0.1, params)
    got, _, _ = run(task, params, {"base": {"params": base}}, batch, train=False)
    merged = task.variables(params, {}, {"base": {"params": base}})["params"]
    want, _, _ = run(plain, merged, {"reference": {"params": base}}, batch, train=False)
    assert abs(got - math.log(2)) > 1e-4 and got == pytest.approx(want, rel=1e-5)


def test_dropout_is_of_the_policy_alone(folder):
    task = tasks.build(config_of(folder, model=dict(dropout=0.5)))
    params, batch = params_of(task), batch_of(task)
    frozen = {"reference": {"params": params}}
    quiet, _, _ = run(task, params, frozen, batch, train=False)
    noisy, _, _ = run(task, params, frozen, batch, train=True)
    assert abs(quiet - math.log(2)) < 1e-6 < abs(noisy - math.log(2))


@pytest.mark.parametrize("scan", [True, False])
def test_units_and_flops_count_both_rows_and_the_reference(folder, scan):
    task = tasks.build(config_of(folder, model=dict(scan=scan)))
    without = tasks.build(config_of(folder, model=dict(scan=scan), reference="data"))
    assert (task.unit, task.units_per_example) == ("tokens", 2 * T)
    assert task.flops_per_example == pytest.approx(without.flops_per_example * 4 / 3)
    assert tasks.build(config_of(folder, loss="kto")).units_per_example == T


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(loss="dpo"), "task.loss is 'dpo'; allowed: sigmoid, robust"),
        (dict(loss="ipo", label_smoothing=0.1), "'ipo' does not use it; sigmoid, robust, simpo do"),
        (dict(gamma=1.0), "task.gamma is 1.0, but task.loss='sigmoid' does not use it; simpo does"),
        (dict(loss="orpo", reference="runs/a"), "task.reference is 'runs/a', but task.loss='orpo'"),
        (dict(loss="kto", nll_weight=1.0), "task.nll_weight is 1.0"),
        (dict(label_smoothing=0.5), "label_smoothing"),
        (dict(beta=0.0), "beta"),
    ],
)
def test_options_without_effect_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        preference.Config(**options)


def test_a_missing_reference_is_refused(folder):
    c = config_of(folder)
    c.init_from = ""
    with pytest.raises(UserError, match="needs a reference.*init_from.*task.reference.*'orpo'"):
        tasks.build(c)
    with c.unlocked():  # of an adapter that goes on, the base is not the start
        c.peft = dict(name="lora", base="a folder")
        c.init_from = "another adapter"
    with pytest.raises(UserError, match="init_from='another adapter' starts from an.*Merge the ad"):
        tasks.build(helpers.filled(c))
    with c.unlocked():
        c.peft = dict(name="")
        c.data = dict(name="conversations", seq_len=T)
        c.init_from = "a folder"
    with pytest.raises(UserError, match="needs data with load_preferences"):
        tasks.build(helpers.filled(c))


def test_log_odds_of_probabilities_near_0_and_1_are_finite():
    x = jnp.array([-1e-9, -1e-4, -0.5, -1.0, -50.0, -1000.0])
    answers = lambda x: Answers(x, jnp.ones_like(x))
    value = lambda x: losses.orpo(answers(x), answers(x[::-1]), 1.0).sum()
    assert np.isfinite(value(x)) and np.isfinite(jax.grad(value)(x)).all()
    want = np.log1p(-np.exp(np.float64(x[1:5])))
    np.testing.assert_allclose(losses._log1mexp(x[1:5]), want, rtol=1e-3)
