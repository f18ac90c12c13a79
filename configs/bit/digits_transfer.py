"""Transfer with a small BiT: pre-trained on the digits 0 to 4, then trained on a few of 5 to 9.

    bigjax train --config=configs/bit/digits_transfer.py --workdir=runs/bit-digits
    bigjax train --config=configs/bit/digits_transfer.py:finetune --workdir=runs/bit-few

Three minutes, then half a minute on two cores, to a test accuracy of 0.928 (five draws of images).
:hyperrule fine-tunes by BiT-HyperRule (0.925), :scratch has no pre-training (0.908);
benchmarks/transfer.py compares them.
"""

import hyperrule

from bigjax import config

SHOTS = 10


def get_config(variant: str = ""):
    c = config.new_config()
    choices = ("tiny", "finetune", "hyperrule", "scratch")
    choice = config.variants(variant, **dict(zip(choices, choices)))
    few = choice in ("finetune", "hyperrule", "scratch")
    c.model = dict(
        name="resnet",
        image_size=8,
        channels=1,
        units=(1, 1),
        width=32,
        bottleneck=False,
        stem="small",
        preactivation=True,
        norm="groupnorm",
        groups=8,
        standardised=True,
        mean=(0.5,),
        std=(0.5,),
    )
    c.task = dict(name="image_classify")
    c.data = dict(name="images", train="digits", size=8, channels=1)
    # Of all orientations, so that more is learned than five shapes.
    c.data.augment = dict(crop="center", flip=True, shift=1, rotation=180.0, scale=(0.9, 1.1))
    c.data.test_fraction = 0.3
    c.optim.learning_rate, c.optim.warmup_steps, c.optim.weight_decay = 3e-3, 50, 0.01
    c.train.steps, c.train.batch_size, c.log.every = 3000, 64, 100
    c.checkpoint.every = 500
    c.data.classes = tuple("01234")
    if few:
        c.data.classes, c.data.shots = tuple("56789"), SHOTS
        c.data.augment = dict(crop="center", flip=False)
        c.train.steps = 300
        c.optim.learning_rate, c.train.batch_size = 1e-3, 24
    if few and choice != "scratch":
        c.init_from, c.init_reset = "runs/bit-digits", "^head/"
    if choice == "hyperrule":  # its sizes are 160 and 128
        c.data.augment = dict(crop="random", resize=9, flip=False)
        c.optim.name, c.optim.schedule, c.optim.clip_norm = "sgd", "step", 0.0
        c.optim.learning_rate, c.optim.weight_decay = 0.1, 0.0  # for a small model
        for key in ("train.steps", "optim.warmup_steps", "optim.boundaries"):
            section, name = key.split(".")
            c[section][name] = hyperrule.rule(5 * SHOTS, 64)[key]
    if choice == "tiny":
        c.model.width = 16
        c.optim.warmup_steps, c.train.steps, c.train.batch_size, c.log.every = 5, 120, 32, 20
    every = c.train.steps
    c.evals = dict(
        valid=dict(kind="loss", every=every), test=dict(kind="metrics", split="test", every=every)
    )
    return c
