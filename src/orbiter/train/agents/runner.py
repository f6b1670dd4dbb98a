"""Runs an agent on one task, with the policy in training as its model.

The agent is not changed: requests that its HTTP clients make to a model, whatever the address,
are answered in this process (`capture.transport.answered_by`, `serve.live`).
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import re
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar, cast

from orbiter.train.agents.episode import Episode, OpenEpisode, StopReason, as_text, entry_of
from orbiter.train.agents.streams import turns_to_streams
from orbiter.train.callback import call
from orbiter.train.capture.transport import answered_by
from orbiter.train.errors import described

if TYPE_CHECKING:
    from orbiter.train.serve.session import LiveSession, Turn

T = TypeVar("T")
LENGTH_ERROR = re.compile(
    r"length limit|LengthFinish|finish_?reason\W+length|max_?(output_?|completion_?)?tokens"
    r"|token limit|incomplete|truncated|cut off",
    re.IGNORECASE,
)
"""How clients and frameworks write that an answer reached its limit of tokens: openai, the OpenAI
Agents SDK, pydantic-ai, instructor."""
log = logging.getLogger(__name__)

GRACE_SECONDS = 5.0
"""How long an agent may take to react to its cancellation before it is abandoned."""


class AgentModel(Protocol):
    """A policy that answers agents: a `LivePolicy`, or a `RemotePolicy` sampled elsewhere."""

    def session(
        self, *, seed: int, max_turns: int | None = None, max_episode_tokens: int | None = None
    ) -> LiveSession:
        """Open a session for one episode."""

    def submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Run a coroutine where requests are answered."""


class _AgentOutcome(NamedTuple):
    """How a call of the agent ended."""

    result: object = None
    output: str = ""
    error: BaseException | None = None
    timed_out: bool = False


async def run_episode(
    agent: object,
    task: object,
    live: AgentModel,
    *,
    seed: int,
    attempt: int = 0,
    max_turns: int | None = None,
    max_episode_tokens: int | None = None,
    timeout_seconds: float | None = None,
    models: Sequence[str] | None = None,
) -> Episode:
    """Let an agent work on a task; failures are recorded in the episode's `stop_reason`.

    If an agent raises after reaching a limit, the stop reason is the limit, because the refused
    call most likely caused the error; see also `_was_cut_off`.

    Args:
        agent: A function of the task, sync or async, or an object with `run`. A plain function
            runs in a thread, which a time limit cannot stop: its later model calls get 410.
        task: Passed to the agent as it is.
        live: The policy that answers, open.
        seed: Determines the policy's answers, together with the prompts.
        attempt: Number of this attempt at the task, for the record.
        max_turns: The maximum number of answers; the next request gets a 400.
        max_episode_tokens: Tokens of the episode at most; see `LivePolicy.session`.
        timeout_seconds: Time limit of the whole episode.
        models: Only calls that name one of these models are answered by the policy, the others go
            to their real address; None gives every model call to the policy.

    Raises:
        ConfigError: the agent cannot be run.
    """
    run = entry_of(agent)
    session = live.session(seed=seed, max_turns=max_turns, max_episode_tokens=max_episode_tokens)
    opened = OpenEpisode(session, task, attempt)
    started = time.perf_counter()
    try:
        with answered_by(opened, models=models):
            # A time limit closes the session first, so that a late answer is refused, not
            # recorded.
            outcome = await _outcome(run, task, timeout_seconds, opened.close)
    finally:
        opened.close()
    # On the loop that answers, because that is where turns are appended.
    await asyncio.wrap_future(live.submit(_settle()))
    turns = tuple(session.turns)
    return Episode(
        task=task,
        attempt=attempt,
        result=outcome.result,
        output=outcome.output,
        turns=turns,
        streams=tuple(turns_to_streams(turns)),
        stop_reason=_stop_reason(outcome, session),
        error=_error(outcome, session),
        step_rewards=tuple(opened.step_rewards),
        step_reward_turns=tuple(opened.step_reward_turns),
        seconds=time.perf_counter() - started,
    )


async def _outcome(
    run: Callable[[object], object],
    task: object,
    timeout_seconds: float | None,
    close: Callable[[], None],
) -> _AgentOutcome:
    """Call the agent in a separate task, so that ignoring its cancellation blocks nothing else."""
    working = asyncio.create_task(_guarded(run, task))
    try:
        # wait, not wait_for: wait_for would wait for an agent that ignores its cancellation.
        await asyncio.wait({working}, timeout=timeout_seconds)
    except asyncio.CancelledError:
        # Closed before the agent is cancelled: its clean-up code may call the model again.
        close()
        await _give_up(working)
        raise
    if not working.done():
        close()
        await _give_up(working)
        return _AgentOutcome(timed_out=True)
    # Cancelled from inside; the episode failed, but the run must not end.
    if working.cancelled():
        return _AgentOutcome(error=asyncio.CancelledError("the agent cancelled itself"))
    return working.result()


async def _guarded(run: Callable[[object], object], task: object) -> _AgentOutcome:
    """Call the agent; any exception, including that of `sys.exit()`, becomes an outcome."""
    try:
        result: object = await call(cast("Callable[[object], Awaitable[object]]", run), task)
        if inspect.isgenerator(result) or inspect.isasyncgen(result):
            raise TypeError("the agent returned a generator, which never ran; return the answer")
        return _AgentOutcome(result, as_text(result))
    except (asyncio.CancelledError, KeyboardInterrupt, GeneratorExit):
        raise  # a cancellation, and Ctrl-C
    except BaseException as error:  # also SystemExit, and panics of libraries written in Rust
        return _AgentOutcome(error=error)


async def _give_up(working: asyncio.Task[_AgentOutcome]) -> None:
    working.cancel()
    await asyncio.wait({working}, timeout=GRACE_SECONDS)
    if not working.done():
        log.warning(
            "an agent ignores its cancellation; it continues in the background, and its model "
            "calls are refused"
        )


async def _settle() -> None:
    """Let the decode loop record answers that the agent did not read to their end."""
    for _ in range(3):
        await asyncio.sleep(0)


def _stop_reason(outcome: _AgentOutcome, session: LiveSession) -> StopReason:
    # The time limit comes first, since closing the session makes the agent fail in other ways.
    if outcome.timed_out:
        return "timeout"
    if session.stop_reason is not None:
        return cast("StopReason", session.stop_reason)
    if outcome.error is not None:
        return "max_response" if _was_cut_off(outcome.error, session.turns) else "agent_error"
    return "done" if session.turns else "no_calls"


def _was_cut_off(error: BaseException, turns: Sequence[Turn]) -> bool:
    """Return whether an agent raised because its last answer was cut off.

    That is a limit and no failure: leaving such episodes out would hide from the policy that its
    answers are too long.

    Both must hold: with a small `max_response_length` nearly every answer is cut off, also the one
    before a database that is down.
    """
    if not turns or turns[-1].finish_reason != "length":
        return False
    return LENGTH_ERROR.search(f"{type(error).__name__}: {error}") is not None


def _error(outcome: _AgentOutcome, session: LiveSession) -> str | None:
    if _stop_reason(outcome, session) == "no_calls":
        return _why_no_calls(session)
    if outcome.error is None:
        return None
    text = described(outcome.error)
    # The exceptions of plain HTTP clients leave out what the policy answered.
    reasons = [reason for reason in session.refusals if reason.partition(": ")[2] not in text]
    return f"{text}; the policy refused a call: {reasons[-1]}" if reasons else text


def _why_no_calls(session: LiveSession) -> str:
    """Return why an agent that returned got no answer of the policy."""
    if session.refusals:
        # An agent that catches every exception hides them.
        return f"all its model calls were refused: {'; '.join(list(session.refusals)[:2])}"
    if session.requests:
        return "it asked for streams, and left them before it read a token"
    return (
        "it made no model call that the policy answers: of httpx, httpx2, requests and aiohttp, "
        "to chat completions, Responses or Anthropic messages, naming one of policy_models if set"
    )
