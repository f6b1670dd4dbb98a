"""Call user code: plain or async functions alike, many at once, with a time limit.

Retries and rate limits are up to the caller, who knows whether a second try is allowed.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import inspect
import os
import queue
import threading
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar, cast

from typing_extensions import override

T = TypeVar("T")
R = TypeVar("R")

USER_MODULE = "orbiter_user_"
"""Prefix of a module that the command line loads from a file, so that it hides no other module."""


def is_async(fn: Callable[..., object]) -> bool:
    """Return whether calling `fn` gives an awaitable, judged by its definition."""
    while isinstance(fn, functools.partial):
        fn = fn.func
    return inspect.iscoroutinefunction(fn) or inspect.iscoroutinefunction(
        getattr(fn, "__call__", None)  # noqa: B004 - the method's definition is wanted, not a yes or no
    )


async def call(
    fn: Callable[..., R | Awaitable[R]], *args: object, timeout_seconds: float | None = None
) -> R:
    """Await `fn(*args)`, whether it is a coroutine function or a plain one.

    A plain function runs in a worker thread, so that a slow one does not hold up the event loop;
    context variables are carried over. What a plain function returns may itself be awaitable.

    Raises:
        TimeoutError: after `timeout_seconds`. A thread cannot be killed: a plain function that is
            abandoned keeps running in the background, and its result is discarded.
    """
    if timeout_seconds is None:
        return await prepare(fn)(*args)
    async with asyncio.timeout(timeout_seconds):
        return await prepare(fn)(*args)


def prepare(fn: Callable[..., R | Awaitable[R]]) -> Callable[..., Awaitable[R]]:
    """Return `fn` as an async function; cheaper than `call` for a function called often."""
    if is_async(fn):
        return cast("Callable[..., Awaitable[R]]", fn)

    async def run_plain(*args: object) -> R:
        result = await in_thread(fn, *args)
        return await result if inspect.isawaitable(result) else result

    return run_plain


async def in_thread(fn: Callable[..., R], *args: object) -> R:
    """Run a plain function in a daemon thread and return its result.

    Unlike `asyncio.to_thread`, any number run at once, so callers must bound the concurrency. A
    function that never returns keeps its own thread only: other calls get another one, and neither
    `asyncio.run` nor the end of the process waits for it.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[R] = loop.create_future()
    # So that captured episodes and evolution contexts are visible in the thread.
    context = contextvars.copy_context()

    def job() -> None:
        try:
            result = context.run(fn, *args)
        except StopIteration as error:  # a future cannot carry one
            renamed = RuntimeError(f"StopIteration: {error}")
            renamed.__cause__ = error
            _post(loop, future, None, renamed)
        except BaseException as error:  # raised where the call is awaited
            _post(loop, future, None, error)
        else:
            _post(loop, future, result, None)

    _submit(job)
    return await future


def _post(
    loop: asyncio.AbstractEventLoop,
    future: asyncio.Future[R],
    result: R | None,
    error: BaseException | None,
) -> None:
    """Hand a result to the event loop; drop it if the caller or the loop is gone."""

    def resolve() -> None:
        if future.done():
            return
        if error is None:
            future.set_result(cast("R", result))
        else:
            future.set_exception(error)

    with contextlib.suppress(RuntimeError):  # the loop is closed
        loop.call_soon_threadsafe(resolve)


MAX_IDLE_THREADS = 64
"""Threads kept for the next call; those beyond it end."""


class _Thread(threading.Thread):
    """A thread that runs one job after another and waits in `_idle_threads` between them."""

    def __init__(self) -> None:
        super().__init__(name="orbiter-callback", daemon=True)
        self.jobs: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()

    @override
    def run(self) -> None:
        while True:
            job = self.jobs.get()
            job()
            del job  # it holds the arguments and the result
            if len(_idle_threads) >= MAX_IDLE_THREADS:
                return
            _idle_threads.append(self)


_idle_threads: list[_Thread] = []
"""Threads without a job. `append` and `pop` are atomic, so no lock is needed."""

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_idle_threads.clear)  # a child process has no threads


def _submit(job: Callable[[], None]) -> None:
    try:
        thread = _idle_threads.pop()
    except IndexError:
        thread = _Thread()
        thread.start()
    thread.jobs.put(job)


async def call_here(fn: Callable[..., R | Awaitable[R]], *args: object) -> R:
    """Like `call`, but run a plain function on the event loop itself: for quick checks."""
    result = fn(*args)
    if inspect.isawaitable(result):
        return await result
    return result


async def map_bounded(
    items: Sequence[T], fn: Callable[[T], Awaitable[R]], *, concurrency: int
) -> list[R]:
    """Await `fn` on every item, at most `concurrency` at once; return results in items' order.

    The first failure cancels the rest and is raised as it is, not as a group.
    """
    # A single item needs no group, so its error keeps its own traceback.
    if len(items) == 1:
        return [await fn(items[0])]
    queue = iter(enumerate(items))
    results: dict[int, R] = {}
    stopped = False

    async def worker() -> None:
        nonlocal stopped
        try:
            for index, item in queue:
                if index + 1 < concurrency:
                    loop.call_soon(start_another)
                results[index] = await fn(item)
        except BaseException:
            stopped = True
            raise
        stopped = True

    def start_another() -> None:
        # Called when the last worker waits; until then the first one has done all work that never
        # waits. A group cancelled from outside starts nothing before its workers notice.
        if not stopped and not first.cancelling():
            group.create_task(worker())

    loop = asyncio.get_running_loop()
    try:
        async with asyncio.TaskGroup() as group:
            first = group.create_task(worker())
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from failures.exceptions[0].__cause__
    if len(results) < len(items):
        # `fn` raised CancelledError though nobody cancelled us; treat it as a cancellation too.
        raise asyncio.CancelledError
    return [results[index] for index in range(len(items))]
