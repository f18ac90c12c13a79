"""How fast photos become a batch of training images, on one core of this machine.

    python benchmarks/images.py [--json] [--rounds 7] [--images 300] [--train-images-per-sec N]

Synthetic photos (noise that is smooth at every scale, with details; JPEG of quality 90, 500 x 375
pixels) are written to a temporary folder. Three ways make images of 224 pixels of them in one
thread, in turns; speeds are images per second of CPU time, so for one core whatever the machine
has:

- ours: `data.name="images"` with data.threads=1, as `bigjax train` reads batches: inception crop
  and flip; `ours, RandAugment` with two operations of strength 10 besides.
- pillow: the steps of torchvision's RandomResizedCrop and RandomHorizontalFlip written with Pillow:
  decode, crop, resize (bilinear), flip, array.
- big_vision: its steps decode, inception_crop, flip_lr and value_range(-1, 1), with Pillow and
  numpy instead of TensorFlow, so the image is decoded as a whole.

`ratio` is of ours to pillow. --train-images-per-sec: what a chip trains on, by `bigjax plan`
(docs/benchmarks.md has the command); the script prints the cores that load 5 times as much.
"""

import argparse
import io
import json
import math
from pathlib import Path
import random
import statistics
import tempfile
import time

import numpy as np
from PIL import Image

from bigjax.data import images as images_lib
from bigjax.data.images.augment import Augment

SIZE, BATCH = 224, 32
WIDTH, HEIGHT, QUALITY = 500, 375, 90
AREA, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)
HEADROOM = 5
TRAINED = 2_053.0  # images/s of ViT-S/16 on one chip of v5e: docs/benchmarks.md


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    parser.add_argument("--rounds", type=int, default=7, help="passes over a batch of each way")
    parser.add_argument("--images", type=int, default=300, help="photos to make")
    parser.add_argument("--train-images-per-sec", type=float, default=TRAINED)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        paths = write_photos(Path(folder) / "photos", args.images)
        kilobytes = statistics.mean(path.stat().st_size for path in paths) / 1e3
        print(f"{len(paths)} photos of {WIDTH} x {HEIGHT} pixels, {kilobytes:.0f} kB each")
        ways = {
            "ours": ours(folder),
            "ours, RandAugment": ours(folder, randaugment_layers=2, randaugment_strength=10.0),
            "pillow": one_by_one(paths, pillow),
            "big_vision": one_by_one(paths, big_vision),
        }
        speed = {name: BATCH / seconds for name, seconds in in_turns(ways, args.rounds).items()}
    for name, images in speed.items():
        print(f"{name:18s} {images:8.1f} images/s a core")
    wanted = HEADROOM * args.train_images_per_sec
    for name in ("ours", "ours, RandAugment"):
        print(
            f"{name}: {math.ceil(wanted / speed[name])} cores load {HEADROOM} times the "
            f"{args.train_images_per_sec:,.0f} images/s that one chip trains on"
        )
    result = {
        "name": "images",
        "ours": speed["ours"],
        "theirs": speed["pillow"],
        "ratio": speed["ours"] / speed["pillow"],
        "unit": "images/s",
        "ratio_big_vision": speed["ours"] / speed["big_vision"],
        "randaugment": speed["ours, RandAugment"],
    }
    print(f"ratio {result['ratio']:.3f} to pillow, {result['ratio_big_vision']:.3f} to big_vision")
    if args.json:
        print(json.dumps(result))


def write_photos(folder: Path, n: int) -> list[Path]:
    """n JPEG files in two folders, the classes."""
    rng = np.random.default_rng(0)
    paths = []
    for i in range(n):
        path = folder / ("even", "odd")[i % 2] / f"{i:04d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        photo(rng).save(path, quality=QUALITY)
        paths.append(path)
    return paths


def photo(rng: np.random.Generator) -> Image.Image:
    """Noise of grids from 3 x 4 points to single pixels, whose strength falls with the size of a
    cell, as the spectrum of photographs does."""
    values = np.zeros((HEIGHT, WIDTH, 3), np.float32)
    cell = 128
    while cell:
        grid = rng.normal(size=(HEIGHT // cell + 1, WIDTH // cell + 1, 3))
        small = Image.fromarray(np.uint8(np.clip(grid * 40 + 128, 0, 255)))
        large = small.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
        values += (np.asarray(large, np.float32) - 128) * math.sqrt(cell / 128)
        cell //= 2
    return Image.fromarray(np.uint8(np.clip(values + 128, 0, 255)))


def ours(folder: str, **augment):
    """batch(step), as the training loop gets it."""
    data = images_lib.Config(
        train=f"{folder}/photos",
        valid_fraction=0.0,
        test_fraction=0.0,
        threads=1,
        cache_dir=f"{folder}/cache",
        size=SIZE,
        augment=Augment(**augment),
    )
    loaded = images_lib.load_images(data, log=lambda line: None, names=("train",))
    return loaded.batches("train", batch_size=BATCH, seed=0).batch_at


def one_by_one(paths: list[Path], prepare):
    """batch(step) of files that `prepare` reads."""

    def batch(step: int) -> np.ndarray:
        chosen = [paths[(step * BATCH + i) % len(paths)] for i in range(BATCH)]
        return np.stack([prepare(path.read_bytes()) for path in chosen])

    return batch


def pillow(content: bytes) -> np.ndarray:
    """uint8 [SIZE, SIZE, 3], by the steps of torchvision."""
    image = Image.open(io.BytesIO(content)).convert("RGB")
    image = image.crop(random_box(*image.size))
    image = image.resize((SIZE, SIZE), Image.Resampling.BILINEAR)
    if random.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.array(image)


def big_vision(content: bytes) -> np.ndarray:
    """float32 [SIZE, SIZE, 3] of -1 to 1."""
    array = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
    left, top, right, bottom = random_box(array.shape[1], array.shape[0])
    cut = Image.fromarray(array[top:bottom, left:right])
    array = np.asarray(cut.resize((SIZE, SIZE), Image.Resampling.BILINEAR))
    if random.random() < 0.5:
        array = array[:, ::-1]
    return array.astype(np.float32) / 127.5 - 1


def random_box(width: int, height: int) -> tuple[int, int, int, int]:
    """The box of torchvision's RandomResizedCrop.get_params."""
    low, high = (math.log(x) for x in RATIO)
    for _ in range(10):
        area = width * height * random.uniform(*AREA)
        shape = math.exp(random.uniform(low, high))
        w, h = round(math.sqrt(area * shape)), round(math.sqrt(area / shape))
        if 0 < w <= width and 0 < h <= height:
            left, top = random.randint(0, width - w), random.randint(0, height - h)
            return left, top, left + w, top + h
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    return left, top, left + side, top + side


def in_turns(ways: dict, rounds: int) -> dict[str, float]:
    """The median CPU seconds of a batch by way; the order alternates, so that drift cancels."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for step in range(rounds + 1):
        for name in [*ways][:: -1 if step % 2 else 1]:
            start = time.process_time()
            ways[name](step)
            seconds[name].append(time.process_time() - start)
    return {name: statistics.median(values[1:]) for name, values in seconds.items()}  # warmed up


if __name__ == "__main__":
    main()
