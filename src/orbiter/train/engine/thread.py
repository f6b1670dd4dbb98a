"""The one thread that touches tensors."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from orbiter.train.engine.allocator import keep_freed_memory

log = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")


@functools.cache
def _engine_thread() -> ThreadPoolExecutor:
    """Return the one thread that touches tensors.

    With one thread, two trainers do not compete for the cores, and the process has a single OpenMP
    team. Once a second thread has called OpenMP, libgomp makes every team sleep at each of a step's
    thousands of barriers instead of spinning, and sampling takes 1.4 times as long.
    """
    keep_freed_memory()  # first: glibc assigns a thread its arena at its first allocation
    return ThreadPoolExecutor(1, thread_name_prefix="orbiter-engine")


def work_blocking(fn: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Run engine work on the engine's thread and wait for it, for callers that are not async."""
    return _engine_thread().submit(functools.partial(fn, *args, **kwargs)).result()


async def work(fn: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Run engine work on the engine's thread, so that the event loop stays responsive.

    A cancellation takes effect only once the work has finished, so nothing is left half done.
    """
    loop = asyncio.get_running_loop()
    job = loop.run_in_executor(_engine_thread(), functools.partial(fn, *args, **kwargs))
    try:
        return await asyncio.shield(job)
    except asyncio.CancelledError:
        # asyncio.wait never cancels the job, and the thread could not be interrupted anyway.
        await asyncio.wait([job])
        # Reading the exception also keeps asyncio from reporting it as never retrieved.
        if not job.cancelled() and (failure := job.exception()):
            log.warning("the work in progress at the cancellation failed: %s", failure)
        raise
