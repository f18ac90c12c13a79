"""What the tasks on images have in common."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bigjax import modules
from bigjax.errors import UserError


def family_of_images(config):
    """(the module of config.model, its Config), for a task on images. Raises UserError if the model
    is not one of images, or of images of another size than the data."""
    family, c = modules.of(config, "model"), modules.options(config, "model")
    if not hasattr(family, "Model") or not hasattr(c, "image_size"):
        raise UserError(
            f"config.task.name={config.task.name!r} needs a model of images, such as "
            f"model.name='vit'; model.name is {config.model.name!r}."
        )
    for key, value in (("size", c.image_size), ("channels", c.channels)):
        if config.data[key] != value:
            field = "image_size" if key == "size" else key
            raise UserError(
                f"data.{key} is {config.data[key]}, but model.{field} is {value}: set both to the "
                "same number."
            )
    return family, c


def example_of(c) -> jax.Array:
    """One image for the initialisation of a model; c: its Config."""
    return jnp.zeros((1, c.image_size, c.image_size, c.channels), jnp.uint8)


def image_shapes(c, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes of a batch of data.images, without labels."""
    shapes = {
        "image": ((batch_size, c.image_size, c.image_size, c.channels), np.uint8),
        "example": ((batch_size,), np.int32),
        "weights": ((batch_size,), np.float32),
    }
    return {name: jax.ShapeDtypeStruct(*x) for name, x in shapes.items()}


def in_images(c) -> dict[str, Any]:
    """Fields of a Task whose examples are images; c: the model's Config."""
    n = getattr(c, "n_tokens", 0)  # what attention runs over, in a model that has it
    return dict(unit="images", attention_lengths={"tokens per image": n} if n else {})
