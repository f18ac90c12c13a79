"""Images come out as a person sees them, and files that are none are refused."""

import io

import numpy as np
from PIL import Image, ImageCms, JpegImagePlugin, PngImagePlugin
import pytest

from bigjax.data.images.decode import BadImage, View, decode, to_array

WIDTH, HEIGHT = 12, 8


def whole(width, height):
    return View((0, 0, width, height), (height, width))


def pixels(channels=3):
    """A gradient from left to right, darker below."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    grey = (x * 20 - y * 2).clip(0, 255).astype(np.uint8)
    return np.stack([grey, 255 - grey, grey // 2], -1) if channels == 3 else grey


def encoded(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def read(content, channels=3, view=whole, **options):
    return to_array(decode(content, "photo", view, channels, **options))


RGB, GREY = Image.fromarray(pixels()), Image.fromarray(pixels(1))


@pytest.mark.parametrize("kind, error", [("PNG", 0), ("JPEG", 12), ("WEBP", 12), ("BMP", 0)])
def test_formats(kind, error):
    options = {"quality": 95} if kind in ("JPEG", "WEBP") else {}
    got = read(encoded(RGB, kind, **options)).astype(int)
    assert np.abs(got - pixels()).mean() <= error


@pytest.mark.parametrize("channels", [1, 3])
def test_grey_and_palette(channels):
    want = pixels(1)
    for image in (GREY, GREY.convert("P"), GREY.convert("LA"), GREY.convert("RGBA")):
        got = read(encoded(image), channels)
        assert got.shape == (HEIGHT, WIDTH, channels)
        np.testing.assert_allclose(got, np.repeat(want[..., None], channels, -1), atol=1)


def test_transparent_pixels_are_white():
    alpha = np.zeros((HEIGHT, WIDTH), np.uint8)
    alpha[:, :6] = 255
    got = read(encoded(Image.fromarray(np.dstack([pixels(), alpha]))))
    np.testing.assert_array_equal(got[:, :6], pixels()[:, :6])
    assert (got[:, 6:] == 255).all()
    palette = RGB.quantize(16)
    index = int(np.array(palette)[0, 0])
    got = read(encoded(palette, transparency=index))
    assert (got[np.array(palette) == index] == 255).all() and (got != 255).any()


def test_sixteen_bits():
    values = pixels(1).astype(np.uint16) * 257
    got = read(encoded(Image.fromarray(values)), 1)[..., 0]
    np.testing.assert_array_equal(got, pixels(1))
    floats = Image.fromarray(pixels(1).astype(np.float32) / 255)
    got = read(encoded(floats, "TIFF"), 1)[..., 0].astype(int)
    assert got.min() == 0 and got.max() == 255  # stretched over what it holds


def test_pixels_without_data_are_black():
    """NaN in floats, such as those of maps and of microscopes; infinity is the largest number."""
    values = pixels(1).astype(np.float32) / 7 + 3
    values[0, :3], values[1, 0], values[1, 1] = np.nan, np.inf, -np.inf
    known = np.isfinite(values)
    low, high = values[known].min(), values[known].max()
    got = read(encoded(Image.fromarray(values), "TIFF"), 1)[..., 0].astype(int)
    np.testing.assert_allclose(got[known], (values[known] - low) * 255 / (high - low), atol=0.51)
    assert got[0, :3].tolist() == [0, 0, 0] and got[1, :2].tolist() == [255, 0]
    nothing = Image.fromarray(np.full((HEIGHT, WIDTH), np.nan, np.float32))
    assert not read(encoded(nothing, "TIFF"), 1).any()


def test_a_png_may_hold_much_text():
    """Such as the history of an editor."""
    text = PngImagePlugin.PngInfo()
    text.add_text("history", "step " * (1 << 19), zip=True)
    assert (read(encoded(RGB, pnginfo=text)) == pixels()).all()
    text.add_text("more", "x" * PngImagePlugin.MAX_TEXT_MEMORY, zip=True)
    with pytest.raises(BadImage, match="photo: .*Too much memory used in text"):
        read(encoded(RGB, pnginfo=text))


def test_cmyk_is_not_inverted():
    content = encoded(RGB.convert("CMYK"), "JPEG", quality=95)
    assert np.abs(read(content).astype(int) - pixels()).mean() < 12


def test_a_colour_profile_is_applied():
    """A profile whose red and green are exchanged cannot be made simply; one of grey can: linear
    light instead of sRGB makes middle tones brighter."""
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    assert (read(encoded(RGB, icc_profile=lab)) == pixels()).all()  # not for RGB: ignored
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert (read(encoded(RGB, icc_profile=srgb)) == pixels()).all()
    assert (read(encoded(RGB, icc_profile=b"not a profile")) == pixels()).all()


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_turns_an_image(orientation, kind):
    turns = {
        1: lambda x: x,
        2: lambda x: x[:, ::-1],
        3: lambda x: x[::-1, ::-1],
        4: lambda x: x[::-1],
        5: lambda x: x.swapaxes(0, 1),
        6: lambda x: np.rot90(x, -1),
        7: lambda x: x[::-1, ::-1].swapaxes(0, 1),
        8: lambda x: np.rot90(x),
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    seen = []

    def view(width, height):
        seen.append((width, height))
        return whole(width, height)

    got = read(encoded(RGB, kind, exif=exif), view=view)
    np.testing.assert_array_equal(got, turns[orientation](pixels()))
    assert seen == [(WIDTH, HEIGHT) if orientation < 5 else (HEIGHT, WIDTH)]


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG"])
@pytest.mark.parametrize("exif", [b"Exif\0\0not a TIFF", b"Exif\0\0II*\0\x08\0\0\0\xff\xff\0\0"])
def test_damaged_exif_does_not_damage_an_image(kind, exif):
    assert (read(encoded(RGB, kind, exif=exif)) == read(encoded(RGB, kind))).all()


def test_the_limit_of_pixels_may_be_above_that_of_pillow(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40)
    with pytest.raises(BadImage, match="photo: .*see data.max_pixels"):
        read(encoded(RGB), max_pixels=30)
    assert read(encoded(RGB), max_pixels=1000).shape == (HEIGHT, WIDTH, 3)


def test_other_formats_are_not_opened():
    """Pillow runs Ghostscript for EPS, whatever the name of the file."""
    eps = encoded(RGB, "EPS")
    Image.open(io.BytesIO(eps))
    with pytest.raises(BadImage, match="photo: not an image that Pillow can read .*PNG, JPEG, "):
        read(eps)


def test_a_view_is_a_part_resized_with_antialiasing():
    big = Image.fromarray(
        np.kron(np.indices((8, 8)).sum(0) % 2 * 255, np.ones((4, 4))).astype("uint8")
    )
    half = lambda w, h: View((0, 0, w, h / 2), (4, 8))
    want = np.array(big.crop((0, 0, 32, 16)).resize((8, 4), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(read(encoded(big), 1, half)[..., 0], want)
    tiny = read(encoded(big), 1, lambda w, h: View((0, 0, w, h), (1, 1)))
    assert 100 < tiny[0, 0, 0] < 155  # the mean, not one of the pixels


def test_a_large_jpeg_is_decoded_small_and_looks_the_same():
    rng = np.random.default_rng(0)
    smooth = Image.fromarray(rng.integers(0, 256, (8, 12, 3), np.uint8)).resize((960, 640))
    content = encoded(smooth, "JPEG", quality=95)
    small = lambda w, h: View((0, 0, w, h), (32, 48))
    want = np.array(Image.open(io.BytesIO(content)).resize((48, 32), Image.Resampling.BILINEAR))
    got = read(content, view=small)
    assert got.shape == (32, 48, 3) and np.abs(got.astype(int) - want).mean() < 2


@pytest.mark.parametrize(
    "box, size, decoded",
    [
        ((0, 0, 960, 640), (32, 48), (120, 80)),  # at most an eighth
        ((0, 0, 960, 640), (160, 240), (480, 320)),
        ((0, 0, 960, 640), (161, 240), None),  # not quite twice as high
        ((0, 0, 960, 64), (32, 48), None),  # a broad view needs its rows
        ((0, 0, 60, 640), (32, 48), None),
    ],
)
def test_a_jpeg_that_is_decoded_small_has_twice_the_size_of_what_is_shown(
    monkeypatch, box, size, decoded
):
    sizes = []
    original = JpegImagePlugin.JpegImageFile.draft
    draft = lambda image, mode, size: sizes.append(size) or original(image, mode, size)
    monkeypatch.setattr(JpegImagePlugin.JpegImageFile, "draft", draft)
    got = read(encoded(RGB.resize((960, 640)), "JPEG"), view=lambda w, h: View(box, size))
    assert got.shape[:2] == size and sizes == ([decoded] if decoded else [])


@pytest.mark.parametrize(
    "content, words",
    [
        (b"", "photo: the file is empty"),
        (b"not an image", "photo: not an image that Pillow can read"),
        (encoded(RGB)[:60], "photo: .*damaged"),
        (encoded(RGB.resize((400, 300)), "JPEG")[:900], "photo: .*damaged"),
        (
            encoded(RGB.resize((2000, 2000))),
            "2,000 x 2,000 pixels, more than data.max_pixels=1,000,",
        ),
    ],
)
def test_what_is_no_image_is_refused(content, words):
    with pytest.raises(BadImage, match=words):
        read(content, max_pixels=1_000_000)
