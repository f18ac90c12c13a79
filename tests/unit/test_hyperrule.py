"""configs/bit/hyperrule.py: values that follow from the data, by `complete` of a config file."""

import io

import numpy as np
from PIL import Image
import pytest

from bigjax.arguments import Arguments
from bigjax.data import images
from bigjax.errors import UserError
from bigjax.optim import make_schedule
from tests.image_files import section

HYPERRULE = "--config=configs/bit/hyperrule.py"


def photos(folder, n, size):
    for label in ("a", "b"):
        (folder / label).mkdir(parents=True)
        for i in range(n):
            file = io.BytesIO()
            pixels = np.random.default_rng(i).integers(0, 256, (*size, 3), np.uint8)
            Image.fromarray(pixels).save(file, "PNG")
            (folder / label / f"{i}.png").write_bytes(file.getvalue() + label.encode())
    return f"--config.data.train={folder}"


@pytest.mark.parametrize(
    "size, shown, resized", [((80, 100), 128, 160), ((96, 96), 480, 512)], ids=["small", "large"]
)
def test_few_images(tmp_path, size, shown, resized):
    """Sizes follow from the area, the batch from the number of images."""
    cache = f"--config.data.cache_dir={tmp_path / 'cache'}"
    c, _ = Arguments([HYPERRULE, photos(tmp_path / "photos", 20, size), cache]).config()
    assert c.data.size == c.model.image_size == shown and c.data.augment.resize == resized
    assert c.train.steps == c.evals.test.every == 500 and c.task.mixup == 0.0
    assert c.train.batch_size in (16, 32) and c.init_from == "bit-50"
    schedule = make_schedule(c.optim, c.train.steps)
    rates = [float(schedule(step)) for step in (0, 99, 199, 200, 300, 400, 499)]
    np.testing.assert_allclose(rates, [3e-5, 3e-3, 3e-3, 3e-4, 3e-5, 3e-6, 3e-6], rtol=1e-5)


def test_the_area_is_the_median_of_images_of_all_classes(tmp_path):
    """The first hundred images are of one class; a few huge ones do not count."""
    for label, n, side in (("a", 150, 8), ("b", 200, 10), ("c", 20, 90)):
        (tmp_path / "p" / label).mkdir(parents=True)
        for i in range(n):
            Image.new("L", (side, side), i % 256).save(tmp_path / "p" / label / f"{i}.bmp")
    data = section(tmp_path, train=str(tmp_path / "p"), valid_fraction=0.0, test_fraction=0.0)
    assert images.survey(data) == (370, 100.0)


def test_given_keys_stay(tmp_path):
    given = ["--config.train.steps=20", "--config.data.size=64", "--config.model.image_size=64"]
    cache = f"--config.data.cache_dir={tmp_path / 'cache'}"
    c, _ = Arguments([HYPERRULE, photos(tmp_path / "p", 20, (9, 9)), cache, *given]).config()
    assert (c.train.steps, c.data.size, c.model.image_size) == (20, 64, 64)
    assert c.data.augment.resize == 160 and c.optim.boundaries == (200, 300, 400)


def test_many_images():
    """By the rule itself: 20,000 and 500,000 images."""
    import importlib.util

    from bigjax import config

    file = config.find_config("configs/bit/hyperrule.py")
    spec = importlib.util.spec_from_file_location("hyperrule", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sizes = 19_999, 20_000, 499_999, 500_000
    few, many, _, very_many = (module.rule(n, 1000) for n in sizes)
    schedules = [
        (x["optim.warmup_steps"], *x["optim.boundaries"], x["train.steps"])
        for x in (module.rule(n, 1000) for n in sizes)
    ]
    assert schedules == [
        (100, 200, 300, 400, 500),
        *[(500, 3000, 6000, 9000, 10_000)] * 2,
        (500, 6000, 12_000, 18_000, 20_000),
    ]
    batches = [module.rule(n, 1000)["train.batch_size"] for n in (1, 100, 511, 512, 1025)]
    assert batches == [1, 64, 256, 512, 512]
    assert [x["task.mixup"] for x in (few, many, very_many)] == [0.0, 0.1, 0.1]
    assert [x["train.steps"] for x in (few, many, very_many)] == [500, 10_000, 20_000]


def config_file(folder, complete):
    path = folder / "own.py"
    path.write_text(
        "from bigjax import config\n\n\ndef get_config(variant=''):\n"
        "    return config.new_config()\n"
        f"\n\ndef complete(c, given):\n    {complete}\n"
    )
    return f"--config={path}"


def test_a_config_file_completes_its_config(tmp_path):
    text = "c.optim.warmup_steps = c.train.steps // 10 if 'seed' not in given else 7"
    own = config_file(tmp_path, text)
    c, _ = Arguments([own, "--config.train.steps=50"]).config()
    assert c.optim.warmup_steps == 5
    c, _ = Arguments([own, "--config.seed=1"]).config()
    assert c.optim.warmup_steps == 7


def test_a_config_file_runs_once(tmp_path):
    """What it does beside returning a config is done once, with `complete` too."""
    own = config_file(tmp_path, "c.seed = 3")
    path = tmp_path / "own.py"
    log = tmp_path / "log"
    path.write_text(path.read_text() + f"\n\nopen({str(log)!r}, 'a').write('x')\n")
    c, _ = Arguments([own]).config()
    assert c.seed == 3 and log.read_text() == "x"


@pytest.mark.parametrize(
    "text, words",
    [
        ("c.optim.warmup = 3", "Unknown config key 'optim.warmup'"),
        ("c.train.steps = 'x'", "Could not override field 'steps'"),
        ("1 / 0", r"own.py: complete\(\) fails, line 9: ZeroDivisionError"),
    ],
)
def test_a_completion_that_fails(tmp_path, text, words):
    with pytest.raises(UserError, match=words):
        Arguments([config_file(tmp_path, text)]).config()
