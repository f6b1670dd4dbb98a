"""Responses and Anthropic messages, asked by their own clients: whole, streamed, and refused."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import anthropic
import httpx2
import openai
import pytest
from anthropic import AsyncAnthropic
from openai import AsyncOpenAI

from orbiter.train.engine.policy import Policy
from orbiter.train.serve import PolicyServer
from tests.serve.conftest import ADD

TOOL: Any = {"type": "function", **ADD["function"]}
COLD = {"temperature": 0}
"""Anthropic's client has no argument for it any more."""
CLAUDE_TOOL: Any = {"name": "add", "input_schema": ADD["function"]["parameters"]}


@pytest.fixture
async def server(caller: Policy) -> AsyncIterator[PolicyServer]:
    async with PolicyServer(caller, name="caller") as opened:
        yield opened


@pytest.fixture
async def client(server: PolicyServer) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=server.url, api_key="none", max_retries=0) as opened:
        yield opened


@pytest.fixture
async def claude(server: PolicyServer) -> AsyncIterator[AsyncAnthropic]:
    url = server.url.removesuffix("/v1")
    async with AsyncAnthropic(base_url=url, api_key="none", max_retries=0) as opened:
        yield opened


async def test_responses_calls_tools_and_reads_their_results(client: AsyncOpenAI) -> None:
    create: Any = client.responses.create
    asked: list[Any] = [{"role": "user", "content": "Add"}]
    settings: Any = {"model": "caller", "tools": [TOOL], "temperature": 0, "max_output_tokens": 200}
    first = await create(input=asked, **settings)
    assert first.status == "completed"
    assert [item.type for item in first.output] == ["message", "function_call", "function_call"]
    assert first.output_text == "Well:"
    calls = [item for item in first.output if item.type == "function_call"]
    assert [json.loads(call.arguments) for call in calls] == [{"a": 1}, {"a": 2}]
    call = {"type": "function_call", "call_id": "1", "name": "add", "arguments": '{"a": 1}'}
    result = {"type": "function_call_output", "call_id": "1", "output": "3"}
    second = await create(input=[*asked, call, result], **settings)
    assert second.output_text == "It is 3"
    assert second.usage.output_tokens == len("It is 3") + 1


async def test_responses_streams_what_it_answers_whole(client: AsyncOpenAI) -> None:
    settings: Any = {"model": "caller", "tools": [TOOL], "temperature": 0, "max_output_tokens": 200}
    whole: Any = await client.responses.create(input="Add", **settings)
    async with client.responses.stream(input="Add", **settings) as stream:
        kinds = [event.type async for event in stream]
        final: Any = await stream.get_final_response()
    assert kinds[0] == "response.created"
    assert kinds[-1] == "response.completed"
    assert "response.output_text.delta" in kinds

    def said(response: Any) -> list[Any]:  # noqa: ANN401 - two of OpenAI's classes
        return [
            (item.type, getattr(item, "arguments", None) or item.content[0].text)
            for item in response.output
        ]

    assert said(final) == said(whole)


async def test_a_response_that_is_cut_off_says_so(client: AsyncOpenAI) -> None:
    cut = await client.responses.create(model="caller", input="Add", max_output_tokens=2)
    assert cut.status == "incomplete"
    assert cut.incomplete_details is not None
    assert cut.incomplete_details.reason == "max_output_tokens"


async def test_messages_call_tools_and_read_their_results(claude: AsyncAnthropic) -> None:
    create: Any = claude.messages.create
    asked: list[Any] = [{"role": "user", "content": "Add"}]
    settings: Any = {
        "model": "caller",
        "tools": [CLAUDE_TOOL],
        "extra_body": COLD,
        "max_tokens": 200,
    }
    first = await create(messages=asked, **settings)
    assert first.stop_reason == "tool_use"
    assert [block.type for block in first.content] == ["text", "tool_use", "tool_use"]
    assert [block.input for block in first.content[1:]] == [{"a": 1}, {"a": 2}]
    call = {"type": "tool_use", "id": "1", "name": "add", "input": {"a": 1}}
    result = {"type": "tool_result", "tool_use_id": "1", "content": "3"}
    later = [
        *asked,
        {"role": "assistant", "content": [call]},
        {"role": "user", "content": [result]},
    ]
    second = await create(messages=later, **settings)
    assert second.content[0].text == "It is 3"
    assert second.stop_reason == "end_turn"


async def test_messages_stream_what_they_answer_whole(claude: AsyncAnthropic) -> None:
    settings: Any = {
        "model": "caller",
        "messages": [{"role": "user", "content": "Add"}],
        "tools": [CLAUDE_TOOL],
        "extra_body": COLD,
        "max_tokens": 200,
    }
    whole: Any = await claude.messages.create(**settings)
    async with claude.messages.stream(**settings) as stream:
        final: Any = await stream.get_final_message()
    assert [block.type for block in final.content] == [block.type for block in whole.content]
    assert final.content[0].text == whole.content[0].text
    assert [b.input for b in final.content[1:]] == [b.input for b in whole.content[1:]]
    assert final.stop_reason == whole.stop_reason == "tool_use"
    assert final.usage.output_tokens == whole.usage.output_tokens


async def test_a_stop_sequence_is_named(claude: AsyncAnthropic) -> None:
    asked: Any = {"model": "caller", "messages": [{"role": "user", "content": "Add"}]}
    settings: Any = {"tools": [CLAUDE_TOOL], "extra_body": COLD, "max_tokens": 200}
    cut = await claude.messages.create(**asked, **settings, stop_sequences=["ll"])
    assert (cut.stop_reason, cut.stop_sequence) == ("stop_sequence", "ll")
    assert cut.content[0].type == "text"
    assert cut.content[0].text == "We"


async def test_each_api_refuses_in_its_own_form(
    client: AsyncOpenAI, claude: AsyncAnthropic
) -> None:
    create: Any = client.responses.create
    for name, value in {
        "previous_response_id": "resp_1",
        "reasoning": {"effort": "high"},
        "text": {"format": {"type": "json_object"}},
        "tools": [{"type": "web_search"}],
    }.items():
        with pytest.raises(openai.BadRequestError) as refused:
            await create(model="caller", input="Add", **{name: value})
        assert name.removesuffix("s") in str(refused.value)
    image = {"type": "input_image", "image_url": "data:image/png;base64,"}
    with pytest.raises(openai.BadRequestError, match="text only"):
        await create(model="caller", input=[{"role": "user", "content": [image]}])
    ask: Any = claude.messages.create
    messages = [{"role": "user", "content": "Add"}]
    for extra in ({"top_k": 5}, {"thinking": {"type": "enabled", "budget_tokens": 1024}}):
        with pytest.raises(anthropic.BadRequestError) as caught:
            await ask(model="caller", messages=messages, max_tokens=4, extra_body=extra)
        assert next(iter(extra)) in str(caught.value)
        assert caught.value.body["type"] == "error"  # type: ignore[index]
    with pytest.raises(anthropic.NotFoundError):
        await ask(model="other", messages=messages, max_tokens=4)


async def test_a_token_may_come_as_anthropic_sends_it(caller: Policy) -> None:
    async with PolicyServer(caller, name="caller", token="secret") as server:
        url = server.url.removesuffix("/v1")
        body: Any = {"model": "caller", "messages": [{"role": "user", "content": "x"}]}
        async with AsyncAnthropic(base_url=url, api_key="secret") as friend:
            assert (await friend.messages.create(**body, max_tokens=2)).role == "assistant"
        async with httpx2.AsyncClient() as stranger:
            answer = await stranger.post(f"{server.url}/messages", json=body | {"max_tokens": 2})
        assert answer.status_code == 401
