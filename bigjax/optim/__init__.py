"""Optimizers, schedules and masks over parameter paths, on Optax."""

from bigjax.optim.optimizers import make, matches
from bigjax.optim.schedules import make_schedule

__all__ = ["make", "make_schedule", "matches"]
