"""Tasks: from a batch to a loss. A config names the module; `build` makes the three functions."""

from collections.abc import Callable
import dataclasses
import importlib
import pathlib
import typing
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bigjax import config as config_lib
from bigjax import models
from bigjax.data.batches import Data
from bigjax.errors import UserError
from bigjax.layers import params as params_lib


class Task(NamedTuple):
    """What the trainer needs to know about a model and its objective.

    init(rng) -> variables: {'params': ..., 'extras': ...} of plain arrays.
    loss(params, extras, frozen, batch, rng, train) ->
        ((loss_sum, weight_sum), (metrics, extras)); metrics: {name: (sum, weight)}.
    frozen() -> pytree or None: what is used but not trained (a teacher).
    axes: tree of logical axis names, as params.
    model, model_config: the Flax module and its Config, for generation.
    flops_per_example: of a training step, for utilisation.
    load_data(log, tokenizer=None, splits=...) -> what the task reads, of those splits at least (all
        by default); a batch of it is one of `loss`. Raises UserError if the model has no room for
        the vocabulary.
    batch_shapes(batch_size, step) -> the batch of that step as ShapeDtypeStructs, without reading
        data.
    whole_batch(batch) -> batch: adds what a micro-batch must know of all of them.
    outputs(params, extras, batch) -> what a labelled task predicts from, see infer.predict.
    players: of adversarial training (train/adversarial.py), see tasks/_adversarial.py.
    prepare() -> (params, corpus) -> params: what a run from scratch begins with. Called before the
        data are read, so that it can refuse what it needs.
    """

    init: Callable[..., Any]
    loss: Callable[..., Any]
    frozen: Callable[[], Any]
    axes: Any
    model: Any
    model_config: Any
    flops_per_example: float
    load_data: Callable[..., Data]
    batch_shapes: Callable[[int, int], dict]
    whole_batch: Callable[[dict], dict] = lambda batch: batch
    outputs: Callable[..., Any] | None = None
    players: Any = None
    prepare: Callable[[], Callable[[Any, Any], Any]] = lambda: lambda params, corpus: params


def module(name: str):
    """bigjax.tasks.NAME, or a UserError that names what there is."""
    have = sorted(p.stem for p in pathlib.Path(__file__).parent.glob("*.py") if p.stem[0] != "_")
    if name not in have:
        raise UserError(f"There is no task {name!r}. {config_lib.nearest(name, have)}")
    return importlib.import_module(f"bigjax.tasks.{name}")


def build(config) -> Task:
    """The task of a config."""
    return module(config.task.name).build(config, _options(config.task))


def resolve(config) -> None:
    """Writes into config.task what the data decide, such as the labels there are."""
    of_task = module(config.task.name)
    if hasattr(of_task, "resolve"):
        with config.unlocked():
            config.task.update(of_task.resolve(config, _options(config.task)))


def _options(section):
    return config_lib.build(module(section.name).Config, section, "task")


def all_fields(section) -> dict:
    """Every key of config.task with its value."""
    return {"name": section.name, **dataclasses.asdict(_options(section))}


def field_types(section) -> dict:
    """{key: type} of the fields of the task's Config."""
    return typing.get_type_hints(module(section.name).Config)


def family_for(config, what: str, suits: Callable[[Any], bool]) -> tuple[Any, Any]:
    """The module of config.model and its Config, for a task that needs `what`.

    Raises UserError if the module does not suit, or data.seq_len exceeds the model's positions.
    """
    family = models.module(config.model.name)
    if not suits(family):
        raise UserError(
            f"config.task.name={config.task.name!r} needs {what}; model.name is "
            f"{config.model.name!r}."
        )
    c = models.build_config(config.model)
    if config.data.seq_len > c.max_len:
        raise UserError(
            f"data.seq_len={config.data.seq_len} is longer than model.max_len={c.max_len}."
        )
    return family, c


def init_and_axes(make: Callable[[Any], Any], c) -> tuple[Callable, Any]:
    """Task.init and Task.axes of the Flax module make(c), c a model's Config with `scan`.

    Parameters are drawn in the scanned form, so that `scan` does not change them.
    """
    scanned, example = make(dataclasses.replace(c, scan=True)), jnp.zeros((1, 1), jnp.int32)

    def init(rng):
        params = params_lib.unbox(scanned.init(rng, example)["params"])
        if not c.scan:
            params = {**params, "stack": params_lib.unstack_layers(params["stack"])}
        return {"params": params, "extras": {}}

    abstract = jax.eval_shape(make(c).init, jax.random.key(0), example)["params"]
    return init, params_lib.logical_axes(abstract)


def array_shapes(integers: dict[str, tuple[int, ...]], floats: dict[str, tuple[int, ...]]) -> dict:
    """ShapeDtypeStructs by name, int32 and float32: for Task.batch_shapes."""
    return {
        name: jax.ShapeDtypeStruct(shape, dtype)
        for part, dtype in ((integers, jnp.int32), (floats, jnp.float32))
        for name, shape in part.items()
    }


def check_vocabulary(n: int, vocab_size: int) -> None:
    """Refuses a tokenizer of n tokens that the model has no room for."""
    if n > vocab_size:
        raise UserError(
            f"The tokenizer has {n} tokens, the model only model.vocab_size="
            f"{vocab_size}: set that to {n} or more."
        )
