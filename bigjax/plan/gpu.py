"""NVIDIA's H100, described to the GPU compiler, so that neither a GPU nor its driver is needed.

Without a device nothing can be measured: the compiler uses its default kernels where it would
otherwise try several, and times are not predicted.
"""

import os

from bigjax.errors import UserError
from bigjax.plan import compilers

PER_HOST = 8  # linked by NVLink; hosts by InfiniBand
MEMORY = 84_942_979_072  # bytes of the 80 GB that CUDA can allocate
SHARE = 0.75  # of it, that jax allocates by default; the rest is for CUDA and NCCL

# A GpuTargetConfigProto of XLA. The figures are what NVIDIA publishes for the H100 SXM5 (132
# multiprocessors, 50 MiB of L2, 3.35 TB/s of HBM3, 1.98 GHz, 18 NVLinks) and, in the CUDA
# programming guide, of compute capability 9.0.
_TARGET = f"""
platform_name: "CUDA"
device_description_str: "NVIDIA H100 80GB HBM3"
dnn_version_info {{ major: 9 minor: 10 }}
runtime_version {{ major: 12 minor: 8 }}
gpu_device_info {{
  name: "NVIDIA H100 80GB HBM3"
  device_vendor: "NVIDIA Corporation"
  cuda_compute_capability {{ major: 9 minor: 0 }}
  core_count: 132
  fpus_per_core: 128
  clock_rate_ghz: 1.98
  device_memory_size: {MEMORY}
  memory_bandwidth: 3352320000000
  l2_cache_size: {50 * 2**20}
  shared_memory_per_core: {228 * 2**10}
  shared_memory_per_block: {48 * 2**10}
  shared_memory_per_block_optin: {227 * 2**10}
  registers_per_core_limit: {2**16}
  registers_per_block_limit: {2**16}
  threads_per_warp: 32
  threads_per_core_limit: 2048
  threads_per_block_limit: 1024
  thread_dim_limit_x: 1024
  thread_dim_limit_y: 1024
  thread_dim_limit_z: 64
  block_dim_limit_x: {2**31 - 1}
  block_dim_limit_y: {2**16 - 1}
  block_dim_limit_z: {2**16 - 1}
  device_interconnect_info {{ active_links: 18 }}
}}
"""


def share() -> float:
    """The share of the memory that jax allocates, by the environment, as a run on GPUs reads it."""
    name = next(
        (
            n
            for n in ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION")
            if os.environ.get(n)
        ),
        None,
    )
    text = os.environ[name] if name else str(SHARE)
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        raise UserError(
            f"{name}={text!r} in the environment: the share of the GPU's memory that jax "
            "allocates must be above 0 and at most 1, such as 0.9."
        )
    return value


def devices(sizes: tuple[int, ...]) -> list:
    """The devices to compile for. sizes: (GPUs,) of one host, or (hosts, GPUs per host).

    Raises UserError if the compiler that matches the installed jax is missing.
    """
    compilers.check(compilers.gpu())
    from jax.experimental import topologies

    shape = "x".join(map(str, (1, 1, *sizes)[-3:]))  # partitions, their hosts, their GPUs
    return list(
        topologies.get_topology_desc(
            "h100", platform="cuda", target_config=_TARGET, topology=shape
        ).devices
    )
