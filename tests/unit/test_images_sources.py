"""Images from every kind of source."""

import gzip
import io

import numpy as np
from PIL import Image
import pytest

from bigjax.data import images
from bigjax.data.images import sources
from bigjax.errors import UserError
from tests import bucket
from tests.image_files import (
    SIZE,
    content,
    every,
    idx,
    load,
    make_folder,
    make_idx,
    make_tar,
    section,
    shown,
)


def test_a_folder_with_splits(tmp_path):
    root = tmp_path / "photos"
    for first, name in ((0, "train"), (1000, "val"), (2000, "test")):
        make_folder(root / name, first=first)
    (root / "train" / "cat" / "notes.txt").write_text("x")
    (root / "train" / "cat" / ".hidden.png").write_text("x")
    lines = []
    data = load(tmp_path, train=str(root), lines=lines)
    assert data.labels == ("cat", "dog") and any(
        "1 files" in line and "notes.txt" in line for line in lines
    )
    for first, name in ((0, "train"), (1000, "valid"), (2000, "test")):
        rows = every(data.split(name, 4, shuffle=False))
        assert rows["label"].tolist() == [0] * 6 + [1] * 6 and (rows["weights"] == 1).all()
        np.testing.assert_array_equal(rows["image"][0], shown(first))
        np.testing.assert_array_equal(rows["image"][7], shown(first + 101))


def test_a_class_of_trains(tmp_path):
    """`train` is a split where it holds folders, or where there are only splits."""
    fractions = dict(valid_fraction=0.0, test_fraction=0.0)
    make_folder(tmp_path / "vehicles", ("bus", "train"), 3)
    options = dict(train=str(tmp_path / "vehicles"), **fractions)
    assert load(tmp_path, ("train",), **options).labels == ("bus", "train")
    assert len(load(tmp_path, ("train",), kind={"labelled": False}, **options).parts["train"]) == 6
    make_folder(tmp_path / "flat", ("train", "test"), 3)
    flat = load(
        tmp_path,
        ("train", "test"),
        train=str(tmp_path / "flat"),
        kind={"labelled": False},
        **fractions,
    )
    assert [len(flat.parts[name]) for name in ("train", "test")] == [3, 3]


def test_other_splits_have_the_labels_of_training(tmp_path):
    make_folder(tmp_path / "a", ("ant", "bee", "cow"))
    make_folder(tmp_path / "b", ("bee", "cow"))
    data = load(tmp_path, ("train", "valid"), train=str(tmp_path / "a"), valid=str(tmp_path / "b"))
    assert every(data.split("valid", 5))["label"].tolist() == [1] * 6 + [2] * 6
    make_folder(tmp_path / "c", ("bee", "elk"))
    with pytest.raises(
        UserError, match="the class.* elk, which the training data do not have: ant"
    ):
        load(tmp_path, ("train", "valid"), train=str(tmp_path / "a"), valid=str(tmp_path / "c"))
    words = r"c/elk/0.png and .* elk, which the labels of this run \(task.labels\) do not have: bee"
    with pytest.raises(UserError, match=words):
        load(tmp_path, ("train",), train=str(tmp_path / "c"), kind={"labels": ("bee", "cow")})


def test_images_beside_class_folders_are_reported(tmp_path):
    root, lines = make_folder(tmp_path / "mixed"), []
    for name in ("loose.png", "more.JPG"):
        (root / name).write_bytes(content(0))
    fractions = dict(valid_fraction=0.0, test_fraction=0.0)
    data = load(tmp_path, ("train",), lines, train=str(root), **fractions)
    want = f"data: 2 images in {root} lie in no class folder, such as {root}/loose.png: left out"
    assert want in lines and len(data.parts["train"]) == 12
    lines.clear()
    data = load(tmp_path, ("train",), lines, train=str(root), kind={"labelled": False}, **fractions)
    assert not any("class folder" in line for line in lines) and len(data.parts["train"]) == 14
    (root / "more.JPG").unlink()
    load(tmp_path, ("train",), lines, train=str(root), **fractions)
    assert any(f"1 image in {root} lies in no class folder" in line for line in lines)


def test_idx_files(tmp_path):
    path, pixels, labels = make_idx(tmp_path / "mnist")
    data = load(tmp_path, ("train",), train=path, channels=1, valid_fraction=0.0, test_fraction=0.0)
    rows = every(data.split("train", 4, shuffle=False))
    np.testing.assert_array_equal(rows["image"][..., 0], pixels)
    np.testing.assert_array_equal(rows["label"], labels)
    wide = np.arange(2 * 4 * 6, dtype=np.uint8).reshape(2, 4, 6)
    (tmp_path / "wide-images-idx3-ubyte").write_bytes(idx(wide))
    spec = str(tmp_path / "wide-images-idx3-ubyte")
    wide_data = load(tmp_path, ("test",), kind=dict(labelled=False), train=spec, test=spec)
    np.testing.assert_array_equal(wide_data.parts["test"].source.read(1), wide[1])
    (tmp_path / "mnist" / "train-labels-idx1-ubyte.gz").write_bytes(idx(labels[:5]))
    with pytest.raises(UserError, match="has 9 images, but .* has 5 labels"):
        load(tmp_path, ("train",), train=path, channels=1)
    (tmp_path / "mnist" / "train-labels-idx1-ubyte.gz").write_bytes(idx(labels)[:-1])
    with pytest.raises(UserError, match="is not an IDX file .* or is cut off"):
        load(tmp_path, ("train",), train=path, channels=1)
    damaged = bytearray(gzip.compress(idx(labels)))
    damaged[12:16] = b"\xff" * 4
    (tmp_path / "mnist" / "train-labels-idx1-ubyte.gz").write_bytes(damaged)
    with pytest.raises(UserError, match="cannot read .*train-labels-idx1-ubyte.gz: "):
        load(tmp_path, ("train",), train=path, channels=1)


def test_a_few_images_of_labels_from_one_on(tmp_path):
    """Nothing has the number 0, which is no class that lacks images."""
    path, _, labels = make_idx(tmp_path / "mnist", 40)
    (tmp_path / "mnist" / "train-labels-idx1-ubyte.gz").write_bytes(idx(labels + 1))
    data = load(tmp_path, ("train",), train=path, channels=1, shots=2, valid_fraction=0.0)
    part = data.parts["train"]
    assert np.bincount(part.labels).tolist() == [0, 2, 2, 2]


def test_a_folder_with_the_files_of_mnist(tmp_path):
    """It has test images of its own; those for validation are some of the others."""
    folder = tmp_path / "mnist"
    _, _, labels = make_idx(folder, 40)
    (folder / "t10k-images.idx3-ubyte").write_bytes(idx(np.full((5, SIZE, SIZE), 7, np.uint8)))
    (folder / "t10k-labels.idx1-ubyte").write_bytes(idx(labels[:5]))
    data = load(tmp_path, train=str(folder), channels=1, valid_fraction=0.2)
    sizes = {name: len(part) for name, part in data.parts.items()}
    assert sizes["test"] == 5 and sizes["train"] + sizes["valid"] == 40 and sizes["valid"] > 2
    test = every(data.split("test", 1, shuffle=False))
    assert (test["image"] == 7).all() and test["label"].tolist() == [0, 1, 2, 0, 1]
    assert data.rows("test")[0]["file"] == str(folder / "t10k-images.idx3-ubyte:0")


def test_a_table_of_files(tmp_path):
    for i in range(4):
        (tmp_path / f"{i}.png").write_bytes(content(i))
    table = tmp_path / "labels.csv"
    table.write_text("file,kind\n0.png,x\n1.png,y\n2.png,x\n3.png,y\n")
    columns = {"image": "file", "label": "kind"}
    fractions = dict(valid_fraction=0.0, test_fraction=0.0)
    data = load(tmp_path, ("train",), train=str(table), columns=columns, **fractions)
    rows = every(data.split("train", 3, shuffle=False))
    assert data.labels == ("x", "y") and rows["label"].tolist() == [0, 1, 0, 1]
    assert data.rows("train")[1:3] == [
        {"file": f"{tmp_path}/{i}.png", "label": label} for i, label in ((1, "y"), (2, "x"))
    ]
    np.testing.assert_array_equal(rows["image"][2], shown(2))
    several = dict(several=True)
    table.write_text("file,kind\n0.png,y|x\n1.png,y\n2.png,|\n")
    for kind, n in (({}, 1), (several, 0)):
        lines = []
        load(tmp_path, ("train",), lines, kind, train=str(table), columns=columns, **fractions)
        note = "labels contain '|', such as 'y|x', and each is a class of its own: set task.several"
        assert sum(note in line for line in lines) == n
    data = load(tmp_path, ("train",), kind=several, train=str(table), columns=columns, **fractions)
    rows = every(data.split("train", 3, shuffle=False))
    assert rows["label"].dtype == np.float32 and rows["label"].tolist() == [[1, 1], [0, 1], [0, 0]]
    assert [row["label"] for row in data.rows("train")] == [["x", "y"], ["y"], []]
    table.write_text("file,kind\n0.png,x|y\n1.png,\n2.png,y\n")  # forgotten, or none?
    with pytest.raises(UserError, match="labels.csv:3: column 'kind' is empty. .* write '.' for"):
        load(tmp_path, ("train",), kind=several, train=str(table), columns=columns)
    table.write_text("file,kind\nno.png,x\n0.png,y\n")
    with pytest.raises(
        UserError, match="1 of 2 images .* do not exist, such as .*labels.csv:2: .*no"
    ):
        load(tmp_path, ("train",), train=str(table), columns=columns)


@pytest.mark.parametrize("text", [False, True])
def test_records_of_examples(tmp_path, text, monkeypatch):
    record = pytest.importorskip("array_record.python.array_record_module")
    from tensorflow_datasets.proto import tf_example_generated_pb2 as pb
    from tensorflow_datasets.proto import tf_feature_generated_pb2 as values

    path = str(tmp_path / "x.array_record")
    writer = record.ArrayRecordWriter(path, "group_size:1")
    for i, label in enumerate((2, 0, 1)):
        number = values.Feature(int64_list=values.Int64List(value=[label]))
        name = values.Feature(bytes_list=values.BytesList(value=[b"class %d" % label]))
        features = {
            "image": values.Feature(bytes_list=values.BytesList(value=[content(i)])),
            "label": name if text else number,
            "place": values.Feature(int64_list=values.Int64List(value=[i])),
        }
        writer.write(pb.Example(features=values.Features(feature=features)).SerializeToString())
    writer.close()
    fractions = dict(valid_fraction=0.0, test_fraction=0.0)
    data = load(tmp_path, ("train",), train=path, **fractions)
    rows = every(data.split("train", 2, shuffle=False))
    # Reading the labels is reading all records: it is done once.
    with monkeypatch.context() as once:
        once.setattr(sources.records, "numbered", None)
        data = load(tmp_path, ("train",), train=path, **fractions)
    assert data.labels == tuple("class " * text + n for n in "012")
    assert rows["label"].tolist() == [2, 0, 1]
    np.testing.assert_array_equal(rows["image"][2], shown(2))
    with pytest.raises(UserError, match="no feature 'photo'; it has image, label"):
        load(tmp_path, ("train",), train=path, columns={"image": "photo", "label": "label"})
    columns = {"image": "image", "label": "place"}  # not the labels that are in the cache
    data = load(tmp_path, ("train",), train=path, columns=columns, **fractions)
    assert data.parts["train"].labels.tolist() == [0, 1, 2]


@pytest.mark.parametrize("encoded", [False, True])
def test_a_set_of_tfds(tmp_path, encoded, monkeypatch):
    tfds = pytest.importorskip("tensorflow_datasets")

    class Pictures(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            shape = SIZE, SIZE, 3
            tensor = tfds.features.Tensor(shape=shape, dtype=np.uint8)
            features = {
                "image": tfds.features.Image(shape=shape) if encoded else tensor,
                "label": tfds.features.ClassLabel(names=["cat", "dog"]),
                "place": np.int64,
                "pair": np.int64,
            }
            features = tfds.features.FeaturesDict(features)
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, dl_manager):
            made = self._generate_examples
            return {"train": made(6), "validation": made(2), "test": made(2, secret=True)}

        def _generate_examples(self, n, secret=False):
            for i in range(n):
                image = np.full((SIZE, SIZE, 3), i, np.uint8)
                file = io.BytesIO()
                Image.fromarray(image).save(file, "PNG")
                file.seek(0)
                label = -1 if secret else i % 2
                image = file if encoded else image
                yield i, {"image": image, "label": label, "place": i, "pair": i // 2}

    Pictures(data_dir=tmp_path / "sets", file_format="array_record").download_and_prepare()
    folder = tmp_path / "sets" / "pictures" / "1.0.0"
    data = load(tmp_path, train=f"tfds:{folder}", test_fraction=0.0, names=("train", "valid"))
    with monkeypatch.context() as once:
        once.setattr(sources.tfds, "_labels", None)
        data = load(tmp_path, train=f"tfds:{folder}", test_fraction=0.0, names=("train", "valid"))
    assert data.labels == ("cat", "dog") and len(data.parts["valid"]) == 2  # the set's own
    rows = every(data.split("train", 4, shuffle=False))
    assert sorted(rows["image"][:, 0, 0, 0].tolist()) == [*range(6)]
    np.testing.assert_array_equal(rows["label"], rows["image"][:, 0, 0, 0] % 2)
    # The labels in the cache are those of a column and a split.
    cases = ("[train]", 6, "place", 1), ("[train[2:]]", 4, "place", 1), ("[train]", 6, "pair", 2)
    for split, n, label, divisor in cases:
        options = dict(columns={"image": "image", "label": label}, valid_fraction=0.0)
        spec = f"tfds:{folder}{split}"
        data = load(tmp_path, ("train",), train=spec, test_fraction=0.0, **options)
        rows = every(data.split("train", 2, shuffle=False))
        assert len(rows["label"]) == n
        np.testing.assert_array_equal(rows["label"], rows["image"][:, 0, 0, 0] // divisor)
    with pytest.raises(UserError, match="data.train=.* 2 of 2 images have a label below 0"):
        load(tmp_path, train=f"tfds:{folder}", names=("test",))
    with pytest.raises(UserError, match="cannot read split 'other' of train, validation, test"):
        load(tmp_path, ("train",), train=f"tfds:{folder}[other]")
    with pytest.raises(UserError, match="no feature 'photo'; it has .*image"):
        columns = {"image": "photo", "label": "label"}
        load(tmp_path, ("train",), train=f"tfds:{folder}", columns=columns)


@pytest.mark.parametrize("form", ["folder", "table", "idx", "tar", "digits"])
def test_images_without_labels(tmp_path, form):
    """Where no labels are needed, none have to be there."""
    fields = dict(valid_fraction=0.0, test_fraction=0.0, channels=1)
    if form == "folder":
        (tmp_path / "photos" / "more").mkdir(parents=True)
        for name in ("b.png", "a.png", "more/c.png"):
            (tmp_path / "photos" / name).write_bytes(content(0))
        fields["train"], n = str(tmp_path / "photos"), 3
    elif form == "table":
        (tmp_path / "0.png").write_bytes(content(0))
        (tmp_path / "images.csv").write_text("image\n0.png\n")
        fields["train"], n = str(tmp_path / "images.csv"), 1
    elif form == "idx":
        fields["train"], _, _ = make_idx(tmp_path / "mnist")
        (tmp_path / "mnist" / "train-labels-idx1-ubyte.gz").unlink()
        n = 9
    elif form == "tar":
        make_tar(tmp_path / "x.tar", ["b"], "none")
        make_tar(tmp_path / "y.tar", ["b", "c"], "cls")
        fields["train"], n = str(tmp_path / "*.tar"), 3
    else:
        fields["train"], n = "digits", 1797
    data = load(tmp_path, ("train",), kind=dict(labelled=False), **fields)
    batch = data.split("train", 4, shuffle=False).batch_at(0)
    assert len(data.parts["train"]) == n and {*batch} == {"image", "example", "weights"}
    assert data.labels == () and "classes" not in data.summary()


@pytest.mark.parametrize(
    "texts, labels, classes",
    [
        (["2", "0"], [2, 0], ("0", "1", "2")),
        (["20260102", "9"], [1, 0], ("9", "20260102")),  # not one class for each number
        (["01", "2"], [0, 1], ("01", "2")),  # names keep their zeros
        (["b", "1"], [1, 0], ("1", "b")),
        ([], [], ()),
    ],
)
def test_labels_are_numbered(texts, labels, classes):
    got = sources.labels.numbered(texts)
    assert got[0].tolist() == labels and got[1] == classes


def test_images_in_a_bucket(tmp_path, monkeypatch):
    """Folders below others, patterns with `**`, and labels by folder."""
    with bucket.emulator() as url:
        bucket.use(monkeypatch, url)
        for i, name in enumerate(("cat/1.png", "dog/deep/2.png", "dog/.hidden/3.png", "dog/x.txt")):
            bucket.put(url, f"photos/{name}", content(i))
        fractions = dict(valid_fraction=0.0, test_fraction=0.0)
        data = load(tmp_path, ("train",), train="gs://bucket/photos", **fractions)
        rows = every(data.split("train", 1, shuffle=False))
        np.testing.assert_array_equal(rows["image"], [shown(0), shown(1)])
        assert data.rows("train") == [
            {"file": "gs://bucket/photos/cat/1.png", "label": "cat"},
            {"file": "gs://bucket/photos/dog/deep/2.png", "label": "dog"},
        ]
        for spec, names in (
            ("gs://bucket/photos", ["cat/1", "dog/deep/2"]),
            ("gs://bucket/photos/**/2.png", ["dog/deep/2"]),
            ("gs://bucket/photos/*/*.png", ["cat/1"]),
        ):
            rows, batches = images.load_input(spec, section(tmp_path), ("a", "b"), 2)
            assert [row["file"] for row in rows] == [f"gs://bucket/photos/{n}.png" for n in names]
            assert batches.batch_at(0)["weights"].tolist() == [1, len(names) - 1]
