"""Agents whose clients are hard-wired to a provider reach the live policy, without a socket."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest
from openai import AsyncOpenAI, OpenAI

from orbiter.train import TrajectoryDataset
from orbiter.train.capture import record
from orbiter.train.capture.transport import answered_by
from orbiter.train.engine.policy import Policy
from orbiter.train.serve.live import LivePolicy, LiveSession
from tests.serve.conftest import ADD, CALLING

ASKED: Any = [{"role": "user", "content": "Add"}]
URL = "https://api.openai.com/v1"


@pytest.fixture
async def live(caller: Policy) -> AsyncIterator[LivePolicy]:
    async with LivePolicy(
        caller, max_new_tokens=160, temperature=0, return_token_ids=True
    ) as opened:
        yield opened


@pytest.fixture
def session(live: LivePolicy) -> LiveSession:
    return live.session(seed=1)


async def test_async_openai_reaches_the_session_whole_and_streamed(session: LiveSession) -> None:
    with answered_by(session):
        async with AsyncOpenAI(base_url=URL, api_key="k", max_retries=0) as client:
            create: Any = client.chat.completions.create
            whole = await create(model="gpt-5", messages=ASKED, tools=[ADD])
            stream = await create(model="gpt-5", messages=ASKED, tools=[ADD], stream=True)
            chunks = [chunk async for chunk in stream]
    names = [call.function.name for call in whole.choices[0].message.tool_calls]
    assert names == ["add", "add"]
    assert chunks[-1].choices[0].finish_reason == "tool_calls"
    first, second = session.turns
    assert bytes(first.token_ids[:-1]).decode() == CALLING
    assert first.token_ids == second.token_ids


async def test_sync_clients_on_the_loops_own_thread_and_in_others_do_not_deadlock(
    session: LiveSession,
) -> None:
    def ask() -> str:
        with OpenAI(base_url=URL, api_key="k", max_retries=0) as client:
            create: Any = client.chat.completions.create
            pieces = create(model="gpt-5", messages=ASKED, stream=True)
            return "".join(p.choices[0].delta.content or "" for p in pieces)

    with answered_by(session):
        async with asyncio.timeout(60):
            here = ask()
            there = await asyncio.gather(*(asyncio.to_thread(ask) for _ in range(3)))
    assert {here, *there} == {here}
    assert len(session.turns) == 4


@pytest.mark.parametrize("name", ["httpx", "httpx2"])
async def test_plain_clients_reach_it_and_other_requests_go_outside(
    session: LiveSession, name: str
) -> None:
    library: Any = importlib.import_module(name)
    seen: list[str] = []

    def outside(request: Any) -> Any:  # noqa: ANN401 - of either library
        seen.append(str(request.url))
        return library.Response(200, json={"outside": True})

    body = {"model": "mine", "messages": ASKED}
    with (
        answered_by(session, models=["mine"]),
        library.Client(transport=library.MockTransport(outside)) as client,
    ):
        inside = client.post(f"{URL}/chat/completions", json=body)
        judge = client.post(f"{URL}/chat/completions", json=body | {"model": "judge"})
        other = client.get("https://example.com/search")
    assert inside.json()["model"] == "mine"
    assert inside.elapsed.total_seconds() > 0
    assert judge.json() == other.json() == {"outside": True}
    assert seen == [f"{URL}/chat/completions", "https://example.com/search"]
    assert len(session.turns) == 1


async def test_outside_of_the_block_and_after_close_nothing_is_answered(
    session: LiveSession,
) -> None:
    body = {"model": "m", "messages": ASKED}
    outside = httpx2.MockTransport(lambda _: httpx2.Response(200, json={"outside": True}))
    async with httpx2.AsyncClient(transport=outside) as client:
        with answered_by(session):
            session.close()
            late = await client.post(f"{URL}/chat/completions", json=body)
        after = await client.post(f"{URL}/chat/completions", json=body)
    assert late.status_code == 410
    assert after.json() == {"outside": True}
    assert session.turns == []


async def test_record_captures_what_the_session_answers(session: LiveSession) -> None:
    dataset = TrajectoryDataset()
    with answered_by(session), record(dataset, agent="a", task_id="t") as episode:
        async with AsyncOpenAI(base_url=URL, api_key="k") as client:
            create: Any = client.chat.completions.create
            await create(model="gpt-5", messages=ASKED)
        episode.reward(1.0)
    (turn,) = session.turns
    assert list(dataset[0].prompt_token_ids or ()) == turn.prompt_token_ids
    assert list(dataset[0].token_ids or ()) == turn.token_ids
    assert list(dataset[0].logprobs or ()) == turn.logprobs
