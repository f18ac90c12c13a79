"""A config's step compiled for a pod that is not here, and what that tells. Results are cached."""

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
from bigjax import private, tasks
from bigjax.data.files import cache_dir, cache_folder, write_atomically
from bigjax.errors import RunError, UserError
from bigjax.extras import how_to_install
from bigjax.parallel import mesh as mesh_lib
from bigjax.plan import chips, compilers, predict
from bigjax.train import frozen
from bigjax.train import program as program_lib
from bigjax.trees import named_leaves

# Keys of a config that no compiled step depends on.
_NO_MATTER = (
    "checkpoint.",
    "log.",
    "evals.",
    "hosts.",
    "data.cache_dir",
    "init_from",
    "resume_from",
    "train.profile",
    "train.debug_nans",
    "train.compilation_cache",
)
_TOO_MUCH = re.compile(r"Used ([\d.]+)([KMG]) of [\d.]+[KMG] hbm")
_TEMPORARIES = re.compile(r"HLO temporaries \(([\d.]+)([KMG])\) exceeds available HBM")


@dataclasses.dataclass(frozen=True)
class Plan:
    """Of one kind of step on a device of the pod; bytes and seconds.

    phase: of a task whose steps differ (Task.phases), else ''. units: tokens, images or what else
    `unit` names, that a step trains on. model_flops: that the model needs, of all devices; 0 if its
    task does not say. frozen_bytes: of the task's frozen parts, which have no gradients and no
    optimizer state. peak_bytes: of HBM; None where the compiler gave up
    because it did not fit, and did not say how much it needs; where it named a part, that.
    host_bytes: that wait in the host's memory (optim.offload) and travel twice a step. flops and
    what follows: None or empty if it does not fit; seconds None of GPUs too. kernel_seconds: of
    work_seconds, in attention kernels. step_seconds: if communication hides behind work whole, and
    if not at all.
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
    flops: float | None = None
    kernel_flops: float | None = None
    work_seconds: float | None = None
    kernel_seconds: float | None = None
    collectives: tuple[predict.Collective, ...] = ()
    step_seconds: tuple[float, float] | None = None

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
        """Seconds of all collectives one after another."""
        return None if self.step_seconds is None else sum(c.seconds for c in self.collectives)


def plans(config, topology: str, slices: int = 1) -> list[Plan]:
    """The plan of a config's step; of a task whose steps differ, one of each phase.

    Raises UserError for a topology or mesh that cannot be, and without its compiler; RunError where
    that fails, or jax cannot read what it wrote.
    """
    name, _ = chips.parse(topology)
    chip = chips.figures(name)
    mesh_lib.check_settings()
    mesh = mesh_lib.make_mesh(config.mesh, chips.devices(topology, slices))
    mesh_lib.check_batch(mesh, config.train.batch_size, config.train.accumulate)
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
    program = program_lib.make(config, task, mesh)
    found = [
        _plan(config, task, program, mesh, slices, chip, phase, step)
        for phase, step in task.phases(config.train.steps)
    ]
    with contextlib.suppress(UserError):  # of another user: it is compiled again next time
        write_atomically(path, json.dumps([dataclasses.asdict(plan) for plan in found]).encode())
    return found


def _key(config, frozen_parts: list[tuple], mesh: dict[str, int], *pod) -> str:
    """A hash of everything that a plan depends on."""
    chip = pod[-1]
    leaves = [
        (key, value)
        for key, value in config_lib.sorted_leaves(config)
        if not key.startswith(_NO_MATTER)
    ]
    versions = [jax.__version__, jaxlib.__version__, compilers.version(_compiler(chip))]
    flags = [os.environ.get(name, "") for name in ("LIBTPU_INIT_ARGS", "XLA_FLAGS")]
    text = repr((leaves, frozen_parts, mesh, pod, versions, flags)) + _sources()
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def _plan(config, task, program, mesh, slices, chip, phase, step) -> Plan:
    batch_size = config.train.batch_size
    lowered = program_lib.trace(task, program, mesh, batch_size, step).lower()
    known = Plan(
        phase=phase,
        mesh=dict(mesh.shape),
        model_flops=task.flops_per_example * batch_size,
        limit_bytes=chip.limit * chips.GIB,
        parameter_bytes=_bytes(program.abstract.params),
        optimizer_bytes=_bytes(program.abstract.opt_state),
        frozen_bytes=_bytes(frozen.shapes(task, mesh)),
        unit=task.unit,
        units=task.units_per_example * batch_size,
        peak_bytes=None,
        compile_seconds=0.0,
    )
    begun = time.perf_counter()
    try:
        compiled = lowered.compile()
    except Exception as e:  # jaxlib's errors have no common class
        if "RESOURCE_EXHAUSTED" not in str(e):
            raise RunError(
                f"{compilers.version(_compiler(chip))} could not compile this step for "
                f"{known.devices} devices: {_brief(e)}. Try another --mesh, model.attention or "
                "model.remat."
            ) from e
        used, part = _TOO_MUCH.search(str(e)), _TEMPORARIES.search(str(e))
        peak = used and _size(*used.groups())
        if part:
            peak = _size(*part.groups()) + known.state_bytes
        plan = dataclasses.replace(
            known, peak_bytes=peak, compile_seconds=time.perf_counter() - begun
        )
    else:
        memory = compiled.memory_analysis()
        on_host = memory.host_argument_size_in_bytes  # the compiler's peak has it in it
        plan = dataclasses.replace(
            known,
            peak_bytes=float(memory.peak_memory_in_bytes - on_host),
            host_bytes=float(on_host),
            compile_seconds=time.perf_counter() - begun,
        )
        # A TPU's compiler refuses what does not fit; a GPU's knows no limit.
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
            )
    return plan


def _read(compiled, chip, plan: Plan, slices: int) -> predict.Costs:
    """What a compiled step costs. Raises RunError if its text cannot be read."""
    try:
        costs = predict.costs(compiled.as_text(), chip, plan.mesh, slices)
        counted = plan.devices * (costs.flops + costs.kernel_flops)
        # Forward passes alone, as where most is frozen, are a third of what a model needs.
        if not counted or counted < plan.model_flops / 4:
            raise ValueError(f"{counted:.3g} FLOPs were counted of {plan.model_flops:.3g}")
        return costs
    except Exception as e:  # of jaxlib, or of ours for a text of another form
        raise RunError(
            f"This step takes {plan.peak_bytes / chips.GIB:.2f} GiB of HBM a device, but nothing "
            f"else is known: what {compilers.version(_compiler(chip))} has compiled cannot be read "
            f"by jaxlib {jaxlib.__version__} and bigjax ({_brief(e)}). Use a jax that bigjax knows "
            f"(jax{private.VERSIONS['jax']}) and its own compiler: "
            f"{how_to_install(_compiler(chip).install)}."
        ) from e


def _compiler(chip: chips.Chip) -> compilers.Compiler:
    return compilers.TPU if chip.timed else compilers.GPU


def _brief(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300].rstrip('.')}"


@functools.cache
def _sources() -> str:
    """All of bigjax: what another version of it has planned is planned again."""
    folder = pathlib.Path(bigjax.__file__).parent
    return "".join(path.read_text() for path in sorted(folder.rglob("*.py")))


def _from_json(found: dict) -> Plan:
    found["collectives"] = tuple(predict.Collective(*c) for c in found["collectives"])
    found["step_seconds"] = found["step_seconds"] and tuple(found["step_seconds"])
    return Plan(**found)


def _bytes(tree) -> float:
    """Of a tree of ShapeDtypeStructs on one device."""
    return float(
        sum(
            math.prod(x.sharding.shard_shape(x.shape)) * np.dtype(x.dtype).itemsize
            for x in jax.tree_util.tree_leaves(tree)
        )
    )


def _size(number: str, unit: str) -> float:
    return float(number) * 1024 ** " KMG".index(unit)
