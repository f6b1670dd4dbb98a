"""Call the user's reward functions and judges with a time limit, and check every result.

Advantages are computed in `rl/`.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import math
import numbers
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, SupportsFloat

from orbiter.train.callback import call, map_bounded
from orbiter.train.checks import is_finite_number, shown
from orbiter.train.errors import CallbackError, ConfigError, TrainError, boundary, described
from orbiter.train.judging.base import Attempt, BaseJudge, Ruling
from orbiter.train.trajectory import TrajectoryItem
from orbiter.train.verl.judged import attempt_of, grouped, order_effect

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
    fn: RewardFn | BaseJudge = None  # type: ignore[assignment] # refused below; weight may thus be left out
    """`fn(output)`; a parameter named `item` also gets the task's TrajectoryItem, and so the
    reference answer, and one named `raw_output` the output with its special tokens, such as
    `[TOOL_CALLS]`. With an agent, `task` gets the task, `result` what the agent returned and
    `episode` the whole Episode; `output` may then be left out, and is the result as text. May be
    async. A plain one runs in a worker thread, several at once. Or a `Judge`, or a `GroupJudge`,
    which scores the samples of a task by comparing them."""

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise ConfigError(f"a reward's name must be a text to log under, got {self.name!r}")
        if not is_finite_number(self.weight):
            raise ConfigError(
                f"weight of reward {self.name!r} must be finite, got {shown(self.weight)}"
            )
        if isinstance(self.fn, BaseJudge):
            return
        if not callable(self.fn):
            raise ConfigError(
                f"reward {self.name!r} needs fn=, a function from the output to a number, "
                f"got {self.fn!r}"
            )
        _check_signature(self.name, self.fn)

    @property
    def judge(self) -> BaseJudge | None:
        """The judge that scores, if it is one."""
        return self.fn if isinstance(self.fn, BaseJudge) else None

    @property
    def relative(self) -> bool:
        """Whether the samples of a task are scored together, by comparison."""
        return self.judge is not None and self.judge.relative

    def bound(self, output: str, known: Mapping[str, object]) -> Callable[[], object]:
        """Return a call of `fn` with the output and the entries of `known` that it names."""
        fn = self.fn
        assert not isinstance(fn, BaseJudge), "a judge is asked in another way"
        named = {name: known[name] for name in NAMED if name in known and self.asks_for(name)}
        if _binds(fn, output=output, **named):
            # `output` may be at any position among the parameters
            return functools.partial(fn, output=output, **named)
        if _binds(fn, "output", **named):
            return functools.partial(fn, output, **named)
        return functools.partial(fn, **named)

    def asks_for(self, name: str) -> bool:
        """Return whether `fn` has a parameter of this name."""
        return not isinstance(self.fn, BaseJudge) and name in _parameters(self.fn)

    def requires(self, name: str) -> bool:
        """Return whether `fn` has a parameter of this name without a default."""
        fn = self.fn
        if isinstance(fn, BaseJudge) or not self.asks_for(name):
            return False
        return inspect.signature(fn).parameters[name].default is inspect.Parameter.empty

    @property
    def needs_episodes(self) -> bool:
        """Whether `fn` can only be called with an agent's episodes."""
        return not isinstance(self.fn, BaseJudge) and not _takes_answers(self.fn)


def judges_of(rewards: Sequence[RewardSpec]) -> dict[str, BaseJudge]:
    """Return the judges among the rewards, by name."""
    return {spec.name: spec.judge for spec in rewards if spec.judge is not None}


def weights_of(rewards: Sequence[RewardSpec]) -> dict[str, float]:
    """Return the weight of each reward, by name."""
    return {spec.name: float(spec.weight) for spec in rewards}


class SampleScores(NamedTuple):
    """The rewards of a list of outputs; None for a skipped sample."""

    total: list[float | None]
    """Sum over the rewards of weight · fn(output)."""
    by_name: dict[str, list[float | None]]
    """Each reward's results, unweighted."""
    faults: int
    """Number of reward calls that failed or did not return a finite number."""
    left_out: Mapping[str, int] = {}
    """Samples without a judge's verdict, by cause; never changed in place."""
    order_effect: Mapping[str, float] = {}
    """For each group judge the correlation of score and place in the order shown, in [-1, 1]."""


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
    group_sizes: Sequence[int] | None = None,
) -> SampleScores:
    """Call every reward on every output, `concurrency` at once; `items[i]` belongs to output i.

    Error messages number the items starting from `first_index`. `known[i]` holds what rewards may
    ask for by name besides `item`. A relative judge gets the samples of a task together:
    `group_sizes` says how many follow each other; None means that each is alone.

    A judge whose answers cannot be read leaves its samples out; that is no fault, and not a score.

    Raises:
        CallbackError: with `on_error="raise"`, at the first fault: a function that raised, took
            too long, or returned anything but a finite number. Names reward, item and output.
        BudgetError: with `on_error="raise"`, a judge reached a limit of its calls.
    """
    faults = 0

    async def ask(question: _RewardCall) -> list[Ruling]:
        nonlocal faults
        try:
            return await question.answer(timeout_seconds)
        except TrainError:
            if on_error == "raise":
                raise
            faults += 1
            value = None if on_error == "skip" else on_error
            return [Ruling(value)] * len(question.samples)

    samples = _samples(outputs, items, first_index, known)
    groups = list(grouped(samples, [1] * len(samples) if group_sizes is None else group_sizes))
    questions = [question for group in groups for question in _questions(rewards, group)]
    answers = await map_bounded(questions, ask, concurrency=concurrency)
    rulings: dict[str, list[Ruling]] = {spec.name: [] for spec in rewards}
    for question, answer in zip(questions, answers, strict=True):
        rulings[question.spec.name] += answer
    by_name = {name: [ruling.score for ruling in given] for name, given in rulings.items()}
    causes = Counter(r.cause for given in rulings.values() for r in given if r.cause)
    sizes = [len(group) for group in groups]
    effects = {
        spec.name: effect
        for spec in rewards
        if spec.relative
        and (effect := order_effect(grouped(rulings[spec.name], sizes))) is not None
    }
    total = totals(rewards, by_name, len(outputs))
    return SampleScores(total, by_name, faults, dict(sorted(causes.items())), effects)


def totals(
    rewards: Sequence[RewardSpec], by_name: Mapping[str, Sequence[float | None]], count: int
) -> list[float | None]:
    """Return the weighted sum of the rewards for each sample; None if any of them is None."""
    return [_total(rewards, [by_name[spec.name][i] for spec in rewards]) for i in range(count)]


def _total(rewards: Sequence[RewardSpec], answers: Sequence[float | None]) -> float | None:
    """Sum weight · answer; None if any reward skipped the sample."""
    known = [answer for answer in answers if answer is not None]
    if len(known) < len(answers):
        return None
    return math.fsum(spec.weight * answer for spec, answer in zip(rewards, known, strict=True))


class _OutputToScore(NamedTuple):
    """An output with what rewards may ask for."""

    number: int
    """The item's number, for error messages."""
    output: str
    given: Mapping[str, object]


def _samples(
    outputs: Sequence[str],
    items: Sequence[TrajectoryItem],
    first_index: int,
    known: Sequence[Mapping[str, object]] | None,
) -> list[_OutputToScore]:
    return [
        _OutputToScore(
            first_index + i,
            outputs[i],
            {"item": items[i], "raw_output": outputs[i]} | dict(known[i] if known else {}),
        )
        for i in range(len(outputs))
    ]


class _RewardCall(NamedTuple):
    """One call of a reward: on one sample, or of a relative judge on a group."""

    spec: RewardSpec
    samples: Sequence[_OutputToScore]

    async def answer(self, timeout_seconds: float | None) -> list[Ruling]:
        """Call the reward."""
        if self.spec.judge is None:
            [sample] = self.samples
            return [Ruling(await _ask(self.spec, *sample, timeout_seconds))]
        attempts = [attempt_of(sample.output, sample.given) for sample in self.samples]
        return await _ask_judge(self.spec, self.samples[0], attempts, timeout_seconds)


def _questions(
    rewards: Sequence[RewardSpec], group: Sequence[_OutputToScore]
) -> Iterator[_RewardCall]:
    """Yield all calls for a group: sample by sample, then those about the whole group."""
    for sample in group:
        yield from (_RewardCall(spec, [sample]) for spec in rewards if not spec.relative)
    if group:
        yield from (_RewardCall(spec, group) for spec in rewards if spec.relative)


async def _ask_judge(
    spec: RewardSpec,
    first: _OutputToScore,
    attempts: Sequence[Attempt],
    timeout_seconds: float | None,
) -> list[Ruling]:
    assert spec.judge is not None
    where = f"judge {spec.name!r} on item {first.number} (task {_excerpt(attempts[0].task)})"
    try:
        async with asyncio.timeout(timeout_seconds):
            with boundary(where):
                return await spec.judge.rule_on(attempts)
    except TimeoutError as error:
        raise CallbackError(f"{where} gave no answer within {timeout_seconds:g} s") from error
    except CallbackError as error:
        raise CallbackError(f"{where}: {error}") from error


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
    except (TrainError, KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as error:  # SystemExit, a cancellation, panics of libraries in Rust
        task = asyncio.current_task()
        if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
            raise  # this call was cancelled from outside
        raise CallbackError(f"{where} raised {described(error)}") from error
    value = _as_float(answer)
    # `not ... <=` refuses NaN as well.
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
