"""The few-shot linear probe: its solution, its draws, the choice of its strength, its numbers."""

import types

import jax
import numpy as np
from PIL import Image
import pytest
from sklearn.linear_model import Ridge

from bigjax import config, evals, modules
from bigjax.data import images
from bigjax.errors import UserError
from bigjax.evals import fewshot
from bigjax.parallel import mesh as mesh_lib

CLASSES = 10


def problem(n, d, seed=0):
    """(features with a constant and a repeated column, labels) of n images."""
    rng = np.random.default_rng(seed)
    x = rng.normal(3.0, rng.uniform(0.1, 5, d), (n, d)).astype(np.float32)
    x[:, 0], x[:, 1] = 2.0, x[:, 2]
    return x, rng.integers(0, 4, n)


@pytest.mark.parametrize("n, d", [(50, 12), (12, 50)], ids=["more images", "more features"])
@pytest.mark.parametrize("l2", [2.0**-10, 1.0, 2.0**10])
def test_the_solution_is_that_of_ridge_regression(n, d, l2):
    x, y = problem(n, d)
    other = problem(30, d, seed=1)[0]
    got = fewshot.scores(fewshot.fit(x, y, 4), other, l2)
    # By hand, in float64 as well.
    mean, scale = x.astype(float).mean(0), x.astype(float).std(0) + 1e-5
    whole = lambda x: np.c_[(x - mean) / scale, np.full(len(x), 100.0)]
    a, b = whole(x), 2.0 * np.eye(4)[y] - 1
    weights = np.linalg.solve(a.T @ a + l2 * np.eye(d + 1), a.T @ b)
    np.testing.assert_allclose(got, whole(other) @ weights, rtol=1e-6, atol=1e-8)
    ridge = Ridge(alpha=l2, fit_intercept=False, solver="svd").fit(a, b)
    np.testing.assert_allclose(got, ridge.predict(whole(other)), rtol=1e-6, atol=1e-8)


def test_draws_have_as_many_images_of_each_class_and_contain_smaller_ones():
    labels = np.random.default_rng(0).integers(0, 4, 200)
    rng = lambda seed: np.random.default_rng(seed)
    drawn = fewshot.draw(labels, 4, 10, rng(0))
    assert (labels[drawn] == np.arange(4)[:, None]).all() and len(np.unique(drawn)) == 40
    np.testing.assert_array_equal(fewshot.draw(labels, 4, 3, rng(0)), drawn[:, :3])
    assert not np.array_equal(fewshot.draw(labels, 4, 10, rng(1)), drawn)


def test_the_strength_is_the_best_of_all_draws_together(monkeypatch):
    """Of equal ones the largest."""
    right = {("a", 1.0): 0.5, ("b", 1.0): 0.7, ("a", 2.0): 0.9, ("b", 2.0): 0.2}
    tuning = types.SimpleNamespace(accuracy=lambda probe, l2: right.get((probe, l2), 0.1))
    monkeypatch.setattr(fewshot, "L2", (0.5, 1.0, 2.0, 4.0))
    assert fewshot._best(["a", "b"], tuning) == 1.0
    assert fewshot._best(["a"], tuning) == 2.0
    assert fewshot._best(["c"], tuning) == 4.0


# --- The evaluator, of pixels as features -----------------------------------------------------


def features(params, extras, frozen, batch):
    return params * batch["image"].reshape(len(batch["image"]), -1)


def context(tmp_path, log=print, task=None, several=False, **data):
    """Of the digits, without a model."""
    c = config.new_config()
    fields = dict(train="digits", size=8, channels=1, cache_dir=str(tmp_path), threads=2)
    c.data = dict(name="images", **{**fields, **data})
    modules.fill(c)
    c.train.batch_size, c.seed = 64, 3
    corpus = images.load_images(modules.options(c, "data"), log=str, several=several)
    task = task or types.SimpleNamespace(features=features)
    mesh = mesh_lib.make_mesh(dict(data=1), jax.devices()[:1])
    return evals.Context(c, task, corpus, mesh, print, tmp_path, {}, report=log)


def every(corpus, split):
    """(features, labels) of all images of a split, without a device."""
    part = corpus.parts[split]
    x = [part.source.read(i).ravel() for i in part.index.tolist()]
    return np.array(x, np.float32), part.labels


def test_the_evaluation_is_that_of_the_images_that_were_drawn(tmp_path):
    reports = []
    given = context(tmp_path, reports.append)
    evaluate = fewshot.build("few", fewshot.Config(shots=(5, 2), seeds=2), given)
    with jax.set_mesh(given.mesh):
        metrics = evaluate(np.float32(1), {}, 7)
    assert [*metrics] == ["shot_2", "shot_2_std", "shot_5", "shot_5_std"] == [*evaluate.metrics]
    (x, y), tune, test = (every(given.corpus, name) for name in ("train", "valid", "test"))
    for n in (2, 5):
        probes = []
        for seed in range(2):
            index = fewshot.draw(y, CLASSES, 5, np.random.default_rng([3, seed]))[:, :n].ravel()
            probes.append(fewshot.fit(x[index], y[index], CLASSES))
        hits = lambda part, probe, l2: (
            fewshot.scores(probe, part[0], l2).argmax(-1) == part[1]
        ).mean()
        best = max((np.mean([hits(tune, p, l2) for p in probes]), l2) for l2 in fewshot.L2)[1]
        accuracies = [hits(test, p, best) for p in probes]
        assert metrics[f"shot_{n}"] == pytest.approx(np.mean(accuracies))
        assert metrics[f"shot_{n}_std"] == pytest.approx(abs(np.subtract(*accuracies)) / 2**0.5)
        assert f"{best:.4g}" in reports[0].splitlines()[1 + (2, 5).index(n) + 1]
    assert 0.4 < metrics["shot_2"] < metrics["shot_5"] < 0.95


def tables(tmp_path):
    """{part: a table of images of two classes}."""
    lines = ["image,label"]
    for i in range(8):
        name, shade = ("dark", 40 + i) if i % 2 else ("light", 190 + i)
        Image.fromarray(np.full((8, 8), shade, np.uint8)).save(tmp_path / f"{i}.png")
        lines.append(f"{i}.png,{name}")
    for part in ("train", "test"):
        (tmp_path / f"{part}.csv").write_text("\n".join(lines))
    return {part: str(tmp_path / f"{part}.csv") for part in ("train", "test")}


def test_images_of_its_own_bring_their_own_splits(tmp_path, capsys):
    """Those of the run have other classes."""
    own = tables(tmp_path)
    given = context(tmp_path, **own, valid=own["test"])
    options = fewshot.Config(train="digits", shots=(5,), seeds=1)
    evaluate = fewshot.build("few", options, given)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > 3 and all(line.startswith("few: data: ") for line in lines)
    with jax.set_mesh(given.mesh):
        assert evaluate(np.float32(1), {}, 0)["shot_5"] > 0.5


def test_images_of_its_own(tmp_path):
    """A table of other classes; one strength, and no images to choose it on."""
    own = tables(tmp_path)
    given = context(tmp_path, valid_fraction=0.0)
    for images_of in (own, {}):
        options = fewshot.Config(shots=(2,), seeds=1, l2=1.0, **images_of)
        evaluate = fewshot.build("few", options, given)
        with jax.set_mesh(given.mesh):
            metrics = evaluate(np.float32(1), {}, 0)
        assert [*metrics] == ["shot_2"] and (metrics["shot_2"] == 1.0) == (images_of == own)
    with pytest.raises(UserError, match="has 5, but the class 'dark' has only 4 images in the sp"):
        fewshot.build("few", fewshot.Config(shots=(1, 5), l2=1.0, **own), given)
    with pytest.raises(UserError, match="valid split is empty"):
        fewshot.build("few", fewshot.Config(shots=(1,)), given)


def test_numbers_without_images_are_no_classes_to_learn(tmp_path):
    """Labels from 1 on have a class 0, and others may be missing between them."""
    from PIL import Image

    lines = {"train": ["image,label"], "test": ["image,label"]}
    for i in range(12):
        label = (1, 2, 4)[i % 3]
        pixels = np.full((8, 8), i, np.uint8)
        pixels[label] += 200
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
        lines["train" if i < 9 else "test"].append(f"{i}.png,{label}")
    for part in lines:
        (tmp_path / f"{part}.csv").write_text("\n".join(lines[part]))
    own = {part: str(tmp_path / f"{part}.csv") for part in lines}
    given = context(tmp_path, valid_fraction=0.0, **own)
    assert given.corpus.labels == tuple("01234")
    evaluate = fewshot.build("few", fewshot.Config(shots=(3,), seeds=2, l2=1.0), given)
    with jax.set_mesh(given.mesh):
        assert evaluate(np.float32(1), {}, 0)["shot_3"] == 1.0
    with open(tmp_path / "test.csv", "a") as f:
        f.write("\n0.png,3")  # an image to classify, but none to learn from
    given = context(tmp_path, valid_fraction=0.0, **own)
    with pytest.raises(UserError, match="has 3, but the class '3' has only 0 images in the split"):
        fewshot.build("few", fewshot.Config(shots=(3,), l2=1.0), given)


def test_features_that_are_not_finite_have_no_accuracy(tmp_path, capsys):
    given = context(tmp_path)
    evaluate = fewshot.build("few", fewshot.Config(shots=(1,), seeds=1), given)
    with jax.set_mesh(given.mesh):
        assert np.isnan(evaluate(np.float32("inf"), {}, 3)["shot_1"])
    assert "few, step 3: the features are not finite" in capsys.readouterr().out


def test_what_does_not_fit_is_refused(tmp_path):
    given = context(tmp_path)
    with pytest.raises(UserError, match="evals.few.shots has 200, but the class '.' has only 1"):
        fewshot.build("few", fewshot.Config(shots=(1, 200)), given)
    with pytest.raises(UserError, match="evals.few.shots is empty"):
        fewshot.build("few", fewshot.Config(shots=()), given)
    (tmp_path / "0.png").write_bytes(b"")
    (tmp_path / "t.csv").write_text("image,label\n0.png,a|b\n")
    several = context(tmp_path, several=True, train=str(tmp_path / "t.csv"), valid_fraction=0.0,
                      test_fraction=0.0)  # fmt: skip
    with pytest.raises(UserError, match="images with one label each, but task.several is set"):
        fewshot.build("few", fewshot.Config(shots=(1,)), several)
    no_features = given._replace(task=types.SimpleNamespace(features=None))
    no_features.config.task.name = "causal_lm"
    with pytest.raises(UserError, match="task.name='image_classify'; task.name is 'causal_lm'"):
        fewshot.build("few", fewshot.Config(), no_features)
