"""BiT-S R50x1 on ImageNet-1k in 90 epochs (https://arxiv.org/abs/1912.11370).

Published: 32 minutes on 128 chips of TPU v3. Measured on the full size: nothing. Expected by
`bigjax plan` on v5e:4x4: 5.7 of 15.75 GiB, 0.132 seconds per step, MFU 24%: an hour. hyperrule.py
takes it to other data.

    bigjax train --config=configs/bit/r50x1_imagenet.py --config.data.train=tfds:imagenet2012
"""

from bigjax import config

IMAGES, EPOCHS, BATCH = 1_281_167, 90, 4096


def get_config(variant: str = ""):
    c = config.new_config()
    c.model = dict(name="resnet", preset="bit-r50x1", dtype="bfloat16")
    c.task = dict(name="image_classify")
    c.data = dict(name="images", train="set data.train", size=224, crop=0.875)
    c.data.augment = dict(crop="inception", area=(0.05, 1.0))
    c.optim.name, c.optim.b1 = "sgd", 0.9
    c.optim.learning_rate, c.optim.warmup_steps = 0.1 * BATCH / 256, 1000
    # 1e-4 in the loss of a run with momentum 0.9 is ten times as much when decoupled from it.
    c.optim.weight_decay, c.optim.clip_norm = 1e-3, 1.0
    c.train.steps, c.train.batch_size = EPOCHS * IMAGES // BATCH, BATCH
    c.checkpoint.every, c.log.every = 1000, 50
    c.evals = dict(valid=dict(kind="loss", every=5000))
    if config.variants(variant, tiny=True):
        c.model = dict(name="resnet", preset="bit-r50x1")
        c.model.update(image_size=32, units=(1, 1), width=16, groups=8)
        c.data.train, c.data.size, c.data.augment.area = "digits", 32, (0.6, 1.0)
        c.optim.learning_rate = 0.1
        c.optim.warmup_steps, c.train.steps, c.train.batch_size, c.log.every = 5, 60, 32, 10
        c.evals = dict(valid=dict(kind="loss", every=30))
    return c
