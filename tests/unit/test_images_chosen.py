"""Images of some classes, a few of each, and classes that lose all of theirs to other splits."""

import numpy as np
import pytest

from bigjax.data import images
from bigjax.errors import UserError
from tests.image_files import load, make_folder, section


def test_some_classes_and_a_few_images_of_each(tmp_path):
    """The splits are those of all images; the few are drawn from the training images."""
    whole = load(tmp_path, train="digits", channels=1)
    options = dict(train="digits", channels=1, classes=("7", "3", "9"), shots=4)
    data = load(tmp_path, **options)
    assert data.labels == ("3", "7", "9")
    for name in ("valid", "test"):
        of_all, part = whole.parts[name], data.parts[name]
        np.testing.assert_array_equal(part.index, of_all.index[np.isin(of_all.labels, [3, 7, 9])])
        names = [data.labels[i] for i in part.labels]
        assert names == [whole.labels[i] for i in of_all.labels if i in (3, 7, 9)]
    few = data.parts["train"]
    assert np.bincount(few.labels).tolist() == [4, 4, 4]
    assert {*few.index.tolist()} < {*whole.parts["train"].index.tolist()}
    assert few.index.tolist() == sorted(few.index.tolist())
    true = few.source.labels[few.index]
    assert [("3", "7", "9")[i] for i in few.labels] == [str(i) for i in true]
    other = load(tmp_path, **options, shots_seed=1)
    assert {*other.parts["train"].index.tolist()} != {*few.index.tolist()}
    assert other.fingerprint != data.fingerprint
    assert images.classes(section(tmp_path, **options)) == ("3", "7", "9")


@pytest.mark.parametrize(
    "options, kind, words",
    [
        (dict(classes=("3", "x")), {}, "data.classes names x, which the images do not have: "),
        (dict(shots=900), {}, "data.shots is 900, but the class '0' has 1.. training images"),
        (dict(shots=3), dict(labelled=False), "for images with one label each"),
        (dict(classes=("3",)), dict(several=True), "for images with one label each"),
    ],
)
def test_images_that_cannot_be_chosen(tmp_path, options, kind, words):
    with pytest.raises(UserError, match=words):
        load(tmp_path, train="digits", channels=1, kind=kind, **options)


def test_a_class_without_an_image_to_train_on(tmp_path):
    """One image a class: the split puts some of them into other parts."""
    root = make_folder(tmp_path / "photos", tuple(f"c{i}" for i in range(20)), n=1)
    with pytest.raises(UserError, match=r"No image is left to train on of c\d+ \(1\).*data.valid"):
        load(tmp_path, train=str(root), valid_fraction=0.3, test_fraction=0.3)
    data = load(tmp_path, ("train",), train=str(root), valid_fraction=0.0, test_fraction=0.0)
    assert len(data.parts["train"]) == 20
