"""Call the user's reward functions with a time limit, and check every result.

Advantages are computed in `rl/`.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import math
import numbers
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, SupportsFloat

from orbiter.train.callback import call, map_bounded
from orbiter.train.checks import is_finite_number, shown
from orbiter.train.errors import CallbackError, ConfigError, TrainError, boundary
from orbiter.train.trajectory import TrajectoryItem

RewardFn = Callable[..., SupportsFloat | Awaitable[SupportsFloat]]
"""`fn(output)`, or with parameters named as in `NAMED`; sync or async."""

OF_EPISODES = ("task", "result", "episode")
"""Parameters of a reward that only an agent's episodes have."""
OF_ANSWERS = ("item", "raw_output")
"""Parameters of a reward that answers to prompts have."""
NAMED = (*OF_ANSWERS, *OF_EPISODES)
"""Parameters of a reward that are passed by name to a function that has them."""

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
    """`fn(output)`; a parameter named `item` also gets the task's TrajectoryItem, and so the
    reference answer, and one named `raw_output` the output with its special tokens, such as
    `[TOOL_CALLS]`. With an agent, `task` gets the task, `result` what the agent returned and
    `episode` the whole Episode; `output` may then be left out, and is the result as text. May be
    async. A plain one runs in a worker thread, several at once."""

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

    def bound(self, output: str, known: Mapping[str, object]) -> Callable[[], object]:
        """Return a call of `fn` with the output and the entries of `known` that it names."""
        named = {name: known[name] for name in NAMED if name in known and self.asks_for(name)}
        if _binds(self.fn, output=output, **named):
            # `output` may be at any position among the parameters
            return functools.partial(self.fn, output=output, **named)
        if _binds(self.fn, "output", **named):
            return functools.partial(self.fn, output, **named)
        return functools.partial(self.fn, **named)

    def asks_for(self, name: str) -> bool:
        """Return whether `fn` has a parameter of this name."""
        return name in _parameters(self.fn)

    def requires(self, name: str) -> bool:
        """Return whether `fn` has a parameter of this name without a default."""
        if not self.asks_for(name):
            return False
        return inspect.signature(self.fn).parameters[name].default is inspect.Parameter.empty

    @property
    def needs_episodes(self) -> bool:
        """Whether `fn` can only be called with an agent's episodes."""
        return not _takes_answers(self.fn)


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
    known: Sequence[Mapping[str, object]] | None = None,
) -> Scores:
    """Call every reward on every output, `concurrency` at once; `items[i]` belongs to output i.

    Error messages number the items starting from `first_index`. `known[i]` holds further arguments
    that rewards may ask for by name, besides `item`.

    Raises:
        CallbackError: with `on_error="raise"`, at the first fault: a function that raised, took
            too long, or returned anything but a finite number. Names reward, item and output.
    """

    async def ask(pair: tuple[int, RewardSpec]) -> float | None:
        index, spec = pair
        try:
            where = first_index + index
            given = {"item": items[index], "raw_output": outputs[index]}
            given |= dict(known[index]) if known else {}
            return await _ask(spec, where, outputs[index], given, timeout_seconds)
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
    spec: RewardSpec,
    index: int,
    output: str,
    given: Mapping[str, object],
    timeout_seconds: float | None,
) -> float:
    state = getattr(given["item"], "state", "")
    where = (
        f"reward {spec.name!r} on item {index} (state {_excerpt(state)}, output {_excerpt(output)})"
    )
    fn = spec.bound(output, given)
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


def _binds(fn: RewardFn, *args: object, **named: object) -> bool:
    """Return whether a function can be called with these arguments."""
    try:
        inspect.signature(fn).bind(*args, **named)
    except ValueError:  # a few built-ins do not reveal their signature
        return True
    except TypeError:
        return False
    return True


def _asked(fn: RewardFn, names: Sequence[str]) -> dict[str, None]:
    """Return those of the names that a function has as parameters."""
    parameters = _parameters(fn)
    return {name: None for name in names if name in parameters}


def _takes_answers(fn: RewardFn) -> bool:
    """Return whether a function can be called with the arguments available for an answer."""
    named = _asked(fn, OF_ANSWERS)
    return _binds_output(fn, named) or ("raw_output" in named and _binds(fn, **named))


def _binds_output(fn: RewardFn, named: Mapping[str, object]) -> bool:
    """Return whether a function takes the output, first or by name, besides its named arguments."""
    return _binds(fn, "output", **named) or _binds(fn, output="output", **named)


def _check_signature(name: str, fn: RewardFn) -> None:
    """Refuse a function that cannot be called in any way before a model is loaded for it."""
    named = _asked(fn, (*OF_ANSWERS, *OF_EPISODES))
    of_episode = _binds_output(fn, named) or _binds(fn, **named)
    if not _takes_answers(fn) and not (of_episode and _asked(fn, OF_EPISODES)):
        raise ConfigError(
            f"reward {name!r} must be callable as fn(output) or fn(output, item), or for an agent "
            f"with parameters named {', '.join(OF_EPISODES)}, but its signature is "
            f"{inspect.signature(fn)}"
        )
