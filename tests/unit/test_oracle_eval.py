"""The metrics of the oracle's evaluation against sums over all sequences."""

import itertools
import types

import jax
import numpy as np
import pytest

from bigjax import modules, tasks
from bigjax.errors import UserError
from bigjax.parallel import mesh as mesh_lib
from bigjax.projects.seqgan import oracle_eval
from bigjax.projects.seqgan.gan import shift_right
from tests.unit.test_seqgan import tiny

V, T = 7, 2
EVERY = np.array(list(itertools.product(range(V), repeat=T)))


def log_p(gan, params, temperature=1.0):
    """The log-probability of each token of each sequence: [V^T, T]."""
    logits = jax.jit(lambda p: gan.logits(p, {}, shift_right(gan, EVERY), None))(params)
    logits /= temperature
    return np.take_along_axis(np.array(jax.nn.log_softmax(logits)), EVERY[..., None], -1)[..., 0]


@pytest.fixture
def one_device():
    """A mesh of one device, independent of the meshes of other tests."""
    mesh = mesh_lib.make_mesh(dict(data=1, fsdp=1, tensor=1), jax.devices()[:1])
    with jax.set_mesh(mesh):
        yield mesh


def test_both_likelihoods_at_each_temperature(cache_dir, one_device):
    c = tiny(
        model=dict(vocab_size=V, max_len=T, filter_widths=(1,), filters=(2,), init_std=2.0),
        data=dict(seq_len=T, cache_dir=cache_dir),
    )
    task = tasks.build(c)
    corpus = task.load_data(log=lambda text: None)
    options = oracle_eval.Config(split="test", temperatures=(0.5,))
    evaluate = oracle_eval.build(
        "x", options, types.SimpleNamespace(config=c, task=task, corpus=corpus, mesh=one_device)
    )
    params = jax.jit(task.init)(jax.random.key(3))["params"]
    metrics = evaluate(params, {}, 1)
    assert set(metrics) == set(evaluate.metrics)
    test = corpus.split("test", batch_size=200).batch_at(0)["tokens"]
    index = {tuple(x): i for i, x in enumerate(EVERY.tolist())}
    oracle = log_p(corpus.oracle, corpus.oracle_params).mean(1)
    wanted = {}
    for end, temperature in (("", 1.0), ("_0.5", 0.5)):
        own = log_p(task.gan, params["generator"], temperature)
        wanted[f"nll_oracle{end}"] = -(np.exp(own.sum(1)) * oracle).sum()
        wanted[f"nll_test{end}"] = -np.mean([own[index[tuple(x)]] for x in test.tolist()])
    for k, value in wanted.items():  # an estimate from 10,000 texts, or exact
        assert metrics[k] == pytest.approx(value, abs=0.05 if "oracle" in k else 1e-4), k
    values = sorted(wanted.values())
    assert min(np.diff(values)) > 0.15, wanted  # the values are distinct


def test_temperatures_are_positive():
    c = tiny()
    with c.unlocked():
        c.evals.oracle.temperatures = (0.5, 0.0)
    with pytest.raises(UserError, match="evals.oracle.temperatures"):
        modules.fill(c)
