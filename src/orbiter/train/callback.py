"""Calling the user's code: sync or async alike, many at once, politely, with a time limit.

Left out: retries and rate control. Whoever calls knows whether a second try is allowed.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar, cast

T = TypeVar("T")
R = TypeVar("R")


def is_async(fn: Callable[..., object]) -> bool:
    """Say whether calling `fn` gives an awaitable, as far as its definition tells."""
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
        TimeoutError: after `timeout_seconds`. A thread cannot be killed: a plain function that
            was given up goes on in the background, and its answer is thrown away.
    """
    if timeout_seconds is None:
        return await prepare(fn)(*args)
    async with asyncio.timeout(timeout_seconds):
        return await prepare(fn)(*args)


def prepare(fn: Callable[..., R | Awaitable[R]]) -> Callable[..., Awaitable[R]]:
    """Return `fn` as what can always be awaited: looked at once, for who calls it often."""
    if is_async(fn):
        return cast("Callable[..., Awaitable[R]]", fn)

    async def in_a_thread(*args: object) -> R:
        result = await asyncio.to_thread(_run_plain, fn, *args)
        return await result if inspect.isawaitable(result) else result

    return in_a_thread


def _run_plain(fn: Callable[..., R], *args: object) -> R:
    """Run `fn`; a StopIteration, which no future can carry and which would hang us, is renamed."""
    try:
        return fn(*args)
    except StopIteration as error:
        raise RuntimeError(f"StopIteration: {error}") from error


async def call_here(fn: Callable[..., R | Awaitable[R]], *args: object) -> R:
    """Like `call`, but a plain function runs on the event loop itself: for quick checks."""
    result = fn(*args)
    if inspect.isawaitable(result):
        return await result
    return result


async def map_bounded(
    items: Sequence[T], fn: Callable[[T], Awaitable[R]], *, concurrency: int
) -> list[R]:
    """Await `fn` on every item, `concurrency` at once at most; results in the items' order.

    The first failure cancels the rest and is raised as it is, not as a group.
    """
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
        # Comes when the last worker waits; what never waits has been done by the first until then.
        # A group that was cancelled from outside takes no more before its workers know of it.
        if not stopped and not first.cancelling():
            group.create_task(worker())

    loop = asyncio.get_running_loop()
    try:
        async with asyncio.TaskGroup() as group:
            first = group.create_task(worker())
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from failures.exceptions[0].__cause__
    return [results[index] for index in range(len(items))]
