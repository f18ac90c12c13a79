"""`bigjax look`: the images that a model receives in training, with their labels, in a picture."""

import io

import jax
import numpy as np
from PIL import Image
import pytest

from bigjax import config, modules, tasks
from bigjax.data import images
from bigjax.report import sheet as sheet_lib
from bigjax.report.sheet import Sheet
from bigjax.tasks import image_classify
from bigjax.train import look
from bigjax.train.state import State
from bigjax.train.step import make_step
from tests.helpers import bigjax
from tests.image_files import make_folder

SIZE = 16


def made(tmp_path, task=None, accumulate=1, **data):
    c = config.new_config()
    c.model = dict(name="vit", image_size=8, channels=1, patch=4, d_model=8, n_layers=1, n_heads=1)
    c.task = dict(name="image_classify", **task or {})
    fields = dict(train="digits", size=8, channels=1, cache_dir=str(tmp_path), threads=2)
    c.data = dict(name="images", **{**fields, **data})
    c.data.augment = dict(crop="center", flip=True, shift=2, noise=0.2)
    c.train.batch_size, c.train.accumulate, c.seed = SIZE, accumulate, 5
    modules.fill(c)
    return c


def batch_of(c, step):
    """Of training, without `look`."""
    loaded = images.load_images(modules.options(c, "data"), log=str)
    return loaded.split("train", SIZE, seed=c.seed).batch_at(step)


def test_the_images_are_those_of_the_first_steps(tmp_path):
    c = made(tmp_path)
    (shown,) = look.sheets(c, "train", 20, str)
    first, second = batch_of(c, 0), batch_of(c, 1)
    np.testing.assert_array_equal(shown.images[:SIZE], first["image"])
    np.testing.assert_array_equal(shown.images[SIZE:], second["image"][:4])
    assert shown.labels == [str(x) for x in [*first["label"], *second["label"][:4]]]
    (test,) = look.sheets(c, "test", 500, str)  # all of them
    loaded = images.load_images(modules.options(c, "data"), log=str)
    assert len(test.images) == len(test.labels) == len(loaded.parts["test"]) < 500
    first = loaded.split("test", SIZE).batch_at(0)
    np.testing.assert_array_equal(test.images[:SIZE], first["image"])


@pytest.mark.parametrize("task", [{}, dict(mixup=0.5)])
def test_less_than_a_batch_is_shown(tmp_path, task):
    """Training refuses it; each image is shown once."""
    train = str(make_folder(tmp_path / "photos", n=3))
    c = made(tmp_path, task, 2, train=train, valid_fraction=0.0, test_fraction=0.0)
    lines = []
    shown = look.sheets(c, "train", 64, lines.append)
    assert [len(sheet.images) for sheet in shown] == [6] * (1 + bool(task))
    assert sorted(shown[0].labels) == ["cat"] * 3 + ["dog"] * 3
    assert any("6 training images, fewer than train.batch_size=16" in line for line in lines)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_mixed_images_are_those_that_the_model_receives(tmp_path, monkeypatch, accumulate):
    """In a step of training, whose inputs are recorded."""
    c, received = made(tmp_path, dict(mixup=0.5, cutmix=1.0), accumulate), []
    shown, mixed = look.sheets(c, "train", SIZE, str)
    original = image_classify.apply

    def recording(model, params, extras, train, pictures, **options):
        jax.debug.callback(lambda x: received.append(np.asarray(x)), pictures, ordered=True)
        return original(model, params, extras, train, pictures, **options)

    monkeypatch.setattr(image_classify, "apply", recording)
    with c.unlocked():
        c.task.labels = tuple("0123456789")
    task = tasks.build(c)
    import optax

    tx = optax.sgd(0.0)
    params = task.init(jax.random.key(0))["params"]
    state = State(np.int32(0), params, tx.init(params), {}, None, np.bool_(False))
    step = make_step(task, tx, lambda step: 0.0, seed=c.seed, accumulate=accumulate)
    batch = batch_of(c, 0)
    jax.block_until_ready(jax.jit(step)(state, {}, batch))
    jax.effects_barrier()
    assert len(received) == accumulate
    want = np.stack(received, 1).reshape(batch["image"].shape)
    np.testing.assert_allclose(mixed.images, want, atol=1e-4)
    assert np.abs(mixed.images - shown.images).max() > 20
    np.testing.assert_array_equal(shown.images, batch["image"])
    assert any(" + 0." in label for label in mixed.labels)


def test_labels_as_people_read_them():
    label = lambda **batch: look._label(
        {"weights": np.ones(1), "example": np.array([7]), **batch}, 0, ("cat", "dog", "elk")
    )
    assert label(label=np.array([1])) == "dog"
    assert label(label=np.array([[1.0, 0.0, 1.0]])) == "cat, elk"
    assert label(target=np.array([[0.25, 0.75, 0.0]])) == "0.75 dog + 0.25 cat"
    assert label(target=np.array([[0.0, 0.0, 1.0]])) == "elk"
    assert label() == "image 7"
    assert label(label=np.array([1]), weights=np.zeros(1)) == "cannot be read"


def test_each_image_stands_in_the_picture_once():
    values = np.arange(5) * 40 + 20
    grey = np.broadcast_to(values[:, None, None, None], (5, 8, 6, 1))
    coloured = np.stack([np.full((100, 120, 3), (v, 0, 255)) for v in values])
    labels = [f"label {i}" for i in range(5)]
    figure = sheet_lib.figure_of([Sheet("a", grey, labels), Sheet("b", coloured, ["x" * 99] * 5)])
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert texts[:6] == ["a", *labels] and texts[6] == "b" and texts[7].endswith("x...")
    file = io.BytesIO()
    figure.savefig(file, format="png")
    pixels = np.array(Image.open(file).convert("RGB")).reshape(-1, 3)
    count = lambda *colour: (pixels == colour).all(-1).sum()
    for v in values:  # of 8 x 6 pixels, 12 times as large; a label's pixels may be grey as well
        assert 96 * 72 <= count(v, v, v) < 96 * 72 + 200
        assert count(v, 0, 255) == 100 * 120


def test_the_command_writes_a_picture(tmp_path, capsys):
    flags = [
        "--config=configs/resnet/digits.py",
        "--config.task.mixup=0.2",
        f"--config.data.cache_dir={tmp_path}",
        f"--output={tmp_path}/x/look.png",
    ]
    code, out, err = bigjax(capsys, "look", *flags, "--n=6")
    assert code == 0 and "/look.png: 6 images of the train split, and below after" in out, err
    assert Image.open(tmp_path / "x" / "look.png").width > 200


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--config=configs/gpt/text.py"], "has none. Give a config of images, such as"),
        (["--n=0"], "--n is 0; it must be from 1 to 1,024."),
        (["--output=look.jpg"], "--output=look.jpg must end in .png, .pdf or .svg"),
        (["--split=dev"], "there is no split 'dev'; allowed: train, valid, test"),
        (["--config.data.train=no/such"], "data.train='no/such': no such file or folder"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, monkeypatch, capsys, flags, words):
    monkeypatch.chdir(tmp_path)
    given = [] if "--config=" in flags[0] else ["--config=configs/resnet/digits.py"]
    code, _, err = bigjax(capsys, "look", *given, *flags)
    assert code == 2 and words in err and err.count("\n") == 1, err
    assert not [*tmp_path.iterdir()]
