"""Make the C library keep freed memory for reuse during a training run.

Every update allocates the same large blocks. By default glibc returns such blocks to the operating
system at once, which then clears and maps every page again on the next allocation. That costs 5 to
25 % of an update, and more on a virtual machine. Other C libraries are left alone; accelerators
have their own allocators.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import platform

log = logging.getLogger(__name__)

_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8
"""Names of glibc's `mallopt` (malloc.h)."""


@functools.cache
def keep_freed_memory() -> None:
    """Make glibc keep freed blocks, in one arena for all threads; runs once per process.

    From then on the process never shrinks, and a block freed by one thread can serve another.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    mallopt = ctypes.CDLL(None).mallopt
    wanted = {_MMAP_MAX: 0, _TRIM_THRESHOLD: -1, _ARENA_MAX: 1}
    refused = [name for name, value in wanted.items() if not mallopt(name, value)]
    if refused:
        log.info("the C library refused mallopt %s; updates will take longer", refused)
