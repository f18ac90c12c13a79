"""Chips, their figures, and the pods that programs can be compiled for.

libtpu describes a TPU pod and contains the compiler, so no TPU is needed. For GPUs see gpu.py.
"""

import math
import os
from typing import NamedTuple

from bigjax.errors import UserError
from bigjax.plan import compilers, gpu

GIB = 2**30


class Chip(NamedTuple):
    """Figures of one device, as jax counts devices.

    clock: GHz of the compiler's cycles. peak: bfloat16 TFLOP/s. hbm: GB/s. link: GB/s one way of
    one link to a neighbour. dcn: GB/s to other slices, a device's share of its host's network.
    attention: the share of the peak that attention kernels reach with causal masks and heads of
    128, by their schedules (benchmarks/attention_blocks.py).
    scores: cycles of the kernel `whole` for a thousand scores, forward and backward, likewise.
    limit: GiB of HBM that the compiler allows. dims: of its torus, 0 without one. largest: chips in
    one slice. Clocks are derived from the peak and the width of the matrix units; tpu7x's clock and
    network are inferred. None for GPUs, whose times are not predicted.
    """

    clock: float | None
    peak: float | None
    hbm: float | None
    link: float | None
    dcn: float | None
    attention: float | None
    limit: float
    dims: int
    largest: int
    scores: tuple[float, float] = (0.0, 0.0)
    wraps: bool = True  # rows of a slice are closed to rings, as in a cube or a whole pod

    @property
    def timed(self) -> bool:
        """Whether times can be predicted."""
        return self.peak is not None


CHIPS = {
    "v4": Chip(1.05, 275, 1228, 45, 6.25, 0.61, 30.75, 3, 4096, (5.4, 12.2)),
    "v5e": Chip(1.5, 197, 819, 45, 3.125, 0.8, 15.75, 2, 256, (8.6, 18.9)),
    "v5p": Chip(1.75, 459, 2765, 90, 6.25, 0.78, 95.74, 3, 6144, (4.4, 9.5)),
    "v6e": Chip(1.75, 918, 1640, 90, 12.5, 0.31, 31.25, 2, 256, (7.1, 15.2)),
    "tpu7x": Chip(2.2, 1153.5, 3690, 90, 12.5, 0.31, 94.75, 3, 9216, (6.6, 15.0)),
    "h100": Chip(None, None, None, None, None, None, gpu.MEMORY / GIB, 0, 4096),
}
FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
SMALL_CUBES = ("1x1x1", "2x2x1", "2x2x2", "2x2x4", "2x4x4")
ONE_HOST = ("1", "2", "4", "8")  # GPUs


def before_jax() -> None:
    """Prepares the environment to compile for devices that are not attached. Call it before jax
    starts."""
    # The GPU compiler logs much that is of no interest; failures are raised anyway.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.update(
        JAX_PLATFORMS="cpu",
        TPU_SKIP_MDS_QUERY="1",
        TPU_WORKER_HOSTNAMES="localhost",
        TPU_ACCELERATOR_TYPE="v5litepod-1",
        ALLOW_MULTIPLE_LIBTPU_LOAD="1",
    )
    os.environ.pop("TPU_LIBRARY_PATH", None)  # a compiler of unknown version


def parse(topology: str) -> tuple[str, tuple[int, ...]]:
    """('v5e', (4, 4)) from 'v5e:4x4'; ('h100', (2, 8)) from 'h100:2x8', two hosts of eight GPUs.

    Raises UserError for any other text: with the chips, or with the slices of the chip.
    """
    name, _, text = topology.partition(":")
    if name not in CHIPS:
        raise UserError(
            f"--topology={topology!r}: {name!r} is not a known chip. Known: {', '.join(CHIPS)}. "
            "With a chip alone, such as --topology=v5e:, its slices are listed."
        )
    chip = CHIPS[name]
    sizes = tuple(int(n) for n in text.split("x") if n.isdigit())
    if chip.dims == 0:
        valid = text in ONE_HOST or (
            len(sizes) == 2
            and sizes[0] > 1
            and sizes[1] == gpu.PER_HOST
            and math.prod(sizes) <= chip.largest
        )
    else:
        valid = (
            text in FLAT
            if chip.dims == 2
            else text in SMALL_CUBES
            or (
                len(sizes) == 3
                and all(n and n % 4 == 0 for n in sizes)
                and sizes == tuple(sorted(sizes))
                and math.prod(sizes) <= chip.largest
            )
        )
    if not valid or "x".join(map(str, sizes)) != text:
        raise UserError(f"--topology={topology!r} is not a valid slice. Valid: {_known(name)}.")
    return name, sizes


def figures(topology: str) -> Chip:
    """The figures of a chip in a slice; a GPU's limit is the share of its memory that jax
    allocates."""
    name, sizes = parse(topology)
    chip = CHIPS[name]
    if not chip.timed:
        return chip._replace(limit=chip.limit * gpu.share())
    return chip._replace(wraps=_wraps(sizes))


def _wraps(sizes: tuple[int, ...]) -> bool:
    return sizes == (16, 16) or (len(sizes) == 3 and min(sizes) >= 4)


def _known(name: str) -> str:
    if CHIPS[name].dims == 0:
        return (
            f"{name}:{', '.join(ONE_HOST)}, and HOSTSx{gpu.PER_HOST} from 2x{gpu.PER_HOST} up "
            f"to {CHIPS[name].largest // gpu.PER_HOST}x{gpu.PER_HOST}"
        )
    if CHIPS[name].dims == 2:
        return f"{name}:{', '.join(FLAT)}"
    return (
        f"{name}:{', '.join(SMALL_CUBES)}, and AxBxC of ascending multiples of 4 up to "
        f"{CHIPS[name].largest:,} chips"
    )


def devices(topology: str, slices: int = 1) -> list:
    """The devices of a pod, to compile for.

    Raises UserError for a topology that the compiler does not know, and if the compiler that
    matches the installed jax is missing.
    """
    chip, sizes = parse(topology)
    if not CHIPS[chip].timed:
        if slices > 1:
            raise UserError(
                f"--slices={slices} is for TPUs. For several hosts of GPUs use "
                f"--topology={chip}:{slices}x{gpu.PER_HOST}."
            )
        return gpu.devices(sizes)
    compilers.check(compilers.TPU)
    from jax.experimental import topologies

    more = {}
    if chip == "v4":
        more["chip_config_name"] = "megacore"  # one device a chip
    if math.prod(sizes) == 1:
        more["chips_per_host_bounds"] = [1, 1, 1]
    if _wraps(sizes):
        more["wrap"] = (True, True, len(sizes) == 3)
    if slices > 1:
        more["num_slices"] = slices
    try:
        return list(
            topologies.get_topology_desc(platform="tpu", topology_name=topology, **more).devices
        )
    except Exception as e:  # jaxlib raises what libtpu says as errors of several kinds
        raise UserError(
            f"--topology={topology} is not available: {str(e).splitlines()[0]} Known: "
            f"{_known(chip)}."
        ) from e
