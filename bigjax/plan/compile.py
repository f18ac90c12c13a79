"""Compiles a config's step for a pod that is not attached. Plans are cached."""

from collections.abc import Callable
import contextlib
import dataclasses
import functools
import hashlib
import json
import math
import os
import pathlib
import re
import time

import jax
import jaxlib
import numpy as np

import bigjax
from bigjax import config as config_lib
from bigjax import modules, private, tasks
from bigjax.data.files import cache_dir, cache_folder, write_cached
from bigjax.errors import RunError, UserError
from bigjax.extras import how_to_install
from bigjax.parallel import mesh as mesh_lib
from bigjax.plan import chips, compilers, predict
from bigjax.plan.schedule import Entry
from bigjax.train import frozen
from bigjax.train import program as program_lib
from bigjax.trees import named_leaves

SAMPLING = (
    "the completions that are sampled before a step: their time, and their memory, which holds the "
    "parameters without fsdp and the keys and values of all completions"
)
_JAX_SETTINGS = ("jax_default_matmul_precision", "jax_enable_x64", "jax_default_prng_impl")
_USED = re.compile(r"Used ([\d.]+)([KMG]) of [\d.]+[KMG] hbm")
_TEMPORARIES = re.compile(r"HLO temporaries \(([\d.]+)([KMG])\) exceeds available HBM")


@dataclasses.dataclass(frozen=True)
class Plan:
    """The plan of one kind of step, for a device of the pod; bytes and seconds.

    phase: of a task with several kinds of steps (Task.phases), otherwise ''. model_flops: FLOPs
    that the model needs, on all devices; 0 if its task does not declare them. frozen_bytes: of the
    task's frozen parts, which have no gradients and no optimizer state. units: tokens, images or
    whatever `unit` names, per step. peak_bytes: of HBM; if the step does not fit, what the compiler
    reports, or None. host_bytes: kept in host memory (optim.offload) and transferred twice per
    step; host_activation_bytes: there until the backward pass (model.remat).
    flops and the following are None or empty if it does not fit; seconds also for GPUs.
    kernel_seconds: the part of work_seconds in attention kernels. step_seconds: if communication
    overlaps with work completely, and if not at all. hbm_bytes: read and written, without kernels.
    schedule: where the seconds of work and communication go, the largest first. unknown_loops: run
    an unknown number of times, and count once in all figures. without: what no figure includes.
    """

    phase: str
    mesh: dict[str, int]
    model_flops: float
    limit_bytes: float
    parameter_bytes: float
    optimizer_bytes: float
    frozen_bytes: float
    unit: str
    units: float
    peak_bytes: float | None
    compile_seconds: float
    host_bytes: float = 0.0
    host_activation_bytes: float = 0.0
    flops: float | None = None
    kernel_flops: float | None = None
    work_seconds: float | None = None
    kernel_seconds: float | None = None
    collectives: tuple[predict.Collective, ...] = ()
    step_seconds: tuple[float, float] | None = None
    hbm_bytes: float | None = None
    schedule: tuple[Entry, ...] = ()
    unknown_loops: int = 0
    without: str = ""

    @property
    def devices(self) -> int:
        return math.prod(self.mesh.values())

    @property
    def state_bytes(self) -> float:
        """Of what the whole run holds in HBM: parameters, optimizer state and frozen parts."""
        return self.parameter_bytes + self.optimizer_bytes + self.frozen_bytes - self.host_bytes

    @property
    def fits(self) -> bool:
        return self.flops is not None

    @property
    def communication(self) -> float | None:
        """Seconds of all collectives, one after the other."""
        return None if self.step_seconds is None else sum(c.seconds for c in self.collectives)


def plans(
    config, topology: str, slices: int = 1, log: Callable[[str], None] = lambda text: None
) -> list[Plan]:
    """The plan of a config's step; one per phase for a task with several kinds of steps.

    log: gets a line before it compiles, which it does only once for equal plans.

    Raises UserError for an invalid topology or mesh, and if the compiler is missing; RunError if
    the compiler fails, or jax cannot read its result.
    """
    chip = chips.figures(topology)
    mesh_lib.check_settings()
    devices = chips.devices(topology, slices)
    mesh = mesh_lib.checked(config.mesh, config.train.batch_size, config.train.accumulate, devices)
    task = tasks.build(config)
    # Frozen parts have the shapes of another run's config, which may have changed since.
    parts = [
        (name, path, x.shape, str(x.dtype))
        for name, tree in frozen.shapes(task, mesh).items()
        for path, x in named_leaves(tree).items()
    ]
    path = cache_folder(cache_dir(config), "plans") / (
        _key(config, parts, dict(mesh.shape), topology, slices, chip) + ".json"
    )
    try:
        return [_from_json(plan) for plan in json.loads(path.read_text())]
    except (OSError, ValueError, TypeError, KeyError):  # absent or damaged: compile again
        pass
    log(f"Planning for {topology}. Compiling takes a minute or more.")
    program = program_lib.make(config, task, mesh)
    compiled = [
        _plan(program, config.train.batch_size, slices, chip, phase, step)
        for phase, step in task.phases(config.train.steps)
    ]
    with contextlib.suppress(UserError):  # another user's folder: it is compiled again next time
        write_cached(path, json.dumps([dataclasses.asdict(plan) for plan in compiled]).encode())
    return compiled


def _key(config, frozen_parts: list[tuple], mesh: dict[str, int], *pod) -> str:
    """A hash of everything that a plan depends on."""
    chip = pod[-1]
    leaves = [
        (key, value)
        for key, value in config_lib.sorted_leaves(config)
        if not key.startswith(config_lib.NOT_COMPILED)
    ]
    versions = [jax.__version__, jaxlib.__version__, compilers.version(_compiler(chip))]
    flags = [os.environ.get(name, "") for name in ("LIBTPU_INIT_ARGS", "XLA_FLAGS")]
    flags += [str(getattr(jax.config, name)) for name in _JAX_SETTINGS]
    text = repr((leaves, frozen_parts, mesh, pod, versions, flags)) + _sources()
    if config.python_path:
        text += modules.own_sources(config.python_path)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def _plan(program, batch_size, slices, chip, phase, step) -> Plan:
    task, mesh = program.task, program.mesh
    lowered = program_lib.trace(program, batch_size, step).lower()
    known = Plan(
        phase=phase,
        mesh=dict(mesh.shape),
        model_flops=task.flops_per_example * batch_size,
        limit_bytes=chip.limit * chips.GIB,
        parameter_bytes=device_bytes(program.abstract.params),
        optimizer_bytes=device_bytes(program.abstract.opt_state),
        frozen_bytes=device_bytes(frozen.shapes(task, mesh)),
        unit=task.unit,
        units=task.units_per_example * batch_size,
        peak_bytes=None,
        compile_seconds=0.0,
        host_bytes=device_bytes(_on_host(program.abstract.opt_state)),
        without=SAMPLING if task.rollouts else "",
    )
    start = time.perf_counter()
    try:
        compiled = lowered.compile()
    except Exception as e:  # jaxlib's errors have no common class
        if not compilers.is_out_of_memory(e):
            raise RunError(
                f"{compilers.version(_compiler(chip))} could not compile this step for "
                f"{known.devices} devices: {_brief(e)}. Try another --mesh, model.attention or "
                "model.remat."
            ) from e
        used, part = _USED.search(str(e)), _TEMPORARIES.search(str(e))
        peak = used and _size(*used.groups())
        if part:
            peak = _size(*part.groups()) + known.state_bytes
        plan = dataclasses.replace(
            known, peak_bytes=peak, compile_seconds=time.perf_counter() - start
        )
    else:
        memory = compiled.memory_analysis()
        on_host = memory.host_argument_size_in_bytes  # included in the compiler's peak
        plan = dataclasses.replace(
            known,
            peak_bytes=float(memory.peak_memory_in_bytes - on_host),
            host_bytes=float(on_host),
            host_activation_bytes=float(memory.host_temp_size_in_bytes),
            compile_seconds=time.perf_counter() - start,
        )
        # The TPU compiler refuses a step that does not fit; the GPU compiler has no limit.
        if chip.timed or plan.peak_bytes <= plan.limit_bytes:
            costs = _read(compiled, chip, plan, slices)
            plan = dataclasses.replace(
                plan,
                flops=costs.flops + costs.kernel_flops,
                kernel_flops=costs.kernel_flops,
                work_seconds=costs.work,
                kernel_seconds=costs.kernel_seconds,
                collectives=tuple(costs.collectives),
                step_seconds=costs.step,
                hbm_bytes=costs.hbm_bytes,
                schedule=costs.schedule,
                unknown_loops=costs.unknown_loops,
            )
    return plan


def _read(compiled, chip, plan: Plan, slices: int) -> predict.Costs:
    """The costs of a compiled step. Raises RunError if its text cannot be read."""
    try:
        costs = predict.costs(compiled.as_text(), chip, plan.mesh, slices)
        counted = plan.devices * (costs.flops + costs.kernel_flops)
        if not counted or counted < plan.model_flops / 4:
            raise ValueError(f"only {counted:.3g} of {plan.model_flops:.3g} FLOPs were counted")
        return costs
    except Exception as e:  # jaxlib's, or ours for an unknown form of text
        raise RunError(
            f"This step needs {plan.peak_bytes / chips.GIB:.2f} GiB of HBM per device, but nothing "
            f"else is known: the program that {compilers.version(_compiler(chip))} compiled cannot "
            f"be read by jaxlib {jaxlib.__version__} and bigjax ({_brief(e)}). Use a jax that "
            f"bigjax supports (jax{private.VERSIONS['jax']}) and the compiler that matches it: "
            f"{how_to_install(_compiler(chip).install)}."
        ) from e


def _compiler(chip: chips.Chip) -> compilers.Compiler:
    return compilers.TPU if chip.timed else compilers.gpu()


def _brief(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300].rstrip('.')}"


@functools.cache
def _sources() -> str:
    """The source of bigjax: plans of another version are not reused."""
    folder = pathlib.Path(bigjax.__file__).parent
    return "".join(path.read_text() for path in sorted(folder.rglob("*.py")))


def _from_json(fields: dict) -> Plan:
    fields["collectives"] = tuple(predict.Collective(*c) for c in fields["collectives"])
    fields["schedule"] = tuple(Entry(*e) for e in fields["schedule"])
    fields["step_seconds"] = fields["step_seconds"] and tuple(fields["step_seconds"])
    return Plan(**fields)


def device_bytes(tree) -> float:
    """Bytes of a tree of ShapeDtypeStructs with shardings, on one device."""
    return float(
        sum(
            math.prod(x.sharding.shard_shape(x.shape)) * np.dtype(x.dtype).itemsize
            for x in jax.tree_util.tree_leaves(tree)
        )
    )


def _on_host(tree) -> list:
    """The leaves of a tree of ShapeDtypeStructs that are kept in host memory."""
    leaves = jax.tree_util.tree_leaves(tree)
    return [x for x in leaves if x.sharding.memory_kind == "pinned_host"]


def _size(number: str, unit: str) -> float:
    return float(number) * 1024 ** " KMG".index(unit)
