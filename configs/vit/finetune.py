"""Fine-tune a ViT on images of your own, with layer-wise decay of the learning rate.

By default it continues from the masked autoencoder of configs/mae/digits.py on 10 images of each
digit. Set init_from to a run or to a Hugging Face folder, and data.train to a folder of images:

    bigjax train --config=configs/vit/finetune.py --workdir=runs/flowers \\
        --config.init_from=vit-base --config.data.train=flowers --config.data.shots=0

Sizes of the image other than the source's are possible: positions are interpolated. The strong
augmentation that MAE is fine-tuned with is :strong (https://arxiv.org/abs/2111.06377, its table 9).
"""

from bigjax import config


def get_config(variant: str = ""):
    c = config.new_config()
    c.init_from, c.init_reset = "runs/mae", "^head/"  # the classes are others
    c.model = dict(name="vit", preset="init_from")
    c.task = dict(name="image_classify")
    c.data = dict(name="images", train="digits", size=8, channels=1, shots=10)
    c.data.augment = dict(crop="center", flip=False, shift=1, rotation=10.0, scale=(0.9, 1.1))
    c.optim.learning_rate, c.optim.weight_decay = 1e-3, 0.05
    c.optim.layer_decay = 0.75
    c.optim.warmup_steps, c.train.steps, c.train.batch_size = 50, 500, 32
    c.checkpoint.every, c.log.every = 100, 50
    c.evals = dict(
        valid=dict(kind="loss", every=100), test=dict(kind="metrics", split="test", every=500)
    )
    choice = config.variants(variant, tiny="tiny", strong="strong")
    if choice == "strong":
        c.model.drop_path = 0.1
        c.data.augment = dict(crop="inception", flip=True, randaugment_layers=2, erasing=0.25)
        c.data.augment.randaugment_strength = 9.0
        c.task.update(label_smoothing=0.1, mixup=0.8, cutmix=1.0)
    if choice == "tiny":
        c.init_from = c.init_reset = ""
        c.model = dict(name="vit", image_size=8, channels=1, patch=2)
        c.model.update(d_model=64, n_layers=2, n_heads=2, position="sincos2d")
        c.optim.learning_rate = 3e-3
        c.optim.warmup_steps, c.train.steps, c.log.every = 5, 120, 20
        c.evals = dict(valid=dict(kind="loss", every=60))
    return c
