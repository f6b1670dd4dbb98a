"""`record` captures every model call made inside its block as part of an episode."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from orbiter.train.capture.context import OPEN
from orbiter.train.capture.episode import CURRENT, Episode
from orbiter.train.capture.redact import Redact, Redactor
from orbiter.train.capture.threads import follow_threads
from orbiter.train.capture.transport import watch
from orbiter.train.errors import ConfigError, DataError, TrainError
from orbiter.train.trajectory import TrajectoryDataset

OTHER_TRANSPORTS = ("urllib3", "grpc", "botocore")


@contextmanager
def record(
    dataset: TrajectoryDataset,
    *,
    agent: str | None = None,
    task_id: str | None = None,
    episode_id: str | None = None,
    redact: Redact = None,
) -> Iterator[Episode]:
    """Capture every model call made inside the block, in sync and async code alike.

    It sees chat completions, Responses and Anthropic messages sent through httpx, httpx2, requests
    or aiohttp, as the clients of OpenAI and Anthropic and frameworks built on them do; streamed or
    not; from this task and from the tasks and threads that it starts. Each call is in the dataset
    before its reply reaches the agent, and waits for `episode.reward(...)` or
    `episode.step_reward(...)`. A block inside another one is a separate episode.

    Args:
        dataset: Where the items go; give it a `path` so that they survive a crash.
        agent: Name of the agent, until a hook reports a better one.
        task_id: The task; attempts at the same task share it. A nested block inherits it.
        episode_id: Name of the attempt; a new one by default.
        redact: Patterns (regular expressions) to replace by "[redacted]", or a function from text
            to text; applied to every text before anything is kept.

    Raises:
        DataError: no call was captured; the message says what was seen instead.
        StorageError: calls could not be written to disk.
    """
    if not isinstance(dataset, TrajectoryDataset):
        raise ConfigError(
            f"record needs a TrajectoryDataset to store the calls in, got {dataset!r:.60}"
        )
    watch()
    follow_threads()
    outer = CURRENT.get()
    episode = Episode(
        dataset,
        agent=agent,
        task_id=task_id,
        episode_id=episode_id,
        redactor=Redactor(redact),
        parent=outer,
    )
    # Counts calls outside of every block, to explain an empty capture.
    strays = OPEN.enter()
    CURRENT.set(episode)
    try:
        yield episode
    except BaseException as error:
        _leave(episode, outer)
        _settle_beside(episode, error)
        raise
    _leave(episode, outer)
    # The call that could not be stored is lost; the block must not look as if it were captured.
    if episode.errors:
        raise episode.errors[0]
    if not episode.calls:
        raise DataError(_why_nothing(episode, OPEN.strays - strays))
    episode.settle()


def _leave(episode: Episode, outer: Episode | None) -> None:
    CURRENT.set(outer)  # not reset(): a fixture may exit in another context than it entered
    OPEN.leave()
    episode.leave()


def _settle_beside(episode: Episode, error: BaseException) -> None:
    """Assign the reward although the block raised; further errors become notes on its exception."""
    try:
        if episode.calls:
            episode.settle()
    except TrainError as problem:
        error.add_note(f"and the episode's reward could not be given: {problem}")
    for lost in episode.errors:
        error.add_note(f"and a call could not be captured: {lost}")


def _why_nothing(episode: Episode, strays: int) -> str:
    """Explain why nothing was captured, and what to do about it."""
    reasons = []
    if episode.failures:
        last = episode.failures[-1]
        reasons.append(
            f"{len(episode.failures)} requests to a model brought no answer, the last "
            f"with status {last.status}: {last.error}"
        )
    if episode.other_requests:
        seen = ", ".join(episode.other_requests)
        reasons.append(f"requests to no known model API were seen: {seen}")
    if strays:
        reasons.append(
            f"{strays} model calls were made at the same time outside of every block: in a thread "
            "or task that was started before it"
        )
    if not reasons:
        used = [name for name in OTHER_TRANSPORTS if name in sys.modules]
        beside = f" ({', '.join(used)} loaded)" if used else ""
        reasons.append(
            "no request through httpx, httpx2, requests or aiohttp was seen: a client on another "
            f"transport{beside} or an agent in another process needs the proxy (orbiter-train "
            "proxy), one without HTTP needs @traced or episode.add()"
        )
    return f"nothing was captured in episode {episode.id}: {'; '.join(reasons)}"
