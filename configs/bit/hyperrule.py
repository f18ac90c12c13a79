"""Transfer by BiT-HyperRule: schedule, sizes and mixup follow from the data.

https://arxiv.org/abs/1912.11370. The rule has three kinds of data: up to 20,000 images (500 steps),
up to 500,000 (10,000 steps, mixup) and more (20,000 steps, mixup); images of fewer than 96 x 96
pixels are shown at 128, others at 480. A batch has 512 images, or the largest power of two that the
data have. Published for BiT-M R50x1 by its authors' code: CIFAR-10
0.973, CIFAR-100 0.864, ImageNet 0.807. Measured on the full size: nothing.

    bigjax train --config=configs/bit/hyperrule.py --workdir=runs/flowers \\
        --config.init_from=bit-50 --config.data.train=flowers

init_from is a run of a BiT, or a folder of Hugging Face (google/bit-50, downloaded). Keys on the
command line stay as they are given there. Set data.augment.flip=False where left and right matter.
"""

from bigjax import config, modules
from bigjax.data import images

MANY, VERY_MANY = 20_000, 500_000  # images
SMALL = 96 * 96  # pixels


def rule(n_images: int, area: float) -> dict:
    """{key: value} by the number of training images and their area in pixels."""
    if n_images < MANY:
        warmup, *boundaries, steps = 100, 200, 300, 400, 500
    elif n_images < VERY_MANY:
        warmup, *boundaries, steps = 500, 3000, 6000, 9000, 10_000
    else:
        warmup, *boundaries, steps = 500, 6000, 12_000, 18_000, 20_000
    batch_size = min(512, 1 << (max(n_images, 1).bit_length() - 1))
    resize, size = (160, 128) if area < SMALL else (512, 480)
    return {
        "train.steps": steps,
        "train.batch_size": batch_size,
        "optim.warmup_steps": warmup,
        "optim.boundaries": tuple(boundaries),
        "task.mixup": 0.1 if n_images >= MANY else 0.0,
        "data.size": size,
        "model.image_size": size,
        "data.augment.resize": resize,
        "checkpoint.every": max(steps // 10, 100),
        "evals.test.every": steps,
    }


def get_config(variant: str = ""):
    c = config.new_config()
    c.init_from = "bit-50"
    c.init_reset = "^head/"  # the classes are others
    c.model = dict(name="resnet", preset="init_from")
    c.task = dict(name="image_classify")
    c.data = dict(name="images", train="digits", keep_ratio=False)
    c.data.augment = dict(crop="random", flip=True)
    c.optim.name, c.optim.b1, c.optim.learning_rate = "sgd", 0.9, 0.003
    c.optim.schedule, c.optim.clip_norm = "step", 0.0
    c.train.batch_size, c.log.every = 512, 10
    c.evals = dict(test=dict(kind="metrics", split="test", every=500))
    if config.variants(variant, tiny=True):  # from scratch, in small: for reading the text
        c.init_from = c.init_reset = ""
        c.model = dict(name="resnet", preset="", width=32, units=(1, 1), stem="small")
        c.model.update(preactivation=True, norm="groupnorm", groups=8, standardised=True)
        c.model.update(image_size=8, channels=1, mean=(0.5,), std=(0.5,))
        c.data.update(size=8, channels=1)
        c.data.augment = dict(crop="random", resize=10, flip=False)
        c.optim.learning_rate, c.train.batch_size, c.log.every = 0.03, 64, 50
    return c


def complete(c, given) -> None:
    n_images, area = images.survey(modules.options(c, "data"))
    values = rule(n_images, area)
    if not c.init_from:  # :tiny has sizes of its own
        given = {*given, "data.size", "model.image_size", "data.augment.resize", "train.batch_size"}
    for key, value in values.items():
        if key not in given:
            *path, last = key.split(".")
            node = c
            for part in path:
                node = node[part]
            node[last] = value
