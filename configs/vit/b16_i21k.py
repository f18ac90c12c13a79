"""ViT-B/16 on ImageNet-21k in 300 epochs (https://arxiv.org/abs/2106.10270).

A sigmoid for each of 21,843 labels, RandAugment and mixup of the paper's setting "light2" for this
size. Measured on the full size: nothing. Expected by `bigjax plan` on v5e:4x4: 11.1 of 15.75 GiB,
0.295 seconds per step, MFU 46%. configs/vit/finetune.py takes it to other data.

    bigjax train --config=configs/vit/b16_i21k.py --config.data.train='gs://BUCKET/i21k/*.tar'
"""

from bigjax import config

IMAGES, EPOCHS, BATCH = 14_197_122, 300, 4096


def get_config(variant: str = ""):
    c = config.new_config()
    c.model = dict(name="vit", preset="b16", pooling="mean", dtype="bfloat16", remat="dots")
    c.task = dict(name="image_classify", sigmoid=True, head_bias=-10.0, mixup=0.2)
    c.data = dict(name="images", train="set data.train", size=224, crop=0.875)
    c.data.valid_fraction = c.data.test_fraction = 0.002
    c.data.max_bad = 1e-4  # a few files of this size of set are always damaged
    c.data.augment = dict(
        crop="inception", area=(0.05, 1.0), randaugment_layers=2, randaugment_strength=10.0
    )
    c.optim.learning_rate, c.optim.warmup_steps = 1e-3, 10_000
    c.optim.weight_decay, c.optim.clip_norm = 0.1, 1.0
    c.train.steps, c.train.batch_size = EPOCHS * IMAGES // BATCH, BATCH
    c.checkpoint.every, c.log.every = 5000, 50
    c.evals = dict(valid=dict(kind="loss", every=10_000))
    if config.variants(variant, tiny=True):
        c.model = dict(name="vit", preset="b16", pooling="mean")
        c.model.update(image_size=32, patch=8, d_model=64, n_layers=2, n_heads=2, d_ff=128)
        c.data.train, c.data.size, c.data.augment.area = "digits", 32, (0.6, 1.0)
        c.data.augment.randaugment_layers = 1
        c.data.valid_fraction = c.data.test_fraction = 0.1
        c.optim.warmup_steps, c.train.steps, c.train.batch_size, c.log.every = 5, 120, 32, 20
        c.evals = dict(valid=dict(kind="loss", every=60))
    return c
