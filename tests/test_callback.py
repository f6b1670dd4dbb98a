import asyncio
import functools
import threading
import time

import pytest

from orbiter.train.callback import call, call_here, is_async, map_bounded


async def double(x: int) -> int:
    await asyncio.sleep(0)
    return 2 * x


class Doubler:
    async def __call__(self, x: int) -> int:
        return 2 * x


def returns_awaitable(x: int) -> "asyncio.Future[int]":
    return double(x)  # type: ignore[return-value] # any awaitable will do


@pytest.mark.parametrize(
    "fn", [double, Doubler(), functools.partial(double), lambda x: 2 * x, returns_awaitable]
)
async def test_sync_and_async_callables_are_both_welcome(fn: object) -> None:
    assert await call(fn, 21) == 42  # type: ignore[arg-type] # the point: all kinds
    assert await call_here(fn, 21) == 42  # type: ignore[arg-type]


def test_is_async_looks_through_partials_and_objects() -> None:
    assert is_async(double)
    assert is_async(functools.partial(double))
    assert is_async(Doubler())
    assert not is_async(len)


async def test_a_slow_plain_function_does_not_hold_up_the_loop() -> None:
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0.005)
            ticks += 1

    ticking = asyncio.create_task(tick())
    await call(time.sleep, 0.2)
    ticking.cancel()
    assert ticks > 5


async def test_a_time_limit_ends_both_kinds() -> None:
    release = threading.Event()
    with pytest.raises(TimeoutError):
        await call(asyncio.sleep, 30, timeout_seconds=0.01)
    with pytest.raises(TimeoutError):
        await call(release.wait, 30, timeout_seconds=0.01)
    release.set()


async def test_map_bounded_keeps_the_order_and_the_bound() -> None:
    running = peak = 0

    async def work(x: int) -> int:
        nonlocal running, peak
        running += 1
        peak = max(peak, running)
        await asyncio.sleep(0.001 * (10 - x))
        running -= 1
        return x * x

    assert await map_bounded(range(10), work, concurrency=3) == [x * x for x in range(10)]
    assert peak == 3


async def test_the_first_failure_cancels_the_rest_and_comes_out_as_it_is() -> None:
    finished: list[int] = []

    async def work(x: int) -> None:
        if x == 1:
            raise ZeroDivisionError("one")
        await asyncio.sleep(5)
        finished.append(x)

    with pytest.raises(ZeroDivisionError, match="one"):
        await map_bounded(range(4), work, concurrency=4)
    assert finished == []


async def test_cancelling_map_bounded_is_a_cancellation_not_a_group() -> None:
    task = asyncio.create_task(map_bounded(range(4), lambda _: asyncio.sleep(30), concurrency=2))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_nothing_to_do_is_an_empty_list() -> None:
    assert await map_bounded([], double, concurrency=4) == []


async def test_a_stop_iteration_comes_out_instead_of_hanging() -> None:
    with pytest.raises(RuntimeError, match="StopIteration"):
        await call(next, iter(()), timeout_seconds=5)


async def test_plain_functions_run_as_many_at_once_as_the_caller_allows() -> None:
    together = threading.Barrier(32, timeout=20)

    def meet(_item: int) -> bool:
        together.wait()  # passes only when all 32 have arrived
        return True

    async def one(item: int) -> bool:
        return await call(meet, item)

    assert await map_bounded(range(32), one, concurrency=32) == [True] * 32


def test_a_plain_function_that_never_returns_does_not_keep_asyncio_run_from_returning() -> None:
    forever = threading.Event()
    with pytest.raises(TimeoutError):
        asyncio.run(call(forever.wait, timeout_seconds=0.02))
    forever.set()


async def test_functions_that_hang_take_no_thread_from_others() -> None:
    forever = threading.Event()
    for _ in range(40):
        with pytest.raises(TimeoutError):
            await call(forever.wait, timeout_seconds=0.001)
    assert await call(len, "abc", timeout_seconds=20) == 3
    forever.set()


async def test_a_cancellation_raised_by_the_function_itself_is_a_cancellation() -> None:
    async def cancelled(item: int) -> int:
        if item == 2:
            raise asyncio.CancelledError
        return item

    with pytest.raises(asyncio.CancelledError):
        await map_bounded(range(5), cancelled, concurrency=2)
