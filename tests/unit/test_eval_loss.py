"""The evaluation 'loss': means over all examples of a split."""

import types

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np
import pytest

from bigjax.evals import derive
from bigjax.evals import loss as loss_eval
from bigjax.parallel import mesh as mesh_lib

# Three batches; the last is padded with rows of weight 0.
VALUES = np.array([[1, 2, 3, 4], [5, 6, 7, 8], [9, 99, 99, 99]], np.float32)
WEIGHTS = np.array([[1, 1, 2, 0], [1, 1, 1, 1], [3, 0, 0, 0]], np.float32)


@pytest.mark.parametrize("batches, n", [(0, 3), (2, 2), (9, 3)])
def test_each_example_counts_once_and_by_its_weight(batches, n):
    def loss(params, extras, frozen, batch, rng, train):
        assert not train
        pair = (params * batch["x"] * batch["w"]).sum(), batch["w"].sum()
        return pair, ({"bytes": (pair[0], 2 * pair[1])}, extras)

    class Data:
        n_batches = 3
        batch_at = staticmethod(lambda i, rows: {"x": VALUES[i, rows], "w": WEIGHTS[i, rows]})

    def split(name, batch_size, shuffle):
        assert not shuffle
        return Data

    mesh = mesh_lib.make_mesh(dict(data=2, fsdp=1, tensor=1), jax.devices()[:2])
    context = types.SimpleNamespace(
        config=ConfigDict({"train": {"batch_size": 4}}),
        corpus=types.SimpleNamespace(split=split),
        task=types.SimpleNamespace(loss=loss),
        mesh=mesh,
        frozen={},
    )
    options = loss_eval.Config(batches=batches)
    with jax.set_mesh(mesh):
        got = loss_eval.build("valid", options, context)(jnp.float32(2), {}, 7)
    want = 2 * (VALUES * WEIGHTS)[:n].sum() / WEIGHTS[:n].sum()
    assert got == {"loss": pytest.approx(want), "bytes": pytest.approx(want / 2)}


def test_perplexity_and_bits_per_byte_follow_from_the_mean_log_likelihood():
    got = derive({"nll": 1.5, "nats_per_byte": 1.25, "loss": 3.0})
    assert got == {
        "loss": 3.0,
        "perplexity": pytest.approx(np.e**1.5),
        "bits_per_byte": pytest.approx(1.25 / np.log(2)),
    }
    assert np.isfinite(derive({"nll": 1e6})["perplexity"])
