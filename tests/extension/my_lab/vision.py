"""A vision family with batch statistics, and the images that it is trained on."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from bigjax import losses, modules, tasks
from bigjax.bounds import FRACTION, at_least
from bigjax.data.arrays import ArrayData
from bigjax.interop import mapping
from bigjax.layers import params as params_lib


class Squares(ArrayData):
    """config.data: grey images of `size` x `size` bytes; the label is the bright quarter."""

    @dataclasses.dataclass(frozen=True)
    class Config:
        size: int = 8
        examples: int = 256  # per split

        RANGES = dict.fromkeys(("size", "examples"), at_least(1))

    @staticmethod
    def for_model(model):
        """Fields of config.data for an imported model."""
        return {"size": model["size"]}

    def __init__(self, size: int, examples: int):
        splits = {}
        for i, name in enumerate(("train", "valid", "test")):
            rng = np.random.default_rng(i)
            label = rng.integers(0, 4, examples)
            pictures = rng.integers(0, 100, (examples, size, size, 1))
            rows, columns = (
                np.arange(size) // (size // 2) == x[:, None] for x in (label // 2, label % 2)
            )
            pictures += 40 * (rows[:, :, None] & columns[:, None, :])[..., None]
            splits[name] = {
                "picture": pictures.astype(np.uint8),
                "label": label.astype(np.int32),
                "weights": np.ones(examples, np.float32),
            }
        super().__init__(splits)


def tensors(m):
    """The tensors of a Hugging Face folder; the first name of each row is ours."""
    rows, d = [], m["d_model"]
    for i in range(2):
        ins = d if i else 1
        rows += mapping.convolution(f"conv_{i}", f"conv{i}", (3, 3), ins, d, bias=False)
        rows += mapping.batch_norm(f"norm_{i}", f"bn{i}", d)
    return rows + mapping.dense("head", "fc", d * m["size"] ** 2 // 16, m["n_labels"])


TABLE = mapping.Family(
    name="my_resnet",  # model_type in config.json
    fields=(
        mapping.number("d_model", "width", 8),
        mapping.number("size", "image_size", 8),
        mapping.number("n_labels", "num_classes", 4),
    ),
    architectures={
        "MyResNet": mapping.Architecture((), {"name": "my_lab.vision.Classify"}),
    },
    body=tensors,
    redundant=r"bn\d\.num_batches_tracked$",
)


class Network:
    """config.model: convolutions with batch normalisation (https://arxiv.org/abs/1502.03167)."""

    HUGGING_FACE = (TABLE,)

    @dataclasses.dataclass(frozen=True)
    class Config:
        size: int = 8  # of the images
        n_labels: int = 4
        d_model: int = 8
        momentum: float = 0.9  # of the running statistics

        RANGES = {
            **dict.fromkeys(("size", "n_labels", "d_model"), at_least(1)),
            "momentum": FRACTION,
        }

    class Model(nn.Module):
        config: "Network.Config"

        @nn.compact
        def __call__(self, pictures, train: bool):
            c = self.config
            x = pictures.astype(jnp.float32) / 255
            for i in range(2):
                x = nn.Conv(c.d_model, (3, 3), use_bias=False, name=f"conv_{i}")(x)
                norm = nn.BatchNorm(not train, momentum=c.momentum, name=f"norm_{i}")
                x = nn.avg_pool(nn.relu(norm(x)), (2, 2), (2, 2))
            return nn.Dense(c.n_labels, name="head")(x.reshape(len(x), -1))


class Classify:
    """config.task: the label of an image."""

    DATA = "my_lab.vision.Squares"  # of an imported model

    @staticmethod
    def build(config, options):
        c, size = modules.options(config, "model"), config.data.size
        model = modules.of(config, "model").Model(c)
        example = jnp.zeros((1, size, size, 1), jnp.uint8)
        boxed = jax.eval_shape(lambda rng: model.init(rng, example, True), jax.random.key(0))

        def loss(params, extras, frozen, batch, rng, train):
            variables = {"params": params, **extras}
            logits, new = model.apply(
                variables, batch["picture"], train, mutable=["batch_stats"] if train else []
            )
            given = logits, batch["label"], batch["weights"]
            metrics = {"accuracy": losses.accuracy(*given)}
            return losses.cross_entropy(*given), (metrics, new if train else extras)

        def batch_shapes(n, step):
            shapes = tasks.array_shapes({"label": (n,)}, {"weights": (n,)})
            return {**shapes, "picture": jax.ShapeDtypeStruct((n, size, size, 1), jnp.uint8)}

        return tasks.Task(
            init=lambda rng: params_lib.unbox(model.init(rng, example, True)),
            axes=params_lib.logical_axes(boxed),
            loss=loss,
            load_data=lambda log, tokenizer=None, splits=None: modules.of(config, "data")(
                size, config.data.examples
            ),
            batch_shapes=batch_shapes,
            model=model,
            model_config=c,
            unit="images",
        )
