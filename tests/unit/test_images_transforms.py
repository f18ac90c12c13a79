"""Random changes of images: functions of an image and a generator, which keep its size and mode."""

import numpy as np
from PIL import Image
import pytest

from bigjax.data.images import randaugment, transforms

PIXELS = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)


def image(mode="RGB"):
    return Image.fromarray(PIXELS).convert(mode)


def rng(seed=0):
    return np.random.default_rng(seed)


CHANGES = {
    "rand_augment": lambda x, r: randaugment.rand_augment(x, r, 2, 10),
    "trivial_augment": randaugment.trivial_augment,
    "jitter": lambda x, r: transforms.jitter(x, r, 0.4, 0.4, 0.4, 0.1),
    "rotate_and_scale": lambda x, r: transforms.rotate_and_scale(x, r, 15, (0.9, 1.1)),
    "shifted": lambda x, r: transforms.shifted(x, r, 3),
    "flip": transforms.flip,
}


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("name", CHANGES)
def test_changes_are_functions_of_the_generator(name, mode):
    x, seen = image(mode), set()
    for seed in range(20):
        y, again = (CHANGES[name](x, rng(seed)) for _ in range(2))
        assert (y.size, y.mode) == (x.size, mode) and y.tobytes() == again.tobytes()
        seen.add(y.tobytes())
    assert len(seen) > 1


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("name", randaugment.OPERATIONS)
def test_operations_keep_size_and_mode(name, mode):
    x = image(mode)
    y = randaugment.OPERATIONS[name](x, 4 if name in ("posterize", "solarize_add") else 0.5)
    assert (y.size, y.mode) == (x.size, mode)
    unchanged = name == "identity" or name == "color" and mode == "L"
    changed = y.tobytes() != x.tobytes()
    assert changed != unchanged or name in ("autocontrast", "equalize")


def test_cutout():
    white = Image.new("L", (20, 10), 255)
    areas = []
    for seed in range(30):
        grey = np.array(transforms.cutout(white, rng(seed), 0.2, 128)) == 128
        rows, columns = np.flatnonzero(grey.any(1)), np.flatnonzero(grey.any(0))
        assert grey[np.ix_(rows, columns)].all() and len(rows) <= 4 and len(columns) <= 8
        assert len(rows) == np.ptp(rows) + 1 and len(columns) == np.ptp(columns) + 1
        areas.append(grey.sum())
    assert max(areas) == 4 * 8 and min(areas) < 4 * 8  # cut off at the border
    assert np.array(white).all()


class Fixed:
    """A generator that draws one operation, its first sign and one of the strengths."""

    def __init__(self, name, strength=0):
        self.name, self.strength = name, strength

    def choice(self, values):
        self.drawn = values
        return self.name if self.name in values else values[0]

    def integers(self, n):
        return self.strength


def test_the_operations_of_randaugment_and_their_strengths(monkeypatch):
    """By the code of big_vision: level / 10 of the strongest; factors are 0.1 more."""
    got, fixed = {}, Fixed("")
    for name in randaugment.OPERATIONS:
        monkeypatch.setitem(
            randaugment.OPERATIONS, name, lambda x, amount, name=name: got.update({name: amount})
        )
    for name in {*randaugment.OPERATIONS} - {"identity"}:
        fixed = Fixed(name)
        randaugment.rand_augment(image(), fixed, 1, 5)
    assert len(randaugment._STRONGEST) == 16 and "cutout" in randaugment._STRONGEST
    assert got == pytest.approx(
        dict(
            autocontrast=0, equalize=0, invert=0, rotate=-15, posterize=2, solarize=128,
            solarize_add=55, color=1, contrast=1, brightness=1, sharpness=1, shear_x=-0.15,
            shear_y=-0.15, translate_x=-50 / 224, translate_y=-50 / 224,
        )
    )  # fmt: skip


@pytest.mark.parametrize("strength", [0, 0.5, 20, 30])
def test_weak_and_strong_operations(strength):
    """The paper's strengths go up to 30."""
    for name in randaugment._STRONGEST:
        assert randaugment.rand_augment(image(), Fixed(name), 1, strength).size == image().size


@pytest.mark.parametrize("k", range(31))
def test_the_strengths_of_trivial_augment(k, monkeypatch):
    """By torchvision's: bits 8 - round(k / 5), thresholds from 255 to 0."""
    got = {}
    for name in randaugment.OPERATIONS:
        monkeypatch.setitem(
            randaugment.OPERATIONS, name, lambda x, amount, name=name: got.update({name: amount})
        )
    for name in ("posterize", "solarize", "brightness", "rotate"):
        randaugment.trivial_augment(image(), Fixed(name, k))
    assert got["posterize"] == 8 - round(k / 5) and got["solarize"] == pytest.approx(255 - 8.5 * k)
    assert got["brightness"] == pytest.approx(1 - 0.99 * k / 30)
    assert got["rotate"] == pytest.approx(-135 * k / 30)


def test_moves_by_hand():
    x = image()
    np.testing.assert_array_equal(transforms._moved(x, (1, 0, 0, 0, 1, 0)), PIXELS)
    left = np.array(transforms._moved(x, (1, 0, 3, 0, 1, 0)))
    np.testing.assert_array_equal(left[:, :-3], PIXELS[:, 3:])
    assert (left[:, -3:] == 0).all()
    square = Image.fromarray(PIXELS[:, :40])
    turned = transforms._moved(square, (0, -1, 39, 1, 0, 0))  # from (39 - y, x)
    np.testing.assert_array_equal(turned, np.rot90(PIXELS[:, :40]))
    still = transforms.rotate_and_scale(x, rng(), 0, (1, 1))
    np.testing.assert_array_equal(still, PIXELS)


@pytest.mark.parametrize("size", [(41, 41), (61, 31)])
def test_an_image_turns_about_its_middle(size):
    width, height = size
    pixels = np.zeros((height, width), np.uint8)
    pixels[height // 2 - 4 : height // 2 + 5, width // 2 - 4 : width // 2 + 5] = 255
    for seed in range(10):
        got = transforms.rotate_and_scale(Image.fromarray(pixels), rng(seed), 180, (1, 1))
        weights = np.asarray(got, float)
        y, x = np.indices(weights.shape)
        middle = [(a * weights).sum() / weights.sum() for a in (x, y)]
        np.testing.assert_allclose(middle, [width // 2, height // 2], atol=0.1)


def test_a_larger_scale_shows_less():
    """A white square of 20 pixels in the middle of a black image becomes one of 40."""
    pixels = np.zeros((80, 80), np.uint8)
    pixels[30:50, 30:50] = 255
    got = np.array(transforms.rotate_and_scale(Image.fromarray(pixels), rng(), 0, (2, 2)))
    assert got[22:58, 22:58].all() and not got[:18].any() and not got[:, 62:].any()


@pytest.mark.parametrize("size", [(400, 300), (300, 400), (10, 500)])
def test_crops_lie_in_the_image(size):
    width, height = size
    areas = []
    for seed in range(50):
        r = rng(seed)
        view = transforms.inception_crop(width, height, (8, 8), r, area=(0.2, 0.5))
        left, top, right, bottom = view.box
        assert 0 <= left < right <= width and 0 <= top < bottom <= height and view.size == (8, 8)
        areas.append((right - left) * (bottom - top) / (width * height))
        cut = transforms.random_crop(width, height, (8, 8), r, (10, 10)).box
        assert cut[2] - cut[0] == pytest.approx(0.8 * width) and cut[3] <= height + 1e-6
    if size != (10, 500):  # where no such part has a ratio of 3:4 to 4:3, the middle is shown
        assert 0.18 < min(areas) < 0.3 < max(areas) < 0.52
    assert transforms.central_crop(400, 300, (8, 8)).box == (50, 0, 350, 300)
    assert transforms.central_crop(400, 300, (8, 8), 0.5).box == (125, 75, 275, 225)


def test_noise_and_erasing():
    grey = np.full((50, 50, 3), 128, np.uint8)
    assert 9 < transforms.noise(grey, rng(), 0.04).astype(float).std() < 11.5
    assert transforms.erase(grey.copy(), rng(), 0.0).tobytes() == grey.tobytes()
    for seed in range(10):
        erased = (transforms.erase(grey.copy(), rng(seed), 1.0) != 128).any(-1)
        rows, columns = erased.any(1), erased.any(0)
        share = erased.sum() / erased.size
        assert 0.01 < share < 0.36 and erased.sum() > 0.9 * rows.sum() * columns.sum()
