"""Optimizers, schedules and masks over parameter paths, on Optax."""

from bigjax.optim.layerwise import matches
from bigjax.optim.optimizers import count_trained, make, trained
from bigjax.optim.schedules import make_schedule

__all__ = ["count_trained", "make", "make_schedule", "matches", "trained"]
