"""What a CPU run needs set before jax is imported: how the allocator keeps large buffers.

A training step on the CPU frees and allocates its temporary buffers, often gigabytes. By default
each goes back to the kernel and is mapped in again page by page, which can take a third of the
step. With pages of 2 MB instead of 4 kB that costs almost nothing.
"""

import contextlib
import ctypes
import os
from pathlib import Path
import sys

TUNABLE = "glibc.malloc.hugetlb"  # 1: ask for huge pages; since glibc 2.35
_VARIABLE = "GLIBC_TUNABLES"
_HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
# mallopt parameters of glibc's malloc.h
_ARENA_MAX, _MMAP_MAX, _TRIM_THRESHOLD, _TOP_PAD = -8, -4, -1, -2


def environment() -> dict[str, str]:
    """The variables with which a process has to start for its allocator to use huge pages.

    {} if this process has them, if the kernel gives huge pages to all, and where the kernel or the
    C library offers none.
    """
    old = os.environ.get(_VARIABLE, "")
    if TUNABLE in old or _kernel_mode() != "madvise" or not _has_tunable():
        return {}
    return {_VARIABLE: f"{old}:{TUNABLE}=1" if old else f"{TUNABLE}=1"}


def restart_with_huge_pages() -> None:
    """Replaces this process by the same command with `environment`, if that is not empty.

    The allocator reads its settings only when a process starts. Call before anything else.
    """
    variables = environment()
    if not (variables and sys.executable):
        return
    with contextlib.suppress(OSError):  # then this process continues as it is
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | variables)


def keep_freed_memory() -> None:
    """Without huge pages, lets the allocator keep freed memory instead of giving it back.

    That needs twice the memory, and all threads share one arena, so that compilation is slower.
    Call before threads start. Does nothing with huge pages, and without glibc.
    """
    mode = _kernel_mode()
    asked = mode == "madvise" and _has_tunable() and TUNABLE in os.environ.get(_VARIABLE, "")
    if asked or mode == "always" or sys.platform != "linux":
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # another C library
        return
    mallopt(_ARENA_MAX, 1)  # other arenas cannot hold large blocks
    mallopt(_MMAP_MAX, 0)  # large blocks come from the heap
    mallopt(_TRIM_THRESHOLD, -1)
    mallopt(_TOP_PAD, 64 << 20)


def _kernel_mode() -> str:
    """'always', 'madvise' (for those that ask), or 'never'."""
    try:
        text = _HUGE_PAGES.read_text()
    except OSError:  # not Linux, or a kernel without them
        return "never"
    return text.partition("[")[2].partition("]")[0] or "never"


def _has_tunable() -> bool:
    try:
        name, _, version = os.confstr("CS_GNU_LIBC_VERSION").partition(" ")
        return name == "glibc" and tuple(map(int, version.split("."))) >= (2, 35)
    except (AttributeError, OSError, ValueError):  # another C library
        return False
