"""What a CPU run needs set before jax is imported."""

import ctypes
import sys

# mallopt parameters of glibc's malloc.h
_ARENA_MAX, _MMAP_MAX, _TRIM_THRESHOLD, _TOP_PAD = -8, -4, -1, -2


def keep_freed_memory() -> None:
    """Lets the allocator keep freed memory instead of giving it back to the kernel.

    A training step on the CPU frees and allocates its temporary buffers, often gigabytes; by
    default each goes back to the kernel and is mapped in again page by page, which can take a
    third of the step. Call before threads start. Does nothing without glibc.
    """
    if sys.platform != "linux":
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # another C library
        return
    mallopt(_ARENA_MAX, 1)  # other arenas cannot hold large blocks
    mallopt(_MMAP_MAX, 0)  # large blocks come from the heap
    mallopt(_TRIM_THRESHOLD, -1)
    mallopt(_TOP_PAD, 64 << 20)
