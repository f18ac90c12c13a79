"""A config's step compiled for a pod that is not here, and what that tells. Results are cached."""

import dataclasses
import functools
import hashlib
import importlib.metadata
import json
import math
import os
import pathlib
import re
import time

import jax
import numpy as np

from bigjax import tasks
from bigjax.data.files import cache_folder, write_atomically
from bigjax.parallel import mesh as mesh_lib, sharding
from bigjax.plan import chips, predict
from bigjax.train import program as program_lib

_TOO_MUCH = re.compile(r"Used ([\d.]+)([KMG]) of ([\d.]+)([KMG]) hbm")


@dataclasses.dataclass(frozen=True)
class Plan:
    """Of one kind of step on a device of the pod; bytes and seconds.

    phase: of adversarial training, else ''. model_flops: that the model needs, of all devices; 0 if
    its task does not say. peak_bytes: of HBM, None where the compiler gave up
    because it did not fit and did not say how much it needs. flops and what follows: None or empty
    if it does not fit; seconds None of GPUs too. kernel_seconds: of work_seconds, in attention
    kernels. step_seconds: if communication hides behind work whole, and if not at all.
    """
    phase: str
    devices: int
    model_flops: float
    limit_bytes: float
    parameter_bytes: float
    optimizer_bytes: float
    peak_bytes: float | None
    compile_seconds: float
    flops: float | None = None
    kernel_flops: float | None = None
    work_seconds: float | None = None
    kernel_seconds: float | None = None
    collectives: tuple[predict.Collective, ...] = ()
    step_seconds: tuple[float, float] | None = None

    @property
    def fits(self) -> bool:
        return self.flops is not None

    @property
    def communication(self) -> float | None:
        """Seconds of all collectives one after another."""
        return None if self.step_seconds is None else sum(c.seconds for c in self.collectives)


def plans(config, topology: str, slices: int = 1) -> list[Plan]:
    """The plan of a config's step, of adversarial training one of each phase.

    Raises UserError for a topology or mesh that cannot be, and without its compiler.
    """
    name, _ = chips.parse(topology)
    chip = chips.figures(name)
    mesh = mesh_lib.make_mesh(config.mesh, chips.devices(topology, slices))
    mesh_lib.check_batch(mesh, config.train.batch_size, config.train.accumulate)
    task = tasks.build(config)
    program = program_lib.make(config, task, mesh)
    return [_plan(config, task, program, mesh, (topology, slices), chip, phase, step)
            for phase, step in _steps(config, task)]


def _steps(config, task) -> list[tuple[str, int]]:
    """(phase, its first step)."""
    if not task.players:
        return [("", 0)]
    first: dict[str, int] = {}
    for step in range(config.train.steps):
        first.setdefault(task.players.options.round(step)[0], step)
    return [*first.items()]


def _plan(config, task, program, mesh, pod, chip, phase, step) -> Plan:
    batch_size = config.train.batch_size
    lowered = lower(task, program, mesh, batch_size, step)
    known = Plan(phase, mesh.size, task.flops_per_example * batch_size, chip.limit * chips.GIB,
                 _bytes(program.abstract.params), _bytes(program.abstract.opt_state), None, 0.0)
    key = hashlib.sha256("\0".join([
        lowered.as_text(), repr((pod, chip)), repr(sorted(config.train.compiler_options.items())),
        jax.__version__, importlib.metadata.version("libtpu" if chip.timed else "jax-cuda12-pjrt"),
        os.environ.get("LIBTPU_INIT_ARGS", ""), os.environ.get("XLA_FLAGS", ""), _sources(),
    ]).encode()).hexdigest()[:24]
    path = cache_folder(config.data.cache_dir, "plans") / f"{key}.json"
    try:
        return _from_json(path.read_text())
    except (OSError, ValueError, TypeError, KeyError):  # absent or damaged: compile again
        pass
    begun = time.perf_counter()
    try:
        compiled = lowered.compile()
    except Exception as e:  # jaxlib's errors have no common class
        if "RESOURCE_EXHAUSTED" not in str(e):
            raise
        used = _TOO_MUCH.search(str(e))
        plan = dataclasses.replace(known, peak_bytes=used and _size(*used.group(1, 2)),
                                   compile_seconds=time.perf_counter() - begun)
    else:
        plan = dataclasses.replace(
            known, peak_bytes=float(compiled.memory_analysis().peak_memory_in_bytes),
            compile_seconds=time.perf_counter() - begun)
        # A TPU's compiler refuses what does not fit; a GPU's knows no limit.
        if chip.timed or plan.peak_bytes <= plan.limit_bytes:
            costs = predict.costs(compiled.as_text(), chip, dict(mesh.shape), pod[1])
            plan = dataclasses.replace(
                plan, flops=costs.flops + costs.kernel_flops, kernel_flops=costs.kernel_flops,
                work_seconds=costs.work, kernel_seconds=costs.kernel_seconds,
                collectives=tuple(costs.collectives), step_seconds=costs.step)
    write_atomically(path, json.dumps(dataclasses.asdict(plan)).encode())
    return plan


@functools.cache
def _sources() -> str:
    """Of this room: a plan that another version of it made is made again."""
    return "".join(path.read_text() for path in sorted(pathlib.Path(__file__).parent.glob("*.py")))


def lower(task, program, mesh, batch_size: int, step: int):
    """A step, which its number tells the kind of, lowered for the devices of a mesh."""
    place = sharding.of_batch(mesh)
    batch = jax.tree_util.tree_map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
        task.batch_shapes(batch_size, step))
    with jax.set_mesh(mesh):
        return program.step.lower(program.abstract, task.frozen(), batch)


def _from_json(text: str) -> Plan:
    found = json.loads(text)
    found["collectives"] = tuple(predict.Collective(*c) for c in found["collectives"])
    found["step_seconds"] = found["step_seconds"] and tuple(found["step_seconds"])
    return Plan(**found)


def _bytes(tree) -> float:
    """Of a tree of ShapeDtypeStructs on one device."""
    return float(sum(
        math.prod(x.sharding.shard_shape(x.shape)) * np.dtype(x.dtype).itemsize
        for x in jax.tree_util.tree_leaves(tree)))


def _size(number: str, unit: str) -> float:
    return float(number) * 1024 ** " KMG".index(unit)
