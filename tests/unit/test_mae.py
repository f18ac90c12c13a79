"""The task mae: what it hides, its loss, its pictures, and the way to a classifier."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
import pytest

from bigjax import config, evals, modules, tasks
from bigjax.errors import UserError
from bigjax.evals import pictures as pictures_eval
from bigjax.layers.params import unbox
from bigjax.models import mae, vit
from bigjax.models.images import IMAGENET
from bigjax.train import needed
from bigjax.trees import count, named_leaves
from tests.families import mesh_of
from tests.helpers import bigjax
from tests.image_files import load, make_folder

B = 4


def configured(task=None, model=None):
    c = config.new_config()
    c.model = dict(
        name="vit", image_size=12, channels=1, patch=3, d_model=16, n_layers=2, n_heads=2
    )
    c.model.update(attention="einsum", **model or {})
    c.task = dict(name="mae", decoder_layers=1, decoder_width=8, decoder_heads=2)
    c.task.update(task or {})
    c.data = dict(name="images", train="digits", size=12, channels=1, keep_ratio=False)
    c.train.batch_size = B
    modules.fill(c)
    return c


def batch(seed=0, weights=(1, 1, 0, 1)):
    images = np.random.default_rng(seed).integers(0, 256, (B, 12, 12, 1), np.uint8)
    return {"image": images, "weights": np.array(weights, np.float32), "example": np.arange(B)}


@pytest.fixture(scope="module")
def made():
    c = configured()
    task = tasks.build(c)
    variables = jax.jit(task.init)(jax.random.key(0))
    loss = jax.jit(lambda params, batch, rng: task.loss(params, {}, {}, batch, rng, True))
    pictures = jax.jit(lambda params, batch: task.pictures(params, {}, {}, batch))
    return c, task, variables["params"], loss, pictures


def test_a_quarter_of_the_patches_decides_the_pixels(made):
    """Changing a masked patch changes no pixel; changing a visible one changes those that are
    masked."""
    _, task, params, _, _ = made
    noise = jax.random.uniform(jax.random.key(3), (B, 16))
    run = jax.jit(lambda images: task.model.apply({"params": params}, images, noise))
    image = jnp.asarray(batch()["image"], jnp.float32)
    pixels, masked = run(image)
    assert (np.asarray(masked).sum(1) == 12).all() and pixels.shape == (B, 16, 9)
    np.testing.assert_array_equal(masked, np.argsort(np.argsort(noise, 1), 1) >= 4)
    place = np.repeat(np.repeat(np.asarray(masked).reshape(B, 4, 4, 1), 3, 1), 3, 2)
    np.testing.assert_array_equal(run(jnp.where(place, 255 - image, image))[0], pixels)
    changed, _ = run(jnp.where(place, image, 255 - image))
    assert (np.abs(changed - pixels).max((1, 2)) > 1e-4).all()


def test_the_loss_by_hand(made):
    """Of masked patches of real images; different keys mask different patches."""
    c, task, params, loss, _ = made
    data, key = batch(), jax.random.key(5)
    (total, weight), (metrics, _) = loss(params, data, key)
    noise = jax.random.uniform(key, (B, 16))
    pixels, _ = task.model.apply({"params": params}, data["image"], noise)
    sums = []
    for b in range(B):
        hidden = np.argsort(np.asarray(noise[b]))[4:]
        errors = []
        for n in hidden:
            y, x = divmod(n, 4)
            patch = data["image"][b, 3 * y : 3 * y + 3, 3 * x : 3 * x + 3] / 127.5 - 1
            patch = (patch - patch.mean()) / np.sqrt(patch.var(ddof=1) + 1e-6)
            errors.append(((pixels[b, n] - patch.ravel()) ** 2).mean())
        sums.append(np.mean(errors))
    assert float(total) == pytest.approx(sums[0] + sums[1] + sums[3], rel=1e-4)
    assert weight == 3 and not metrics
    assert float(loss(params, data, jax.random.key(6))[0][0]) != float(total)


def test_pictures_show_what_was_visible_and_what_was_made(made):
    _, _, params, _, pictures = made
    data = batch()
    shown = jax.device_get(pictures(params, data))
    assert shown._fields == ("image", "visible", "reconstruction")
    shown = shown._asdict()
    np.testing.assert_array_equal(shown["image"], data["image"])
    same = (shown["visible"] == data["image"]).reshape(B, 4, 3, 4, 3).all((2, 4))
    assert (same.sum((1, 2)) == 4).all()
    hidden = ~np.repeat(np.repeat(same, 3, 1), 3, 2)[..., None]
    np.testing.assert_array_equal(shown["reconstruction"][~hidden], data["image"][~hidden])
    assert (shown["visible"][hidden] == 128).all()  # model.mean
    assert shown["reconstruction"].std() > 30  # with each patch's own mean and deviation


def test_pictures_of_the_targets_are_the_images():
    """With a mean and a deviation for each channel."""
    c = vit.Config(image_size=12, patch=3, d_model=16, n_heads=2, **IMAGENET._asdict())
    images = np.random.default_rng(0).integers(0, 256, (2, 12, 12, 3), np.uint8)
    np.testing.assert_array_equal(mae.pictures(mae.targets(images, c), c), images)


def test_the_sizes_of_the_decoder():
    task = tasks.build(configured(dict(decoder_layers=3, decoder_width=16, decoder_heads=4)))
    params = unbox(jax.eval_shape(task.init, jax.random.key(0)))["params"]
    kernel = params["decoder"]["stack"]["layers"]["attention"]["query"]["kernel"]
    assert kernel.shape == (3, 16, 4, 4)


def test_dropout_is_for_training_only(made):
    """The mask, which is drawn by the same key, is that of the evaluation."""
    _, _, params, loss, _ = made
    data, key = batch(), jax.random.key(5)
    task = tasks.build(configured(model=dict(dropout=0.5)))
    run = jax.jit(task.loss, static_argnums=5)
    training, evaluation = (float(run(params, {}, {}, data, key, x)[0][0]) for x in (True, False))
    assert evaluation == pytest.approx(float(loss(params, data, key)[0][0]))
    assert abs(training - evaluation) > 1e-3


def test_a_classifier_begins_with_the_encoder(made):
    """init_from loads all but the head, and the decoder is left."""
    c, task, params, _, _ = made
    fresh = vit.Model(task.model_config, 3).init(jax.random.key(1), batch()["image"])["params"]
    own = {name: x.shape for name, x in named_leaves(jax.eval_shape(lambda: params)).items()}
    encoder = {name for name in own if not name.startswith("decoder/")}
    wanted = {*named_leaves(unbox(fresh))} - {"head/kernel", "head/bias"}
    assert wanted == encoder
    classifier = {**{k: x for k, x in params.items() if k != "decoder"}, "head": fresh["head"]}
    out = vit.Model(task.model_config, 3).apply({"params": unbox(classifier)}, batch()["image"])
    np.testing.assert_array_equal(task.features(params, {}, {}, batch()), out.features)
    assert count(params) > count(unbox(fresh))


def test_flops_are_those_of_its_products():
    c = configured()
    with c.unlocked():
        c.model.scan = False
    task = tasks.build(c)
    variables = jax.eval_shape(task.init, jax.random.key(0))
    images = jax.ShapeDtypeStruct((1, 12, 12, 1), jnp.uint8)
    noise = jax.ShapeDtypeStruct((1, 16), jnp.float32)
    jaxpr = jax.make_jaxpr(lambda v, x, n: task.model.apply(v, x, n)[0])(variables, images, noise)
    m, d, N, K = 16, 8, 16, 4
    outside = 6.0 * (m * d * (K + 1) + d * 9 * (N + 1))  # to and from the decoder
    first = 2.0 * 9 * m * N
    assert task.flops_per_example == 3 * needed._count(jaxpr.jaxpr) - outside - first


def test_the_evaluator_writes_a_sheet(made, tmp_path):
    c, task, params, _, _ = made
    with c.unlocked():
        c.evals = dict(sheet=dict(kind="pictures", n=3, split="test"))
        c.data.cache_dir = str(tmp_path / "cache")
    modules.fill(c)
    corpus = task.load_data(lambda line: None)
    lines: list[str] = []
    context = evals.Context(c, task, corpus, mesh_of(jax.devices()[:1]), lines.append, tmp_path, {})
    evaluator = evals.build("sheet", context)
    assert evaluator(params, {}, 7) == {}
    path = tmp_path / "evals" / "sheet" / "step_7.png"
    assert str(path.parent) in lines[0]
    with Image.open(path) as sheet:
        pixels = np.asarray(sheet.convert("L"))
    assert pixels.shape[0] > 300 and pixels.std() > 20
    other = dataclasses.replace(task, pictures=None)
    with pytest.raises(UserError, match="evals.sheet.kind='pictures' needs a task that makes"):
        evals.build("sheet", context._replace(task=other))


@pytest.mark.parametrize("n, columns", [(2, 2), (8, 3)])
def test_a_sheet_has_no_more_pictures_than_there_are_images(
    made, tmp_path, monkeypatch, n, columns
):
    c, task, params, _, _ = made
    options = dict(size=12, channels=1, valid_fraction=0.0, test_fraction=0.0)
    root = make_folder(tmp_path / "photos", ("cat",), n=3)
    corpus, drawn = load(tmp_path, ("train",), train=str(root), **options), []
    monkeypatch.setattr(pictures_eval, "draw", lambda path, made, n, step: drawn.append(n))
    mesh = mesh_of(jax.devices()[:1])
    context = evals.Context(c, task, corpus, mesh, print, tmp_path, {})
    pictures_eval.build("sheet", pictures_eval.Config("train", n), context)(params, {}, 1)
    assert drawn == [columns]


@pytest.mark.parametrize(
    "task, model, words",
    [
        (dict(mask_ratio=0.01), {}, "of 16 patches leaves 16 visible"),
        (dict(mask_ratio=0.99), {}, "leaves 0 visible"),
        (dict(mask_ratio=1.0), {}, "task.mask_ratio"),
        (dict(), dict(pooling="map"), "model.pooling='class', 'class_mean' or 'mean'"),
        (dict(), dict(pre_logits=4), "model.pre_logits=0"),
        (dict(), dict(image_size=6), "data.size is 12, but model.image_size is 6"),
    ],
)
def test_what_does_not_fit_is_refused(task, model, words):
    with pytest.raises(UserError, match=words):
        tasks.build(configured(task, model))


def test_its_run_does_not_predict(tmp_path, capsys):
    (tmp_path / "config.json").write_text(config.to_json(configured()))
    code, _, err = bigjax(capsys, "predict", f"--workdir={tmp_path}", "--input=photos")
    assert code == 2 and "such as task.name='image_classify': train one from this run" in err, err


def test_a_decoder_of_odd_width_is_refused():
    c = configured()
    with c.unlocked():
        c.task.decoder_width = 10
    with pytest.raises(UserError, match="decoder_width=10 has to be a multiple of 4 and of"):
        tasks.build(c)


def test_a_model_that_encodes_all_patches_is_refused():
    c = configured()
    with c.unlocked():
        c.model = dict(name="resnet", image_size=12, channels=1, mean=(0.5,), std=(0.5,), width=8)
    modules.fill(c)
    with pytest.raises(UserError, match="'mae' needs model.name='vit'"):
        tasks.build(c)
