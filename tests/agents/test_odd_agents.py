"""Agents, tasks, settings and results of unusual kinds: each works, or is refused in words."""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pydantic
import pytest

from orbiter.train.agents import run_episode
from orbiter.train.agents.command import task_text
from orbiter.train.agents.environments import make_tool
from orbiter.train.agents.environments.environment import task_fields
from orbiter.train.agents.environments.tools import ToolError, tool_text
from orbiter.train.engine.policy import Policy
from orbiter.train.errors import ConfigError
from orbiter.train.serve.live import LivePolicy
from orbiter.train.verl.tasks import as_tasks
from tests.agents.playing import NOWHERE, ask

HELLO: list[dict[str, Any]] = [{"role": "user", "content": "hello"}]


async def yields(task: str) -> AsyncIterator[str]:
    yield str(await ask(HELLO))


def yields_plainly(task: str) -> Iterator[str]:
    yield task


class YieldsWhenCalled:
    async def __call__(self, task: str) -> AsyncIterator[str]:
        yield task


class YieldsInRun:
    def run(self, task: str) -> Iterator[str]:
        yield task


async def needs_two(task: str, tools: list[object]) -> str:
    return task


def needs_none() -> str:
    return ""


@pytest.mark.parametrize(
    ("agent", "words"),
    [
        (yields, "agent= yields is a generator, which would never run"),
        (yields_plainly, "is a generator"),
        (YieldsWhenCalled(), "is a generator"),
        (YieldsInRun(), "is a generator"),
        (functools.partial(functools.partial(yields)), "agent= yields is a generator"),
        (needs_two, r"needs_two\(task.* cannot be called with one argument.*'tools'"),
        (needs_none, "cannot be called with one argument, the task: too many"),
        (functools.partial(needs_two, tools=[], task=""), "cannot be called with one argument"),
    ],
)
async def test_an_agent_that_would_fail_in_every_episode_is_refused_at_once(
    live: LivePolicy, agent: object, words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        await run_episode(agent, "hello", live, seed=0)


async def test_a_generator_that_only_the_result_reveals_is_an_error(live: LivePolicy) -> None:
    # Wrapped without functools.wraps, so that their signature does not show it.
    for inner in (yields, yields_plainly):

        def agent(task: str, inner: Any = inner) -> object:  # noqa: ANN401
            return inner(task)

        episode = await run_episode(agent, "hello", live, seed=0)
        assert episode.stop_reason == "agent_error"
        assert "returned a generator" in str(episode.error)


async def test_bound_arguments_leave_the_task(live: LivePolicy) -> None:
    agent = functools.partial(needs_two, tools=[])
    episode = await run_episode(agent, "hello", live, seed=0)
    assert episode.output == "hello"


class PanicError(BaseException):
    """Like the panics of libraries written in Rust, which are not `Exception`s."""


class SilentError(Exception):
    def __str__(self) -> str:
        raise ValueError("no text")


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize(
    ("error", "words"),
    [
        (PanicError("a panic"), "PanicError: a panic"),
        (SilentError(), "SilentError"),
        (BaseExceptionGroup("two", [SystemExit(1)]), "BaseExceptionGroup: two"),
    ],
)
async def test_whatever_an_agent_raises_fails_its_episode_and_not_the_run(
    live: LivePolicy, error: BaseException, words: str, plain: bool
) -> None:
    async def raises(task: str) -> None:
        raise error

    def raises_in_a_thread(task: str) -> None:
        raise error

    agent = raises_in_a_thread if plain else raises
    episode = await run_episode(agent, "hello", live, seed=0)
    assert episode.stop_reason == "agent_error"
    assert words in str(episode.error)


class Answer(pydantic.BaseModel):
    colour: str
    parts: list[int] = [1]


@dataclass
class Note:
    text: str
    answer: Answer


@dataclass
class Wrapped:
    output: object
    cost: float = 0.5


class Mute:
    def __str__(self) -> str:
        raise ValueError("no text")


ITSELF: dict[str, object] = {}
ITSELF["me"] = ITSELF
RED = Answer(colour="red")
RED_TEXT = '{"colour": "red", "parts": [1]}'


@pytest.mark.parametrize(
    ("result", "output"),
    [
        (RED, RED_TEXT),
        (Note("a", RED), f'{{"text": "a", "answer": {RED_TEXT}}}'),
        ([RED], f"[{RED_TEXT}]"),
        (Wrapped("text"), "text"),
        (Wrapped(""), ""),
        (Wrapped(RED), RED_TEXT),
        (Wrapped(7), "7"),
        ({"a": {1}}, '{"a": "{1}"}'),
        ({(1, 2): 3}, "{(1, 2): 3}"),
        (ITSELF, "{'me': {...}}"),
        (7, "7"),
    ],
)
async def test_any_result_becomes_text(live: LivePolicy, result: object, output: str) -> None:
    async def returns(task: str) -> object:
        await ask(HELLO)
        return result

    episode = await run_episode(returns, "hello", live, seed=0)
    assert episode.stop_reason == "done"
    assert episode.output == output


async def test_a_result_without_a_text_fails_its_episode(live: LivePolicy) -> None:
    async def returns(task: str) -> object:
        await ask(HELLO)
        return Mute()

    episode = await run_episode(returns, "hello", live, seed=0)
    assert (episode.stop_reason, episode.error) == ("agent_error", "ValueError: no text")


IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}


async def hides_errors(task: str) -> str:
    try:
        await ask([{"role": "user", "content": [IMAGE]}])
    except httpx.HTTPStatusError:
        return "sorry"
    return ""


async def does_not_read(task: str) -> str:
    async with httpx.AsyncClient() as client:
        body = {"model": "any", "messages": HELLO, "stream": True}
        async with client.stream("POST", NOWHERE, json=body):
            return "bored"


async def calls_nothing(task: str) -> str:
    return task


@pytest.mark.parametrize(
    ("agent", "words"),
    [
        (hides_errors, "refused: 400: content may hold text only, got a part of type 'image_url'"),
        (calls_nothing, "it made no model call that the policy answers: of httpx, httpx2"),
    ],
)
async def test_an_episode_without_a_call_says_why(
    live: LivePolicy, agent: object, words: str
) -> None:
    episode = await run_episode(agent, "hello", live, seed=0)
    assert episode.stop_reason == "no_calls"
    assert words in str(episode.error)


async def test_a_stream_that_is_left_unread_is_a_turn_or_says_so(live: LivePolicy) -> None:
    episode = await run_episode(does_not_read, "hello", live, seed=0)
    if episode.turns:  # the first token may have been drawn before the agent left
        assert episode.turns[0].finish_reason == "cancelled"
    else:
        assert episode.error == "it asked for streams, and left them before it read a token"


@pytest.mark.parametrize(
    "settings", [{"temperature": 3}, {"top_p": 0}, {"seed": 2**70}, {"temperature": "warm"}]
)
async def test_sampling_settings_of_the_agent_never_end_an_episode(
    live: LivePolicy, settings: dict[str, object]
) -> None:
    async def agent(task: str) -> str:
        return str((await ask(HELLO, **settings))["content"])

    with_settings = await run_episode(agent, "hello", live, seed=0)
    settings.clear()
    without = await run_episode(agent, "hello", live, seed=0)
    assert with_settings.stop_reason == "done"
    assert with_settings.turns[0].token_ids == without.turns[0].token_ids


async def test_more_answers_than_rows_are_drawn_and_hold_up_nobody(policy: Policy) -> None:
    async def several(task: str) -> str:
        return str(await ask(HELLO, n=5))

    async with LivePolicy(policy, max_new_tokens=3, max_rows=2) as narrow:
        episodes = await asyncio.gather(
            *(run_episode(several, "hello", narrow, seed=s, timeout_seconds=60) for s in range(3))
        )
        assert [len(episode.turns) for episode in episodes] == [5, 5, 5]

        async def too_many(task: str) -> str:
            return str(await ask(HELLO, n=1000))

        refused = await run_episode(too_many, "hello", narrow, seed=0)
    assert refused.stop_reason == "agent_error"


async def test_an_agent_that_never_gives_up_cannot_keep_the_policy_busy(live: LivePolicy) -> None:
    tried, over = [0], threading.Event()

    def stubborn(task: str) -> str:
        with httpx.Client() as client:
            while not over.is_set():
                answer = client.post(NOWHERE, json={"model": "any", "messages": HELLO})
                tried[0] += answer.status_code != 200
        return ""

    episode = await run_episode(stubborn, "hello", live, seed=0, max_turns=2, timeout_seconds=1.5)
    await asyncio.sleep(0.5)
    over.set()
    assert episode.stop_reason == "timeout"
    # Ten at once, and then two a second; without a pause there would be hundreds.
    assert 1 <= tried[0] <= 20


class Plain:
    def __init__(self, size: int) -> None:
        self.size = size


@pytest.mark.parametrize(
    ("tasks", "text"),
    [
        ([Plain(1), Plain(1)], '{"Plain": {"size": 1}}'),
        ([RED, Answer(colour="red")], RED_TEXT),
        ([Note("a", RED), Note("a", RED)], f'{{"text": "a", "answer": {RED_TEXT}}}'),
        ([{"x": Plain(2)}] * 2, '{"x": {"Plain": {"size": 2}}}'),
        ([{(1, 2): 3}] * 2, "{(1, 2): 3}"),
        ([ITSELF, ITSELF], "{'me': {...}}"),
        ([{"b", "a"}, {"a", "b"}], "[\"'a'\", \"'b'\"]"),
        ([3, 3], "3"),
    ],
)
def test_equal_tasks_of_any_type_are_recognised_after_a_resume(
    tasks: list[object], text: str
) -> None:
    first, second = as_tasks(tasks).items
    assert first.state == second.state == text


def test_dataclasses_and_pydantic_models_are_tasks_with_fields() -> None:
    assert task_fields(RED) == {"colour": "red", "parts": [1]}
    assert task_fields(Note("a", RED)) == {"text": "a", "answer": RED}
    assert task_text([RED]) == f"[{RED_TEXT}]"


class Place(pydantic.BaseModel):
    city: str


class Trip(pydantic.BaseModel):
    to: Place
    days: int = pydantic.Field(ge=1)


async def book(trip: Trip, back: Place | None = None, note: str | None = None) -> object:
    """Book a trip."""
    return {"city": trip.to.city, "trip": trip, "note": note}


async def test_tools_take_and_return_pydantic_models() -> None:
    tool = make_tool(book)
    both = '{"trip": {"to": {"city": "Rome"}, "days": 2}, "back": {"city": "Bonn"}}'
    assert "Rome" in await tool.run(both)
    assert set(tool.parameters["$defs"]) >= {"Place"}
    assert "#/$defs/Place" in str(tool.parameters)
    assert '"to":{"city":"Rome"}' in await tool.run('{"trip": {"to": {"city": "Rome"}, "days": 2}}')
    with pytest.raises(
        ToolError,
        match=r"wrong arguments for book: days: Input should be greater than or equal to 1",
    ):
        await tool.run('{"trip": {"to": {"city": "Rome"}, "days": 0}}')


def test_a_result_that_json_cannot_hold_still_reaches_the_model() -> None:
    assert tool_text({(1, 2): {1}}) == '{"(1, 2)":[1]}'
    assert tool_text([RED]) == '[{"colour":"red","parts":[1]}]'
    assert tool_text(ITSELF) == "{'me': {...}}"


async def test_an_error_without_the_reason_of_a_refusal_gets_it(live: LivePolicy) -> None:
    async def sends_an_image(task: str) -> str:
        return str(await ask([{"role": "user", "content": [IMAGE]}]))

    episode = await run_episode(sends_an_image, "hello", live, seed=0)
    assert episode.stop_reason == "agent_error"
    assert "HTTPStatusError" in str(episode.error)
    assert "the policy refused a call: 400: content may hold text only" in str(episode.error)
