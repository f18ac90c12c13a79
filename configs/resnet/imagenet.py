"""ResNet-50 on ImageNet-1k in 90 epochs, with large batches (https://arxiv.org/abs/1706.02677).

Published: 0.763. Measured on the full size: nothing. Expected by `bigjax plan` on v5e:2x4: 8.7 of
15.75 GiB, 0.146 seconds per step, MFU 22%: two hours and a quarter.

    bigjax train --config=configs/resnet/imagenet.py --config.data.train=tfds:imagenet2012
"""

from bigjax import config

IMAGES, EPOCHS, BATCH = 1_281_167, 90, 2048


def get_config(variant: str = ""):
    c = config.new_config()
    c.model = dict(name="resnet", preset="50", dtype="bfloat16")
    c.task = dict(name="image_classify")
    c.data = dict(name="images", train="set data.train", size=224, crop=0.875)
    c.data.augment = dict(crop="inception", flip=True, brightness=0.4, contrast=0.4, saturation=0.4)
    epoch = IMAGES / BATCH
    c.optim.name, c.optim.b1 = "sgd", 0.9
    c.optim.learning_rate, c.optim.warmup_steps = 0.1 * BATCH / 256, round(5 * epoch)
    c.optim.schedule = "step"
    c.optim.boundaries = tuple(round(n * epoch) for n in (30, 60, 80))
    # 1e-4 in the loss of a run with momentum 0.9 is ten times as much when decoupled from it.
    c.optim.weight_decay, c.optim.clip_norm = 1e-3, 0.0
    c.train.steps, c.train.batch_size = round(EPOCHS * epoch), BATCH
    c.checkpoint.every, c.log.every = 1000, 50
    c.evals = dict(valid=dict(kind="loss", every=5000))
    if config.variants(variant, tiny=True):
        c.model = dict(name="resnet", preset="50", image_size=32, units=(1, 1), width=16)
        c.data.train, c.data.size, c.data.augment.area = "digits", 32, (0.6, 1.0)
        c.optim.learning_rate, c.optim.boundaries = 0.1, (40, 50)
        c.optim.warmup_steps, c.train.steps, c.train.batch_size, c.log.every = 5, 60, 32, 10
        c.evals = dict(valid=dict(kind="loss", every=30))
    return c
