"""TPU chips: their figures, and pods of them that programs can be compiled for.

A pod is described by libtpu, which has the whole compiler: no TPU is needed.
"""

import importlib.util
import os
import re
from typing import NamedTuple

from bigjax.errors import UserError

GIB = 2 ** 30


class Chip(NamedTuple):
    """Of one device as jax counts them.

    clock: GHz, which the compiler's cycles are of. peak: bfloat16 TFLOP/s. hbm: GB/s. link: GB/s
    one way, of one of its links to neighbours. dcn: GB/s to other slices, a device's share of its
    host's network. limit: GiB of HBM that the compiler allows. dims: of its torus. Clocks are
    derived from the peak and the width of the matrix units; tpu7x's clock and network are inferred.
    """
    clock: float
    peak: float
    hbm: float
    link: float
    dcn: float
    limit: float
    dims: int


CHIPS = {
    "v4": Chip(1.05, 275, 1228, 45, 6.25, 30.75, 3),
    "v5e": Chip(1.5, 197, 819, 45, 3.125, 15.75, 2),
    "v5p": Chip(1.75, 459, 2765, 90, 6.25, 95.74, 3),
    "v6e": Chip(1.75, 918, 1640, 90, 12.5, 31.25, 2),
    "tpu7x": Chip(2.2, 1153.5, 3690, 90, 12.5, 94.75, 3),
}
EXAMPLES = ("v4:4x4x4", "v5e:4x4", "v5e:16x16", "v5p:4x4x4", "v6e:16x16", "tpu7x:4x4x4")


def before_jax() -> None:
    """Lets libtpu describe pods on a machine without a TPU. To be called before jax starts."""
    os.environ.update(
        JAX_PLATFORMS="cpu", TPU_SKIP_MDS_QUERY="1", TPU_WORKER_HOSTNAMES="localhost",
        TPU_ACCELERATOR_TYPE="v5litepod-1", ALLOW_MULTIPLE_LIBTPU_LOAD="1")


def parse(topology: str) -> tuple[str, tuple[int, ...]]:
    """'v5e:4x4' as ('v5e', (4, 4)). UserError for another form, chip or number of dimensions."""
    found = re.fullmatch(r"(\w+):(\d+(?:x\d+)+)", topology)
    if not found or found[1] not in CHIPS:
        raise UserError(f"--topology={topology!r} is none that is known: it must be CHIP:AxB or "
                        f"CHIP:AxBxC, with a chip of {', '.join(CHIPS)}. Such as "
                        f"{', '.join(EXAMPLES)}.")
    sizes = tuple(map(int, found[2].split("x")))
    if len(sizes) != CHIPS[found[1]].dims:
        raise UserError(f"--topology={topology!r}: a slice of {found[1]} has "
                        f"{CHIPS[found[1]].dims} dimensions, such as "
                        f"{next(e for e in EXAMPLES if e.startswith(found[1]))}.")
    return found[1], sizes


def devices(topology: str, slices: int = 1) -> list:
    """The devices of slices, which programs can be compiled for.

    Raises UserError for a topology that libtpu does not know, and without libtpu.
    """
    chip, sizes = parse(topology)
    if importlib.util.find_spec("libtpu") is None:
        raise UserError("A plan needs libtpu, which holds the TPU compiler: "
                        "pip install -e '.[plan]'.")
    from jax.experimental import topologies
    more = {}
    if chip == "v4":
        more["chip_config_name"] = "megacore"  # one device a chip
    if sizes == (16, 16):
        more["wrap"] = (True, True, False)
    elif len(sizes) == 3 and min(sizes) >= 4:
        more["wrap"] = (True, True, True)
    if slices > 1:
        more["num_slices"] = slices
    try:
        return list(topologies.get_topology_desc(
            platform="tpu", topology_name=topology, **more).devices)
    except Exception as e:  # jaxlib raises what libtpu says as errors of several kinds
        raise UserError(f"--topology={topology} cannot be had: {str(e).splitlines()[0]} Known "
                        f"are for example {', '.join(EXAMPLES)}.") from e
