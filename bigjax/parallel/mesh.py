"""The device mesh: from the config's axis sizes to jax.sharding.Mesh."""

import os

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from bigjax.errors import UserError
from bigjax.parallel import hosts

AXES = ("data", "fsdp", "sequence", "tensor")  # from the slowest links to the fastest
BATCH_AXES = ("data", "fsdp")  # the batch is cut along these
_TRANSFERS = (("allow", "log"), "batches and metrics are copied while a step runs")
# Settings of jax: (the values with which bigjax works, why no other).
_SETTINGS = {
    "jax_enable_x64": ((False,), "bigjax keeps and updates its state in float32"),
    "jax_disable_jit": ((False,), "bigjax's steps are compiled for a mesh"),
    "jax_no_execution": ((False,), "training executes what it compiles"),
    "jax_numpy_dtype_promotion": (("standard",), "bigjax computes in mixed types"),
    "jax_numpy_rank_promotion": (("allow", "warn"), "bigjax adds vectors to larger arrays"),
    "jax_check_tracer_leaks": ((False,), "jax takes its own scan of the layers for a leak"),
    "jax_transfer_guard": _TRANSFERS,
    "jax_transfer_guard_host_to_device": _TRANSFERS,
    "jax_transfer_guard_device_to_host": _TRANSFERS,
    "jax_transfer_guard_device_to_device": _TRANSFERS,
}


def start(mesh_config, batch_size: int | None, accumulate: int = 1) -> Mesh:
    """Starts jax with the devices of a config, checks them, and makes its mesh the current one.

    batch_size None: no batch will be cut, so a CPU stays whole where the mesh leaves that open.
    Raises UserError if the mesh does not fit the devices, or the batch not the mesh, and as
    `check_settings` does.
    """
    check_settings()
    _use_cpu_devices(cpu_devices(mesh_config, (batch_size or 1) // accumulate, hosts.count()))
    mesh = make_mesh(mesh_config)
    if batch_size:
        check_batch(mesh, batch_size, accumulate)
    jax.set_mesh(mesh)
    return mesh


def check_settings() -> None:
    """Refuses settings of jax, mostly of its environment, with which no step can be made."""
    for name, (allowed, why) in _SETTINGS.items():
        variable = name.upper()
        value = getattr(jax.config, name, None)
        value = getattr(value, "value", value)  # of an enumeration
        if value is None:  # jax shows no guard that the environment sets
            value = os.environ.get(variable) or None
        if value is not None and value not in allowed:  # None: not set, or no longer of jax
            raise UserError(
                f"jax's setting {variable} is {value!r}, but {why}. Run `unset {variable}`, or "
                "take it out of the code that sets it, and give the same command again."
            )


def cpu_devices(mesh_config, batch_size: int, processes: int = 1) -> int:
    """How many virtual CPU devices each process of a run should have.

    One a core, since XLA threads elementwise work badly and data parallelism does not; fewer if
    the batch does not divide by that; exactly the mesh's size where the config gives it in full.
    """
    sizes = [mesh_config.get(a, 1) for a in AXES]
    known = _product(s for s in sizes if s > 0)
    if -1 not in sizes:
        return max(1, known // processes)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    fit = [
        n
        for n in range(1, max(cores, known) + 1)
        if n * processes % known == 0
        and (batch_size % (n * processes) == 0 or n * processes == known)
    ]
    return max(fit, default=1)  # where none fits, make_mesh and check_batch say why


def _use_cpu_devices(n: int) -> None:
    """Splits the CPU into n devices, if jax has not started and nobody else has said how many."""
    if "--xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
        return
    try:
        jax.config.update("jax_num_cpu_devices", n)
    except RuntimeError:
        pass  # jax is running: make_mesh will say if the devices do not fit


def make_mesh(mesh_config, devices=None) -> Mesh:
    """The mesh of a config over devices (default: all).

    Raises UserError, with the arithmetic, if the sizes do not multiply to the devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = {a: mesh_config.get(a, 1) for a in AXES}
    text = " x ".join(f"{a}={s}" for a, s in sizes.items())
    free = [a for a, s in sizes.items() if s == -1]
    if len(free) > 1 or any(s < 1 and s != -1 for s in sizes.values()):
        raise UserError(f"mesh {text}: each size must be at least 1; at most one may be -1.")
    known = _product(s for s in sizes.values() if s > 0)
    n = len(devices)
    if free and n % known == 0:
        sizes[free[0]] = n // known
    if _product(sizes.values()) != n:
        other = f"the other axes take {known}, which does not divide" if free else f"= {known}, not"
        raise UserError(
            f"mesh {text}: {other} the {n} {devices[0].platform} device(s) here. Set mesh.* so "
            "that the sizes multiply to the devices, or one of them to -1."
        )
    slices = len({getattr(d, "slice_index", 0) for d in devices})
    if sizes["data"] % slices:
        raise UserError(
            f"mesh {text}: there are {slices} slices, and between slices only the "
            f"batch may be cut. Set mesh.data to a multiple of {slices}."
        )
    shape = (sizes["data"] // slices, *(sizes[a] for a in AXES[1:]))
    try:
        grid = _grid(shape, slices, devices)
    except NotImplementedError:  # an axis that is no whole dimension of the torus: it shares one
        grid = _grid(shape, slices, devices, allow_split_physical_axes=True)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _grid(shape: tuple[int, ...], slices: int, devices, **options):
    """Devices in the order of the axes, neighbours of a torus along each where that can be."""
    if slices == 1:
        return mesh_utils.create_device_mesh(shape, devices, **options)
    across = (slices, *(1 for _ in AXES[1:]))
    return mesh_utils.create_hybrid_device_mesh(shape, across, devices, **options)


def platform() -> str:
    """What the program being traced will run on, such as cpu or tpu: the devices of the current
    mesh, which may be of a pod that is not here; without a mesh jax's own."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    if not device:
        return jax.default_backend()
    if hasattr(device, "platform"):
        return device.platform
    # jax 0.10.0 has only a kind, such as 'cpu', 'TPU v5 lite' or 'NVIDIA H100 80GB HBM3'.
    kind = device.device_kind
    return "cpu" if kind == "cpu" else "tpu" if kind.startswith("TPU") else "gpu"


def check_batch(mesh: Mesh, batch_size: int, accumulate: int = 1) -> None:
    """Raises UserError if a micro-batch does not divide over the mesh's batch axes."""
    shards = _product(mesh.shape[a] for a in BATCH_AXES)
    if batch_size % (shards * accumulate):
        axes = " x ".join(f"{a}={mesh.shape[a]}" for a in BATCH_AXES)
        raise UserError(
            f"train.batch_size={batch_size} does not divide over {axes} = {shards} device(s)"
            + (f" x {accumulate} micro-batches" if accumulate > 1 else "")
            + f": use a multiple of {shards * accumulate}."
        )


def _product(numbers) -> int:
    out = 1
    for n in numbers:
        out *= n
    return out
