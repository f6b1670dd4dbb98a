import asyncio
import math
import threading

import pytest

from orbiter.train.errors import CallbackError, ConfigError, DataError
from orbiter.train.evaluation import Scores, mean_interval, score


async def test_scores_come_in_the_order_of_the_items() -> None:
    async def slow_first(item: int) -> float:
        await asyncio.sleep(0.01 * (4 - item))
        return float(item)

    assert (await score(range(4), slow_first)).values == (0.0, 1.0, 2.0, 3.0)


async def test_a_plain_function_is_welcome_and_true_counts_as_one() -> None:
    scores = await score(["a", "b", "a"], lambda text: text == "a")
    assert scores.values == (1.0, 0.0, 1.0)
    assert scores.mean == pytest.approx(2 / 3)
    assert len(scores) == 3


async def test_no_more_than_concurrency_run_at_once() -> None:
    running, peak = 0, 0

    async def watched(_: int) -> float:
        nonlocal running, peak
        running += 1
        peak = max(peak, running)
        await asyncio.sleep(0.001)
        running -= 1
        return 1.0

    await score(range(20), watched, concurrency=3)
    assert peak == 3


async def test_a_plain_function_does_not_run_on_the_event_loop() -> None:
    names: list[str] = []

    def where(_: int) -> float:
        names.append(threading.current_thread().name)
        return 0.0

    await score([1], where)
    assert names != [threading.main_thread().name]


async def test_what_raises_is_named_by_its_item() -> None:
    def fails(item: int) -> float:
        return 1 / (item - 2)

    with pytest.raises(CallbackError, match="the score of item 2 raised ZeroDivisionError") as info:
        await score(range(4), fails, concurrency=1)
    assert isinstance(info.value.__cause__, ZeroDivisionError)


@pytest.mark.parametrize("bad", [math.nan, math.inf, None, "1"])
async def test_a_score_that_is_no_finite_number_is_named_by_its_item(bad: object) -> None:
    with pytest.raises(CallbackError, match="the score of item 1 must be a finite number"):
        await score([1.0, bad], lambda item: item)  # type: ignore[arg-type,return-value] # under test


async def test_an_item_that_takes_too_long_is_named() -> None:
    async def stuck(_: int) -> float:
        await asyncio.sleep(60)
        return 0.0

    with pytest.raises(CallbackError, match="the score of item 0 raised TimeoutError"):
        await score([1], stuck, timeout_seconds=0.01)


async def test_nothing_to_score_and_no_workers_are_refused() -> None:
    with pytest.raises(DataError, match="nothing to score"):
        await score([], lambda _: 1.0)
    with pytest.raises(ConfigError, match="concurrency"):
        await score([1], lambda _: 1.0, concurrency=0)


def test_scores_carry_their_interval() -> None:
    values = (0.0, 0.11, 0.92, 0.53, 0.37, 0.71, 0.29, 0.18, 0.84, 0.66, 0.45, 0.07)
    assert Scores(values).interval(confidence=0.8, seed=4) == mean_interval(
        values, confidence=0.8, seed=4
    )
