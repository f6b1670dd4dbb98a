"""Make the C library keep freed memory for reuse during a training run, in large pages.

Every update allocates the same large blocks. By default glibc returns such blocks to the operating
system at once, which then clears and maps every page again on the next allocation. That costs 5 to
25 % of an update, and more on a virtual machine.

Sampling reads all weights for every token. With pages of 4 KiB the processor looks up the place of
each page, which on a virtual machine takes a quarter of the time of a product with few rows
(docs/engine.md). Linux gives pages of 2 MiB to memory that asks for them, so the heap does.

Other C libraries and systems are left alone; accelerators have their own allocators.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import mmap
import os
import platform
import sys
from pathlib import Path

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
    library = ctypes.CDLL(None, use_errno=True)
    wanted = {_MMAP_MAX: 0, _TRIM_THRESHOLD: -1, _ARENA_MAX: 1}
    refused = [name for name, value in wanted.items() if not library.mallopt(name, value)]
    if refused:
        log.info("the C library refused mallopt %s; updates will take longer", refused)
    elif large_pages_on_request():
        _ask_for_large_pages(library)


def large_pages_on_request(setting: str = "/sys/kernel/mm/transparent_hugepage/enabled") -> bool:
    """Whether memory has to ask for large pages here: Linux's setting "madvise"."""
    if sys.platform != "linux":
        return False
    try:
        chosen = Path(setting).read_text(encoding="ascii")
        overcommit = Path("/proc/sys/vm/overcommit_memory").read_text(encoding="ascii").strip()
    except (OSError, UnicodeError):
        return False
    # With strict accounting ("2"), reserving addresses would take memory from other processes.
    return "[madvise]" in chosen and overcommit != "2"


def _ask_for_large_pages(library: ctypes.CDLL) -> None:
    """Let the heap grow into addresses for which large pages were requested.

    A block of half of this machine's memory is allocated, marked and freed without ever being
    touched: it costs addresses and no memory. glibc keeps it at the end of the heap and takes later
    blocks from there.
    """
    library.malloc.restype, library.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    library.free.restype, library.free.argtypes = None, [ctypes.c_void_p]
    library.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    size = os.sysconf("SC_PHYS_PAGES") * mmap.PAGESIZE // 2
    block = library.malloc(size)
    if not block:  # a limit of this process on addresses
        return
    first = -(-block // mmap.PAGESIZE) * mmap.PAGESIZE
    if library.madvise(first, block + size - first, mmap.MADV_HUGEPAGE):
        log.info("the system refused large pages: %s", os.strerror(ctypes.get_errno()))
    library.free(block)
