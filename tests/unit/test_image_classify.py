"""The task image_classify: its loss, mixed images, and what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from bigjax import config, losses, modules, tasks
from bigjax.errors import UserError
from bigjax.layers.params import unbox
from bigjax.tasks import image_classify

B, N = 8, 10


def built(task=None, data=None, labels=tuple("0123456789")):
    c = config.new_config()
    c.model = dict(name="vit", image_size=8, channels=1, patch=4, d_model=8, n_layers=1, n_heads=1)
    c.task = dict(name="image_classify", labels=labels)
    c.task.update(task or {})
    c.data = dict(name="images", train="digits", size=8, channels=1)
    c.data.update(data or {})
    modules.fill(c)
    return c, tasks.build(c)


def batch(several=False):
    rng = np.random.default_rng(0)
    label = rng.integers(0, N, B).astype(np.int32)
    if several:
        label = rng.integers(0, 2, (B, N)).astype(np.float32)
    weights = np.array([1, 1, 0, 1, 1, 1, 1, 0], np.float32)
    image = rng.integers(0, 256, (B, 8, 8, 1), np.uint8)
    return {"image": image, "label": label, "weights": weights, "example": np.arange(B)}


def loss_of(task, data, train=False):
    """((loss_sum, weight_sum), (metrics, extras), logits) with a head that does not begin at 0."""
    variables = unbox(jax.jit(task.init)(jax.random.key(0)))
    params = variables.pop("params")
    kernel = params["head"]["kernel"]
    params["head"]["kernel"] = 20.0 * jax.random.normal(jax.random.key(1), kernel.shape)
    logits = jax.jit(task.outputs)(params, variables, {}, data)
    loss = jax.jit(task.loss, static_argnums=5)
    total, more = loss(params, variables, {}, data, jax.random.key(2), train)
    return total, more, logits


def test_the_loss_and_metrics_by_hand():
    _, task = built()
    data = batch()
    (total, weight), (metrics, _), logits = loss_of(task, data)
    real = data["weights"] > 0
    log_p = jax.nn.log_softmax(logits)[np.arange(B), data["label"]]
    assert weight == 6 and total == pytest.approx(float(-log_p[real].sum()), rel=1e-5)
    rank = (np.asarray(logits) > np.asarray(logits)[np.arange(B), data["label"]][:, None]).sum(-1)
    assert float(metrics["accuracy"][0]) == (rank[real] == 0).sum()
    assert float(metrics["top5"][0]) == (rank[real] < 5).sum() and metrics["top5"][1] == 6
    order = np.argsort(-np.asarray(logits))
    for place, hits in ((4, 6), (5, 0)):  # the fifth and the sixth
        (_, (metrics, _), _) = loss_of(task, {**data, "label": order[:, place]})
        assert float(metrics["top5"][0]) == hits


def test_features_are_what_the_head_reads():
    _, task = built()
    data = batch()
    variables = unbox(task.init(jax.random.key(0)))
    params = variables.pop("params")
    head = params["head"]
    head["kernel"] = jax.random.normal(jax.random.key(1), head["kernel"].shape)
    features = task.features(params, variables, {}, data)
    assert features.shape == (B, 8) and features.dtype == jnp.float32
    want = task.outputs(params, variables, {}, data)
    np.testing.assert_allclose(features @ head["kernel"] + head["bias"], want, rtol=1e-5, atol=1e-5)


def test_several_labels_have_probabilities_of_their_own():
    _, task = built(task=dict(several=True))
    data = batch(several=True)
    (total, weight), (metrics, _), logits = loss_of(task, data)
    yes, no = jax.nn.log_sigmoid(logits), jax.nn.log_sigmoid(-logits)
    each = -(data["label"] * yes + (1 - data["label"]) * no).sum(-1)
    assert float(total) == pytest.approx(float((each * data["weights"]).sum()), rel=1e-4)
    assert weight == 6 and not metrics
    assert task.batch_shapes(B, 0)["label"].shape == (B, N)


def test_a_sigmoid_for_images_with_one_label():
    """The loss of several labels with one of them set; the head begins at the given bias."""
    _, task = built(task=dict(sigmoid=True, head_bias=-10.0))
    data = batch()
    (total, weight), (metrics, _), logits = loss_of(task, data)
    hot = np.eye(N)[data["label"]]
    each = -(hot * jax.nn.log_sigmoid(logits) + (1 - hot) * jax.nn.log_sigmoid(-logits)).sum(-1)
    assert float(total) == pytest.approx(float((each * data["weights"]).sum()), rel=1e-4)
    assert weight == 6 and {*metrics} == {"accuracy", "top5"}
    head = unbox(task.init(jax.random.key(0)))["params"]["head"]
    assert (head["bias"] == -10).all()


def test_smoothing_is_for_training_only():
    _, plain = built()
    _, smooth = built(task=dict(label_smoothing=0.3))
    data = batch()
    assert loss_of(plain, data)[0][0] == loss_of(smooth, data)[0][0]
    got, _, logits = loss_of(smooth, data, train=True)
    want = losses.cross_entropy(logits, data["label"], data["weights"], label_smoothing=0.3)
    assert float(got[0]) == pytest.approx(float(want[0]), rel=1e-5)


@pytest.mark.parametrize("mixup, cutmix", [(0.4, 0.0), (0.0, 1.0), (0.4, 1.0)])
def test_an_image_and_its_target_are_mixed_by_the_same_share(mixup, cutmix):
    """Image i is all i: the mean of a mixed one tells the shares of both."""
    values = jnp.arange(B, dtype=jnp.float32)
    images = jnp.broadcast_to(values[:, None, None, None], (B, 16, 12, 1))
    weights = jnp.ones(B).at[3].set(0)
    seen = set()
    for seed in range(12):
        mixed, targets = image_classify.mix(
            images, jax.nn.one_hot(jnp.arange(B), B), weights, jax.random.key(seed), mixup, cutmix
        )
        np.testing.assert_allclose(targets.sum(-1), 1, rtol=1e-5)
        np.testing.assert_allclose(mixed.mean((1, 2, 3)), targets @ values, rtol=1e-4, atol=1e-4)
        assert float(targets[4, 4]) == 1  # the image before it has no weight
        seen.add("cut" if np.isin(np.asarray(mixed), np.asarray(values)).all() else "mix")
    assert seen == {"mix"} - {"" if mixup else "mix"} | {"cut"} - {"" if cutmix else "cut"}


def test_each_image_has_its_own_share_and_keeps_most_of_itself_in_mixup():
    targets = jax.nn.one_hot(jnp.arange(64), 64)
    images, key = jnp.zeros((64, 4, 4, 1)), jax.random.key(0)
    mix = jax.jit(image_classify.mix, static_argnums=(4, 5))
    _, mixed = mix(images, targets, jnp.ones(64), key, 1.0, 0.0)
    own = np.asarray(mixed)[np.arange(64), np.arange(64)]
    assert own.min() >= 0.5 and own.std() > 0.1 and len(np.unique(own)) == 64


def test_targets_of_mixed_images_are_smoothed_too():
    _, task = built(task=dict(label_smoothing=0.3, mixup=0.4))
    data, rng = batch(), jax.random.key(2)
    (total, _), _, _ = loss_of(task, data, train=True)
    mixed = jax.jit(task.augment)(data, rng)
    assert np.abs(mixed["target"] - np.eye(N)[data["label"]]).max() > 0.05
    logits = loss_of(task, mixed)[2]
    targets = 0.7 * mixed["target"] + 0.3 / N
    want = -(targets * jax.nn.log_softmax(logits)).sum(-1) * data["weights"]
    assert float(total) == pytest.approx(float(want.sum()), rel=1e-5)
    (total, _), _, logits = loss_of(task, data)  # evaluation mixes and smooths nothing
    log_p = jax.nn.log_softmax(logits)[np.arange(B), data["label"]]
    assert float(total) == pytest.approx(float(-(log_p * data["weights"]).sum()), rel=1e-5)


@pytest.mark.parametrize("alpha", [0.2, 0.8, 1.0, 4.0])
def test_shares_are_of_a_beta_distribution(alpha):
    """By a test of Kolmogorov and Smirnov."""
    drawn = image_classify.symmetric_beta(jax.random.key(1), alpha, 4000)
    assert stats.kstest(np.asarray(drawn), stats.beta(alpha, alpha).cdf).pvalue > 0.05
    assert 0 <= drawn.min() and drawn.max() <= 1


def test_a_rectangle_leaves_about_the_share_that_is_kept():
    kept = jnp.linspace(0, 1, 9)
    inside = image_classify.rectangles(kept, jax.random.key(0), 64, 64)
    area = np.asarray(inside.mean((1, 2)))
    assert (area <= 1 - np.asarray(kept) + 0.03).all() and area[-1] == 0
    for x in np.asarray(inside):  # a rectangle: the product of its projections
        np.testing.assert_array_equal(x, np.outer(x.max(1), x.max(0)))
    quarter = image_classify.rectangles(jnp.full(64, 0.75), jax.random.key(0), 64, 32)
    shares = np.asarray(quarter.mean((1, 2)))
    assert shares.max() == pytest.approx(0.25, abs=0.03) and shares.min() < 0.2  # one is cut off
    middles = [[np.flatnonzero(x.max(k)).mean() for x in np.asarray(quarter)] for k in (1, 0)]
    assert abs(np.corrcoef(middles)[0, 1]) < 0.4  # in any place


def test_the_labels_are_those_of_the_training_data(tmp_path):
    c, _ = built()
    with c.unlocked():
        c.task.labels, c.data.cache_dir = (), str(tmp_path)
    tasks.resolve(c)
    assert tuple(c.task.labels) == tuple("0123456789")
    with c.unlocked():
        c.task.labels = ()
    lines = []
    tasks.assume(c, lines.append)
    assert len(c.task.labels) == 1000 and "assuming 1000" in lines[0]


@pytest.mark.parametrize(
    "options, words",
    [
        (dict(labels=("cat",)), "task.labels is \\['cat'\\]: classification needs at least two"),
        (dict(labels=("cat", "cat")), "task.labels has a class twice"),
        (dict(data=dict(size=12)), "data.size is 12, but model.image_size is 8"),
        (dict(data=dict(channels=3)), "data.channels is 3, but model.channels is 1"),
        (dict(task=dict(several=True, label_smoothing=0.1)), "is for probabilities that sum to 1"),
        (dict(task=dict(mixup=-1.0)), "task.mixup"),
    ],
)
def test_what_does_not_fit_is_refused(options, words):
    with pytest.raises(UserError, match=words):
        built(**options)


def test_one_label_each_where_several_are_expected(tmp_path):
    _, task = built(task=dict(several=True), data=dict(cache_dir=str(tmp_path)))
    with pytest.raises(UserError, match="task.several is set, but .* data.train='digits' have one"):
        task.load_data(lambda line: None)


def test_a_model_of_tokens_is_refused():
    c, _ = built()
    with c.unlocked():
        c.model = dict(name="gpt")
    modules.fill(c)
    with pytest.raises(UserError, match="needs a model of images, such as model.name='vit'"):
        tasks.build(c)
