"""Model families, one file each: `Config`, `Model`, `PRESETS`. A config names the module."""

from collections.abc import Collection

from bigjax.errors import UserError
from bigjax.layers.kernels import KERNELS
from bigjax.layers.stack import REMAT

# Fields of a Config that are not of the model itself: a resumed run may have changed them.
OF_A_RUN = ("remat", "*dropout", "dtype", "param_dtype", "attention")
_CHOICES = {
    "remat": REMAT,
    "attention": ("auto", *KERNELS),
    "dtype": ("float32", "bfloat16"),
    "param_dtype": ("float32", "bfloat16"),
}


def check_fields(c, choices: dict[str, Collection[str]]) -> None:
    """Refuses names that no Config can have. choices: {field: values}, besides those of the fields
    that every family has."""
    for field, allowed in {**_CHOICES, **choices}.items():
        if getattr(c, field) not in allowed:
            raise UserError(
                f"model.{field} is {getattr(c, field)!r}; allowed: {', '.join(allowed)}."
            )
