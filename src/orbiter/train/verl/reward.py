"""Call the user's reward functions with a time limit, and check every result.

Advantages are computed in `rl/`.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import math
import numbers
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, SupportsFloat

from orbiter.train.callback import call, map_bounded
from orbiter.train.checks import is_finite_number, shown
from orbiter.train.errors import CallbackError, ConfigError, TrainError, boundary
from orbiter.train.trajectory import TrajectoryItem

RewardFn = Callable[..., SupportsFloat | Awaitable[SupportsFloat]]
"""`fn(output)`, or `fn(output, item)` where the second parameter is named `item`; sync or async."""

OnRewardError = Literal["raise", "skip"] | float
"""How a fault is handled: stop the run, skip the sample, or count it as this value."""

LARGEST = 1e18
"""Larger rewards cannot be squared in float32, so their group's spread would be infinite."""


@dataclass(frozen=True, slots=True)
class RewardSpec:
    """One reward signal: a name for the logs, a weight in the total, and the function itself."""

    name: str
    weight: float = 1.0
    fn: RewardFn = None  # type: ignore[assignment] # refused below; weight may thus be left out
    """`fn(output)`; a parameter named `item` also receives the task's TrajectoryItem, for example
    for the expected answer. May be async; otherwise it runs in worker threads, several at once."""

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise ConfigError(f"a reward's name must be a text to log under, got {self.name!r}")
        if not is_finite_number(self.weight):
            raise ConfigError(
                f"weight of reward {self.name!r} must be finite, got {shown(self.weight)}"
            )
        if not callable(self.fn):
            raise ConfigError(
                f"reward {self.name!r} needs fn=, a function from the output to a number, "
                f"got {self.fn!r}"
            )
        _check_signature(self.name, self.fn)

    @property
    def wants_item(self) -> bool:
        """Whether `fn` has a parameter named `item`."""
        return "item" in _parameters(self.fn)


class Scores(NamedTuple):
    """The rewards of a list of outputs; None for a skipped sample."""

    total: list[float | None]
    """Sum over the rewards of weight · fn(output)."""
    by_name: dict[str, list[float | None]]
    """Each reward's results, unweighted."""
    faults: int
    """Number of reward calls that failed or did not return a finite number."""


async def score(
    outputs: Sequence[str],
    items: Sequence[TrajectoryItem],
    rewards: Sequence[RewardSpec],
    *,
    on_error: OnRewardError = "raise",
    timeout_seconds: float | None = 60.0,
    concurrency: int = 16,
    first_index: int = 0,
) -> Scores:
    """Call every reward on every output, `concurrency` at once; `items[i]` belongs to output i.

    Error messages number the items starting from `first_index`.

    Raises:
        CallbackError: with `on_error="raise"`, at the first fault: a function that raised, took
            too long, or returned anything but a finite number. Names reward, item and output.
    """

    async def ask(pair: tuple[int, RewardSpec]) -> float | None:
        index, spec = pair
        try:
            where = first_index + index
            return await _ask(spec, where, outputs[index], items[index], timeout_seconds)
        except TrainError:
            if on_error == "raise":
                raise
            faults.append(index)
            return None if on_error == "skip" else on_error

    faults: list[int] = []
    pairs = [(index, spec) for index in range(len(outputs)) for spec in rewards]
    answers = await map_bounded(pairs, ask, concurrency=concurrency)
    by_name = {spec.name: answers[at :: len(rewards)] for at, spec in enumerate(rewards)}
    total = [
        _total(rewards, [by_name[spec.name][i] for spec in rewards]) for i in range(len(outputs))
    ]
    return Scores(total, by_name, len(faults))


def _total(rewards: Sequence[RewardSpec], answers: Sequence[float | None]) -> float | None:
    """Sum weight · answer; None if any reward skipped the sample."""
    known = [answer for answer in answers if answer is not None]
    if len(known) < len(answers):
        return None
    return math.fsum(spec.weight * answer for spec, answer in zip(rewards, known, strict=True))


async def _ask(
    spec: RewardSpec, index: int, output: str, item: TrajectoryItem, timeout_seconds: float | None
) -> float:
    where = (
        f"reward {spec.name!r} on item {index} "
        f"(state {_excerpt(item.state)}, output {_excerpt(output)})"
    )
    fn = functools.partial(spec.fn, output, **({"item": item} if spec.wants_item else {}))
    try:
        async with asyncio.timeout(timeout_seconds):
            with boundary(where):
                answer: object = await call(fn)
    except TimeoutError as error:
        raise CallbackError(f"{where} gave no answer within {timeout_seconds:g} s") from error
    except (asyncio.CancelledError, SystemExit) as error:
        task = asyncio.current_task()
        if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
            raise  # this call was cancelled from outside
        raise CallbackError(f"{where} raised {type(error).__name__}: {error}") from error
    value = _as_float(answer)
    if value is None or not abs(value * spec.weight) <= LARGEST:
        hint = ""
        if inspect.iscoroutine(answer):
            answer.close()  # avoids a warning that it was never awaited
            hint = " (a coroutine that was never awaited)"
        raise CallbackError(
            f"{where} returned {_excerpt(answer)}{hint}, and a reward must be one finite number; "
            "to continue without such samples set on_reward_error='skip', or a number to count "
            "instead"
        )
    return value


def _as_float(answer: object) -> float | None:
    """Return a Python, NumPy or torch number as a float; None for anything else."""
    scalar = isinstance(answer, numbers.Real) or (
        getattr(answer, "shape", None) == () and isinstance(answer, SupportsFloat)
    )
    try:
        return float(answer) if scalar else None  # type: ignore[arg-type] # a scalar has __float__
    except (OverflowError, TypeError, ValueError):  # 10**400; a complex or text array
        return None


def _excerpt(value: object, length: int = 60) -> str:
    if isinstance(value, str):
        return repr(value if len(value) <= length else f"{value[:length]}...")
    return shown(value, length)


def _parameters(fn: RewardFn) -> frozenset[str]:
    try:
        return frozenset(inspect.signature(fn).parameters)
    except ValueError:  # a few built-ins have no signature
        return frozenset()


def _check_signature(name: str, fn: RewardFn) -> None:
    """Refuse a function that cannot be called as `fn(output)`, before a model is loaded."""
    try:
        signature = inspect.signature(fn)
    except ValueError:
        return
    keywords = {"item": None} if "item" in signature.parameters else {}
    try:
        signature.bind("output", **keywords)
    except TypeError as error:
        raise ConfigError(
            f"reward {name!r} must be callable as fn(output) or fn(output, item), "
            f"but its signature is {signature} ({error})"
        ) from None
