"""Splits, batches of images as functions of (seed, step), bad files and settings."""

import numpy as np
import pytest

from bigjax.data.images import sources
from bigjax.data.images.batches import evaluation_view
from bigjax.errors import UserError
from tests.image_files import SIZE, content, every, load, make_folder, section


def test_equal_files_are_in_one_split_and_hashes_are_kept(tmp_path, monkeypatch):
    root = make_folder(tmp_path / "photos", n=40)
    (root / "dog" / "copy.png").write_bytes((root / "cat" / "3.png").read_bytes())
    options = dict(train=str(root), valid_fraction=0.3, test_fraction=0.2)
    data = load(tmp_path, **options)
    sizes = {name: len(part) for name, part in data.parts.items()}
    assert sum(sizes.values()) == 81 and all(8 <= n <= 60 for n in sizes.values())
    seen = {
        part.source.name(i): name for name, part in data.parts.items() for i in part.index.tolist()
    }
    assert len(seen) == 81
    assert seen[str(root / "dog" / "copy.png")] == seen[str(root / "cat" / "3.png")]
    monkeypatch.setattr(sources.files.Files, "read", None)  # hashes are read from the cache
    again = load(tmp_path, **options)
    assert again.fingerprint == data.fingerprint
    other = load(tmp_path, **options | {"test_fraction": 0.1})
    assert other.fingerprint != data.fingerprint


def test_training_batches_are_functions_of_seed_and_step(tmp_path):
    augment = dict(crop="inception", flip=True, trivial=True, noise=0.1, erasing=0.5)
    data = load(tmp_path, ("train",), train="digits", channels=1, augment=augment)
    batches = data.split("train", 8, seed=3)
    n = int(batches.epoch_steps)
    same, again = batches.batch_at(5), data.split("train", 8, seed=3).batch_at(5)
    for name, x in same.items():
        np.testing.assert_array_equal(x, again[name])
        part = batches.batch_at(5, slice(2, 6))[name]  # of one of two hosts
        np.testing.assert_array_equal(part, x[2:6])
    other = data.split("train", 8, seed=4).batch_at(5)
    assert not np.array_equal(other["example"], same["example"])
    # An image is changed in another way in the next epoch.
    at = {int(e): (s, i) for s in range(n) for i, e in enumerate(batches.batch_at(s)["example"])}
    later = batches.batch_at(n + 2)
    s, i = at[int(later["example"][3])]
    assert not np.array_equal(batches.batch_at(s)["image"][i], later["image"][3])


def test_changes_depend_on_the_seed_the_epoch_and_the_image(tmp_path):
    """12 equal images are each seen in another way in every epoch, on several hosts as on one."""
    root = make_folder(tmp_path / "photos")
    for path in root.glob("*/*.png"):
        path.write_bytes(content(0))
    augment = dict(crop="center", flip=False, noise=0.1)
    options = dict(train=str(root), valid_fraction=0.0, test_fraction=0.0, augment=augment)
    data = load(tmp_path, ("train",), **options)
    seen = set()
    for seed in (3, 4):
        batches = data.split("train", 5, seed=seed)
        seen |= {image.tobytes() for i in range(5) for image in batches.batch_at(i)["image"]}
        # The second epoch begins with the third image of this batch.
        part = batches.batch_at(2, slice(1, 5))["image"]
        np.testing.assert_array_equal(part, batches.batch_at(2)["image"][1:])
    assert len(seen) == 2 * 25


@pytest.mark.parametrize(
    "keep_ratio, crop, box",
    [
        (True, 1.0, (10, 0, 30, 20)),
        (True, 0.5, (15, 5, 25, 15)),
        (False, 1.0, (0, 0, 40, 20)),
        (False, 0.5, (10, 5, 30, 15)),
    ],
)
def test_what_evaluation_shows_of_an_image(tmp_path, keep_ratio, crop, box):
    """Of one of 40 x 20 pixels."""
    data = section(tmp_path, train="digits", keep_ratio=keep_ratio, crop=crop)
    assert evaluation_view(40, 20, data) == (box, (SIZE, SIZE))


def test_splits_of_other_files_are_not_those_in_the_cache(tmp_path):
    """Of a folder whose files were replaced by larger ones of the same names."""
    root = make_folder(tmp_path / "photos", n=20)
    options = dict(train=str(root), valid_fraction=0.5, test_fraction=0.0)
    before = load(tmp_path, **options)
    for path in root.glob("*/*.png"):
        path.write_bytes(path.read_bytes() + bytes(1))
    after, again = load(tmp_path, **options), load(tmp_path / "fresh", **options)
    indices = [data.parts["valid"].index.tolist() for data in (before, after, again)]
    assert indices[0] != indices[1] == indices[2]
    assert before.parts["valid"].source.fingerprint != after.parts["valid"].source.fingerprint


def test_digits_have_values_of_0_to_255_and_numbers_within_their_split(tmp_path):
    rows = every(load(tmp_path, ("test",), train="digits", size=8, channels=1).split("test", 64))
    assert sorted({*rows["image"].ravel().tolist()}) == [round(i * 255 / 16) for i in range(17)]
    assert rows["example"].tolist() == [*range(len(rows["image"]))]


@pytest.mark.parametrize("name, other", [("valid", "test"), ("test", "valid")])
def test_each_split_has_its_own_fraction(tmp_path, name, other):
    """A split with data of its own takes nothing from the training images."""
    root = make_folder(tmp_path / "photos", n=20)
    fractions = {f"{name}_fraction": 0.5, f"{other}_fraction": 0.0}
    parts = load(tmp_path, train=str(root), **fractions).parts
    sizes = {split: len(part) for split, part in parts.items()}
    assert sizes[other] == 0 and 10 < sizes[name] < 30 and sum(sizes.values()) == 40
    own = {name: str(make_folder(tmp_path / "own", n=3, first=1000))}
    parts = load(tmp_path, train=str(root), **own, **fractions).parts
    assert len(parts["train"]) == 40 and len(parts[name]) == 6


def test_an_image_that_cannot_be_read_has_no_weight_or_is_refused(tmp_path):
    root = make_folder(tmp_path / "photos", n=5)
    (root / "cat" / "2.png").write_bytes(b"")
    (root / "dog" / "1.png").unlink()
    (root / "dog" / "1.png").symlink_to("nothing")
    options = dict(train=str(root), valid_fraction=0.0, test_fraction=0.0)
    data = load(tmp_path, ("train",), **options)
    with pytest.raises(
        UserError, match="cat/2.png: the file is empty. 1 of 10 images .*max_bad=0 "
    ):
        data.split("train", 5, shuffle=False).batch_at(0)
    data = load(tmp_path, ("train",), **options, max_bad=0.2)
    batches = data.split("train", 5, shuffle=False)
    for _ in range(2):  # counted once
        weights = every(batches)["weights"]
        assert weights.tolist() == [1, 1, 0, 1, 1, 1, 0, 1, 1, 1]
    assert "cat/2.png: the file is empty" in batches.examples.why(2)
    data = load(tmp_path, ("train",), **options, max_bad=0.1)
    with pytest.raises(UserError, match="2 of 10 images .*allows 1. Remove"):
        every(data.split("train", 10, shuffle=False))
    names = r"cat/2.png, \S+dog/1.png"
    with pytest.raises(UserError, match=rf"2 of 10 images .*cannot be read \(\S+{names}\); data"):
        every(data.split("train", 10, shuffle=False))
    # Where images are divided by their content, such files have a place too.
    data = load(tmp_path, **options | {"test_fraction": 0.2}, max_bad=0.2)
    assert sum(len(part) for part in data.parts.values()) == 10


def test_images_that_cannot_be_read_are_logged_once(tmp_path):
    """Not again in other epochs and evaluations, and only the first five files."""
    root, lines = make_folder(tmp_path / "photos", n=8), []
    options = dict(train=str(root), valid_fraction=0.0, test_fraction=0.0, max_bad=0.9)
    (root / "cat" / "2.png").write_bytes(b"x")
    data = load(tmp_path, ("train",), lines, **options)
    bad = lambda: [line for line in lines if "It has no weight" in line]
    batches = data.split("train", 16)
    for step in range(3):
        batches.batch_at(step)
    every(data.split("train", 5, shuffle=False))
    data.batches_of("train", np.arange(4), 4).batch_at(0)
    assert len(bad()) == 1 and bad()[0].startswith(f"data: {root}/cat/2.png: not an image that")
    assert "damaged one: cannot identify it. It has no weight (data.max_bad)." in bad()[0]
    for i in range(7):
        (root / "dog" / f"{i}.png").write_bytes(b"")
    every(data.split("train", 16, shuffle=False))
    assert len(bad()) == 5 and sum("more images cannot be read" in line for line in lines) == 1


@pytest.mark.parametrize(
    "fields, words",
    [
        (dict(train=""), "data.train is empty. Set it to a folder"),
        (dict(train="no/such"), "data.train='no/such': no such file or folder. Give a folder"),
        (dict(train="{tmp}/empty"), "has no folders. Images of a class have to lie"),
        (dict(train="{tmp}/hollow"), "hollow/cat has no images"),
        (dict(train="{tmp}/shards"), "it holds 2 .tar files: give '.*/shards/[*].tar'"),
        (dict(train="{tmp}/set"), "it holds 1 .array_record file: give 'tfds:.*/set'"),
        (dict(train="digits", channels=2), "data.channels is 2; it has to be 3, or 1"),
        (
            dict(train="digits", augment=dict(crop="middle")),
            "data.augment.crop is 'middle'; allowed",
        ),
        (dict(train="digits", augment=dict(area=(0.5, 0.1))), "area is .*smallest and the largest"),
        (dict(train="digits", valid_fraction=0.8, test_fraction=0.4), "their sum at most 1"),
    ],
)
def test_bad_settings(tmp_path, fields, words):
    (tmp_path / "empty").mkdir()
    (tmp_path / "hollow" / "cat").mkdir(parents=True)
    for name in ("shards/0.tar", "shards/1.tar", "set/a.array_record-0-of-1"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "set" / "dataset_info.json").write_text("{}")
    fields = {k: v.format(tmp=tmp_path) if isinstance(v, str) else v for k, v in fields.items()}
    with pytest.raises(UserError, match=words):
        load(tmp_path, **fields)
