"""A task whose model is frozen, but for the parameters of a method of bigjax.peft."""

from collections.abc import Callable
import dataclasses
import functools
import re
from typing import Any

import jax

from bigjax import modules, peft
from bigjax.errors import UserError
from bigjax.layers import quantised
from bigjax.layers.quantised import Quantised
from bigjax.layers.vision import fixed_statistics
from bigjax.models import Decoder
from bigjax.trees import named_leaves

BASE = "base"  # the name of the frozen part
REFERENCE = "reference"  # of a task that compares with the model before its training


def wrapped(task: Any, config, frozen: Callable) -> Any:
    """The Task with the parameters of config.peft, and the others as the frozen part 'base'.

    frozen: tasks.Frozen. Raises UserError for options that do not suit the task or its model.
    """
    name = config.peft.name
    options = modules.options(config, "peft")
    method = _method(modules.of(config, "peft"), options, name)
    if not options.base:
        raise UserError(
            "config.peft.base is empty: set it to the model that is tuned, a run's work folder or "
            f"a Hugging Face folder, or to {peft.RANDOM!r} to try an untrained one."
        )
    if task.make_step or task.extras_of or BASE in task.frozen:
        raise UserError(
            f"config.peft.name={name!r} does not support task.name={config.task.name!r}, which "
            "has its own training step or frozen base. Set peft.name to ''."
        )

    if not method.packs and config.data.get("packing"):
        raise UserError(
            f"config.peft.name={name!r} needs rows of one example: its vectors would carry one "
            "example of a row into the others. Set data.packing=False."
        )

    def all_variables(rng):
        with peft.intercepted(method):
            return task.init(rng)

    # Functions of their own: jax would keep the trace of task.init, whatever intercepts it.
    seen, key = peft.Seen(), jax.eval_shape(jax.random.key, 0)
    with peft.intercepted(method, seen=seen):
        shapes = jax.eval_shape(lambda rng: task.init(rng)["params"], key)
    method.check(seen)
    plain = jax.eval_shape(lambda rng: task.init(rng)["params"], key)
    own = _own(method, options, name, task, shapes, plain)
    is_own, is_base = own.__contains__, lambda name: name not in own
    shares = REFERENCE in task.frozen and not task.frozen[REFERENCE].source
    compared = jax.eval_shape(task.frozen[REFERENCE].init, key)["params"] if shares else {}
    if changed := sorted(own & {*named_leaves(compared)}):
        raise UserError(
            f"config.peft.name={name!r} trains {changed[0]!r} of the model itself, so the base is "
            f"not the reference of task.name={config.task.name!r}. Set task.reference to a run, "
            "or choose a method that only adds parameters, such as peft.name='lora' with "
            "peft.also=''."
        )

    def init(rng):
        variables = all_variables(rng)
        return {**variables, "params": peft.parts(variables["params"], is_own)}

    axes = peft.joined(peft.axes_of(shapes, seen), task.axes["params"])
    base = frozen(
        lambda rng: {"params": peft.parts(task.init(rng)["params"], is_base)},
        {"params": peft.parts(axes, is_base)},
        options.base if options.base != peft.RANDOM else "",
        config.model.name if "." in config.model.name else "",
    )
    if options.base_dtype != "float32":
        base = _stored(base, options.base_dtype, seen)
    trained = {n: n in own for n in named_leaves(shapes)}

    def complete(params, frozen):
        """(parameters of the model and the method, the task's own frozen parts)."""
        rest = {name: part for name, part in frozen.items() if name != BASE}
        base = frozen[BASE]["params"]
        if shares:
            rest[REFERENCE] = {"params": base}
        return peft.joined(base, params), rest

    def tuned(function):
        """A function of a Task with parameters, extras and frozen parts, on the tuned model."""
        if function is None:
            return None

        @functools.wraps(function)
        def call(params, extras, frozen, batch):
            params, rest = complete(params, frozen)
            with peft.intercepted(method):
                return function(params, extras, rest, batch)

        return call

    def loss(params, extras, frozen, batch, rng, train):
        params, rest = complete(params, frozen)
        # A policy is compared with the one that sampled, which has no dropout.
        drops = train and not task.rollouts
        with fixed_statistics(peft.nested(trained)):
            with peft.intercepted(method, rng if drops else None):
                return task.loss(params, extras, rest, batch, rng, train)

    def variables(params, extras, frozen):
        params, _ = complete(params, frozen)
        params = peft.plain_base(params)
        return {"params": method.merge(params) if method.merge else params, **extras}

    def first(params, frozen):
        """The initial parameters, with those that follow from the base."""
        assert method.first
        all_params = peft.plain_base(complete(params, frozen)[0])
        return peft.joined(params, peft.nested(method.first(all_params)))

    return dataclasses.replace(
        task,
        init=init,
        axes={**task.axes, "params": peft.parts(axes, is_own)},
        frozen={k: x for k, x in task.frozen.items() if not (shares and k == REFERENCE)}
        | {BASE: base},
        loss=loss,
        outputs=tuned(task.outputs),
        pictures=tuned(task.pictures),
        features=tuned(task.features),
        whole_batch=tuned(task.whole_batch),
        variables=variables,
        decoder=(lambda plain: plain) if method.merge else _decoders(method),
        starts_from=BASE,
        first=first if method.first else None,
        prepare=lambda: lambda params, corpus: params,
    )


def _stored(base: Any, dtype: str, seen: peft.Seen) -> Any:
    """The frozen part in 16, 8 or 4 bits."""
    init = base.init
    convert = lambda tree: {"params": peft.stored_base(tree["params"], dtype, seen)}
    shapes = jax.eval_shape(lambda rng: convert(init(rng)), jax.eval_shape(jax.random.key, 0))
    is_leaf = lambda x: isinstance(x, Quantised)
    axes = jax.tree_util.tree_map(
        lambda x, names: quantised.axes(names, x) if is_leaf(x) else names,
        shapes,
        base.axes,
        is_leaf=is_leaf,
    )
    return base._replace(
        init=lambda rng: convert(init(rng)), axes=axes, as_read=(init, base.axes, convert)
    )


def _method(module: Any, options: Any, name: str) -> peft.Method:
    method = module.build(options)
    if not isinstance(method, peft.Method) or not isinstance(options, peft.Options):
        raise UserError(
            f"config.peft.name={name!r}: its Config must be a subclass of peft.Options, and its "
            f"build must return a peft.Method; they are {type(options).__name__} and "
            f"{type(method).__name__}."
        )
    return method


def _own(method: peft.Method, options: Any, name: str, task: Any, shapes, of_base) -> set[str]:
    """The paths of the parameters that are trained. Raises UserError for a regex without any."""
    names, base = named_leaves(shapes), named_leaves(of_base)
    path = {n: peft.normal_path(n) for n in names}  # what a regex sees
    own = {n for n in names if n not in base or method.trains(path[n])}
    has = f"The parameters are: {peft.some({path[n] for n in base})}"
    if not own:
        raise UserError(
            f"config.peft.name={name!r} would train no parameter of this model, with its options. "
            f"{has}."
        )
    if options.also == "head":
        heads = (f"{task.label_head}/",) if task.label_head else ()
        return own | {n for n in base if n.startswith(heads)}
    peft.check_regex(options.also, "peft.also")
    also = {n for n in base if options.also and re.search(options.also, path[n])}
    if options.also and not also:
        raise UserError(
            f"peft.also={options.also!r} matches no parameter. {has}. Set it to '' to train "
            "none of them."
        )
    return own | also


def _decoders(method: peft.Method) -> Callable[[Decoder], Decoder]:
    @functools.cache  # equal for equal arguments, as a static argument of compiled functions
    def tuned(plain: Decoder) -> Decoder:
        def under(function):
            if function is None:
                return None

            def call(*arguments):
                with peft.intercepted(method):
                    return function(*arguments)

            return call

        names = ("begin", "step", "attention", "score")
        return plain._replace(**{name: under(getattr(plain, name)) for name in names})

    return tuned
