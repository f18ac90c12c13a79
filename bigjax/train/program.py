"""What a run compiles: its state's shapes and layout, and its step."""

from collections.abc import Callable
import dataclasses
import fnmatch
import functools
import os
from typing import NamedTuple

from etils import epath
import jax

from bigjax import config as config_lib
from bigjax import modules, optim, paths
from bigjax.errors import UserError
from bigjax.parallel import sharding
from bigjax.parallel.mesh import BATCH_AXES
from bigjax.tasks import Task, check_variables
from bigjax.train import frozen, needed
from bigjax.train import state as state_lib
from bigjax.train.ahead import Ahead
from bigjax.train.state import State
from bigjax.train.step import make_step, mean_gradients, packed

# Options of the compiler by kind of device: v5e, v5p, v6e, and a core of tpu7x. The KiB of memory
# on the chip that one operation may use; by default 16 MiB on v5e and v5p, 32 MiB on the others.
# With less the tiles of matrix products are smaller, and their sums written more often
# (docs/benchmarks.md).
SCOPED_VMEM = "xla_tpu_scoped_vmem_limit_kib"
OPTIONS = {
    "TPU v5 lite": {SCOPED_VMEM: "32768"},
    "TPU v5": {SCOPED_VMEM: "32768"},
    "TPU v6 lite": {SCOPED_VMEM: "98304"},
    "TPU7x": {SCOPED_VMEM: "61440"},
}
OFFLOAD = "optim.offload"  # a task's own step does not move its state between memories


class Program(NamedTuple):
    """A task on a mesh; its flops_per_example are without those that optim.freeze or peft saves.

    init() -> State at step 0. step(state, frozen, batch) -> (state, metrics), compiled by
    `compile_ahead` or by the first call; it donates the memory of its state; metrics are packed by
    `step.packed`.
    abstract, shardings: the State as ShapeDtypeStructs, and its shardings.
    schedule(step) -> the learning rate, and gradients as of `step.mean_gradients`; both are None
    for a task with its own step, which may have several of each.
    """

    task: Task
    mesh: jax.sharding.Mesh
    init: Callable
    step: Ahead
    abstract: State
    shardings: State
    schedule: Callable | None
    gradients: Callable | None


def use_compilation_cache(folder: str, mesh) -> None:
    """Caches compiled programs in a folder, local or gs://, for the next start; '' does nothing.

    Raises UserError for several devices of a CPU: collectives of a cached program can deadlock.
    """
    if not folder:
        return
    if mesh.size > 1 and mesh.devices.flat[0].platform == "cpu":
        raise UserError(
            f"train.compilation_cache={folder!r}: a program compiled for {mesh.size} devices of a "
            "CPU cannot be loaded safely from a cache. Set it to '', or use one device "
            "(--config.mesh.data=1)."
        )
    folder = paths.expand(folder, "train.compilation_cache")
    if "://" not in folder:
        folder = str(epath.Path(folder).resolve())
    paths.read_any_folder()
    jax.config.update("jax_compilation_cache_dir", folder)


def make(config, task, mesh) -> Program:
    """The program of a config on a mesh.

    Raises UserError for sizes that do not divide over the mesh, for Task.axes with another tree
    than Task.init, and for keys that the task's own step does not use; RunError for a step that
    changes the shape or type of its state.
    """
    _check_mesh(config, task, mesh)
    _check_updates(config, task, mesh)
    variables = jax.eval_shape(task.init, jax.random.key(0))
    check_variables(task, variables)
    params = variables["params"]
    if task.make_step:
        _check_step_keys(config, task)
        init_optimizer, own_step = task.make_step(config, params)
        build_step, schedule, gradients = lambda offload: own_step, None, None
    else:
        n_updates = config.train.steps * task.updates * task.epochs
        tx = optim.make(config.optim, n_updates, params)
        schedule = optim.make_schedule(config.optim, n_updates)
        init_optimizer, gradients = tx.init, mean_gradients(task)
        trained = optim.trained(config.optim, params)
        if (config.optim.freeze or config.peft.name) and task.flops_per_example:
            share = needed.share(config, mesh, params, trained)
            task = dataclasses.replace(task, flops_per_example=share * task.flops_per_example)
        build_step = functools.partial(
            *(make_step, task, tx, schedule),
            seed=config.seed,
            accumulate=config.train.accumulate,
            ema=config.train.ema,
            trained=trained,
            updates=task.updates,
            epochs=task.epochs,
        )
    init = state_lib.make_init(task, init_optimizer, config.seed, config.train.ema > 0)
    shapes = jax.eval_shape(init)
    shardings, offload = state_lib.shardings(mesh, task, shapes), None
    if config.optim.offload:
        on_host = sharding.on_host(shapes.opt_state, shardings.opt_state)
        offload = shardings.opt_state, on_host
        shardings = shardings._replace(opt_state=on_host)
    step = jax.jit(
        packed(build_step(offload=offload)),
        donate_argnums=0,
        out_shardings=(shardings, None),
        compiler_options=compiler_options(config.train.compiler_options, mesh),
    )
    abstract = state_lib.abstract(shapes, shardings)
    init = jax.jit(init, out_shardings=shardings)
    program = Program(task, mesh, init, Ahead(step), abstract, shardings, schedule, gradients)
    for _, number in task.phases(config.train.steps):
        trace(program, config.train.batch_size, number)
    return program


def trace(program: Program, batch_size: int, step: int) -> jax.stages.Traced:
    """A step traced for its mesh; jax reuses the trace in the run. `step` decides the phase.

    Raises RunError if the step would change the shape or type of its state.
    """
    task, mesh = program.task, program.mesh
    batch_sharding = sharding.of_batch(mesh)
    batch = jax.tree_util.tree_map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=batch_sharding),
        task.batch_shapes(batch_size, step),
    )
    with jax.set_mesh(mesh):
        return program.step.trace(program.abstract, frozen.shapes(task, mesh), batch)


def compile_ahead(program: Program, batch_size: int, step: int) -> None:
    """Starts to compile a step in a thread. `step` decides the phase."""
    program.step.start(trace(program, batch_size, step), program.mesh)


def _check_mesh(config, task, mesh) -> None:
    sequence = mesh.shape["sequence"]
    for key, length in task.attention_lengths.items():
        if length % sequence:
            raise UserError(
                f"{key}={length} does not divide over mesh.sequence={sequence}: "
                f"{length} = {length // sequence} x {sequence} + {length % sequence}."
            )
    family = modules.of(config, "model")
    if hasattr(family, "check_mesh"):
        family.check_mesh(modules.options(config, "model"), task.attention_lengths, mesh)


def _check_updates(config, task, mesh) -> None:
    """Raises UserError if the batch does not divide into updates, micro-batches and devices."""
    size, accumulate = config.train.batch_size, config.train.accumulate
    shards = sharding.size_of(mesh, BATCH_AXES)
    parts = task.updates * accumulate * shards
    if task.updates > 1 and size % parts:
        raise UserError(
            f"train.batch_size={size} is not divisible by task.updates={task.updates} x "
            f"train.accumulate={accumulate} x {shards} device(s) = {parts}: {size} = "
            f"{size // parts} x {parts} + {size % parts}. Set it to a multiple of {parts}, or "
            "lower task.updates."
        )


def _check_step_keys(config, task) -> None:
    """Raises UserError for a key that the task's own step does not use."""
    default, uses = config_lib.new_config(), task.step_keys
    matches = lambda key, patterns: any(fnmatch.fnmatchcase(key, p) for p in patterns)
    for key, value in config_lib.sorted_leaves(config):
        if not matches(key, config_lib.STEP_KEYS) or matches(key, uses) and key != OFFLOAD:
            continue
        if value != (required := config_lib.get(default, key)):
            raise UserError(
                f"config.{key}={value!r}: the training step of task.name={config.task.name!r} does "
                f"not use this key, so it must be {required!r}, its default. It uses "
                f"{', '.join(uses) or 'none of ' + ', '.join(config_lib.STEP_KEYS)}: the task's "
                "`step_keys`."
            )


def compiler_options(section, mesh) -> dict[str, str]:
    """Options of the compiler for a step: those of the config, before OPTIONS and the environment.

    section: config.train.compiler_options. Raises UserError for an option that the compiler of the
    mesh's devices rejects.
    """
    own = {name: str(value) for name, value in section.items()}
    flags = " ".join(os.environ.get(name, "") for name in ("XLA_FLAGS", "LIBTPU_INIT_ARGS"))
    usual = OPTIONS.get(mesh.devices.flat[0].device_kind, {})
    options = {**{k: v for k, v in usual.items() if k not in flags}, **own}
    try:
        if own:
            jax.jit(
                lambda: jax.numpy.zeros(()),
                out_shardings=sharding.replicated(mesh),
                compiler_options=options,
            ).lower().compile()
    except Exception as e:  # jaxlib's errors have no common base class
        raise UserError(f"train.compiler_options={own}: {str(e).splitlines()[0]}") from e
    return options
