"""Tasks on an encoder: losses by hand from the model's logits."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigjax import config, tasks
from bigjax.errors import UserError
from bigjax.models import ModelOutput, bert
from bigjax.train.stages import resolve
from bigjax.train.state import make_init
from bigjax.train.step import make_step
from tests import helpers

B, T, K, V = 4, 16, 2, 40


def build(name, **options):
    c = config.new_config()
    c.model = dict(
        name="bert",
        vocab_size=V,
        max_len=T,
        d_model=16,
        n_layers=1,
        n_heads=2,
        dropout=0.0,
        attention_dropout=0.0,
    )
    c.task = dict(name=name, **options)
    c.data = dict(name="text" if name == "mlm_nsp" else "labelled", seq_len=T)
    return tasks.build(helpers.filled(c))


def params(task, seed=0):
    init = jax.jit(lambda k: task.init(k)["params"])(jax.random.key(seed))
    return jax.tree.map(
        lambda x: x + 0.3 * jax.random.normal(jax.random.key(x.size), x.shape), init
    )


def loss(task, p, batch, rng=None, train=False):
    return jax.jit(lambda p: task.loss(p, {}, None, batch, rng, train))(p)


def outputs(task, p, batch):
    return jax.jit(lambda p: task.outputs(p, {}, {}, batch))(p)


def rows(seed=0):
    """Two examples a row of 7 and 6 tokens; the last row has only one."""
    rng = np.random.default_rng(seed)
    segments = np.tile([1] * 7 + [2] * 6 + [0] * 3, (B, 1))
    segments[-1, 7:] = 0
    positions = np.tile([*range(7), *range(6), 0, 0, 0], (B, 1))
    weights = np.ones((B, K), np.float32)
    weights[-1, 1] = 0
    return dict(
        tokens=rng.integers(5, V, (B, T)),
        types=np.zeros((B, T), int),
        segment_ids=segments,
        positions=positions,
        weights=weights,
        first=np.tile([0, 7], (B, 1)) * (weights > 0),
        example=np.arange(B * K),
    )


def log_softmax(x):
    return np.asarray(jax.nn.log_softmax(np.asarray(x, np.float64)))


def test_pre_training_is_the_mean_over_masks_plus_the_mean_over_pairs():
    task = build("mlm_nsp", max_predictions=3)
    batch, p = pre_training_batch(), params(task)
    (total, weight), (metrics, _) = loss(task, p, batch)
    out = jax.jit(task.model.apply)(
        {"params": p},
        batch["tokens"],
        batch["types"],
        batch["segment_ids"],
        masked_positions_BM=batch["masked_positions"],
    )
    mlm, nsp = log_softmax(out.logits), log_softmax(out.heads["nsp"])
    mlm = -np.take_along_axis(mlm, batch["targets"][..., None], -1)[..., 0] * batch["weights"]
    nsp = -np.take_along_axis(nsp, batch["next_label"][..., None], -1)[..., 0]
    want = mlm.sum() / batch["weights"].sum() + nsp[:3].mean()
    np.testing.assert_allclose(total / weight, want, rtol=1e-5)
    np.testing.assert_allclose(
        metrics["mlm_loss"][0] / metrics["mlm_loss"][1],
        mlm.sum() / batch["weights"].sum(),
        rtol=1e-5,
    )
    np.testing.assert_allclose(metrics["nsp_loss"][0] / 3, nsp[:3].mean(), rtol=1e-5)


def pre_training_batch():
    """Uneven weights; the last row is empty."""
    rng = np.random.default_rng(1)
    weights = np.array([[1, 1, 1], [1, 0, 0], [1, 1, 0], [0, 0, 0]], np.float32)
    r = rows()
    return dict(
        tokens=r["tokens"],
        types=np.zeros((B, T), int),
        segment_ids=np.ones((B, T), int),
        masked_positions=rng.integers(1, T, (B, 3)),
        targets=rng.integers(5, V, (B, 3)),
        weights=weights,
        next_label=np.array([[0], [1], [1], [0]]),
        next_weight=np.array([[1], [1], [1], [0]], np.float32),
    )


@pytest.mark.slow  # test_bert_meshes adds up micro-batches by default
def test_pre_training_over_micro_batches_equals_the_whole():
    import optax

    results = []
    for accumulate in (1, 2):
        task, tx = build("mlm_nsp", max_predictions=3), optax.sgd(0.1)
        state = make_init(task, tx.init, 0, False)()
        step = jax.jit(make_step(task, tx, lambda s: 0.1, seed=0, accumulate=accumulate))
        state, metrics = step(state, None, pre_training_batch())
        results.append((state.params, metrics))
    np.testing.assert_allclose(results[1][1]["loss"], results[0][1]["loss"], rtol=1e-6)
    for a, b in zip(*[jax.tree.leaves(r[0]) for r in results]):
        np.testing.assert_allclose(b, a, atol=1e-6)


def test_classification_weighs_labels_and_not_its_accuracy():
    labels = dict(labels=("a", "b", "c"))
    task = build("classify", **labels)
    weighted = build("classify", **labels, label_weights=(1.0, 5.0, 0.5))
    p = params(task)
    batch = rows() | dict(label=np.array([[0, 1], [2, 2], [1, 0], [1, 0]]))
    logits = outputs(task, p, batch)
    nll = -np.take_along_axis(log_softmax(logits), batch["label"][..., None], -1)[..., 0]
    (total, weight), (metrics, _) = loss(task, p, batch)
    np.testing.assert_allclose((total, weight), ((nll * batch["weights"]).sum(), 7), rtol=1e-5)
    w = np.array([1, 5, 0.5])[batch["label"]] * batch["weights"]
    (total, weight), (same, _) = loss(weighted, p, batch)
    np.testing.assert_allclose((total, weight), ((nll * w).sum(), w.sum()), rtol=1e-5)
    assert same["accuracy"] == metrics["accuracy"]


def test_labels_are_smoothed_in_training_alone():
    labels = dict(labels=("a", "b", "c"))
    plain, smooth = build("classify", **labels), build("classify", **labels, label_smoothing=0.3)
    p, batch = params(plain), rows() | dict(label=np.array([[0, 1], [2, 2], [1, 0], [1, 0]]))
    total = lambda task, train: loss(task, p, batch, jax.random.key(0), train)[0][0]
    assert total(smooth, False) == total(plain, False)
    log_p = log_softmax(outputs(plain, p, batch))
    q = 0.7 * np.eye(3)[batch["label"]] + 0.1
    want = -((q * log_p).sum(-1) * batch["weights"]).sum()
    np.testing.assert_allclose(total(smooth, True), want, rtol=1e-5)


def test_regression_is_squared_error():
    task = build("classify", kind="regress")
    p = params(task)
    batch = rows() | dict(label=np.random.default_rng(2).normal(size=(B, K)).astype(np.float32))
    predictions = np.asarray(outputs(task, p, batch))
    assert predictions.shape == (B, K, 1)
    (total, weight), _ = loss(task, p, batch)
    np.testing.assert_allclose(
        (total, weight),
        (((predictions[..., 0] - batch["label"]) ** 2 * batch["weights"]).sum(), 7),
        rtol=1e-5,
    )


def test_tagging_counts_words_with_a_label():
    task = build("tag", labels=("O", "X"))
    p, rng = params(task), np.random.default_rng(3)
    batch = rows() | dict(token_labels=rng.integers(-1, 2, (B, T)))
    logits = log_softmax(outputs(task, p, batch))
    real = batch["token_labels"] >= 0
    want = -logits[real, batch["token_labels"][real]].sum()
    (total, weight), _ = loss(task, p, batch)
    np.testing.assert_allclose((total, weight), (want, real.sum()), rtol=1e-5)


def test_answers_are_sought_among_the_tokens_of_their_own_example():
    task = build("answer")
    p = params(task)
    batch = rows() | dict(
        start=np.array([[2, 8], [0, 7], [5, 9], [1, 0]]),
        end=np.array([[3, 12], [0, 7], [6, 9], [6, 0]]),
    )
    logits, want, right = np.asarray(outputs(task, p, batch), np.float64), 0.0, 0
    for b in range(B):
        for k, own in enumerate((slice(0, 7), slice(7, 13))):
            if batch["weights"][b, k]:
                hits = []
                for i, name in enumerate(("start", "end")):
                    part, target = logits[b, own, i], batch[name][b, k] - own.start
                    want -= log_softmax(part)[target] / 2
                    hits.append(part.argmax() == target)
                right += all(hits)
    (total, weight), (metrics, _) = loss(task, p, batch)
    np.testing.assert_allclose((total, weight), (want, 7), rtol=1e-5)
    assert metrics["accuracy"] == (right, 7)


@pytest.mark.parametrize(
    "name, options, words",
    [
        ("classify", {}, "task.labels"),
        ("classify", dict(labels=("a",)), "at least two"),
        ("classify", dict(labels=("a", "a")), "twice"),
        ("classify", dict(labels=("a", "b"), label_weights=(1.0,)), "1 numbers for 2"),
        ("classify", dict(kind="rank"), "classify, regress"),
        ("classify", dict(kind="regress", balanced=True), "no labels"),
        ("tag", {}, "at least two"),
        ("mlm_nsp", dict(max_predictions=0), "max_predictions"),
    ],
)
def test_wrong_options_are_refused(name, options, words):
    with pytest.raises(UserError, match=words):
        build(name, **options)


@pytest.mark.parametrize(
    "name, options, n, note",
    [
        ("classify", {}, 2, "plan: task.labels is not set, and the data are not read: assuming 2"),
        ("classify", {"labels": ("a", "b", "c")}, 3, ""),
        ("classify", {"kind": "regress"}, 1, ""),
        ("tag", {}, 2, "task.labels is not set"),
        ("answer", {}, 2, ""),
    ],
)
def test_a_plan_reads_no_data(name, options, n, note, capsys):
    c = config.new_config()
    c.model = dict(name="bert", vocab_size=V, max_len=T, d_model=16, n_layers=1, n_heads=2)
    c.task = dict(name=name, **options)
    c.data = dict(name="labelled", seq_len=T, train="/not/there.tsv")
    task = tasks.build(resolve(c, read_data=False)[0])
    shapes = jax.eval_shape(task.init, jax.random.key(0))["params"]
    head = {"classify": "classifier", "tag": "tagger", "answer": "span"}[name]
    assert shapes[head]["bias"].shape == (n,)
    out = capsys.readouterr().out
    assert note in out and bool(out) == bool(note)


class Penalised(bert.Block):
    """A layer with the sum 'size', of its output."""

    @nn.compact
    def __call__(self, *args):
        x, (cache, sums) = super().__call__(*args)
        return x, (cache, {**sums, "size": jnp.square(x).mean()})


@pytest.mark.parametrize(
    "name, options, batch",
    [
        ("mlm_nsp", dict(max_predictions=3), lambda: pre_training_batch()),
        ("classify", dict(labels=("a", "b")), lambda: {"label": np.ones((B, K), int), **rows()}),
        ("classify", dict(kind="regress"), lambda: {"label": np.ones((B, K)), **rows()}),
        ("tag", dict(labels=("a", "b")), lambda: {"token_labels": np.ones((B, T), int), **rows()}),
        ("answer", {}, lambda: dict.fromkeys(("start", "end"), np.ones((B, K), int)) | rows()),
    ],
)
def test_sums_of_layers_are_weighted_in_the_training_loss(monkeypatch, name, options, batch):
    monkeypatch.setattr(bert, "Block", Penalised)
    plain, task = build(name, **options), build(name, **options, sum_weights=dict(size=0.5))
    p, batch = params(plain), batch()
    for train in (True, False):
        (want, weight), (metrics, _) = loss(plain, p, batch, train=train)
        (total, same), (more, _) = loss(task, p, batch, train=train)
        size, one = more["size"]
        assert size > 0 and one == 1 and "size" not in metrics and same == weight
        np.testing.assert_allclose(total, want + 0.5 * size * weight * train, rtol=1e-5)
    taken = "mlm_loss" if name == "mlm_nsp" else "accuracy"
    with pytest.raises(UserError, match=f"sum_weights.{taken}.*name of a metric"):
        build(name, **options, sum_weights={taken: 1.0})
    with pytest.raises(UserError, match="sum_weights.sise.*other sums. Did you mean 'size'"):
        build(name, **options, sum_weights=dict(sise=1.0))


def test_logits_of_a_model_without_a_vocabulary_are_refused():
    output = ModelOutput(heads={"nsp": jnp.zeros((1, 2)), "span": jnp.zeros((1, 2))})
    with pytest.raises(UserError, match="no output layer over the vocabulary.*`heads`.*nsp, span"):
        print(output.logits)


def test_a_decoder_is_no_encoder():
    c = config.new_config()
    c.task, c.data = dict(name="classify", labels=("a", "b")), dict(name="labelled")
    helpers.filled(c)
    with pytest.raises(UserError, match="needs an encoder.*does not define HEADS"):
        tasks.build(c)
    c.model = dict(name="bert", max_len=8, d_model=8, n_layers=1, n_heads=1)
    with pytest.raises(UserError, match="longer than model.max_len"):
        tasks.build(c)
