import asyncio
import functools
import math
import threading
import time
from collections.abc import Callable

import numpy as np
import pytest
import torch

from orbiter.train.errors import CallbackError, ConfigError, DataError
from orbiter.train.trajectory import TrajectoryItem
from orbiter.train.verl.reward import OnRewardError, RewardSpec, score

ITEM = TrajectoryItem(state="2+3?", action="5", metadata={"answer": "5"})


async def ask(
    fn: Callable[..., object], outputs: list[str] | None = None, **settings: object
) -> list[float | None]:
    outputs = outputs or ["some output"]
    spec = RewardSpec("probe", 1.0, fn)  # type: ignore[arg-type] # some return nonsense on purpose
    items = [ITEM] * len(outputs)
    return (await score(outputs, items, [spec], **settings)).total  # type: ignore[arg-type]


async def later(output: str) -> float:
    await asyncio.sleep(0)
    return float(len(output))


class Judge:
    def __call__(self, output: str) -> float:
        return float(len(output))


@pytest.mark.parametrize(
    "fn",
    [
        len,
        later,
        Judge(),
        functools.partial(lambda k, output: k * len(output), 1),
        lambda output: len(output) + 0,
    ],
)
async def test_every_kind_of_callable_is_welcome(fn: Callable[..., object]) -> None:
    assert await ask(fn, ["abc", ""]) == [3.0, 0.0]


@pytest.mark.parametrize(
    ("answer", "worth"),
    [
        (True, 1.0),
        (False, 0.0),
        (3, 3.0),
        (np.float32(0.5), 0.5),
        (np.int64(2), 2.0),
        (torch.tensor(0.25), 0.25),
        (np.array(0.75), 0.75),
        (-1e17, -1e17),
    ],
)
async def test_numbers_of_every_kind_count(answer: object, worth: float) -> None:
    assert await ask(lambda _: answer) == [worth]


async def test_a_parameter_named_item_gets_the_task() -> None:
    def exact(output: str, item: TrajectoryItem) -> bool:
        return output == item.metadata["answer"]

    async def keyword_only(output: str, *, item: TrajectoryItem) -> bool:
        return output == item.metadata["answer"]

    assert await ask(exact, ["5", "6"]) == [1.0, 0.0]
    assert await ask(keyword_only, ["5", "6"]) == [1.0, 0.0]


async def test_the_total_is_the_weighted_sum_and_each_reward_is_told_apart() -> None:
    rewards = [RewardSpec("length", 0.5, len), RewardSpec("brevity", -2.0, lambda o: o == "")]
    scores = await score(["abcd", ""], [ITEM, ITEM], rewards)
    assert scores.total == [2.0, -2.0]
    assert scores.by_name == {"length": [4.0, 0.0], "brevity": [0.0, 1.0]}
    assert scores.faults == 0


def raises(output: str) -> float:
    raise ValueError("no such key")


def stops(output: str) -> float:
    return next(iter(()))


async def hangs(output: str) -> float:
    await asyncio.sleep(60)
    return 1.0


def sleeps(output: str) -> float:
    time.sleep(0.4)
    return 1.0


async def refuses(output: str) -> float:
    raise DataError("our own kind of error")


FAULTS: dict[str, tuple[Callable[..., object], str]] = {
    "raises": (raises, "raised ValueError: no such key"),
    "stops": (stops, "StopIteration"),
    "refuses": (refuses, "our own kind of error"),
    "hangs": (hangs, "gave no answer within 0.1 s"),
    "sleeps": (sleeps, "gave no answer within 0.1 s"),
    "nan": (lambda _: math.nan, "returned nan"),
    "inf": (lambda _: math.inf, "returned inf"),
    "-inf": (lambda _: -math.inf, "returned -inf"),
    "too large to square": (lambda _: 1e30, "returned 1e\\+30"),
    "None": (lambda _: None, "returned None"),
    "text": (lambda _: "0.5", "returned '0.5'"),
    "list": (lambda _: [0.5], r"returned \[0.5\]"),
    "array": (lambda _: np.array([0.5]), "returned array"),
    "tensor": (lambda _: torch.tensor([0.5, 0.5]), "returned tensor"),
    "nan tensor": (lambda _: torch.tensor(math.nan), "returned tensor"),
    "dict": (lambda _: {"score": 1}, "returned {'score': 1}"),
    "complex": (lambda _: 1j, "returned 1j"),
}


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_fault_stops_with_its_name(fault: str) -> None:
    fn, words = FAULTS[fault]
    with pytest.raises((CallbackError, DataError), match=words):
        await ask(fn, timeout_seconds=0.1)


@pytest.mark.parametrize("fault", sorted(FAULTS.keys() - {"sleeps"}))
@pytest.mark.parametrize(("policy", "worth"), [("skip", None), (-1.0, -1.0)])
async def test_a_fault_skips_the_sample_or_counts_as_told(
    fault: str, policy: OnRewardError, worth: float | None
) -> None:
    fn, _ = FAULTS[fault]

    async def sometimes(output: str) -> object:
        if output == "good":
            return 0.5
        result = fn(output)
        return await result if asyncio.iscoroutine(result) else result

    spec = RewardSpec("probe", 2.0, sometimes)  # type: ignore[arg-type] # nonsense on purpose
    outputs = ["good", "bad", "good"]
    scores = await score(outputs, [ITEM] * 3, [spec], on_error=policy, timeout_seconds=0.1)
    expected = None if worth is None else 2.0 * worth
    assert scores.total == [1.0, expected, 1.0]
    assert scores.by_name["probe"] == [0.5, worth, 0.5]
    assert scores.faults == 1


async def test_a_sample_that_one_reward_skips_has_no_total() -> None:
    good, bad = RewardSpec("good", 1.0, len), RewardSpec("bad", 1.0, raises)
    scores = await score(["abc"], [ITEM], [good, bad], on_error="skip")
    assert scores.total == [None]
    assert scores.by_name == {"good": [3.0], "bad": [None]}


async def test_an_error_names_reward_item_and_an_excerpt() -> None:
    item = TrajectoryItem(state="What is the capital of France?", action="Paris")
    with pytest.raises(CallbackError) as stopped:
        await score(["x", "y" * 500], [item, item], [RewardSpec("length", 1.0, _fails_on_long)])
    said = str(stopped.value)
    assert "reward 'length' on item 1" in said
    assert "capital of France" in said
    assert "yyy..." in said
    assert len(said) < 400
    assert isinstance(stopped.value.__cause__, KeyError)


def _fails_on_long(output: str) -> float:
    if len(output) > 100:
        raise KeyError("long")
    return 0.0


async def test_rewards_run_at_once_but_not_more_than_allowed() -> None:
    under_way, most = 0, 0

    async def slow(output: str) -> float:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0.01)
        under_way -= 1
        return 1.0

    began = time.perf_counter()
    await ask(slow, [""] * 40, concurrency=20)
    assert most == 20
    assert time.perf_counter() - began < 0.3


async def test_a_slow_plain_reward_does_not_hold_up_the_loop() -> None:
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0.005)
            ticks += 1

    ticking = asyncio.create_task(tick())

    def slow(output: str) -> float:
        time.sleep(0.15)
        return 1.0

    await ask(slow)
    ticking.cancel()
    assert ticks > 5


async def test_a_plain_reward_runs_off_the_loops_thread() -> None:
    seen: list[threading.Thread] = []

    def look(output: str) -> float:
        seen.append(threading.current_thread())
        return 1.0

    await ask(look)
    assert seen[0] is not threading.main_thread()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: RewardSpec("r"), "needs fn="),
        (lambda: RewardSpec("r", 1.0, "len"), "needs fn=, .* got 'len'"),  # type: ignore[arg-type]
        (lambda: RewardSpec("", 1.0, len), "name must be a text"),
        (lambda: RewardSpec("r", math.nan, len), "weight of reward 'r' must be finite"),
        (lambda: RewardSpec("r", "1", len), "weight of reward 'r'"),  # type: ignore[arg-type]
        (lambda: RewardSpec("r", 1.0, lambda: 1.0), r"callable as fn\(output\)"),
        (lambda: RewardSpec("r", 1.0, lambda _a, _b: 1.0), r"callable as fn\(output\)"),
        (
            lambda: RewardSpec("r", 1.0, lambda item: 1.0 if item else 0.0),
            r"callable as fn\(output\)",
        ),
    ],
)
def test_a_spec_that_cannot_work_is_refused_at_once(
    make: Callable[[], RewardSpec], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        make()


def test_the_guides_keywords_work_and_the_weight_may_be_left_out() -> None:
    assert RewardSpec(name="helpfulness", weight=0.6, fn=len).weight == 0.6
    assert RewardSpec(name="helpfulness", fn=len).weight == 1.0


def raises_cancelled(output: str) -> float:
    raise asyncio.CancelledError("inner")


async def cancelled_inside(output: str) -> float:
    raise asyncio.CancelledError


def leaves(output: str) -> float:
    raise SystemExit(3)


class PanicError(BaseException):
    """Like the panics of libraries written in Rust, which are not `Exception`s."""


class SilentError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


def panics(output: str) -> float:
    raise PanicError("a panic")


def fails_silently(output: str) -> float:
    raise SilentError


async def forgets_to_await(output: str) -> object:
    return later(output)


class Hostile:
    def __repr__(self) -> str:
        raise RuntimeError("no repr")


UNUSABLE: dict[str, Callable[..., object]] = {
    "a plain CancelledError": raises_cancelled,
    "an inner CancelledError": cancelled_inside,
    "SystemExit": leaves,
    "a panic": panics,
    "an error without a text": fails_silently,
    "a coroutine": forgets_to_await,
    "10**400": lambda _: 10**400,
    "10**5000": lambda _: 10**5000,
    "an array of one": lambda _: np.array([1.0]),
    "an array of text": lambda _: np.array("one"),
    "a complex scalar": lambda _: np.array(1j),
    "a tensor of one": lambda _: torch.ones(1),
    "a hostile object": lambda _: Hostile(),
    "a list": lambda _: [1.0],
    "bytes": lambda _: b"1",
}


@pytest.mark.parametrize("kind", UNUSABLE)
async def test_what_is_no_number_names_reward_item_and_output(kind: str) -> None:
    with pytest.raises(CallbackError, match=r"reward 'probe' on item 0 .*output 'some output'"):
        await ask(UNUSABLE[kind])
    assert await ask(UNUSABLE[kind], on_error="skip") == [None]
    assert await ask(UNUSABLE[kind], on_error=-1.0) == [-1.0]


async def test_cancelling_the_caller_is_no_fault_of_the_reward() -> None:
    async def waits(output: str) -> float:
        await asyncio.sleep(60)
        return 1.0

    task = asyncio.create_task(ask(waits, on_error="skip"))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def test_a_weight_beyond_every_float_is_refused() -> None:
    with pytest.raises(ConfigError, match="weight of reward 'x' must be finite"):
        RewardSpec("x", 10**400, later)
