"""Random changes of images: functions of an image and a generator, which keep its size and mode."""

import colorsys

import numpy as np
from PIL import Image
import pytest

from bigjax.data.images import randaugment, transforms
from bigjax.data.images.augment import Augment

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


def test_colours_by_hand():
    values = np.array([[0, 10, 127, 128, 200, 255]] * 3, np.uint8)

    def changed(name, amount):
        return np.asarray(randaugment.OPERATIONS[name](Image.fromarray(values), amount))[0].tolist()

    assert changed("solarize_add", 100) == [100, 110, 227, 128, 200, 255]
    assert changed("solarize", 128) == [0, 10, 127, 127, 55, 0]
    assert changed("posterize", 4) == [0, 0, 112, 128, 192, 240]
    assert changed("invert", 0) == [255, 245, 128, 127, 55, 0]
    assert changed("brightness", 0.5) == [0, 5, 63, 64, 100, 127]
    assert changed("contrast", 0.0) == [120] * 6  # their mean
    flat = Image.new("RGB", (8, 8), (90, 40, 10))
    for amount in (0.5, 1.5):  # a flat image has no edges
        assert randaugment.OPERATIONS["sharpness"](flat, amount).tobytes() == flat.tobytes()
    grey = np.asarray(randaugment.OPERATIONS["color"](image(), 0.0))
    np.testing.assert_array_equal(grey, np.asarray(image("L"))[..., None].repeat(3, -1))


def test_operations_that_move_by_hand():
    """By shares of the width or the height; a sheared or turned image keeps its middle."""
    left = np.asarray(randaugment.OPERATIONS["translate_x"](image(), 0.25))
    np.testing.assert_array_equal(left[:, :45], PIXELS[:, 15:])
    up = np.asarray(randaugment.OPERATIONS["translate_y"](image(), 0.25))
    np.testing.assert_array_equal(up[:30], PIXELS[10:])
    assert (left[:, 45:] == 128).all() and (up[30:] == 128).all()
    pixels = np.full((40, 60), 128, np.uint8)
    pixels[16:24, 26:34] = 255
    for name, amount in (("shear_x", 0.5), ("shear_y", 0.5), ("rotate", 45.0)):
        got = np.asarray(randaugment.OPERATIONS[name](Image.fromarray(pixels), amount), float) - 128
        middle = [(i * got).sum() / got.sum() for i in np.indices(got.shape)]
        np.testing.assert_allclose(middle, [19.5, 29.5], atol=0.1, err_msg=name)
        assert np.abs(got - (pixels - 128.0)).max() > 100


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


def test_crops_have_the_given_shape_and_reach_every_place():
    places = set()
    for seed in range(60):
        ranges = (0.1, 0.2), (0.25, 0.5)
        view = transforms.inception_crop(400, 300, (8, 8), rng(seed), *ranges)
        left, top, right, bottom = view.box
        assert 0.24 < (right - left) / (bottom - top) < 0.51  # of width to height
        cut = transforms.random_crop(40, 20, (8, 8), rng(seed), (10, 10)).box
        places.add((round(cut[0]), round(cut[1])))
    assert places == {(x, y) for x in (0, 4, 8) for y in (0, 2, 4)}


def test_an_image_is_shifted_to_every_place():
    point = np.zeros((9, 9), np.uint8)
    point[4, 4] = 255
    moved = [np.asarray(transforms.shifted(Image.fromarray(point), rng(i), 1)) for i in range(100)]
    places = {tuple(int(i) for i in np.argwhere(x)[0]) for x in moved}
    assert places == {(y, x) for y in (3, 4, 5) for x in (3, 4, 5)}


def test_half_of_the_images_are_flipped_left_and_right():
    flipped = [np.asarray(transforms.flip(image(), rng(seed))) for seed in range(100)]
    n = sum(np.array_equal(x, PIXELS[:, ::-1]) for x in flipped)
    assert 35 < n < 65 and n + sum(np.array_equal(x, PIXELS) for x in flipped) == 100


@pytest.mark.parametrize("seed", range(5))
def test_each_colour_is_changed_by_its_own_factor(seed):
    """The factors are drawn in the order of the arguments."""
    drawn = rng(seed).uniform(-1, 1, 4)
    jitter = lambda x, **amounts: np.asarray(transforms.jitter(x, rng(seed), **amounts), float)
    grey = np.array([[50, 100, 150]] * 3, np.uint8)
    x = Image.fromarray(grey)
    got = jitter(x, brightness=0.4)
    np.testing.assert_allclose(got, grey * (1 + 0.4 * drawn[0]), atol=1)
    got = jitter(x, contrast=0.4)
    np.testing.assert_allclose(got, 100 + (grey - 100.0) * (1 + 0.4 * drawn[1]), atol=1)
    red, luma = np.array([200, 0, 0]), 0.299 * 200
    x_red = Image.new("RGB", (2, 2), tuple(red.tolist()))
    want = (luma + (red - luma) * (1 + 0.4 * drawn[2])).clip(0, 255)
    np.testing.assert_allclose(jitter(x_red, saturation=0.4)[0, 0], want, atol=1)
    hue, saturation, value = colorsys.rgb_to_hsv(*jitter(x_red, hue=0.5)[0, 0])
    assert saturation > 0.99 and value == 200
    assert (hue - 0.5 * drawn[3] + 0.5) % 1 == pytest.approx(0.5, abs=0.01)
    for amounts in (dict(saturation=1.0), dict(hue=0.5)):
        np.testing.assert_array_equal(jitter(x.convert("RGB"), **amounts)[..., 0], grey)


@pytest.mark.parametrize(
    "fields, change",
    [
        (dict(flip=True), transforms.flip),
        (dict(shift=3), lambda x, r: transforms.shifted(x, r, 3)),
        (dict(rotation=9.0), lambda x, r: transforms.rotate_and_scale(x, r, 9.0, (1.0, 1.0))),
        (dict(scale=(0.8, 0.9)), lambda x, r: transforms.rotate_and_scale(x, r, 0.0, (0.8, 0.9))),
        (
            dict(randaugment_layers=2, randaugment_strength=7.0),
            lambda x, r: randaugment.rand_augment(x, r, 2, 7.0),
        ),
        (dict(trivial=True), randaugment.trivial_augment),
        (
            dict(brightness=0.1, contrast=0.2, saturation=0.3, hue=0.4),
            lambda x, r: transforms.jitter(x, r, 0.1, 0.2, 0.3, 0.4),
        ),
        (dict(noise=0.1), lambda x, r: transforms.noise(np.asarray(x), r, 0.1)),
        (dict(erasing=0.9), lambda x, r: transforms.erase(np.array(x), r, 0.9)),
    ],
    ids=lambda x: next(iter(x)) if isinstance(x, dict) else "",
)
def test_each_setting_makes_its_own_change(fields, change):
    augment = Augment(**{"flip": False, **fields})
    for seed in range(4):
        want = np.asarray(change(image(), rng(seed)))
        np.testing.assert_array_equal(augment(image(), rng(seed)), want)


def test_each_setting_of_a_crop_is_used():
    view = lambda **fields: Augment(**fields).view(400, 300, 8, rng())
    area, ratio = (0.1, 0.2), (0.25, 0.5)
    want = transforms.inception_crop(400, 300, (8, 8), rng(), area, ratio)
    assert view(area=area, ratio=ratio) == want
    for resize, resized in ((0, 8), (12, 12)):
        want = transforms.random_crop(400, 300, (8, 8), rng(), (resized, resized))
        assert view(crop="random", resize=resize) == want
    assert view(crop="center").box == (50, 0, 350, 300)


def test_noise_and_erasing():
    grey = np.full((50, 50, 3), 128, np.uint8)
    assert 9 < transforms.noise(grey, rng(), 0.04).astype(float).std() < 11.5
    assert transforms.erase(grey.copy(), rng(), 0.0).tobytes() == grey.tobytes()
    for seed in range(10):
        erased = (transforms.erase(grey.copy(), rng(seed), 1.0) != 128).any(-1)
        rows, columns = erased.any(1), erased.any(0)
        share = erased.sum() / erased.size
        assert 0.01 < share < 0.36 and erased.sum() > 0.9 * rows.sum() * columns.sum()
