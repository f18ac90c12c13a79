"""Tasks: from a batch to a loss. A config names the module; `build` makes the three functions."""

import dataclasses
import importlib
import pathlib
from typing import Any, Callable, NamedTuple

from bigjax import config as config_lib
from bigjax.errors import UserError


class Task(NamedTuple):
    """What the trainer needs to know about a model and its objective.

    init(rng) -> variables: {'params': ..., 'extras': ...} of plain arrays.
    loss(params, extras, frozen, batch, rng, train) ->
        ((loss_sum, weight_sum), (metrics, extras)); metrics: {name: (sum, weight)}.
    frozen() -> pytree or None: what is used but not trained (a teacher).
    axes: tree of logical axis names, as params.
    model, model_config: the Flax module and its Config, for generation.
    flops_per_example: of a training step, for utilisation.
    check_vocabulary(n): refuses a tokenizer of n tokens that the model has no room for.
    """
    init: Callable[..., Any]
    loss: Callable[..., Any]
    frozen: Callable[[], Any]
    axes: Any
    model: Any
    model_config: Any
    flops_per_example: float
    check_vocabulary: Callable[[int], None]


def module(name: str):
    """bigjax.tasks.NAME, or a UserError that names what there is."""
    have = sorted(p.stem for p in pathlib.Path(__file__).parent.glob("*.py") if p.stem[0] != "_")
    if name not in have:
        raise UserError(f"There is no task {name!r}. {config_lib.nearest(name, have)}")
    return importlib.import_module(f"bigjax.tasks.{name}")


def build(config) -> Task:
    """The task of a config."""
    return module(config.task.name).build(config, _options(config.task))


def _options(section):
    return config_lib.build(module(section.name).Config, section, "task")


def all_fields(section) -> dict:
    """Every key of config.task with its value."""
    return {"name": section.name, **dataclasses.asdict(_options(section))}
