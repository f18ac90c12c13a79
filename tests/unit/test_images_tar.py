"""Images in tar shards: names, labels and the cached index."""

import json
import os

import numpy as np
import pytest

from bigjax.errors import UserError
from tests.image_files import content, every, load, make_tar, shown, write_tar


@pytest.mark.parametrize("kind", ["cls", "json"])
def test_tar_shards_are_indexed_once(tmp_path, kind):
    make_tar(tmp_path / "x-0.tar", ["b", "a"], kind)
    make_tar(tmp_path / "x-1.tar", ["b"], kind)
    for expected in (2, 0):
        lines = []
        fractions = dict(valid_fraction=0.0, test_fraction=0.0)
        data = load(tmp_path, ("train",), lines, train=str(tmp_path / "x-*.tar"), **fractions)
        assert sum("indexing" in line for line in lines) == expected
        rows = every(data.split("train", 2, shuffle=False))
        assert data.labels == ("a", "b") and rows["label"].tolist() == [1, 0, 1]
        np.testing.assert_array_equal(rows["image"][1], shown(1))


def test_names_with_dots_and_capitals_in_a_tar(tmp_path):
    """0.5.png has the label 0.5.cls; 1.left.png, as in WebDataset, has 1.cls."""
    images = [f"a/{name}" for name in ("0.5.png", "0.7.PNG", "1.left.png", "v.2/3.png", "0.png")]
    names = ["a/0.5.cls", "a/0.7.CLS", "a/1.cls", "a/v.2/3.Json", "a/0.cls"]
    members = [(name, content(i)) for i, name in enumerate(images)]
    members += [
        (n, b'{"label": "3"}' if "J" in n else str(i).encode()) for i, n in enumerate(names)
    ]
    members += [("a/1.boxes.json", b"[1]"), ("a/1.cls.txt", b"7")]  # of others
    path = str(write_tar(tmp_path / "x.tar", members))
    data = load(tmp_path, ("train",), train=path, valid_fraction=0.0, test_fraction=0.0)
    rows = data.rows("train")
    assert [row["file"].removeprefix(f"{path}:") for row in rows] == images
    assert [row["label"] for row in rows] == [*"01234"]


def test_the_index_of_a_tar_follows_its_content_and_the_label_key(tmp_path):
    """A `.cls` file comes before JSON."""
    labels = [{"label": "b", "kind": "x"}, {"label": "a", "kind": "y"}]
    members = [(f"{i}.json", json.dumps(label).encode()) for i, label in enumerate(labels)]
    members += [(f"{i}.png", content(i)) for i in range(2)]
    path = write_tar(tmp_path / "x.tar", members)
    options = dict(train=str(path), valid_fraction=0.0, test_fraction=0.0)

    def of(column):
        columns = {"image": "image", "label": column}
        data = load(tmp_path, ("train",), columns=columns, **options)
        rows = every(data.split("train", 2, shuffle=False))
        return [data.labels[i] for i in rows["label"]], rows["image"]

    assert of("label")[0] == ["b", "a"] and of("kind")[0] == ["x", "y"]
    write_tar(path, [*members, ("1.cls", b"c"), ("2.png", content(2)), ("2.cls", b"d")])
    assert of("label")[0] == ["b", "c", "d"]
    write_tar(path, [("2.png", content(2)), ("1.cls", b"c"), ("2.cls", b"d"), *members])
    os.utime(path, (0, 0))  # of the same size, written later or earlier
    names, pictures = of("label")
    assert names == ["d", "b", "c"]  # in the order of the images
    np.testing.assert_array_equal(pictures, [shown(2), shown(0), shown(1)])


def test_a_tar_with_some_labels_missing(tmp_path):
    make_tar(tmp_path / "x-0.tar", ["b", "a"], "cls")
    make_tar(tmp_path / "x-1.tar", ["b"], "none")
    with pytest.raises(UserError, match="1 of 3 images have no .cls .*x-1.tar:a/0.png"):
        load(tmp_path, ("train",), train=str(tmp_path / "x-*.tar"))
    (tmp_path / "cut.tar").write_bytes((tmp_path / "x-0.tar").read_bytes()[:700])
    with pytest.raises(UserError, match="cannot read .*cut.tar"):
        load(tmp_path, ("train",), train=str(tmp_path / "cut.tar"))
    with pytest.raises(UserError, match="data.train='.*x-1.tar' has no labels, which"):
        load(tmp_path, ("train",), train=str(tmp_path / "x-1.tar"), shots=1)


def test_a_tar_whose_json_lacks_the_key(tmp_path):
    members = [("x/0.png", content(0)), ("x/0.json", b'{"class": 1, "w": 2}')]
    path = str(write_tar(tmp_path / "x.tar", members))
    words = (
        r"a .cls, or a .json with the key 'label' \(data.columns.label\); x/0.json has the keys "
        "class, w."
    )
    with pytest.raises(UserError, match=f"has no labels, .*members need {words}"):
        load(tmp_path, ("train",), train=path)
    write_tar(tmp_path / "y.tar", [("y/0.png", content(1)), ("y/0.cls", b"1")])
    with pytest.raises(UserError, match="1 of 2 images .*such as .*x.tar:x/0.png; x/0.json has"):
        load(tmp_path, ("train",), train=str(tmp_path / "*.tar"))


@pytest.mark.parametrize(
    "members, words",
    [
        ({"1.cls": b"\xff"}, "x.tar: 1.cls is not text in UTF-8"),
        ({"1.json": b"{"}, "x.tar: 1.json is not a JSON object"),
        ({"1.json": b"[1]"}, "x.tar: 1.json is not a JSON object"),
        ({"1.left.png": b"", "1.right.png": b""}, "1.left.png and 1.right.png have one name"),
    ],
)
def test_members_of_a_tar_that_do_not_fit(tmp_path, members, words):
    path = write_tar(tmp_path / "x.tar", members.items())
    with pytest.raises(UserError, match=words):
        load(tmp_path, ("train",), train=str(path))
