"""Run an agent over many tasks and capture each run as an episode, failed runs included."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Generic, Protocol, SupportsFloat, TypeVar

from orbiter.train.callback import call, map_bounded
from orbiter.train.capture.episode import Episode
from orbiter.train.capture.record import record
from orbiter.train.capture.redact import Redact
from orbiter.train.errors import ConfigError, DataError, boundary
from orbiter.train.json_files.fields import number
from orbiter.train.progress import LOG_SECONDS, make_progress
from orbiter.train.trajectory import TrajectoryDataset, TrajectoryItem

T = TypeVar("T")


T_contra = TypeVar("T_contra", contravariant=True)


class Runs(Protocol[T_contra]):
    """An object with a method `run` that takes a task."""

    def run(self, task: T_contra, /) -> object:
        """Work on one task and return the result."""


Agent = Callable[[T], object] | Runs[T]
"""An agent: a function from a task to a result (sync or async), or an object with `run`."""
Reward = Callable[[T, object], SupportsFloat | Awaitable[SupportsFloat]]
"""Computes the reward from a task and the agent's result."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run(Generic[T]):
    """The outcome of one task."""

    task: T
    task_id: str
    episode_ids: tuple[str, ...]
    """The attempts, in order; the last one is the result."""
    result: object = None
    """What the agent returned; None if it failed."""
    reward: float | None = None
    error: str | None = None
    """Why the last attempt failed; None if it succeeded."""
    calls: int = 0
    """Items captured in the last attempt."""
    seconds: float = 0.0
    """Total over all attempts."""


@dataclass(frozen=True, slots=True)
class Collected(Generic[T]):
    """The result of `collect`."""

    dataset: TrajectoryDataset
    runs: tuple[Run[T], ...]
    """In task order."""

    @property
    def failed(self) -> tuple[Run[T], ...]:
        """The tasks whose last attempt failed."""
        return tuple(run for run in self.runs if run.error is not None)

    def __str__(self) -> str:
        calls = sum(run.calls for run in self.runs)
        known = [run.reward for run in self.runs if run.reward is not None]
        mean = f", mean reward {sum(known) / len(known):.3f}" if known else ""
        tasks = len({run.task_id for run in self.runs})
        played = f"{tasks} tasks"
        if tasks != len(self.runs):
            played = f"{len(self.runs)} attempts at {played}"
        return f"{played}, {len(self.failed)} failed, {calls} calls{mean}"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan(Generic[T]):
    agent: Callable[[T], object]
    name: str | None
    reward: Reward[T] | None
    dataset: TrajectoryDataset
    retries: int
    timeout_seconds: float | None
    gamma: float
    failure_reward: float | None
    redact: Redact


async def collect(
    agent: Agent[T],
    tasks: Sequence[T],
    reward: Reward[T] | None = None,
    *,
    dataset: TrajectoryDataset | None = None,
    attempts: int = 1,
    concurrency: int = 8,
    retries: int = 0,
    timeout_seconds: float | None = None,
    gamma: float = 1.0,
    failure_reward: float | None = 0.0,
    redact: Redact = None,
    progress: bool | None = None,
) -> Collected[T]:
    """Run an agent over tasks and capture every model call it makes.

    An attempt fails if it raises, times out, or makes no model call. Its calls stay in the dataset,
    with `episode_error` on the last one; an attempt without calls leaves one item with an empty
    action. A plain (not async) agent runs in a thread, which a timeout cannot stop.

    Args:
        agent: A function from a task to a result, or an object with `run`; sync or async.
        tasks: Whatever the agent takes. Items, and mappings with a `task_id`, carry their task id;
            any other task is identified by a hash of its text.
        reward: Scores a result; called as `reward(task, result)`. Without it, the items wait for a
            reward.
        dataset: Where the items go; a new dataset by default.
        attempts: Episodes per task; several form a group.
        concurrency: Maximum number of episodes at once.
        retries: Further tries after a failure; each is a separate episode.
        timeout_seconds: Time limit for one attempt.
        gamma: Discount of the reward per step before the last one.
        failure_reward: Reward of a failed attempt; None leaves its items waiting.
        redact: As for `record`.
        progress: Whether to show a progress bar; None shows it on a terminal only.

    Raises:
        ConfigError: a setting is invalid.
        CallbackError: the reward function raised, or returned something that is not a finite
            number.
        DataError: no attempt at any task called a model; the message suggests why.
    """
    _check(agent, attempts, concurrency, retries)
    plan = _Plan(
        agent=agent if callable(agent) else agent.run,
        name=_name_of(agent),
        reward=reward,
        dataset=TrajectoryDataset() if dataset is None else dataset,
        retries=retries,
        timeout_seconds=timeout_seconds,
        gamma=gamma,
        failure_reward=failure_reward,
        redact=redact,
    )
    wanted = [task for task in tasks for _ in range(attempts)]
    runs = await _run_all(plan, wanted, concurrency, progress)
    if runs and not any(run.calls for run in runs):
        raise DataError(f"no task was captured; the first failed with: {runs[0].error}")
    return Collected(plan.dataset, tuple(runs))


async def _run_all(
    plan: _Plan[T], tasks: Sequence[T], concurrency: int, progress: bool | None
) -> list[Run[T]]:
    """Run all tasks, at most `concurrency` at once, and show the progress."""
    failed = 0
    with make_progress("episodes", len(tasks), shown=progress, every_seconds=LOG_SECONDS) as bar:

        async def run_and_count(task: T) -> Run[T]:
            nonlocal failed
            run = await _run(plan, task)
            failed += run.error is not None
            bar.update(bar.done + 1, f"{failed} failed")
            return run

        return await map_bounded(tasks, run_and_count, concurrency=concurrency)


async def _run(plan: _Plan[T], task: T) -> Run[T]:
    """Run one task until an attempt succeeds, or there are no more retries."""
    run = Run(task=task, task_id=_task_id(task), episode_ids=())
    for _ in range(plan.retries + 1):
        run = await _attempt(plan, run)
        if run.error is None:
            break
    return run


async def _attempt(plan: _Plan[T], before: Run[T]) -> Run[T]:
    """Make one attempt: run the episode, then record its reward or its error."""
    started = time.perf_counter()
    episode: Episode | None = None
    result, reward, error = None, None, None
    try:
        with record(
            plan.dataset, agent=plan.name, task_id=before.task_id, redact=plan.redact
        ) as episode:
            result, error = await _answer(plan, before.task)
            if error is not None:
                episode.abandon(error)
    except DataError as nothing:
        # A DataError with captured calls comes from the data set and must not be taken for a
        # failure.
        if episode is None or episode.calls:
            raise
        error = error or str(nothing)
        _keep_empty(plan, episode, before.task, error)
    assert episode is not None
    if error is None:
        # The reward is asked for outside the record block, so that its own model calls are not
        # captured.
        reward = await _reward(plan, before.task, result)
    else:
        reward = plan.failure_reward
    # An episode without steps has no item that could hold the reward.
    if reward is not None and episode.steps:
        episode.reward(reward, plan.gamma)
    return replace(
        before,
        episode_ids=(*before.episode_ids, episode.id),
        result=result,
        reward=reward,
        error=error,
        calls=episode.calls,
        seconds=before.seconds + time.perf_counter() - started,
    )


async def _answer(plan: _Plan[T], task: T) -> tuple[object, str | None]:
    """Return the agent's result, or None and the reason it failed."""
    try:
        return await call(plan.agent, task, timeout_seconds=plan.timeout_seconds), None
    except TimeoutError as error:
        late = f"no result after {plan.timeout_seconds} seconds"
        # The agent's own TimeoutError is a failure like any other.
        return None, late if plan.timeout_seconds is not None else f"TimeoutError: {error}"
    except Exception as error:
        return None, f"{type(error).__name__}: {error}"


async def _reward(plan: _Plan[T], task: T, result: object) -> float | None:
    if plan.reward is None:
        return None
    with boundary(f"reward of task {_task_id(task)!r}"):
        return number("reward", await call(plan.reward, task, result))


def _keep_empty(plan: _Plan[T], episode: Episode, task: T, error: str) -> None:
    """Keep an episode without calls as one item: the task, an empty action, and the error."""
    plan.dataset.capture(
        TrajectoryItem(
            _text(task),
            "",
            plan.failure_reward,
            {"episode_error": error},
            task_id=episode.task_id,
            episode_id=episode.id,
            step=0,
            agent=plan.name,
        )
    )


def _check(agent: object, attempts: int, concurrency: int, retries: int) -> None:
    if not callable(agent) and not callable(getattr(agent, "run", None)):
        raise ConfigError(f"agent must be callable, or have a method run, got {agent!r:.60}")
    if attempts < 1 or concurrency < 1 or retries < 0:
        raise ConfigError(
            "attempts and concurrency must be at least 1 and retries at least 0, got "
            f"{attempts=}, {concurrency=}, {retries=}"
        )


def _name_of(agent: object) -> str | None:
    name = getattr(agent, "name", None) or getattr(agent, "__name__", None)
    return name if isinstance(name, str) else None


def _task_id(task: object) -> str:
    named = task.get("task_id") if isinstance(task, Mapping) else getattr(task, "task_id", None)
    if isinstance(named, str):
        return named
    # Tasks without an id are recognised by their text, so their attempts form a group.
    return blake2b(_text(task).encode("utf-8", "replace"), digest_size=8).hexdigest()


def _text(task: object) -> str:
    return task.state if isinstance(task, TrajectoryItem) else str(task)
