"""Evaluations take each example of their split once, also of 'train' and of a last short batch."""

import types

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import pytest

from bigjax import config as config_lib
from bigjax.data import labelled, rows
from bigjax.evals import Context
from bigjax.evals import loss as loss_eval
from bigjax.evals import metrics as metrics_eval
from bigjax.parallel import mesh as mesh_lib
from tests import helpers
from tests.helpers import kind
from tests.unit.test_data_headlines import OPTIONS, TOKENIZER, titles

BATCH = 4


@pytest.fixture
def one_device():
    mesh = mesh_lib.make_mesh(dict(data=1, fsdp=1, tensor=1), jax.devices()[:1])
    with jax.set_mesh(mesh):
        yield mesh


def context(corpus, task, folder, mesh):
    config = config_lib.new_config()
    config.train.batch_size = BATCH
    with config.unlocked():
        config.task = ConfigDict({"name": "classify", "kind": "classify", "labels": ("0", "1")})
    return Context(config, task, corpus, mesh, lambda line: None, folder, {})


def counting_task():
    """Its loss is the sum of 1 over the examples, its weight 1: so the mean is their number."""

    def loss(params, extras, frozen, batch, rng, train):
        n = (batch["example"] >= 0).sum().astype(jnp.float32)
        return (n, n), ({"twice": (2 * n, n)}, extras)

    def outputs(params, extras, frozen, batch):
        label = jax.nn.one_hot(batch["label"], 2)
        return label

    return types.SimpleNamespace(loss=loss, outputs=outputs, kind=kind("classify", ("0", "1")))


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "train.tsv"
    path.write_text("text\tlabel\n" + "".join(f"text {i}\t{i % 2}\n" for i in range(21)))
    data = helpers.data_section(
        "labelled",
        "classify",
        train=str(path),
        valid=str(path),
        seq_len=16,
        packing=False,
        cache_dir=str(tmp_path / "cache"),
    )
    return labelled.load_labelled(
        data,
        kind("classify", [*rows.label_counts(data, kind("classify"))]),
        tokenizer=TOKENIZER,
        log=str,
    )


@pytest.mark.parametrize("split", ["train", "valid"])
def test_metrics_of_a_split_that_batches_do_not_divide(corpus, tmp_path, one_device, split):
    options = metrics_eval.Config(split=split)
    made = metrics_eval.build("x", options, context(corpus, counting_task(), tmp_path, one_device))
    n = len(corpus.rows(split))
    assert n % BATCH
    assert made({}, {}, 1)["accuracy"] == 1.0  # rows and predictions are in one order
    lines = (tmp_path / "evals" / "x" / "predictions.jsonl").read_text().splitlines()
    assert len(lines) == n


@pytest.mark.parametrize("split", ["train", "valid"])
def test_loss_of_a_split_that_batches_do_not_divide(corpus, tmp_path, one_device, split):
    seen = []
    task = counting_task()

    def loss(*args):
        jax.debug.callback(lambda ids: seen.extend(ids.ravel().tolist()), args[3]["example"])
        return counting_task().loss(*args)

    task.loss = loss
    options = loss_eval.Config(split=split)
    metrics = loss_eval.build("x", options, context(corpus, task, tmp_path, one_device))({}, {}, 1)
    jax.effects_barrier()
    assert sorted(i for i in seen if i >= 0) == list(range(len(corpus.rows(split))))
    assert metrics == {"loss": 1.0, "twice": 2.0}


def test_headlines_of_the_training_split_once(tmp_path):
    from bigjax.projects.seqgan.augmented import Corpus
    from bigjax.projects.seqgan.headline_data import load_headlines

    loaded = load_headlines(titles(tmp_path, n=30, truncate=True), OPTIONS, str, TOKENIZER)
    data = Corpus(loaded, None).split("train", batch_size=BATCH, shuffle=False)
    seen = [i for step in range(data.n_batches) for i in data.batch_at(step)["example"]]
    assert [i for i in seen if i >= 0] == list(range(len(loaded.rows("train"))))
    assert len(seen) % BATCH == 0
