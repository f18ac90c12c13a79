"""Files with small images, and the section `data` that reads them."""

import gzip
import io
import json
import tarfile

import numpy as np
from PIL import Image

from bigjax import config, modules
from bigjax.data import images

SIZE = 16


def section(tmp_path, **fields):
    """The section data, built."""
    c = config.new_config()
    fields = {"size": SIZE, "cache_dir": str(tmp_path / "cache"), "threads": 2} | fields
    augment = fields.pop("augment", {"crop": "center", "flip": False})
    c.data = dict(name="images", **fields)
    c.data.augment = augment
    modules.fill(c)
    return modules.options(c, "data")


def load(tmp_path, names=("train", "valid", "test"), lines=None, kind=None, **fields):
    """kind: options of load_images about labels."""
    log = [].append if lines is None else lines.append
    return images.load_images(section(tmp_path, **fields), log=log, names=names, **kind or {})


def content(i, kind="PNG"):
    file = io.BytesIO()
    rng = np.random.default_rng(i)
    Image.fromarray(rng.integers(0, 256, (20, 24, 3), np.uint8)).save(file, kind)
    return file.getvalue()


def make_folder(folder, classes=("cat", "dog"), n=6, first=0):
    for label, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for i in range(n):
            (folder / name / f"{i}.png").write_bytes(content(first + label * 100 + i))
    return folder


def every(batches):
    """All real rows of an evaluation."""
    parts = [batches.batch_at(i) for i in range(batches.n_batches)]
    joined = {k: np.concatenate([p[k] for p in parts]) for k in parts[0]}
    return {k: x[joined["example"] >= 0] for k, x in joined.items()}


def shown(i):
    """Image i as evaluation shows it."""
    image = Image.open(io.BytesIO(content(i)))
    return np.array(image.crop((2, 0, 22, 20)).resize((SIZE, SIZE), Image.Resampling.BILINEAR))


def idx(array):
    header = bytes((0, 0, 8, array.ndim)) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    return header + array.tobytes()


def make_idx(folder, n=9):
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (n, SIZE, SIZE), np.uint8)
    labels = (np.arange(n) % 3).astype(np.uint8)
    (folder / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(pixels)))
    (folder / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(labels)))
    return str(folder / "train-images-idx3-ubyte.gz"), pixels, labels


def make_tar(path, labels, kind):
    members = []
    for i, label in enumerate(labels):
        members += [(f"a/{i}.png", content(i)), (f"a/._{i}.png", b"of macOS")]
        if kind == "cls":
            members.append((f"a/{i}.cls", label.encode()))
        if kind == "json":
            members.append((f"a/{i}.json", json.dumps({"label": label}).encode()))
    return write_tar(path, members)


def write_tar(path, members):
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path
