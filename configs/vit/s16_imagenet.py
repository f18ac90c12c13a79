"""ViT-S/16 on ImageNet-1k in 90 epochs, the plain recipe (https://arxiv.org/abs/2205.01580).

Published: 0.765 after seven hours on a TPU v3-8. Measured on the full size: nothing. Expected by
`bigjax plan` on v5e:2x4: 6.2 of 15.75 GiB, 0.065 seconds per step, MFU 27%: two hours.

    bigjax train --config=configs/vit/s16_imagenet.py --config.data.train=tfds:imagenet2012

The paper keeps 1% of the training images for validation; here the set's own validation images are
looked at every 10,000 steps.
"""

from bigjax import config

IMAGES, EPOCHS, BATCH = 1_281_167, 90, 1024


def get_config(variant: str = ""):
    c = config.new_config()
    c.model = dict(name="vit", preset="s16-plain", pre_logits=384, dtype="bfloat16")
    c.task = dict(name="image_classify", mixup=0.2)
    c.data = dict(name="images", train="set data.train", size=224, crop=0.875)
    c.data.augment = dict(
        crop="inception", area=(0.05, 1.0), randaugment_layers=2, randaugment_strength=10.0
    )
    c.optim.learning_rate, c.optim.warmup_steps = 1e-3, 10_000
    c.optim.weight_decay, c.optim.clip_norm = 0.1, 1.0  # 1e-4 as the paper counts it: rate x decay
    c.train.steps, c.train.batch_size = EPOCHS * IMAGES // BATCH, BATCH
    c.checkpoint.every, c.log.every = 5000, 50
    c.evals = dict(valid=dict(kind="loss", every=10_000))
    if config.variants(variant, tiny=True):
        c.model = dict(name="vit", preset="s16-plain", pre_logits=64)
        c.model.update(image_size=32, patch=8, d_model=64, n_layers=2, n_heads=2, d_ff=128)
        c.data.train, c.data.size, c.data.augment.area = "digits", 32, (0.6, 1.0)
        c.data.augment.randaugment_layers, c.data.augment.randaugment_strength = 1, 3.0
        c.optim.learning_rate = 2e-3
        c.optim.warmup_steps, c.train.steps, c.train.batch_size, c.log.every = 5, 120, 32, 20
        c.evals = dict(valid=dict(kind="loss", every=60))
    return c
