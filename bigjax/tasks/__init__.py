"""Tasks: from a batch to a loss. config.task names a module, whose `build` makes a Task."""

from collections.abc import Callable, Mapping
import dataclasses
import numbers
from typing import Any, NamedTuple

from etils import epath
import jax
import jax.numpy as jnp

from bigjax import config as config_lib
from bigjax import modules, paths
from bigjax.data.batches import Data
from bigjax.data.kinds import Input, Kind
from bigjax.errors import UserError
from bigjax.layers import params as params_lib
from bigjax.linear import Linear
from bigjax.plural import plural
from bigjax.tasks import _checks, _peft
from bigjax.tasks._checks import STEP_METRICS as STEP_METRICS
from bigjax.tasks._checks import check_call as check_call
from bigjax.tasks._checks import check_data as check_data
from bigjax.tasks._checks import check_variables as check_variables
from bigjax.tasks._checks import described as described
from bigjax.tasks._rollouts import Reward as Reward
from bigjax.tasks._rollouts import Rollouts as Rollouts


class Frozen(NamedTuple):
    """Parameters that a task uses and does not train, such as a teacher's.

    The trainer loads them once, shards them over the mesh and passes them to compiled functions.

    A part 'reference' without a source is the base of config.peft, if that is set, without a copy.

    init(rng) -> a tree of arrays: their shapes, and their values if source is ''. Either
        parameters, or variables as of Task.init: {'params': ..., and other collections}.
    axes: tree of logical axis names, as init's.
    source: a run's work folder or a Hugging Face folder, as config.init_from.
    model: for a Hugging Face folder of a family of your own, its module, as config.model.name.
    as_read: (init, axes, convert) if the source holds the arrays in another form: those of its
        form, and convert(arrays as read) -> arrays as of `init`.
    """

    init: Callable[[jax.Array], Any]
    axes: Any
    source: str = ""
    model: str = ""
    as_read: tuple[Callable[[jax.Array], Any], Any, Callable[[Any], Any]] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """A model and its objective, as pure functions of trees of arrays.

    init(rng) -> variables: {'params': ...} and the model's other collections, such as
        {'batch_stats': ...}. Those are the `extras` below, {} for most models.
    axes: the same collections with logical axis names in place of arrays.
    loss(params, extras, frozen, batch, rng, train) ->
        ((loss_sum, weight_sum), (metrics, extras)); metrics: {name: (sum, weight)}.
    load_data(log, tokenizer=None, splits=...) -> the task's data, with at least these splits (all
        by default), whose batches `loss` accepts. Raises UserError if the tokenizer has more tokens
        than the model.
    batch_shapes(batch_size, step) -> the batch of that step as ShapeDtypeStructs, without reading
        data.
    model, model_config: the Flax module and its Config, for generation.

    The other fields have defaults:
    frozen: {name: Frozen}; `loss` and `outputs` get {name: arrays}.
    unit, units_per_example: what throughput is reported in, as UNIT_per_sec: 'tokens', 'images',
        'audio_seconds'; and how many an example has.
    attention_lengths: {config key that sets it: length} of each sequence that the model's attention
        runs over; each has to divide over mesh.sequence.
    flops_per_example: of a training step, for utilisation; 0 = unknown.
    whole_batch(params, extras, frozen, batch) -> batch, with what a micro-batch must know about the
        complete batch, as arrays of a value for each example; a complete one is returned as it is.
        `loss` calls it for a batch that is not complete. No gradient passes through it.
    label_head: the module of parameters, by its path, whose outputs stand for config.task.labels:
        parameters of a source with other labels are refused.
    pictures(params, extras, frozen, batch) -> a NamedTuple of uint8 [B, H, W, channels], what a
        model makes of each image, in an order to compare them, for the evaluator `pictures`.
    augment(batch, rng) -> batch, in which the loss of training has changed `image`, and `target`
        float32 [B, labels] has the share of each label; for `bigjax look`. rng: of the loss.
    features(params, extras, frozen, batch) -> float32 [B, D] of each image, for `fewshot`.
    A labelled task defines these three, for evaluation by `metrics` and for `bigjax predict`:
    kind: its predictions and measures, see data.kinds.
    outputs(params, extras, frozen, batch) -> what it predicts from, see infer.predict.
    load_input(spec, log, tokenizer) -> data.Input, rows without labels to predict for. Raises
        UserError. spec: names them, such as a file.

    prepare() -> (params, corpus) -> params of a run from scratch. prepare() is called before the
        data are read, so that it can refuse bad input early.
    extras_of(params, extras) -> extras, if they follow from the parameters: called after parameters
        were loaded from another run, or prepared. None: extras are loaded as parameters are.
    variables(params, extras, frozen) -> the variables of `model` and its decoder, as a tuned model
        needs them: by default {'params': params, **extras}.
    decoder(plain) -> the models.Decoder for `variables`, from that of the family; equal for equal
        arguments.
    starts_from: the name of a frozen part whose source also holds the first values of parameters
        that are trained; '' = none.
    first(params, frozen) -> params of a run from scratch, where some follow from the frozen parts.
    value_and_grad(loss, params, extras, frozen, batch, rng) -> ((loss_sum, aux), gradients), as
        jax.value_and_grad(loss, has_aux=True), the default. loss(params, extras, frozen, batch,
        rng) -> (loss_sum, aux); params: those that are trained.

    rollouts: Rollouts, if the model writes completions in training; they complete the batches.
    updates, epochs: optimizer updates of a step, each on another part of its batch, and how often
        all of them are repeated. The schedule and random keys count updates; steps count batches.

    A task whose step is not one update of all parameters by one gradient defines:
    make_step(config, params) -> (init, step), instead of optim.make and train.step.make_step.
        params: ShapeDtypeStructs. init(params) -> the optimizer's state. step(state, frozen, batch)
        -> (state, metrics), a train.state.State and float32 scalars.
    phases(steps) -> [(name, first step)]: kinds of steps, whose batches have different shapes.
    describe(steps, start) -> text about the steps after `start` of a run of `steps`, for people.
    step_keys: patterns of the keys among config.STEP_KEYS that make_step uses, such as 'optim.*';
        the others must have their defaults. Never optim.offload.
    rate_key(metric, step) -> the config key of the learning rate that affects a metric of a step.
    """

    init: Callable[..., Any]
    axes: dict[str, Any]
    loss: Callable[..., Any]
    load_data: Callable[..., Data]
    batch_shapes: Callable[[int, int], dict]
    model: Any = None
    model_config: Any = None
    frozen: Mapping[str, Frozen] = dataclasses.field(default_factory=dict)
    unit: str = "examples"
    units_per_example: float = 1.0
    attention_lengths: Mapping[str, int] = dataclasses.field(default_factory=dict)
    flops_per_example: float = 0.0
    whole_batch: Callable[[Any, Any, Any, dict], dict] = lambda p, extras, frozen, batch: batch
    label_head: str = ""
    kind: Kind | None = None
    outputs: Callable[..., Any] | None = None
    load_input: Callable[..., Input] | None = None
    pictures: Callable[..., Any] | None = None
    augment: Callable[[dict, Any], dict] | None = None
    features: Callable[..., Any] | None = None
    prepare: Callable[[], Callable[[Any, Any], Any]] = lambda: lambda params, corpus: params
    extras_of: Callable[[Any, Any], Any] | None = None
    variables: Callable[[Any, Any, Any], Any] = lambda params, extras, frozen: {
        "params": params,
        **extras,
    }
    decoder: Callable[[Any], Any] = lambda plain: plain
    starts_from: str = ""
    first: Callable[[Any, Any], Any] | None = None
    value_and_grad: Callable[..., Any] | None = None
    rollouts: Rollouts | None = None
    updates: int = 1
    epochs: int = 1
    make_step: Callable[[Any, Any], tuple[Callable, Callable]] | None = None
    phases: Callable[[int], list[tuple[str, int]]] = lambda steps: [("", 0)]
    step_keys: tuple[str, ...] = ()
    describe: Callable[[int, int], str] = lambda steps, start: (
        f"{steps - start} {plural(steps - start, 'step')}"
    )
    rate_key: Callable[[str, int], str] = lambda metric, step: "optim.learning_rate"


def amount(task: Task, n_examples: int) -> str:
    """n examples in the task's unit, for people: '32 x 128 tokens', '32 images', '1 image'."""
    unit = task.unit.replace("_", " ")
    if task.units_per_example == 1:
        return f"{n_examples} {plural(n_examples, unit.removesuffix('s'))}"
    return f"{n_examples} x {task.units_per_example:g} {unit}"


def in_tokens(seq_len: int) -> dict[str, Any]:
    """Fields of a Task whose examples are rows of data.seq_len tokens."""
    lengths = {"data.seq_len": seq_len}
    return dict(unit="tokens", units_per_example=seq_len, attention_lengths=lengths)


def build(config) -> Task:
    """The task of a config. Raises UserError, also when its loss is traced, for a module that does
    not do what a Task requires."""
    return _built(modules.of(config, "task"), config, modules.options(config, "task"))


def _built(module: Any, config, options: Any) -> Task:
    what = f"config.task.name={config.task.name!r}: "
    check_call(module.build, "config, options", f"{what}build")
    task = module.build(config, options)
    if not isinstance(task, Task):
        raise UserError(f"{what}build returned {described(task)}; it must return a tasks.Task.")
    _checks.check_calls(task, what)
    if config.peft.name:
        task = _peft.wrapped(task, config, Frozen)
    return dataclasses.replace(task, loss=_checks.checked_loss(task.loss, f"{what}loss"))


def frozen_run(folder: str) -> tuple[Task, Frozen]:
    """The task of another run, such as a teacher, and all its variables as a frozen part.

    Raises UserError if folder is not a run's work folder.
    """
    path = epath.Path(folder) / "config.json"
    if not folder or not paths.exists(path):
        raise UserError(
            f"The frozen part's source {folder!r} is not the work folder of a run: it has no "
            "config.json. Train that run first, or name another folder."
        )
    task = build(config_lib.from_json(path.read_bytes(), str(path)))
    return task, Frozen(task.init, task.axes, folder)


def resolve(config) -> None:
    """Writes into config.task what the data decide, such as the labels."""
    module = modules.of(config, "task")
    if hasattr(module, "resolve"):
        with config.unlocked():
            config.task.update(module.resolve(config, modules.options(config, "task")))


def assume(config, log: Callable[[str], None] = print) -> None:
    """As `resolve`, for a plan: instead of reading data it uses the assumptions of the task's
    module, and logs them. They only change sizes, such as the number of outputs."""
    module = modules.of(config, "task")
    if hasattr(module, "assume"):
        values = module.assume(config, modules.options(config, "task"))
        with config.unlocked():
            config.task.update(values)
        for key, value in values.items():
            log(
                f"plan: task.{key} is not set, and the data are not read: assuming "
                f"{len(value)}. Set task.{key} for the exact number."
            )


def data_module(config, function: str, such_as: str) -> Any:
    """The module of config.data, for a task that calls this function of it.

    Raises UserError if it lacks the function; such_as: a module that has it.
    """
    module = modules.of(config, "data")
    if not hasattr(module, function):
        raise UserError(
            f"config.task.name={config.task.name!r} needs data with {function}, such as "
            f"data.name={such_as!r}; data.name is {config.data.name!r}."
        )
    return module


def family_for(
    config,
    what: str,
    supports: Callable[[Any], bool] = lambda family: True,
    needs: tuple[str, ...] = (),
) -> tuple[Any, Any]:
    """The module of config.model and its Config, for a task that needs `what`.

    supports(module) -> whether it can do this task. needs: names that the module must define.
    Raises UserError if it cannot, with all that is missing, vocab_size of its Config included, and
    if data.seq_len exceeds the model's positions.
    """
    family, c = modules.of(config, "model"), modules.options(config, "model")
    missing = [name for name in needs if not hasattr(family, name)]
    missing += [] if hasattr(c, "vocab_size") else ["Config.vocab_size"]
    lacks = f", which does not define {', '.join(missing)}" if missing else ""
    if missing or not supports(family):
        raise UserError(
            f"config.task.name={config.task.name!r} needs {what}; model.name is "
            f"{config.model.name!r}{lacks}."
        )
    max_len = getattr(c, "max_len", None)  # a model of your own may have no limit
    if max_len is not None and config.data.seq_len > max_len:
        raise UserError(
            f"data.seq_len={config.data.seq_len} is longer than model.max_len={max_len}."
        )
    return family, c


def init_and_axes(make: Callable[[Any], Any], c, *examples) -> tuple[Callable, Any]:
    """(Task.init, Task.axes) of the Flax module make(c); c: a model's Config.

    examples: the module's arguments, by default one token. If c has a field `scan`, parameters are
    initialised in the scanned form, so that their values do not depend on it.
    """
    has_scan = hasattr(c, "scan")
    scanned = make(dataclasses.replace(c, scan=True)) if has_scan else make(c)
    examples = examples or (jnp.zeros((1, 1), jnp.int32),)

    def init(rng):
        variables = params_lib.unbox(scanned.init(rng, *examples))
        return params_lib.unrolled(variables) if has_scan and not c.scan else variables

    return init, params_lib.logical_axes(jax.eval_shape(make(c).init, jax.random.key(0), *examples))


def apply(model, params, extras, train: bool, *inputs, **options) -> tuple[Any, Any]:
    """(outputs of the Flax module, extras): training updates the extras if the model has any."""
    variables = {"params": params, **extras}
    if not (train and extras):
        return model.apply(variables, *inputs, **options), extras
    outputs, new = model.apply(variables, *inputs, **options, mutable=[*extras])
    return outputs, {**extras, **new}


def flops_per_token(family, c, seq_len: int) -> float:
    """Of training on one token; 0 = unknown, if the family does not define flops_per_token.

    Raises UserError if that returns anything but a number.
    """
    if not hasattr(family, "flops_per_token"):
        return 0.0
    flops = family.flops_per_token(c, seq_len)
    if not isinstance(flops, numbers.Real):
        raise UserError(
            f"{family.__name__}.flops_per_token returned {described(flops)}; it must return a "
            "number, the FLOPs of training on one token."
        )
    return float(flops)


def output_layer(outputs: Any, config) -> Linear:
    """ModelOutput.linear. Raises UserError if a model does not return it."""
    linear = getattr(outputs, "linear", None)
    if not isinstance(linear, tuple):
        returned = f"{type(outputs).__name__} without `linear`"
        if not hasattr(outputs, "linear"):
            returned = described(outputs)
        raise UserError(
            f"The Model of config.model.name={config.model.name!r} returned {returned}. "
            f"config.task.name={config.task.name!r} needs a bigjax.models.ModelOutput with its "
            "output layer, such as ModelOutput(embed.output(x)) with the layer Embed."
        )
    return Linear(*linear)


def check_sums(
    config,
    weights: Mapping[str, float],
    model,
    init,
    metrics: tuple[str, ...] = (),
    examples: tuple[Any, ...] | None = None,
) -> None:
    """Raises UserError if task.sum_weights names a sum that the model of tokens does not return,
    or one of the metrics of the task or of the training step. examples: the model's arguments, by
    default one token."""
    if not weights:
        return
    for name in weights:
        if name in (*metrics, *STEP_METRICS):
            raise UserError(
                f"task.sum_weights.{name}: this is the name of a metric of training with "
                f"config.task.name={config.task.name!r}. Give the sum of the layers another name."
            )
    examples = examples or (jnp.zeros((1, 1), jnp.int32),)
    shapes = jax.eval_shape(lambda: model.apply(init(jax.random.key(0)), *examples))
    for name in weights:
        if name not in shapes.sums:
            raise UserError(
                f"task.sum_weights.{name} is set, but the layers of model.name="
                f"{config.model.name!r} return "
                + (
                    f"other sums. {config_lib.nearest(name, shapes.sums)}"
                    if shapes.sums
                    else "no sums: remove it."
                )
            )


def add_sums(
    loss: tuple[jax.Array, jax.Array],
    weights: Mapping[str, float],
    sums: Mapping[str, jax.Array],
    train: bool,
) -> tuple[tuple[jax.Array, jax.Array], dict[str, tuple[jax.Array, jax.Array]]]:
    """((loss_sum, weight_sum), metrics): the sums of layers that `weights` name are metrics, and in
    training the loss contains each of them times its weight."""
    total, weight = loss
    if train and weights:
        total = total + sum(w * sums[name] for name, w in weights.items()) * weight
    return (total, weight), {name: (sums[name], jnp.float32(1)) for name in weights}


def array_shapes(integers: dict[str, tuple[int, ...]], floats: dict[str, tuple[int, ...]]) -> dict:
    """ShapeDtypeStructs by name, int32 and float32: for Task.batch_shapes."""
    return {
        name: jax.ShapeDtypeStruct(shape, dtype)
        for part, dtype in ((integers, jnp.int32), (floats, jnp.float32))
        for name, shape in part.items()
    }


def check_vocabulary(n: int, vocab_size: int) -> None:
    """Raises UserError if a tokenizer of n tokens has more than the model's vocab_size."""
    if n > vocab_size:
        raise UserError(
            f"The tokenizer has {n} tokens, but model.vocab_size is only {vocab_size}: set it to "
            f"{n} or more."
        )
