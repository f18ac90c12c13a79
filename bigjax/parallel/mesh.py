"""The device mesh: from the config's axis sizes to jax.sharding.Mesh."""

import os

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from bigjax.errors import UserError
from bigjax.parallel import hosts
from bigjax.plural import plural

AXES = ("data", "fsdp", "sequence", "tensor")  # from the slowest links to the fastest
BATCH_AXES = ("data", "fsdp")  # the batch is sharded over these
_TRANSFERS = (("allow", "log"), "batches and metrics are copied while a step runs")
# {setting of jax: (values that bigjax supports, why no other)}.
_SETTINGS = {
    "jax_enable_x64": ((False,), "bigjax keeps and updates its state in float32"),
    "jax_disable_jit": ((False,), "bigjax's steps are compiled for a mesh"),
    "jax_no_execution": ((False,), "training executes what it compiles"),
    "jax_numpy_dtype_promotion": (("standard",), "bigjax computes in mixed types"),
    "jax_numpy_rank_promotion": (("allow", "warn"), "bigjax adds vectors to larger arrays"),
    "jax_check_tracer_leaks": ((False,), "jax reports its own scan over the layers as a leak"),
    "jax_transfer_guard": _TRANSFERS,
    "jax_transfer_guard_host_to_device": _TRANSFERS,
    "jax_transfer_guard_device_to_host": _TRANSFERS,
    "jax_transfer_guard_device_to_device": _TRANSFERS,
}


def start(mesh_config, batch_size: int | None, accumulate: int = 1) -> Mesh:
    """Starts jax with the devices of a config, and makes the config's mesh the current one.

    batch_size: None if no batch will be sharded; then a CPU is one device unless the mesh needs
    more. Raises UserError if the mesh does not fit the devices, if the batch does not fit the mesh,
    and for the settings that `check_settings` refuses.
    """
    check_settings()
    _use_cpu_devices(cpu_devices(mesh_config, (batch_size or 1) // accumulate, hosts.count()))
    mesh = checked(mesh_config, batch_size, accumulate)
    jax.set_mesh(mesh)
    return mesh


def checked(mesh_config, batch_size: int | None, accumulate: int = 1, devices=None) -> Mesh:
    """`make_mesh`, for batches of this size (None: no batches). Raises UserError as `make_mesh` and
    `check_batch` do."""
    mesh = make_mesh(mesh_config, devices)
    if batch_size:
        check_batch(mesh, batch_size, accumulate)
    return mesh


def check_settings() -> None:
    """Raises UserError for settings of jax, mostly environment variables, that bigjax does not
    support."""
    for name, (allowed, why) in _SETTINGS.items():
        variable = name.upper()
        value = getattr(jax.config, name, None)
        value = getattr(value, "value", value)  # of an enum
        if value is None:  # jax.config does not show transfer guards set in the environment
            value = os.environ.get(variable) or None
        if value is not None and value not in allowed:  # None: not set, or removed from jax
            raise UserError(
                f"jax's setting {variable} is {value!r}, which bigjax does not support: {why}. Run "
                f"`unset {variable}`, or remove it from the code that sets it, and run the same "
                "command again."
            )


def cpu_devices(mesh_config, batch_size: int, processes: int = 1) -> int:
    """The number of virtual CPU devices that each process of a run should have.

    One per core, since data parallelism uses the cores better than XLA's threads do; fewer if the
    batch does not divide by that; exactly the mesh's size if the config specifies all of its axes.
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
    return max(fit, default=1)  # if none fits, make_mesh and check_batch raise the error


def _use_cpu_devices(n: int) -> None:
    """Splits the CPU into n devices, unless jax has started or XLA_FLAGS sets a number."""
    if "--xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
        return
    try:
        jax.config.update("jax_num_cpu_devices", n)
    except RuntimeError:
        pass  # jax is running: make_mesh raises an error if the devices do not fit


def make_mesh(mesh_config, devices=None) -> Mesh:
    """The mesh of a config over the devices (default: all).

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
        have = f"{n} {devices[0].platform} {plural(n, 'device')}"
        raise UserError(
            f"mesh {text}: "
            + (
                f"the other axes need {known}, which does not divide the {have}."
                if free
                else f"= {known}, but the run has {have}."
            )
            + " Set mesh.* so that the product of the sizes is the number of devices, or one of "
            "them to -1."
        )
    slices = len({getattr(d, "slice_index", 0) for d in devices})
    if sizes["data"] % slices:
        raise UserError(
            f"mesh {text}: the pod has {slices} slices, and only the axis data can span slices. "
            f"Set mesh.data to a multiple of {slices}."
        )
    shape = (sizes["data"] // slices, *(sizes[a] for a in AXES[1:]))
    try:
        grid = _grid(shape, slices, devices)
    except NotImplementedError:  # an axis that is not a product of complete torus dimensions
        grid = _grid(shape, slices, devices, allow_split_physical_axes=True)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _grid(shape: tuple[int, ...], slices: int, devices, **options):
    """Array of devices, whose neighbours along each axis are torus neighbours if possible."""
    if slices == 1:
        return mesh_utils.create_device_mesh(shape, devices, **options)
    across = (slices, *(1 for _ in AXES[1:]))
    return mesh_utils.create_hybrid_device_mesh(shape, across, devices, **options)


def platform() -> str:
    """The platform of the program being traced, such as cpu or tpu: that of the current mesh's
    devices, which may be those of a remote pod; without a mesh jax's default backend."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    if not device:
        return jax.default_backend()
    if hasattr(device, "platform"):
        return device.platform
    # jax 0.10.0 has only a kind, such as 'cpu', 'TPU v5 lite' or 'NVIDIA H100 80GB HBM3'.
    kind = device.device_kind
    return "cpu" if kind == "cpu" else "tpu" if kind.startswith("TPU") else "gpu"


def device_kind() -> str:
    """The kind of device of the program being traced, such as 'TPU v6 lite'; see `platform`."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return device.device_kind if device else jax.devices()[0].device_kind


def check_batch(mesh: Mesh, batch_size: int, accumulate: int = 1) -> None:
    """Raises UserError if a micro-batch does not divide over the mesh's batch axes."""
    shards = _product(mesh.shape[a] for a in BATCH_AXES)
    if batch_size % (shards * accumulate):
        axes = " x ".join(f"{a}={mesh.shape[a]}" for a in BATCH_AXES)
        raise UserError(
            f"train.batch_size={batch_size} is not divisible by {axes} = {shards} device(s)"
            + (f" x {accumulate} micro-batches" if accumulate > 1 else "")
            + f". Set it to a multiple of {shards * accumulate}."
        )


def _product(numbers) -> int:
    out = 1
    for n in numbers:
        out *= n
    return out
