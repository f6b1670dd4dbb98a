"""One episode: an agent's work on one task, with all data that training uses."""

from __future__ import annotations

import contextlib
import functools
import inspect
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, cast

from orbiter.train.agents.plain import as_plain, as_plain_or_text
from orbiter.train.checks import is_finite_number, shown
from orbiter.train.errors import ConfigError, DataError, StateError

if TYPE_CHECKING:
    from orbiter.train.agents.streams import Stream
    from orbiter.train.serve.session import BlockingResponse, LiveSession, Response, Turn

StopReason = Literal[
    "done",
    "max_turns",
    "max_tokens",
    "context",
    "max_response",
    "timeout",
    "agent_error",
    "scored_error",
    "no_calls",
]
FAILURES: tuple[StopReason, ...] = ("agent_error", "timeout", "no_calls")
"""Stop reasons that say nothing about the policy: such an episode is not trained on."""
LIMITS: tuple[StopReason, ...] = ("max_turns", "max_tokens", "context", "max_response")
"""Stop reasons of an episode that reached a limit before it was finished.

"max_response": the agent raised because an answer was cut off at `max_response_length`.
"""
SCORED_ERROR: StopReason = "scored_error"
"""The agent raised, and the run's `on_agent_error` gives such an episode a reward."""
STOPPED: tuple[StopReason, ...] = (*LIMITS, SCORED_ERROR)
"""Stop reasons that a step counts, other than failures."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Episode:
    """One attempt of an agent at a task."""

    task: object
    """The task, as passed to the agent."""
    attempt: int
    """0 for the first attempt at the task in this step."""
    result: object
    """The agent's result; None if it raised or was stopped."""
    output: str
    """The result as text; see `as_text`."""
    turns: tuple[Turn, ...]
    """Every answer of the policy, in the order in which they ended."""
    streams: tuple[Stream, ...]
    """The turns as token sequences to train on."""
    stop_reason: StopReason
    """"done", the limit that the agent reached, or the reason why the episode failed."""
    error: str | None
    """The agent's exception, if it raised one; without a call of the policy, the reason."""
    step_rewards: tuple[float, ...]
    """The rewards passed to `current_episode().step_reward`."""
    step_reward_turns: tuple[int, ...] = ()
    """The turn of each step reward: the last one answered before it."""
    seconds: float
    retries: int = 0
    """The number of earlier attempts, which failed."""

    @property
    def failed(self) -> bool:
        """Whether it ended for a reason that says nothing about the policy."""
        return self.stop_reason in FAILURES

    @property
    def truncated(self) -> bool:
        """Whether a limit ended it: turns, tokens, the model's context, or those of an answer."""
        return self.stop_reason in LIMITS

    @property
    def sampled_tokens(self) -> int:
        """Tokens that the policy drew, over all streams."""
        return sum(sum(stream.mask) for stream in self.streams)


class OpenEpisode:
    """An episode in progress, as the agent's own code reaches it: see `current_episode`.

    It passes model calls on to the session, so code that receives the calls also reaches the
    episode.
    """

    def __init__(self, session: LiveSession, task: object, attempt: int) -> None:
        self._session = session
        self._closed = False
        self.task, self.attempt = task, attempt
        self.step_rewards: list[float] = []
        self.step_reward_turns: list[int] = []

    def step_reward(self, value: float) -> None:
        """Add to the reward of this episode, as a reward of the turn that was answered last.

        Raises:
            DataError: the value is not a finite number.
            StateError: the episode is over, so the reward would be lost.
        """
        if self._closed:
            raise StateError("step_reward() was called after the end of its episode")
        # Checked before it is recorded: a NaN would spread to the advantages of the whole group.
        if not is_finite_number(value) or not math.isfinite(float(value)):
            raise DataError(f"a step reward must be a finite number, got {shown(value)}")
        self.step_rewards.append(float(value))
        # Before the first answer there is no turn yet; the reward then goes to the first one.
        self.step_reward_turns.append(max(0, len(self._session.turns) - 1))

    def takes(self, method: str, path: str) -> bool:
        """Return whether a request is a model call."""
        return self._session.takes(method, path)

    async def handle(self, path: str, headers: Mapping[str, str], body: bytes) -> Response:
        """Answer a model call."""
        return await self._session.handle(path, headers, body)

    def handle_blocking(
        self, path: str, headers: Mapping[str, str], body: bytes
    ) -> BlockingResponse:
        """Answer a model call and block the calling thread meanwhile."""
        return self._session.handle_blocking(path, headers, body)

    def close(self) -> None:
        """End the episode: later model calls get 410."""
        self._closed = True
        self._session.close()


def current_episode() -> OpenEpisode:
    """Return the episode that the calling code runs in, to give it step rewards.

    Works in the agent's tasks and in the threads that it starts.

    Raises:
        StateError: no episode is in progress here.
    """
    from orbiter.train.capture.in_process import ANSWERING

    # A context variable, so that episodes that run at the same time each find their own.
    answering = ANSWERING.get()
    if answering is None or not isinstance(answering.answerer, OpenEpisode):
        raise StateError(
            "current_episode() was called outside an episode; it works only in an agent that "
            "VeRLTrainer(agent=...) or run_episode() runs"
        )
    return answering.answerer


def runs(agent: object) -> bool:
    """Return whether an agent can be run: it is a function, or an object with `run`."""
    return callable(agent) or callable(getattr(agent, "run", None))


def entry_of(agent: object) -> Callable[[object], object]:
    """Return the function that works on a task: the agent's `run`, or the agent itself.

    Raises:
        ConfigError: the agent is a class, or neither callable nor an object with `run`; or it
            cannot be called with one task, or is a generator.
    """
    if isinstance(agent, type):
        raise ConfigError(
            f"agent= is the class {agent.__name__}; pass an instance, a function or a method"
        )
    run = getattr(agent, "run", None)
    # `run` first, because an agent object may be callable for another purpose.
    entry = run if callable(run) else agent
    if not callable(entry):
        raise ConfigError(
            f"agent= must be a function of a task, or an object with run(task), got {shown(agent)}"
        )
    _check_entry(entry)
    return cast("Callable[[object], object]", entry)


def _check_entry(entry: Callable[..., object]) -> None:
    """Refuse a function that would fail in every episode, before a model is loaded for it."""
    # Decorators hide whether the function below them is a generator.
    definition = inspect.unwrap(entry)
    while isinstance(definition, functools.partial):
        definition = inspect.unwrap(definition.func)
    name = getattr(definition, "__name__", type(definition).__name__)
    # An object with __call__, such as a compiled graph.
    if not inspect.isroutine(definition):
        definition = type(definition).__call__
    if inspect.isgeneratorfunction(definition) or inspect.isasyncgenfunction(definition):
        raise ConfigError(
            f"agent= {name} is a generator, which would never run; return the answer instead of "
            "yielding it"
        )
    try:
        signature = inspect.signature(entry)
    except (TypeError, ValueError):  # a few built-ins do not reveal their signature
        return
    try:
        signature.bind("task")
    except TypeError as error:
        raise ConfigError(
            f"agent= {name}{signature} cannot be called with one argument, the task: {error}; "
            "bind the others, for example with functools.partial"
        ) from error


def as_text(result: object) -> str:
    """Convert an agent's result to text; rewards get it as `output`.

    A string is returned unchanged, and None becomes "". For a framework's result object it is
    `output` (pydantic-ai) or `final_output` (openai-agents). Lists, dicts, dataclasses and pydantic
    models are written as JSON, anything else as `str` writes it.
    """
    if result is None or isinstance(result, str):
        return result or ""
    for name in ("output", "final_output"):
        inner = getattr(result, name, None)
        if inner is not None and not callable(inner):
            return _value_as_text(inner)
    return _value_as_text(result)


def _value_as_text(value: object) -> str:
    plain = value if isinstance(value, str) else as_plain(value)
    if isinstance(plain, dict | list | tuple):
        # It may have keys that JSON does not, such as tuples, or contain itself.
        with contextlib.suppress(TypeError, ValueError, RecursionError):
            return json.dumps(plain, ensure_ascii=False, default=as_plain_or_text)
    return str(value)
